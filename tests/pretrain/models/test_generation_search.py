"""Beam search and prompts of different lengths, against enumeration, against transformers, and without the cache."""

import itertools

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from pretrain.models.decoder import Decoder
from pretrain.models.generation import CachedReader, WholeReader, beam_search
from pretrain.types import UserError

EOS = 1


def make_decoder(seed, *, vocab_size=11, std=0.4, context_length=12):
    torch.manual_seed(seed)
    decoder = Decoder(
        20,
        embed_dim=24,
        depth=2,
        num_heads=2,
        mlp_hidden_dim=32,
        vocab_size=vocab_size,
        patch_pixels=None,
        context_length=context_length,
    )
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=std)
    torch.nn.init.normal_(decoder.pos_embed, std=1.5)  # ends that are likely here and unlikely there
    return decoder.eval()


def token_likelihoods(decoder, image_NE, text):
    """Log likelihood of each token, from the training's forward pass."""
    hidden = decoder(image_NE[None], torch.tensor([text]))[0, len(image_NE) :]
    return decoder.text_head(hidden).log_softmax(-1)[torch.arange(len(text)), torch.tensor(text)]


def score(decoder, image_NE, prompt, made, penalty):
    return float(token_likelihoods(decoder, image_NE, [*prompt, *made])[len(prompt) :].sum()) / len(made) ** penalty


def cut(row, num_prompt):
    """What was made: up to the first EOS behind the prompt, with it."""
    made = row[num_prompt:]
    return made[: made.index(EOS) + 1] if EOS in made else made


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("num_prompt", [0, 3])
@torch.no_grad()
def test_the_cache_changes_no_token(num_beams, num_prompt):
    lengths = set()
    for seed in range(4):
        decoder, image = make_decoder(seed), torch.randn(6, 5, 20)
        prompt = torch.randint(2, 11, (6, num_prompt)) if num_prompt else None
        options = dict(eos_id=EOS, num_beams=num_beams, length_penalty=0.7)
        cached = decoder.generate(image, prompt, **options)
        assert torch.equal(cached, decoder.generate(image, prompt, **options, use_cache=False))
        if num_prompt:
            assert torch.equal(cached[:, :num_prompt], prompt)
        lengths |= {len(cut(row, num_prompt)) for row in cached.tolist()}
    assert len(lengths) > 2  # ends come at different places


@pytest.mark.parametrize("prompt", [[], [2, 0]])
@torch.no_grad()
def test_as_many_beams_as_texts_find_the_best_of_all(prompt):
    """3 tokens, at most 4 made: 81 beams hold every beginning, so that the result is the best of all texts that there are."""
    num, found = 4, []
    for seed, penalty in enumerate([-0.5, 0.0, 0.5, 0.5, 1.0, 2.0]):
        decoder = make_decoder(seed, vocab_size=3, std=0.3)
        image = torch.randn(2, 5, 20)
        texts = [
            list(text)
            for length in range(1, num + 1)
            for text in itertools.product(range(3), repeat=length)
            if EOS not in text[:-1] and (text[-1] == EOS or length == num)
        ]
        assert len(texts) == 1 + 2 + 4 + 8 + 16  # ended by one, two, three, four tokens; not ended by four
        rows = decoder.generate(
            image,
            torch.tensor([prompt] * 2).long(),
            eos_id=EOS,
            num_beams=81,
            length_penalty=penalty,
            max_new_tokens=num,
        )
        for row, image_NE in zip(rows.tolist(), image, strict=True):
            best = max(texts, key=lambda made: score(decoder, image_NE, prompt, made, penalty))
            found.append(best)
            assert cut(row, len(prompt)) == best
            assert row[len(prompt) + len(best) :] == [EOS] * (len(row) - len(prompt) - len(best))
    assert len({len(text) for text in found}) > 2


class _Config(PretrainedConfig):
    model_type = "wrapped"


class Wrapped(PreTrainedModel, GenerationMixin):
    """The decoder for one picture, as transformers generates with it; its first token stands for BOS."""

    config_class = _Config

    def __init__(self, decoder, image_NE):
        super().__init__(_Config(vocab_size=decoder.text_head.out_features))
        self.decoder, self.image_NE = decoder, image_NE

    @property
    def device(self):
        return torch.device("cpu")

    def prepare_inputs_for_generation(self, input_ids, **_):
        return {"input_ids": input_ids}

    def forward(self, input_ids, return_dict=True):
        image = self.image_NE.expand(len(input_ids), -1, -1)
        text = torch.nn.functional.pad(input_ids[:, 1:], (0, 1))
        return CausalLMOutput(logits=self.decoder.text_head(self.decoder(image, text)[:, -1:]))


