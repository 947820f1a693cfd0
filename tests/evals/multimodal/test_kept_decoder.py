"""The kept decoder against the objective that it was pre-trained with, and what fine-tuning may add to it."""

import json
from types import SimpleNamespace

import pytest
import torch

from evals.load import load_encoder
from evals.multimodal.added_words import WordTokenizer
from evals.multimodal.examples import Generation
from evals.multimodal.kept_decoder import KeptDecoder, load_kept_decoder, load_tuned_decoder
from pretrain.data.tokenizers import BpeTokenizer
from pretrain.export import export_module, load_pretrained
from pretrain.models.decoder import DecoderConfig
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.objectives.aimv2 import AIMv2Config, AIMv2Objective
from pretrain.types import ImageSpec, ImageTextBatch, UserError

CAPTIONS = ["a red circle on white", "a blue square", "a green star and a red ring"] * 20
QUESTION = "what is the colour of the circle?"
ENCODER = EncoderConfig(embed_dim=32, depth=1, num_heads=2, mlp_hidden_dim=64, img_size=16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An export with a tokenizer of short captions and sharp random weights."""
    folder = tmp_path_factory.mktemp("run")
    return write_export(folder)


def write_export(folder, **options):
    torch.manual_seed(0)
    tokenizer = BpeTokenizer.train(CAPTIONS, 300)
    encoder = build_encoder(ENCODER)
    config = AIMv2Config(decoder=DecoderConfig(embed_dim=24, depth=2, num_heads=2), **options)
    objective = AIMv2Objective(config, encoder=encoder, vocab_size=tokenizer.vocab_size)
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    module = SimpleNamespace(encoder=encoder, objective=objective, encoder_config=ENCODER, objective_config=config)
    export_module(module, folder, image=ImageSpec(16), tokenizer=tokenizer, info={})
    return str(folder)


@pytest.fixture
def kept(run):
    return load_kept_decoder(run, encoder=load_encoder(run))


def tokens(count, *, seed=1):
    return torch.randn(count, 16, 32, generator=torch.Generator().manual_seed(seed))


def test_loss_on_captions_is_the_objectives(run, kept):
    model = load_pretrained(run)
    captions = ["a red ring", "a blue square on a circle", ""]
    pairs = kept.encode([("", caption) for caption in captions])
    assert [pair.ids.tolist() for pair in pairs] == model.tokenizer.encode(captions)
    text_BL, target_BL = kept.collate(pairs)
    image = torch.randn(3, 3, 16, 16)
    batch = ImageTextBatch(image, text_BL, target_BL, torch.arange(3), 0, ["", "", ""], captions)
    with torch.no_grad():
        term = model.objective(model.encoder, batch, prefix_len=model.objective.num_patches)["text_ce"]
        total, count = kept.loss(model.encoder.forward_features(image), text_BL, target_BL)
    assert int(count) == int(term.count) == sum(len(pair.ids) for pair in pairs)
    assert torch.equal(total, term.total)


def test_frozen_captions_are_the_objectives_bit_for_bit(run, kept):
    model = load_pretrained(run)
    assert kept.identity() == load_kept_decoder(run, encoder=load_encoder(run)).identity()
    for name, tensor in kept.decoder.state_dict().items():
        assert torch.equal(tensor, model.objective.decoder.state_dict()[name])
    assert not any(parameter.requires_grad for parameter in kept.parameters())
    ids = model.objective.decoder.generate(tokens(4), eos_id=model.tokenizer.eos_id, max_tokens=9)
    expected = [model.tokenizer.decode(row) for row in ids]
    assert kept.answer(tokens(4), [""] * 4, Generation(max_tokens=9)) == expected
    assert len(set(expected)) > 1


def test_targets_are_the_answer_and_its_end(kept):
    [pair] = kept.encode([("a red", "ring")])
    question, answer = (kept.tokenizer.base.encode([text])[0] for text in ("a red", "ring"))
    assert pair.ids.tolist() == question[:-1] + answer
    assert pair.is_target.tolist() == [False] * (len(question) - 1) + [True] * len(answer)
    text_BL, target_BL = kept.collate([pair])
    with torch.no_grad():
        hidden = kept.decoder(tokens(1), text_BL)[0, 16:]
        likelihood = kept.decoder.text_head(hidden).log_softmax(-1)[torch.arange(len(pair.ids)), text_BL[0]]
        total, count = kept.loss(tokens(1), text_BL, target_BL)
    assert int(count) == len(answer)
    torch.testing.assert_close(total, -likelihood[-len(answer) :].sum())


def test_the_question_and_the_picture_decide_the_answer(kept):
    said = kept.answer(tokens(2), ["a red", "a blue"], Generation(max_tokens=6))
    other = kept.answer(tokens(2).flip(0), ["a red", "a blue"], Generation(max_tokens=6))
    swapped = kept.answer(tokens(2), ["a blue", "a red"], Generation(max_tokens=6))
    assert all(a != b for a, b in zip(said, other, strict=True))
    assert all(a != b for a, b in zip(said, swapped, strict=True))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 1.0, "top_k": 5, "seed": 3}])
def test_an_answer_is_the_same_in_any_batch_and_without_the_cache(kept, options):
    generation = Generation(max_tokens=6, **options)
    prompts = ["a red", QUESTION, "", "a blue square", "a red"]
    said = kept.answer(tokens(5), prompts, generation)
    assert said == kept.answer(tokens(5), prompts, generation, use_cache=False)
    for row in range(5):
        assert kept.answer(tokens(5)[row : row + 1], [prompts[row]], generation, number_B=[row]) == [said[row]]
    assert kept.answer(tokens(0), [], generation) == []


def test_max_tokens_counts_what_is_made(kept, monkeypatch):
    made, decode = [], kept.tokenizer.decode
    monkeypatch.setattr(kept.tokenizer, "decode", lambda ids: made.append(ids) or decode(ids))
    for num in (2, 5):
        kept.answer(tokens(1), ["a red"], Generation(max_tokens=num))
    assert [len(ids) for ids in made] == [2, 5]
    assert made[0] == made[1][:2]


def test_what_exceeds_the_context_is_an_error(kept):
    long = " ".join(["blue"] * 90)
    with pytest.raises(UserError, match=r"^question 'blue blue .* takes 9\d+ tokens, .*decoder is 77"):
        kept.encode([(long, "red")])
    with pytest.raises(UserError, match=r"^caption 'blue blue .* takes 91 tokens"):
        kept.encode([("", long)])
    with pytest.raises(UserError, match=r"question 'blue blue .* before any answer, takes 90 tokens"):
        kept.answer(tokens(1), [long], Generation())
    [pair] = kept.encode([(long, "red")], check=False)
    assert len(pair.ids) == 92
    with pytest.raises(UserError, match="temperature"):
        kept.answer(tokens(1), [""], Generation(temperature=-1))


def test_a_longer_context_keeps_what_was_there(kept):
    before = kept.answer(tokens(3), ["", "a red", QUESTION], Generation(max_tokens=9))
    old = kept.decoder.pos_embed.clone()
    kept.extend_context(100)
    assert kept.answer(tokens(3), ["", "a red", QUESTION], Generation(max_tokens=9)) == before
    new = kept.decoder.pos_embed
    assert new.shape == (1, 101, 24)
    assert torch.equal(new[:, :78], old)
    assert new[:, 78:].std() == pytest.approx(0.02, rel=0.15)
    long = " ".join(["blue"] * 90)
    assert len(kept.encode([(long, "red")])[0].ids) == 92
    kept.answer(tokens(1), [long], Generation())
    with pytest.raises(UserError, match="extend_context: 99 is below the present context of 100"):
        kept.extend_context(99)


def test_added_words_abbreviate_and_old_rows_stay(kept):
    base = kept.tokenizer.base
    spelt = base.encode([QUESTION])[0]
    old = {name: tensor.clone() for name, tensor in kept.decoder.state_dict().items()}
    # "circle" is a token already, "zq" comes once
    added = kept.extend_vocabulary([QUESTION, QUESTION, "red", "zq"])
    assert sorted(added) == ["colour", "is", "of", "the", "what"]
    assert added[0] == "the"  # four times
    [pair] = kept.encode([(QUESTION, "red")])
    words = [pair.ids[k] - base.vocab_size for k in range(len(pair.ids)) if pair.ids[k] >= base.vocab_size]
    assert [added[word] for word in words] == ["what", "is", "the", "colour", "of", "the"]
    assert len(pair.ids) == 6 + 2 + 2 < len(spelt)  # circle, ?, red, EOS
    assert kept.tokenizer.decode(pair.ids) == f"{QUESTION} red"
    for name, tensor in kept.decoder.state_dict().items():
        rows = len(old[name])
        assert torch.equal(tensor[:rows], old[name])
        assert len(tensor) == rows + 5 * (name in ("token_embed.weight", "text_head.weight"))
    kept.extend_vocabulary([], min_share=0.0)
    many = kept.extend_vocabulary([f"{a}x{b}" for a in "bcdfghjk" for b in "bcdfghjk"] * 2)
    assert len(many) == 64
    assert kept.decoder.token_embed.weight[-64:].std() == pytest.approx(0.02, rel=0.1)
    assert kept.decoder.text_head.weight[-64:].std() == pytest.approx((2 * 2 * 24) ** -0.5, rel=0.1)


def test_new_rows_are_a_function_of_the_seed(run):
    rows = []
    for seed in (0, 0, 1):
        one = load_kept_decoder(run, encoder=load_encoder(run))
        torch.rand(1)
        one.extend_vocabulary([QUESTION] * 2, seed=seed)
        rows.append(one.decoder.token_embed.weight[-1])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_an_added_word_is_a_whole_word():
    base = BpeTokenizer.train(["x"], 258)  # every letter is a token
    tokenizer = WordTokenizer(base, ["is", "island"])
    spelt = [len(tokenizer.ids(text)) for text in ("is", "is it", "isle", "island", "islands", "his", "is?", "IS 3")]
    # " isle", " islands", " his" in letters with a space each; "is?" keeps its mark; " 3" is a space and a digit
    assert spelt == [1, 4, 5, 1, 8, 4, 2, 3]
    for text in ("is it?", "isle of island, is", "is3", "his island"):
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text
    assert tokenizer.encode(["is " * 100])[0] == [258] * 76 + [base.eos_id]  # cut at the context, EOS kept


def test_fine_tuning_moves_what_the_pairs_reach_and_nothing_else(kept):
    added = kept.extend_vocabulary([QUESTION] * 2)
    kept.requires_grad_(True)
    before = {name: parameter.detach().clone() for name, parameter in kept.named_parameters()}
    pairs = kept.encode([(QUESTION, "red"), (QUESTION, "blue"), ("", "a green star")])
    text_BL, target_BL = kept.collate(pairs)
    image = tokens(3)
    optimiser = torch.optim.Adam(kept.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        total, count = kept.loss(image, text_BL, target_BL)
        optimiser.zero_grad()
        (total / count).backward()
        optimiser.step()
        losses.append(float((total / count).detach()))
    assert losses[-1] < 0.1 < losses[0]
    assert image.grad is None
    assert not any("pixel" in name for name in before)
    for name, parameter in kept.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    read = set(text_BL[:, :-1].flatten().tolist())
    moved = (kept.decoder.token_embed.weight != before["decoder.token_embed.weight"]).any(1).nonzero()[:, 0].tolist()
    assert set(moved) <= read
    assert {len(before["decoder.token_embed.weight"]) - 1 - k for k in range(len(added))} <= set(moved)
    longest = text_BL.shape[1]
    assert torch.equal(kept.decoder.pos_embed[:, longest:], before["decoder.pos_embed"][:, longest:])
    assert kept.answer(image, [QUESTION, QUESTION, ""], Generation()) == ["red", "blue", "a green star"]
    said = kept.answer(image, [QUESTION, QUESTION, ""], Generation(num_beams=3))
    assert said == ["red", "blue", "a green star"]


def test_saved_and_loaded_again(kept, tmp_path):
    kept.extend_vocabulary([QUESTION] * 2)
    kept.extend_context(90)
    kept.requires_grad_(True)
    kept.save(tmp_path / "kept")
    again = load_tuned_decoder(tmp_path / "kept")
    assert again.identity() == kept.identity()
    assert again.context_length == 90
    assert again.encode([(QUESTION, "red")])[0].ids.tolist() == kept.encode([(QUESTION, "red")])[0].ids.tolist()
    generation = Generation(max_tokens=20, num_beams=2)
    assert again.answer(tokens(3), [QUESTION] * 3, generation) == kept.answer(tokens(3), [QUESTION] * 3, generation)
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_damaged_folders_are_errors(kept, tmp_path):
    with pytest.raises(UserError, match="holds no fine-tuned decoder"):
        load_tuned_decoder(tmp_path)
    kept.save(tmp_path)
    about = json.loads((tmp_path / "decoder.json").read_text())
    words = (tmp_path / "tokenizer" / "added_words.json").read_text()

    def damaged(told, *, sizes=None, words=words):
        (tmp_path / "decoder.json").write_text(json.dumps(about | {"decoder": about["decoder"] | (sizes or {})}))
        (tmp_path / "tokenizer" / "added_words.json").write_text(words)
        with pytest.raises(UserError, match=told):
            load_tuned_decoder(tmp_path)

    damaged("does not hold the weights", sizes={"context_length": 80})
    damaged("holds no fine-tuned decoder", sizes={"width": 3})
    damaged("ids, .* says 20", sizes={"vocab_size": 20})
    damaged("is not what added words were saved as", words="{}")


def test_random_is_untrained_and_the_same_for_a_seed(run, kept):
    encoder = load_encoder(f"random:{run}")
    one, two = (load_kept_decoder(f"random:{run}", encoder=encoder, seed=seed) for seed in (0, 1))
    other = load_kept_decoder(run, encoder=encoder, seed=0, untrained=True)
    assert one.identity() == other.identity()
    assert len({one.identity(), two.identity(), kept.identity()}) == 3
    assert one.tokenizer.vocab_size == kept.tokenizer.vocab_size


def test_what_has_no_decoder_is_an_error(run, tmp_path, tiny_encoder):
    encoder = load_encoder(run)
    for spec in ("timm:vit_tiny_patch16_224", str(tmp_path / "nothing")):
        with pytest.raises(UserError, match=f"--encoder={spec} has no decoder that writes text; give a run of this"):
            load_kept_decoder(spec, encoder=encoder)
    pixels = write_export(tmp_path / "pixels", text_weight=0.0)
    with pytest.raises(UserError, match="has no decoder that writes text"):
        load_kept_decoder(pixels, encoder=encoder)
    model = load_pretrained(pixels)
    with pytest.raises(UserError, match="there: its decoder was trained on pixels alone"):
        KeptDecoder(model.objective.decoder, model.tokenizer, spec="there")
    encoder.embed_dim = 48
    with pytest.raises(UserError, match="takes tokens 32 wide, the encoder's are 48 wide"):
        load_kept_decoder(run, encoder=encoder)
