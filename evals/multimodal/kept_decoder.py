"""AIMv2's own decoder as a model that captions and answers, on tokens of the frozen encoder that it was pre-trained with.

A question is a text prefix: what the decoder reads is [image tokens ; BOS ; question ; answer ; EOS]; a caption has an empty
question. As it is loaded nothing differs from the pre-trained decoder. For fine-tuning its context and its vocabulary can be
extended.

Shape letters: B pairs, N image tokens, E width of the encoder's tokens, L text tokens, D width, V vocabulary.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from evals.encoder import TokenEncoder
from evals.multimodal.added_words import WordTokenizer, load_word_tokenizer
from evals.multimodal.examples import Generation
from evals.text.caption_scorer import RANDOM, load_decoder
from evals.text.scorers import weights_of
from pretrain.data.tokenizers import CaptionTokenizer, collate_captions
from pretrain.export import save_json, save_tensors
from pretrain.models.attention import choose_fused_attention
from pretrain.models.decoder import Decoder
from pretrain.objectives.losses import vocabulary_loss_sum
from pretrain.rng import draw_key
from pretrain.types import UserError

_WEIGHTS, _ABOUT = "decoder.safetensors", "decoder.json"
#: Standard deviation of fresh positions and token embeddings (reference, section 4).
_POSITION_STD = 0.02


@dataclass(frozen=True)
class EncodedPair:
    """A question with its answer, as the decoder reads them.

    Attributes:
        ids: int64 [L], the question's, the answer's, EOS.
        is_target: bool [L], what is learned: the answer and EOS.
    """

    ids: np.ndarray
    is_target: np.ndarray


class KeptDecoder(nn.Module):
    """The decoder with its tokenizer, in evaluation mode and without gradients as it is loaded; `requires_grad_()` to fine-tune.

    Args:
        decoder: predicts text; a copy is kept, without the head of pixels.
        tokenizer: of its captions.
        spec: the run or folder that it comes from, for messages.

    Raises:
        UserError: a decoder that predicts no text.
    """

    def __init__(self, decoder: Decoder, tokenizer: CaptionTokenizer, *, spec: str) -> None:
        super().__init__()
        if decoder.text_head is None:
            raise UserError(f"{spec}: its decoder was trained on pixels alone and writes no text")
        self.decoder = copy.deepcopy(decoder)
        self.decoder.pixel_head = None
        self.tokenizer = tokenizer if isinstance(tokenizer, WordTokenizer) else WordTokenizer(tokenizer)
        self.spec = spec

    @property
    def context_length(self) -> int:
        """Most tokens of question, answer and EOS."""
        return self.decoder.context_length

    @property
    def filler_id(self) -> int:
        """Stands where a batch has no token."""
        return self.tokenizer.pad_id

    def identity(self) -> str:
        """A short name for weights and added words."""
        return weights_of(self.decoder) + (f"+{','.join(self.tokenizer.words)}" if self.tokenizer.words else "")

    def encode(self, pairs: Sequence[tuple[str, str]], *, check: bool = True) -> list[EncodedPair]:
        """Questions ("" for a caption) with their answers.

        Args:
            pairs: (question, answer).
            check: whether one that is longer than the context is an error; else it is given as long as it is.

        Raises:
            UserError: a pair longer than the decoder's context.
        """
        encoded = []
        for question, answer in pairs:
            asked, answered = self.tokenizer.ids(question), [*self.tokenizer.ids(answer), self.tokenizer.eos_id]
            if check and (length := len(asked) + len(answered)) > self.context_length:
                what = f"question {question!r:.120} with its answer {answer!r:.120}"
                raise self._too_long(what if question else f"caption {answer!r:.120}", length)
            ids = np.array([*asked, *answered], np.int64)
            encoded.append(EncodedPair(ids, np.arange(len(ids)) >= len(asked)))
        return encoded

    def _too_long(self, what: str, length: int) -> UserError:
        return UserError(
            f"{what} takes {length} tokens, the context of {self.spec}'s decoder is {self.context_length}: leave it out, or "
            "fine-tune the decoder, which lengthens its context"
        )

    def collate(self, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
        """text_BL int64 and target_BL bool, padded behind to the longest."""
        text_BL, target_BL = collate_captions(
            [pair.ids for pair in pairs], self.filler_id, multiple=1, context_length=self.context_length
        )
        for row, pair in zip(target_BL, pairs, strict=True):
            row[: len(pair.is_target)] = torch.from_numpy(pair.is_target)
        return text_BL, target_BL

    def loss(self, tokens_BNE: Tensor, text_BL: Tensor, target_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the cross entropy over the tokens that are learned, and their number.

        Args:
            tokens_BNE: the encoder's.
            text_BL: int64, each row a pair's ids with anything behind them.
            target_BL: bool, the tokens of `text_BL` that are learned.
        """
        self._choose_attention(tokens_BNE.device)
        hidden_BLD = self.decoder(tokens_BNE.float(), text_BL)[:, tokens_BNE.shape[1] :]
        total = vocabulary_loss_sum(hidden_BLD[target_BL], self.decoder.text_head.weight, text_BL[target_BL])
        return total, target_BL.sum()

    @torch.no_grad()
    def answer(
        self,
        tokens_BNE: Tensor,
        prompts: Sequence[str],
        generation: Generation,
        *,
        number_B: Sequence[int] | None = None,
        use_cache: bool = True,
    ) -> list[str]:
        """What is generated behind each prompt, stripped; it ends with the context where that leaves less than `max_tokens`.

        Args:
            tokens_BNE: the encoder's.
            prompts: questions, "" for a caption. Those of as many tokens are answered together, so that batches of about the
                same length are fast.
            generation: how.
            number_B: the examples' numbers, which sampling is a function of; the places in the batch where not given.
            use_cache: the answers are the same without.

        Raises:
            UserError: a prompt that leaves no room for an answer; numbers that cannot be meant.
        """
        generation.check()
        if not prompts:
            return []
        asked = [self.tokenizer.ids(prompt) for prompt in prompts]
        for prompt, ids in zip(prompts, asked, strict=True):
            if len(ids) >= self.context_length:
                raise self._too_long(f"question {prompt!r:.120}, before any answer,", len(ids))
        device = tokens_BNE.device
        self._choose_attention(device)
        prompt_BL, _ = collate_captions(asked, self.filler_id, multiple=1, context_length=self.context_length)
        sampled = generation.temperature > 0
        numbers = range(len(prompts)) if number_B is None else number_B
        made_BT = self.decoder.generate(
            tokens_BNE.float(),
            prompt_BL.to(device),
            prompt_length_B=torch.tensor([len(ids) for ids in asked]),
            eos_id=self.tokenizer.eos_id,
            max_new_tokens=generation.max_tokens,
            num_beams=generation.num_beams,
            length_penalty=generation.length_penalty,
            temperature=generation.temperature,
            top_k=generation.top_k,
            generator=[_generator(generation.seed, number, device) for number in numbers] if sampled else None,
            use_cache=use_cache,
        )
        return [self.tokenizer.decode(row[len(ids) :]) for row, ids in zip(made_BT.tolist(), asked, strict=True)]

    def _choose_attention(self, device: torch.device) -> None:
        mixed = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else torch.float32
        choose_fused_attention(self.decoder, device_type=device.type, dtype=dtype)

    def extend_context(self, length: int, *, seed: int = 0) -> None:
        """Add learned positions for texts of up to `length` tokens; present ones stay. Before an optimiser is made.

        Raises:
            UserError: the context is longer already.
        """
        decoder, added = self.decoder, length - self.context_length
        if added < 0:
            raise UserError(
                f"extend_context: {length} is below the present context of {self.context_length}; it must not be"
            )
        decoder.pos_embed = _longer(decoder.pos_embed, added, dim=1, std=_POSITION_STD, seed=seed, name="positions")
        decoder.context_length = self.tokenizer.context_length = length

    def extend_vocabulary(self, texts: Iterable[str], *, min_share: float = 2e-4, seed: int = 0) -> list[str]:
        """Give words that the tokenizer spells with two tokens or more a token of their own; rows of present ones stay.

        Args:
            texts: questions and answers.
            min_share: least number of a word over the number of texts (see `WordTokenizer.words_to_add`); 1/5,000, which is ours.
            seed: of the new rows, drawn as the decoder's own were.

        Returns:
            The words, in the order of their tokens. Before an optimiser is made.
        """
        words = self.tokenizer.words_to_add(texts, min_share=min_share)
        self.tokenizer = WordTokenizer(
            self.tokenizer.base, [*self.tokenizer.words, *words], context_length=self.tokenizer.context_length
        )
        embed, head = self.decoder.token_embed, self.decoder.text_head
        # `Decoder.init_weights`: a head is scaled with depth
        head_std = (2 * len(self.decoder.blocks) * head.in_features) ** -0.5
        embed.weight = _longer(embed.weight, len(words), dim=0, std=_POSITION_STD, seed=seed, name="embeddings")
        head.weight = _longer(head.weight, len(words), dim=0, std=head_std, seed=seed, name="head")
        embed.num_embeddings = head.out_features = len(head.weight)
        return words

    def save(self, folder: Path) -> None:
        """Write weights, sizes and tokenizer for :func:`load_tuned_decoder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self.decoder.state_dict(), folder / _WEIGHTS)
        self.tokenizer.save(folder / "tokenizer")
        save_json(
            {"spec": self.spec, "decoder": _sizes(self.decoder)}, folder / _ABOUT
        )  # last: a folder with it is whole

    @classmethod
    def load(cls, folder: Path) -> Self:
        """See :func:`load_tuned_decoder`."""
        path = folder / _ABOUT
        try:
            about = json.loads(path.read_text())
            spec, decoder = about["spec"], Decoder(**about["decoder"], patch_pixels=None)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} holds no fine-tuned decoder: {' '.join(str(error).split())}") from error
        tokenizer = load_word_tokenizer(folder / "tokenizer")
        if tokenizer.vocab_size != decoder.text_head.out_features:
            raise UserError(
                f"{folder / 'tokenizer'} has {tokenizer.vocab_size} ids, {path} says {decoder.text_head.out_features}"
            )
        try:
            decoder.load_state_dict(load_file(folder / _WEIGHTS), strict=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"{folder / _WEIGHTS} does not hold the weights that {path} describes: {str(error).splitlines()[-1].strip()}"
            ) from error
        return cls(decoder, tokenizer, spec=spec).eval().requires_grad_(False)


def _sizes(decoder: Decoder) -> dict[str, int]:
    block = decoder.blocks[0]
    return {
        "encoder_dim": decoder.image_proj.in_features,
        "embed_dim": decoder.image_proj.out_features,
        "depth": len(decoder.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_hidden_dim": block.mlp.fc2.in_features,
        "vocab_size": decoder.text_head.out_features,
        "context_length": decoder.context_length,
    }


def _longer(old: nn.Parameter, added: int, *, dim: int, std: float, seed: int, name: str) -> nn.Parameter:
    """`old` with fresh rows behind its own; normal, a function of the seed, the rows' kind and where they begin."""
    shape = list(old.shape)
    shape[dim] = added
    generator = torch.Generator().manual_seed(draw_key(seed, f"kept_decoder/{name}", old.shape[dim]) >> 1)
    fresh = std * torch.randn(shape, generator=generator)
    return nn.Parameter(torch.cat([old.detach(), fresh.to(old)], dim=dim), requires_grad=old.requires_grad)


