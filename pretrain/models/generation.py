"""Text behind a picture, token by token: the most likely one each time, sampled, or by beam search; with a cache or without.

Shape letters: B pictures, N patches, L text, S sequence, T positions seen, E encoder width, D width, H heads, K head width,
V vocabulary, M beams of a picture, R rows (pictures, or all their beams: R = B * M), C candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.types import UserError

#: Keys and values seen so far, each [R, H, T, K], of one block.
Cache = tuple[Tensor, Tensor]
#: One for all rows, or one for each, which makes a row's draws its own.
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Search:
    """How the next token is chosen.

    Attributes:
        num_beams: 1 takes one token after the other; more is beam search (:func:`beam_search`).
        length_penalty: of beam search.
        temperature: 0 takes the most likely token, above 0 is sampled.
        top_k: sample among the k most likely tokens; None among all.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int | None = None

    def check(self) -> None:
        """Raise UserError for numbers that cannot be meant."""
        if self.num_beams < 1:
            raise UserError(f"num_beams={self.num_beams} must be at least 1")
        if self.temperature < 0:
            raise UserError(f"temperature={self.temperature} must not be negative")
        if self.temperature > 0 and self.num_beams > 1:
            raise UserError(f"temperature={self.temperature} samples, which beams do not: set num_beams=1")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} must be at least 1")


class TextDecoder(Protocol):
    """What generation needs of `pretrain.models.decoder.Decoder`."""

    image_proj: nn.Linear
    blocks: nn.ModuleList
    norm: nn.Module
    token_embed: nn.Embedding
    pos_embed: nn.Parameter
    text_head: nn.Linear
    context_length: int

    def embed_text(self, text_BL: Tensor) -> Tensor: ...
    def __call__(self, image_BNE: Tensor, text_BL: Tensor | None = None) -> Tensor: ...


class Reader(Protocol):
    """Predicts the token behind each row's text."""

    def logits(self, text_RL: Tensor) -> Tensor:
        """float [R, V]; each call's texts are those of the call before, longer by one token."""

    def spread(self, num: int) -> None:
        """Every row becomes `num` equal rows, which stand side by side."""

    def follow(self, index_R: Tensor) -> None:
        """Row r goes on with the text of row `index_R[r]`, one of the same picture."""


class WholeReader:
    """Runs picture and text anew for each token: slow, and what the cache is tested against."""

    def __init__(self, decoder: TextDecoder, image_BNE: Tensor) -> None:
        self._decoder, self._image_RNE = decoder, image_BNE

    def logits(self, text_RL: Tensor) -> Tensor:
        # the last column only makes room: embed_text feeds all tokens but the last
        hidden_RSD = self._decoder(self._image_RNE, F.pad(text_RL, (0, 1)))
        return self._decoder.text_head(hidden_RSD[:, -1]).float()

    def spread(self, num: int) -> None:
        self._image_RNE = self._image_RNE.repeat_interleave(num, dim=0)

    def follow(self, index_R: Tensor) -> None:
        pass  # nothing of a text is kept


class CachedReader:
    """Runs picture and prompt once, then one token at a time; beams copy the picture's keys and values."""

    def __init__(self, decoder: TextDecoder, image_BNE: Tensor) -> None:
        self._decoder, self._image_BNE = decoder, image_BNE
        self._caches: list[Cache] = []
        self._num_shared = 0

    def logits(self, text_RL: Tensor) -> Tensor:
        decoder, length = self._decoder, text_RL.shape[1]
        if self._caches:
            x_RSD = decoder.token_embed(text_RL[:, -1])[:, None] + decoder.pos_embed[:, length : length + 1]
        else:
            start_BSD = decoder.embed_text(F.pad(text_RL, (0, 1)))  # as in WholeReader
            x_RSD = torch.cat([decoder.image_proj(self._image_BNE), start_BSD], dim=1)
            self._num_shared = x_RSD.shape[1]
        past: list[Cache | None] = [*self._caches] or [None] * len(decoder.blocks)
        self._caches = []
        for block, cache in zip(decoder.blocks, past, strict=True):
            x_RSD, cache = block(x_RSD, cache)
            self._caches.append(cache)
        return decoder.text_head(decoder.norm(x_RSD[:, -1])).float()

    def spread(self, num: int) -> None:
        self._caches = [
            (key.repeat_interleave(num, dim=0), value.repeat_interleave(num, dim=0)) for key, value in self._caches
        ]

    def follow(self, index_R: Tensor) -> None:
        for cache in self._caches:
            for past_RHTK in cache:  # what all beams of a picture share is the same in each of its rows
                own_RHTK = past_RHTK[:, :, self._num_shared :]
                own_RHTK.copy_(own_RHTK.index_select(0, index_R))