@pytest.mark.parametrize("num_beams", [2, 4])
@torch.no_grad()
def test_beams_are_those_of_transformers(num_beams):
    lengths = []
    for seed, penalty in enumerate([-1.0, 0.0, 0.3, 0.6, 1.0, 1.5]):
        decoder, image = make_decoder(seed, std=0.4), torch.randn(3, 5, 20)
        ours = decoder.generate(image, eos_id=EOS, num_beams=num_beams, length_penalty=penalty, max_tokens=8)
        for row, image_NE in zip(ours.tolist(), image, strict=True):
            config = GenerationConfig(
                num_beams=num_beams,
                length_penalty=penalty,
                early_stopping="never",
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=EOS,
                pad_token_id=EOS,
                use_cache=False,
            )
            theirs = Wrapped(decoder, image_NE).generate(torch.tensor([[0]]), generation_config=config)[0, 1:].tolist()
            assert cut(row, 0) == cut(theirs, 0)
            lengths.append(len(cut(row, 0)))
    assert len(set(lengths)) > 3


@torch.no_grad()
def test_one_beam_is_greedy_and_more_find_likelier_texts():
    better = 0
    for seed in range(6):
        decoder, image = make_decoder(seed), torch.randn(4, 5, 20)
        greedy = decoder.generate(image, eos_id=EOS)
        assert torch.equal(greedy, decoder.generate(image, eos_id=EOS, num_beams=1, length_penalty=3.0))
        empty = torch.zeros(4, 0, dtype=torch.long)
        # by sums alone, nothing that goes on can beat the one beam's end, so that it stops where greedy does
        for reader in (CachedReader, WholeReader):
            one = beam_search(reader(decoder, image), empty, eos_id=EOS, limit=12, num_beams=1, length_penalty=0.0)
            assert torch.equal(one, greedy)
        beams = decoder.generate(image, eos_id=EOS, num_beams=8, length_penalty=0.0)
        for image_NE, first, second in zip(image, greedy.tolist(), beams.tolist(), strict=True):
            scores = [score(decoder, image_NE, [], cut(row, 0), 0.0) for row in (first, second)]
            better += scores[1] > scores[0] + 1e-5
    assert better > 5


class Table:
    """A reader whose log likelihoods are written down by the text so far; counts its steps."""

    def __init__(self, table, *, rest):
        self.table, self.rest, self.steps = table, rest, 0

    def logits(self, text_RL):
        self.steps += 1
        return torch.tensor([self.table.get(tuple(row), self.rest) for row in text_RL.tolist()]).log()

    def spread(self, num):
        pass

    def follow(self, index_R):
        pass


def test_a_search_by_hand():
    """Tokens 0 (a), 1 (EOS), 2 (b); two beams.

    Step 1: a .5, EOS .3, b .2. EOS is second: it leaves the pool with log .3 = -1.204 over 1 token. Beams: a, b.
    Step 2: aa .2, a EOS .2, ab .1, ba .02, b EOS .16, bb .02. The first two are aa and a EOS: the latter scores log .2 = -1.609
    with penalty 0 (worse than EOS), -0.805 with penalty 1 (better). b EOS is third, and no result. Beams: aa .2, ab .1.
    Step 3 is the limit: aa EOS .16 scores log .16 / 3 = -0.611 with penalty 1, which is the best.
    With penalty 0 the best beam after step 2 has log .2, below EOS's log .3: the search is over after two readings.
    """
    table = {(): [0.5, 0.3, 0.2], (0,): [0.4, 0.4, 0.2], (2,): [0.1, 0.8, 0.1], (0, 0): [0.1, 0.8, 0.1]}
    results, steps = {}, {}
    for penalty in (0.0, 1.0):
        reader = Table(table, rest=[0.5, 0.01, 0.49])
        text = beam_search(
            reader, torch.zeros(1, 0, dtype=torch.long), eos_id=EOS, limit=3, num_beams=2, length_penalty=penalty
        )
        results[penalty], steps[penalty] = text.tolist()[0], reader.steps
    assert results == {0.0: [1], 1.0: [0, 0, 1]}
    assert steps == {0.0: 2, 1.0: 3}