def _generator(seed: int, number: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(draw_key(seed, "kept_decoder/answer", number) >> 1)


def load_kept_decoder(spec: str, *, encoder: TokenEncoder, seed: int = 0, untrained: bool = False) -> KeptDecoder:
    """The decoder of a run or an export of this suite, on the CPU, in evaluation mode and without gradients.

    Args:
        spec: a run, an export, or `random:` and one of these: the same architecture with fresh weights.
        encoder: whose tokens it will be given.
        seed: of fresh weights.
        untrained: as `random:` in front of the spec.

    Raises:
        UserError: no such decoder, a damaged export, or tokens of another width.
    """
    path = spec.removeprefix(RANDOM)
    loaded = load_decoder(RANDOM + path if untrained else spec, seed=seed)
    if loaded is None:
        raise UserError(
            f"--encoder={spec} has no decoder that writes text; give a run of this suite that was trained on captions"
        )
    objective, tokenizer = loaded
    if (width := objective.decoder.image_proj.in_features) != encoder.embed_dim:
        raise UserError(
            f"--encoder={spec}: its decoder takes tokens {width} wide, the encoder's are {encoder.embed_dim} wide"
        )
    return KeptDecoder(objective.decoder, tokenizer, spec=spec).eval()


def load_tuned_decoder(folder: str | Path) -> KeptDecoder:
    """A fine-tuned decoder that was saved, on the CPU, in evaluation mode and without gradients.

    Raises:
        UserError: nothing there, or not what it says it is.
    """
    return KeptDecoder.load(Path(folder))