def generate(
    decoder: TextDecoder,
    image_BNE: Tensor,
    prompt_BL: Tensor | None = None,
    *,
    prompt_length_B: Tensor | None = None,
    eos_id: int,
    max_tokens: int | None = None,
    max_new_tokens: int | None = None,
    search: Search | None = None,
    generator: Generators = None,
    use_cache: bool = True,
) -> Tensor:
    """Tokens for each picture. A row's result depends on no other row (but where rows share a generator).

    Args:
        decoder: predicts text.
        image_BNE: the encoder's tokens.
        prompt_BL: int64 tokens that the text begins with; none where not given.
        prompt_length_B: int64, tokens of each row's prompt, what stands behind them is not read; L where not given. Rows of the
            same length go through the decoder together, so that batches of alike prompts are fast.
        eos_id: where a text ends; behind it the output is filled with `eos_id`. An id that no token has never ends one.
        max_tokens: most tokens, the prompt included; the context length where not given.
        max_new_tokens: most tokens behind each prompt.
        search: how tokens are chosen; the most likely one where not given.
        generator: for sampling. Of one that all rows share, those with shorter prompts draw first.
        use_cache: False runs the whole sequence for each token.

    Returns:
        int64 [B, T]: prompt, what is generated, and `eos_id` behind it. A prompt that reaches the limit stays as it is.

    Raises:
        UserError: numbers that cannot be meant.
    """
    search = search or Search()
    search.check()

    def run(image_BNE: Tensor, prompt_BL: Tensor, generator: Generators) -> Tensor:
        limit = min(max_tokens or decoder.context_length, decoder.context_length)
        if max_new_tokens is not None:
            limit = min(limit, prompt_BL.shape[1] + max_new_tokens)
        if prompt_BL.shape[1] >= limit:
            return prompt_BL
        reader = (CachedReader if use_cache else WholeReader)(decoder, image_BNE)
        if search.num_beams > 1:
            return beam_search(
                reader,
                prompt_BL,
                eos_id=eos_id,
                limit=limit,
                num_beams=search.num_beams,
                length_penalty=search.length_penalty,
            )
        return _one_by_one(reader, prompt_BL, eos_id=eos_id, limit=limit, choose=_chooser(search, generator))

    if prompt_BL is None:
        prompt_BL = image_BNE.new_empty(image_BNE.shape[0], 0, dtype=torch.long)
    if prompt_length_B is None:
        return run(image_BNE, prompt_BL, generator)
    assert int(prompt_length_B.min()) >= 0, "prompts have no negative lengths"
    assert int(prompt_length_B.max()) <= prompt_BL.shape[1], "a prompt is longer than prompt_BL"
    made: list[tuple[Tensor, Tensor]] = []
    for length in prompt_length_B.unique().tolist():
        rows = (prompt_length_B == length).nonzero()[:, 0].to(image_BNE.device)
        own = [generator[row] for row in rows.tolist()] if isinstance(generator, Sequence) else generator
        made.append((rows, run(image_BNE[rows], prompt_BL[rows, :length], own)))
    text_BL = prompt_BL.new_full((len(prompt_BL), max(text.shape[1] for _, text in made)), eos_id)
    for rows, text in made:
        text_BL[rows, : text.shape[1]] = text
    return text_BL


def _one_by_one(
    reader: Reader, text_BL: Tensor, *, eos_id: int, limit: int, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    done_B = torch.zeros(len(text_BL), dtype=torch.bool, device=text_BL.device)
    while text_BL.shape[1] < limit and not done_B.all():
        token_B = torch.where(done_B, eos_id, choose(reader.logits(text_BL)))
        done_B = done_B | (token_B == eos_id)
        text_BL = torch.cat([text_BL, token_B[:, None]], dim=1)
    return text_BL


def _chooser(search: Search, generator: Generators) -> Callable[[Tensor], Tensor]:
    def choose(logits_BV: Tensor) -> Tensor:
        if search.temperature == 0:
            return logits_BV.argmax(-1)
        if search.top_k is not None:
            threshold_B1 = logits_BV.topk(min(search.top_k, logits_BV.shape[-1])).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < threshold_B1, float("-inf"))
        share_BV = (logits_BV / search.temperature).softmax(-1)
        if isinstance(generator, Sequence):
            rows = zip(share_BV, generator, strict=True)
            return torch.cat([torch.multinomial(share_V, 1, generator=own) for share_V, own in rows])
        return torch.multinomial(share_BV, 1, generator=generator)[:, 0]

    return choose