def test_a_search_stops_only_when_nothing_can_win():
    """One beam of two ends at once with log .6; the other goes on with certainty to log .4, which a penalty of 1 spreads over up
    to 9 tokens: -0.916 / 9 = -0.102 beats -0.511. A rule that looks at the present length (-0.916 / 2 = -0.458) goes on as well;
    with log .2, present length 2 is -0.805 and would stop, though -1.609 / 9 = -0.179 wins in the end.
    """
    sure = {(2,) + (0,) * k: [1.0, 0.0, 0.0] for k in range(7)} | {(2,) + (0,) * 7: [0.0, 1.0, 0.0]}
    for first in ([0.0, 0.6, 0.4], [0.0, 0.8, 0.2]):
        reader = Table({(): first} | sure, rest=[0.5, 0.0, 0.5])
        text = beam_search(
            reader, torch.zeros(1, 0, dtype=torch.long), eos_id=EOS, limit=9, num_beams=2, length_penalty=1.0
        )
        assert text.tolist() == [[2, *[0] * 7, EOS]]


@pytest.mark.parametrize("num_beams", [1, 3])
@torch.no_grad()
def test_prompts_of_different_lengths_do_not_see_each_other(num_beams):
    decoder, image = make_decoder(3), torch.randn(6, 5, 20)
    lengths = [2, 0, 4, 2, 12, 1]
    prompt = torch.randint(2, 11, (6, 12))
    options = dict(eos_id=EOS, num_beams=num_beams)
    together = decoder.generate(image, prompt, prompt_length_B=torch.tensor(lengths), **options)
    for row, length in enumerate(lengths):
        alone = decoder.generate(image[row : row + 1], prompt[row : row + 1, :length], **options)[0].tolist()
        assert together[row].tolist() == alone + [EOS] * (together.shape[1] - len(alone))
    other = prompt.clone()
    for row, length in enumerate(lengths):
        other[row, length:] = 0  # what stands behind a prompt is not read
    assert torch.equal(together, decoder.generate(image, other, prompt_length_B=torch.tensor(lengths), **options))


@pytest.mark.parametrize("num_beams", [1, 3])
@torch.no_grad()
def test_limits_count_the_prompt_or_what_is_made(num_beams):
    decoder, image = make_decoder(0), torch.randn(2, 5, 20)
    prompt = torch.full((2, 4), 5)
    options = dict(eos_id=99, num_beams=num_beams)  # no token is the end
    assert decoder.generate(image, prompt, max_tokens=6, **options).shape == (2, 6)
    assert decoder.generate(image, prompt, max_new_tokens=3, **options).shape == (2, 7)
    assert decoder.generate(image, prompt, max_new_tokens=100, **options).shape == (2, 12)
    assert torch.equal(decoder.generate(image, prompt, max_tokens=3, **options), prompt)
    ragged = decoder.generate(image, prompt, prompt_length_B=torch.tensor([1, 4]), max_new_tokens=2, **options)
    assert ragged.shape == (2, 6)
    assert ragged[0, 3:].tolist() == [99] * 3


@torch.no_grad()
def test_a_row_with_its_own_generator_draws_the_same_in_any_company():
    decoder, image = make_decoder(0), torch.randn(4, 5, 20)
    prompt, lengths = torch.randint(2, 11, (4, 2)), torch.tensor([2, 0, 1, 2])

    def draw(rows):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        made = decoder.generate(
            image[rows],
            prompt[rows],
            prompt_length_B=lengths[rows],
            eos_id=EOS,
            temperature=1.0,
            max_new_tokens=6,
            generator=generators,
        )
        return [cut(row[: n + 6], n) for row, n in zip(made.tolist(), lengths[rows].tolist(), strict=True)]

    whole = draw([0, 1, 2, 3])
    assert [draw([row])[0] for row in range(4)] == whole
    assert draw([3, 1]) == [whole[3], whole[1]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beams": 0}, "num_beams=0 must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0 must not be negative"),
        ({"temperature": 1.0, "num_beams": 2}, "set num_beams=1"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0 must be at least 1"),
    ],
)
def test_numbers_that_cannot_be_meant(options, told):
    with pytest.raises(UserError, match=told):
        make_decoder(0).generate(torch.randn(1, 5, 20), eos_id=EOS, **options)
