"""How well a text fits a picture, by this suite's decoder: the likelihood of the text as the picture's caption.

This is "caption likelihood", for encoders that were pre-trained with a decoder; a text tower fitted to a frozen encoder (LiT) is
something else. A picture goes through the encoder and the decoder's image positions once; all texts share its keys and values.

Shape letters: B pictures, C channels, H/W pixels, N image tokens, T things that are named, W wordings of a block, L text tokens,
M = W * L, D width, H heads, K head width, R valid tokens of a block, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from evals.encoder import TokenEncoder
from evals.text.scorers import ImageTextScorer, weights_of
from pretrain.data.tokenizers import CaptionTokenizer, collate_captions
from pretrain.export import find_export, load_pretrained
from pretrain.models.decoder import Cache, Decoder, DecoderBlock
from pretrain.objectives.aimv2 import AIMv2Objective
from pretrain.types import UserError

#: Largest activation and largest block of logits alive at once; small blocks stay in a CPU's cache.
BLOCK_BYTES = 16 * 2**20
#: Prefix of a spec that asks for random weights.
RANDOM = "random:"


@dataclass(frozen=True)
class CaptionScoring:
    """What of a text's likelihood is its score.

    Attributes:
        tokens: "sum" is the log likelihood of the text; "mean" divides it by the number of its tokens.
        prior: "grey" takes off the score that the text has for a mean grey picture, which leaves what the picture says about it
            (pointwise mutual information, with "sum"); "none" leaves it.
        end: whether the text is the whole caption, its end included, or only what the caption begins with.
    """

    tokens: Literal["sum", "mean"] = "sum"
    prior: Literal["none", "grey"] = "none"
    end: bool = True


@dataclass(frozen=True)
class _Block:
    """Wordings of about the same length: text_WL, counted_WL (tokens that score), and which wordings they are."""

    text_WL: Tensor
    counted_WL: Tensor
    index_W: Tensor


@dataclass(frozen=True)
class CaptionTexts:
    """Texts as :class:`CaptionScorer` keeps them.

    Attributes:
        blocks: all wordings, the short ones first.
        sizes: number of wordings of each thing.
        length_W: tokens of each wording that score, at least 1.
        prior_T: score of each thing for a mean grey picture; zeros where it is not taken off.
        num_cut: wordings that fill the decoder's context and may have been cut to it.
    """

    blocks: list[_Block]
    sizes: list[int]
    length_W: Tensor
    prior_T: Tensor
    num_cut: int


class CaptionScorer(ImageTextScorer[CaptionTexts]):
    """Log likelihood of a text given the picture, in fp32.

    Several wordings of one thing are a mixture: the mean of their likelihoods (not of the logarithms, where one wording that the
    decoder never met would decide).

    Args:
        encoder: whose tokens the decoder was trained on, on its device.
        objective: holds the decoder.
        tokenizer: of its captions.
        scoring: options.

    Raises:
        UserError: a decoder that predicts no text, or takes tokens of another width.
    """

    label = "caption likelihood"

    def __init__(
        self,
        encoder: TokenEncoder,
        *,
        objective: AIMv2Objective,
        tokenizer: CaptionTokenizer,
        scoring: CaptionScoring | None = None,
    ) -> None:
        spec = encoder.provenance.spec
        if not objective.predicts_text:
            raise UserError(
                f"--encoder={spec}: its decoder was trained on pixels alone and has no likelihood of a text"
            )
        if (width := objective.decoder.image_proj.in_features) != encoder.embed_dim:
            raise UserError(
                f"--encoder={spec}: its decoder takes tokens {width} wide, the encoder's are {encoder.embed_dim} wide"
            )
        self.encoder, self.tokenizer = encoder, tokenizer
        self.scoring = scoring or CaptionScoring()
        self.decoder: Decoder = objective.decoder.to(self.device).eval()

    def prepare(self, wordings: Sequence[Sequence[str]]) -> CaptionTexts:
        ids = self.tokenizer.encode([text for texts in wordings for text in texts])
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        blocks, start = [], 0
        while start < len(order):
            end = start + 1
            # one picture and as many texts as fit, padding included; a batch of pictures is split further
            while end < len(order) and (end + 1 - start) * self._row_bytes(len(ids[order[end]])) <= BLOCK_BYTES:
                end += 1
            blocks.append(self._block(ids, order[start:end]))
            start = end
        length_W = torch.tensor([max(1, len(caption) - (not self.scoring.end)) for caption in ids])
        num_cut = sum(len(caption) >= self.tokenizer.context_length for caption in ids)
        sizes = [len(texts) for texts in wordings]
        texts = CaptionTexts(blocks, sizes, length_W, torch.zeros(len(sizes)), num_cut)
        if self.scoring.prior == "none":
            return texts
        size = self.encoder.transform.spec.img_size
        grey_1CHW = torch.zeros(1, 3, size, size, device=self.device)  # normalised: the mean of the training pictures
        return CaptionTexts(blocks, sizes, length_W, self._grouped(grey_1CHW, texts)[0], num_cut)

    def similarity(self, image_BCHW: Tensor, texts: CaptionTexts) -> Tensor:
        return self._grouped(self.normalise(image_BCHW), texts) - texts.prior_T

    def settings(self) -> dict[str, Any]:
        return {"scorer": self.label, "text_weights": weights_of(self.decoder), **asdict(self.scoring)}

    def notes(self, texts: CaptionTexts) -> dict[str, Any]:
        return {"texts_cut_to_context": texts.num_cut} if texts.num_cut else {}

    def _row_bytes(self, length: int) -> int:
        """Bytes of the widest activation of one text of that length for one picture."""
        block: DecoderBlock = self.decoder.blocks[0]
        size = self.encoder.transform.spec.img_size
        rows, columns = self.encoder.grid(size, size)
        widest = max(
            block.attn.qkv.out_features, 2 * block.mlp.fc2.in_features, block.attn.num_heads * (rows * columns + length)
        )
        return 4 * length * widest

    def _block(self, ids: Sequence[Sequence[int]], index: Sequence[int]) -> _Block:
        chosen = [ids[number] for number in index]
        text_WL, counted_WL = collate_captions(
            chosen, self.tokenizer.pad_id, multiple=1, context_length=self.decoder.context_length
        )
        if not self.scoring.end:
            ends = torch.tensor([len(caption) - 1 for caption in chosen])
            counted_WL = counted_WL & (torch.arange(text_WL.shape[1]) < ends[:, None])
        return _Block(text_WL.to(self.device), counted_WL.to(self.device), torch.tensor(index))

    @torch.no_grad()
    def _grouped(self, image_BCHW: Tensor, texts: CaptionTexts) -> Tensor:
        """Scores [B, T] of normalised pictures, the prior not taken off."""
        tokens_BND = self.encoder(image_BCHW).all_tokens().float()
        caches = image_caches(self.decoder, tokens_BND)
        score_BW = torch.empty(len(image_BCHW), len(texts.length_W))
        for block in texts.blocks:
            step = max(1, BLOCK_BYTES // (block.text_WL.shape[0] * self._row_bytes(block.text_WL.shape[1])))
            for start in range(0, len(image_BCHW), step):
                part = [(key[start : start + step], value[start : start + step]) for key, value in caches]
                likelihood_BW = log_likelihood(self.decoder, part, block.text_WL, block.counted_WL)
                score_BW[start : start + step, block.index_W] = likelihood_BW.cpu()
        if self.scoring.tokens == "mean":
            score_BW /= texts.length_W
        if max(texts.sizes) == 1:
            return score_BW
        groups = score_BW.split(texts.sizes, dim=1)
        return torch.stack([group.logsumexp(1) - torch.tensor(group.shape[1]).log() for group in groups], dim=1)


def image_caches(decoder: Decoder, tokens_BND: Tensor) -> list[Cache]:
    """Keys and values of the image positions in each block; attention is causal, so that no text changes them."""
    x_BND, caches = decoder.image_proj(tokens_BND), []
    for block in decoder.blocks:
        x_BND, cache = block(x_BND)
        caches.append(cache)
    return caches


def log_likelihood(decoder: Decoder, caches: Sequence[Cache], text_WL: Tensor, counted_WL: Tensor) -> Tensor:
    """Log likelihood of each text given each picture: [B, W], sums over the tokens that are counted.

    Args:
        decoder: predicts text.
        caches: of the pictures, as :func:`image_caches` gives them.
        text_WL: int64 tokens, padded behind.
        counted_WL: bool.
    """
    num_texts, length = text_WL.shape
    # texts alone, the same for each picture, until the first attention sees the pictures
    x_BMD = decoder.embed_text(text_WL).reshape(1, num_texts * length, -1)
    for block, cache in zip(decoder.blocks, caches, strict=True):
        x_BMD = x_BMD + _attend(block, block.norm1(x_BMD), cache, num_texts=num_texts)
        x_BMD = x_BMD + block.mlp(block.norm2(x_BMD))
    hidden_BRD = decoder.norm(x_BMD[:, counted_WL.flatten()])
    likelihood_BR = _token_likelihood(hidden_BRD, decoder.text_head.weight, text_WL[counted_WL])
    owner_R = torch.arange(num_texts, device=text_WL.device)[:, None].expand_as(text_WL)[counted_WL]
    return likelihood_BR.new_zeros(len(likelihood_BR), num_texts).index_add_(1, owner_R, likelihood_BR)


def _attend(block: DecoderBlock, x_BMD: Tensor, cache: Cache, *, num_texts: int) -> Tensor:
    """`block.attn` for texts behind a picture's cache: each text sees the whole picture and its own earlier tokens."""
    attn, (key_BHNK, value_BHNK) = block.attn, cache
    batch, rows, width = x_BMD.shape
    length, num_tokens = rows // num_texts, key_BHNK.shape[2]
    qkv = attn.qkv(x_BMD).view(batch, rows, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    q_BHMK, k_BHMK, v_BHMK = qkv.unbind(0)
    q_BHMK = q_BHMK * q_BHMK.shape[-1] ** -0.5
    by_text = (num_texts, length)
    own_BHWLL = q_BHMK.unflatten(2, by_text) @ k_BHMK.unflatten(2, by_text).transpose(-2, -1)
    future_LL = torch.ones(length, length, dtype=torch.bool, device=x_BMD.device).triu(1)
    own_BHML = own_BHWLL.masked_fill(future_LL, float("-inf")).flatten(2, 3)
    seen_BHMN = q_BHMK @ key_BHNK.transpose(-2, -1)
    share = torch.cat([seen_BHMN, own_BHML.expand(len(seen_BHMN), -1, -1, -1)], dim=-1).softmax(-1)
    own_BHMK = (share[..., num_tokens:].unflatten(2, by_text) @ v_BHMK.unflatten(2, by_text)).flatten(2, 3)
    out_BHMK = share[..., :num_tokens] @ value_BHNK + own_BHMK
    return attn.proj(out_BHMK.transpose(1, 2).reshape(-1, rows, width))


def _token_likelihood(hidden_BRD: Tensor, weight_VD: Tensor, target_R: Tensor) -> Tensor:
    """Log likelihood [B, R] of the target tokens; a block of logits is alive at once."""
    hidden = hidden_BRD.flatten(0, 1)
    target = target_R.repeat(len(hidden_BRD))
    step = max(1, BLOCK_BYTES // (4 * len(weight_VD)))
    parts = [
        -F.cross_entropy(hidden[start : start + step] @ weight_VD.T, target[start : start + step], reduction="none")
        for start in range(0, len(target), step)
    ]
    return torch.cat(parts).view(len(hidden_BRD), -1) if parts else hidden.new_zeros(len(hidden_BRD), 0)


def load_decoder(spec: str, *, seed: int) -> tuple[AIMv2Objective, CaptionTokenizer] | None:
    """The decoder and tokenizer beside a run's encoder; of the same sizes and random for `random:RUN`; None where there are none.

    Raises:
        UserError: a damaged export.
    """
    path = spec.removeprefix(RANDOM)
    try:
        find_export(path)
    except UserError:
        return None  # no run: another library's model
    model = load_pretrained(path)
    if model.objective is None or not model.objective.predicts_text or model.tokenizer is None:
        return None
    objective = model.objective
    if spec.startswith(RANDOM):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            objective = AIMv2Objective(objective.config, encoder=model.encoder, vocab_size=model.tokenizer.vocab_size)
        objective.eval().requires_grad_(False)
    return objective, model.tokenizer