def beam_search(
    reader: Reader, prompt_BL: Tensor, *, eos_id: int, limit: int, num_beams: int, length_penalty: float
) -> Tensor:
    """The best text that M beams find: sum of its tokens' log likelihoods / (its tokens behind the prompt, EOS too) ** penalty.

    In each step the M * V continuations are ranked by their sums. Those among the first M that end leave the pool and compete for
    the result; the best M that do not end are the next beams, so that the pool stays full. At the limit the first M compete as
    they are. This is transformers' beam search with `early_stopping="never"`: a picture is done when no open beam can beat its
    best finished text, which is exact for every penalty, since a beam's sum can only fall and its final length lies between one
    more token and the limit.

    Args:
        reader: of the pictures, before its first call.
        prompt_BL: int64, shorter than `limit`.
        eos_id: ends a text.
        limit: most tokens, the prompt included.
        num_beams: M.
        length_penalty: 0 ranks finished texts by their sums; above 0 long texts are favoured.

    Returns:
        int64 [B, T], as :func:`generate`.
    """
    (batch, num_prompt), num_made = prompt_BL.shape, 0
    finished = _Finished(prompt_BL, limit=limit, eos_id=eos_id)
    # one row a picture for the prompt; then M equal ones, of which all but the first are out of the question
    log_RV = reader.logits(prompt_BL).log_softmax(-1).repeat_interleave(num_beams, dim=0)
    reader.spread(num_beams)
    text_RL = prompt_BL.repeat_interleave(num_beams, dim=0)
    sum_BM = log_RV.new_full((batch, num_beams), float("-inf"))
    sum_BM[:, 0] = 0
    first_row_B1 = num_beams * torch.arange(batch, device=text_RL.device)[:, None]
    while True:
        num_made += 1
        sum_BN = (sum_BM[..., None] + log_RV.view(batch, num_beams, -1)).flatten(1)
        # of 2 M candidates at most M end, so that M are left to go on
        sum_BC, place_BC = sum_BN.topk(min(2 * num_beams, sum_BN.shape[1]))
        row_BC, token_BC = first_row_B1 + place_BC // log_RV.shape[1], place_BC % log_RV.shape[1]
        ends_BC = token_BC == eos_id
        at_limit = num_prompt + num_made == limit
        score_BM = (sum_BC / num_made**length_penalty)[:, :num_beams]
        if not at_limit:
            score_BM = score_BM.masked_fill(~ends_BC[:, :num_beams], float("-inf"))
        finished.offer(score_BM, text_RL, row_BC[:, :num_beams], token_BC[:, :num_beams])
        if at_limit:
            break
        sum_BM, kept_BM = sum_BC.masked_fill(ends_BC, float("-inf")).topk(num_beams)
        kindest = max((num_made + 1) ** length_penalty, (limit - num_prompt) ** length_penalty)
        if (finished.score_B >= sum_BM[:, 0] / kindest).all():
            break
        row_R, token_R = row_BC.gather(1, kept_BM).flatten(), token_BC.gather(1, kept_BM).flatten()
        text_RL = torch.cat([text_RL[row_R], token_R[:, None]], dim=1)
        reader.follow(row_R)
        log_RV = reader.logits(text_RL).log_softmax(-1)
    return finished.text()


class _Finished:
    """The best finished text of each picture so far; of equals the one that finished first."""

    def __init__(self, prompt_BL: Tensor, *, limit: int, eos_id: int) -> None:
        self._text_BL = F.pad(prompt_BL, (0, limit - prompt_BL.shape[1]), value=eos_id)
        self._length_B = torch.full_like(
            prompt_BL[:, 0] if prompt_BL.shape[1] else self._text_BL[:, 0], prompt_BL.shape[1]
        )
        self.score_B = torch.full(self._length_B.shape, float("-inf"), device=prompt_BL.device)

    def offer(self, score_BM: Tensor, text_RL: Tensor, row_BM: Tensor, token_BM: Tensor) -> None:
        """Texts that end now, longer than all before: those of `row_BM` with one more token; -inf for none."""
        score_B, place_B = score_BM.max(1)
        pick = place_B[:, None]
        text_BL = torch.cat([text_RL[row_BM.gather(1, pick)[:, 0]], token_BM.gather(1, pick)], dim=1)
        better_B, length = score_B > self.score_B, text_BL.shape[1]
        self._text_BL[:, :length] = torch.where(better_B[:, None], text_BL, self._text_BL[:, :length])
        self._length_B = torch.where(better_B, length, self._length_B)
        self.score_B = torch.where(better_B, score_B, self.score_B)

    def text(self) -> Tensor:
        return self._text_BL[:, : int(self._length_B.max())]
