"""The text encoder of Grounding DINO: phrases are read each for itself, and what is read is what the plain encoder reads."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from evals.detection.mmdet_setup import use_mmdet
from evals.grounding import language_model
from evals.grounding.language_model import HuggingFaceTextEncoder, phrase_masks
from evals.grounding.text_features import default_model
from pretrain.types import UserError

CLS, SEP, DOT = 101, 102, 1012  # of BERT's uncased vocabulary


@pytest.fixture(scope="module")
def encoder():
    return HuggingFaceTextEncoder().eval()


@pytest.fixture(scope="module")
def plain():
    """Tokenizer and model as transformers gives them."""
    return (
        transformers.AutoTokenizer.from_pretrained(default_model()),
        transformers.AutoModel.from_pretrained(default_model()).eval(),
    )


def test_phrases_by_hand():
    #       [CLS] cat  .  big dog  .  [SEP] padding
    text = [CLS, 7, DOT, 8, 9, DOT, SEP, 0]
    attend, position = phrase_masks(torch.tensor([text]), torch.tensor([[True] * 7 + [False]]), ends=[CLS, SEP, DOT])
    phrases = [[0], [1, 2], [3, 4, 5], [6], [7]]
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    for phrase in phrases:
        for row in phrase:
            wanted[row, phrase] = True
    assert torch.equal(attend[0], wanted)
    assert position[0].tolist() == [0, 0, 1, 0, 1, 2, 0, 0]


def test_phrases_are_mmdets(plain):
    """Its function, which is plain torch, still runs; prompts end with a full stop, as mmdet makes them."""
    use_mmdet()
    from mmdet.models.language_models.bert import generate_masks_with_special_tokens_and_transfer_map

    tokenizer, _ = plain
    tokenized = tokenizer(
        ["cat. traffic light. a very long name. ", "dog? ", "a. b. c. "], padding=True, return_tensors="pt"
    )
    ends = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
    attend, position = phrase_masks(tokenized.input_ids, tokenized.attention_mask.bool(), ends=ends)
    wanted_attend, wanted_position = generate_masks_with_special_tokens_and_transfer_map(tokenized, ends)
    assert torch.equal(attend, wanted_attend)
    assert torch.equal(position, wanted_position)


@torch.no_grad()
def test_phrases_do_not_see_each_other(encoder):
    first, second = encoder(["red cat. dog. ", "red cat. bus. "])["embedded"]  # [CLS] red cat . dog . [SEP]
    torch.testing.assert_close(first[:4], second[:4], atol=1e-6, rtol=0)
    assert (first[4] - second[4]).abs().max() > 0.01
    assert (first[5] - second[5]).abs().max() > 0.01  # the full stop belongs to its phrase
    whole = HuggingFaceTextEncoder(sub_sentences=False).eval()
    first, second = whole(["red cat. dog. ", "red cat. bus. "])["embedded"]
    assert (first[1] - second[1]).abs().max() > 0.01


@torch.no_grad()
def test_a_phrase_is_what_the_plain_encoder_makes_of_it(encoder, plain):
    tokenizer, model = plain
    found = encoder(["traffic light. dog. "])["embedded"][0, 1:4]  # traffic light .
    ids = tokenizer(["traffic light."], add_special_tokens=False, return_tensors="pt").input_ids
    torch.testing.assert_close(found, model(input_ids=ids).last_hidden_state[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_whole_text_is_what_the_plain_encoder_makes_of_it(plain):
    tokenizer, model = plain
    texts = ["a dog. ", "the man on the left. no. "]
    found = HuggingFaceTextEncoder(sub_sentences=False).eval()(texts)
    tokenized = tokenizer(texts, padding=True, return_tensors="pt")
    valid = tokenized.attention_mask.bool()
    assert torch.equal(found["text_token_mask"], valid)
    torch.testing.assert_close(found["embedded"][valid], model(**tokenized).last_hidden_state[valid], atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing(encoder):
    short, long = "a dog. ", "the man who sits on the left. cat. "
    alone, together = encoder([short]), encoder([short, long])
    length = alone["embedded"].shape[1]
    torch.testing.assert_close(together["embedded"][0, :length], alone["embedded"][0], atol=1e-5, rtol=0)
    assert torch.equal(together["masks"][0, :length, :length], alone["masks"][0])
    assert together["text_token_mask"].sum(1).tolist() == [length, together["embedded"].shape[1]]


def test_roberta_counts_positions_from_behind_padding(monkeypatch, plain):
    """RoBERTa's own positions of a text begin at the padding's id + 1 = 1: a lone phrase must get those too."""
    tokenizer, _ = plain
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.RobertaConfig(vocab_size=len(tokenizer), pad_token_id=0, max_position_embeddings=40, **sizes)
    model = transformers.RobertaModel(config).eval()
    monkeypatch.setattr(language_model, "load_text_encoder", lambda name: (tokenizer, model))
    found = HuggingFaceTextEncoder("roberta", max_tokens=32).eval()(["traffic light. dog. "])["embedded"][0, 1:4]
    ids = tokenizer(["traffic light."], add_special_tokens=False, return_tensors="pt").input_ids
    torch.testing.assert_close(found, model(input_ids=ids).last_hidden_state[0], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"max_tokens=40 must be 4 to 39"):
        HuggingFaceTextEncoder("roberta", max_tokens=40)


def test_frozen_and_trained():
    frozen = HuggingFaceTextEncoder(frozen=True).train()
    assert not frozen.model.training
    assert not frozen(["a dog. "])["embedded"].requires_grad
    trained = HuggingFaceTextEncoder().train()
    assert trained.model.training  # dropout
    trained(["a dog. "])["embedded"].sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())
    assert frozen.model.embeddings.word_embeddings.weight is not trained.model.embeddings.word_embeddings.weight


def test_long_texts_are_cut_and_told(caplog):
    encoder = HuggingFaceTextEncoder(max_tokens=6).eval()
    with caplog.at_level("WARNING"):
        found = encoder(["one two three four five six seven. "])
        encoder(["one two three four five six seven. "])
    assert found["embedded"].shape[1] == 6
    assert caplog.text.count("texts of more than 6 tokens are cut") == 1


def test_what_mmdet_reads(encoder):
    assert encoder.language_backbone.body.language_dim == 384
    assert encoder.pad_to_max is False
    assert encoder.max_tokens == 256
    assert encoder.tokens("traffic light. ") == 3
    assert encoder.num_spare() == 254
    language_model.register()
    language_model.register()
    from mmdet.registry import MODELS

    assert isinstance(MODELS.build({"type": "HuggingFaceTextEncoder", "frozen": True}), HuggingFaceTextEncoder)


def _with(plain, monkeypatch, *, tokenizer=None, model=None):
    loaded = (tokenizer or plain[0], model or plain[1])
    monkeypatch.setattr(language_model, "load_text_encoder", lambda name: loaded)


def test_no_such_folder():
    with pytest.raises(UserError, match=r"text encoder '/no/such/folder'"):
        HuggingFaceTextEncoder("/no/such/folder")


def test_an_encoder_that_looks_back_only(plain, monkeypatch):
    _with(plain, monkeypatch, model=transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1)))
    with pytest.raises(UserError, match=r"'gpt2' is of type 'gpt2'.*one of bert"):
        HuggingFaceTextEncoder("gpt2")


def test_a_tokenizer_without_offsets(plain, monkeypatch):
    _with(plain, monkeypatch, tokenizer=SimpleNamespace(is_fast=False))
    with pytest.raises(UserError, match=r"does not tell which characters a token stands for.*tokenizer\.json"):
        HuggingFaceTextEncoder("slow")


def test_more_tokens_than_positions():
    with pytest.raises(UserError, match=r"dino\.language\.max_tokens=600 must be 4 to 512"):
        HuggingFaceTextEncoder(max_tokens=600)
