import json
import pickle

import open_clip
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pretrain.data.tokenizers import (
    BpeTokenizer,
    ClipTokenizer,
    HuggingFaceTokenizer,
    build_tokenizer,
    clean_caption,
    collate_captions,
    load_tokenizer,
)
from pretrain.types import UserError

CAPTIONS = [
    "a red square",
    "a blue circle above a red square",
    "Two green triangles, 12 px",
    "the word Dog on grey",
] * 20


@pytest.fixture(scope="module")
def clip():
    return ClipTokenizer()


@pytest.fixture(scope="module")
def bpe():
    return BpeTokenizer.train(CAPTIONS, 400)


def _hf_folder(folder, **special):
    """A word-level tokenizer with </s> = 1 and <pad> = 2, as transformers saves it."""
    words = ["<unk>", "</s>", "<pad>", "<s>", "a", "red", "square", "circle"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special).save_pretrained(folder)
    return str(folder)


def _hugging_face(folder, **pad):
    return HuggingFaceTokenizer(_hf_folder(folder, eos_token="</s>", bos_token="<s>", **pad))


@pytest.fixture
def hugging_face(tmp_path):
    return _hugging_face(tmp_path / "hf", pad_token="<pad>")


@pytest.fixture
def hugging_face_pad_is_eos(tmp_path):
    return _hugging_face(tmp_path / "hf", pad_token="</s>")


@pytest.fixture
def hugging_face_no_pad(tmp_path):
    return _hugging_face(tmp_path / "hf")


@pytest.fixture(params=["bpe", "clip", "hugging_face", "hugging_face_pad_is_eos", "hugging_face_no_pad"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


# cleaning


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A  Dog\n\tand a CAT ", "a dog and a cat"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("cafÃ© ", "café"),
        ("&nbsp;", ""),
        ("", ""),
    ],
)
def test_clean_caption(text, cleaned):
    assert clean_caption(text) == cleaned


# what all of them promise


def test_captions_are_closed_by_the_only_eos(tokenizer):
    for ids in tokenizer.encode(["a red square", "a </s> red <eos> <pad> <end_of_text><start_of_text> <s> square"]):
        assert ids.count(tokenizer.eos_id) == 1
        assert ids[-1] == tokenizer.eos_id
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert 0 <= tokenizer.pad_id < tokenizer.vocab_size


def test_blank_captions_are_eos_alone(tokenizer):
    assert tokenizer.encode(["", " \n"]) == [[tokenizer.eos_id]] * 2


@pytest.mark.parametrize("words", [75, 76, 77, 300])
def test_cut_at_77_with_eos_kept(tokenizer, words):
    long, whole = tokenizer.encode(["a " * words, "a"])
    assert len(long) == min(words + 1, 77)
    assert long[-1] == tokenizer.eos_id
    assert long[:-1] == [whole[0]] * (len(long) - 1)


def test_encoding_cleans(tokenizer):
    first, second = tokenizer.encode(["A  Red\nSQUARE ", "a red square"])
    assert first == second


def test_decoding_gives_the_text_up_to_the_first_eos(tokenizer):
    (ids,) = tokenizer.encode(["A red square"])
    behind = [*ids, ids[0], tokenizer.pad_id, tokenizer.eos_id]
    assert tokenizer.decode(ids) == tokenizer.decode(behind) == tokenizer.decode(torch.tensor(behind)) == "a red square"
    assert tokenizer.decode([tokenizer.eos_id]) == tokenizer.decode([]) == ""
    assert tokenizer.decode(ids[:-1]) == "a red square"


def test_saved_tokenizers_are_the_same(tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "run/tokenizer"
    tokenizer.save(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for same in (load_tokenizer(folder), pickle.loads(pickle.dumps(tokenizer))):
        assert type(same) is type(tokenizer)
        for name in ("name", "vocab_size", "eos_id", "pad_id", "context_length"):
            assert getattr(same, name) == getattr(tokenizer, name)
        assert same.encode([*CAPTIONS[:4], "日本 </s>"]) == tokenizer.encode([*CAPTIONS[:4], "日本 </s>"])


def test_saving_a_loaded_tokenizer_keeps_its_name(hugging_face, tmp_path):
    hugging_face.save(tmp_path / "first")
    load_tokenizer(tmp_path / "first").save(tmp_path / "second")
    assert load_tokenizer(tmp_path / "second").name == hugging_face.name


# CLIP's


def test_clip_equals_open_clip(clip):
    captions = ["A dog's ball, 12 px", "", "Hello &amp; good-bye naïve 日本", "many words " * 60]
    theirs = open_clip.get_tokenizer("ViT-B-32")(captions)  # with start-of-text, padded with 0
    for ids, row in zip(clip.encode(captions), theirs.tolist()):
        # Theirs spend one of the 77 places on start-of-text, ours do not.
        expected = row[1 : row.index(49407) + 1]
        if len(ids) < 77:
            assert ids == expected
        else:
            assert ids[:75] == expected[:75]
    assert (clip.vocab_size, clip.eos_id, clip.pad_id) == (49408, 49407, 0)


# the run's own


def test_bpe_learns_words_and_no_more_than_it_may(bpe):
    assert (bpe.pad_id, bpe.eos_id) == (0, 1)
    assert bpe.vocab_size <= 400
    assert len(bpe.encode(["a red square"])[0]) == 4  # one token a word, EOS
    assert BpeTokenizer.train(CAPTIONS, 280).vocab_size == 280
    assert len(BpeTokenizer.train(CAPTIONS, 258).encode(["red"])[0]) == 5  # bytes only: space, r, e, d, EOS


def test_bpe_is_the_same_every_time(bpe):
    again = BpeTokenizer.train(iter(CAPTIONS), 400)
    assert again._tokenizer.to_str() == bpe._tokenizer.to_str()


def test_bpe_spells_numbers_by_digits():
    tokenizer = BpeTokenizer.train(["number 2024 and 2024"] * 50, 1000)
    ids = tokenizer.encode(["2024"])[0]
    assert len([i for i in ids if tokenizer.decode([i])]) == 4
    assert tokenizer.decode(ids) == "2024"


@pytest.mark.parametrize("text", ["naïve 日本 🙂", "a  b", "x_1-2!?", "\x00\x7f"])
def test_bpe_knows_every_text(bpe, text):
    assert bpe.decode(bpe.encode([text])[0]) == clean_caption(text)


def test_bpe_word_at_the_start_is_the_word_elsewhere(bpe):
    first, second = bpe.encode(["square", "red square"])
    assert first == second[1:]


def test_bpe_of_pictures_without_captions():
    assert build_tokenizer("bpe", lambda: [], 1000).vocab_size == 258


def test_bpe_with_too_few_ids():
    with pytest.raises(UserError, match=r"vocab_size: 257 is too small.*258"):
        BpeTokenizer.train(CAPTIONS, 257)


# Hugging Face's


def test_hugging_face_ids(hugging_face):
    assert hugging_face.eos_id == 1
    assert hugging_face.vocab_size == 8
    assert hugging_face.encode(["A red thing"]) == [[4, 5, 0, 1]]  # the unknown word stays, no BOS
    assert hugging_face.decode([4, 7, 1, 5]) == "a circle"


def test_pad_equal_to_eos_is_kept_apart_by_lengths(hugging_face_pad_is_eos):
    tokenizer = hugging_face_pad_is_eos
    assert tokenizer.pad_id == tokenizer.eos_id == 1
    text_BL, text_valid_BL = collate_captions(tokenizer.encode(["a red square", "a"]), tokenizer.pad_id)
    assert text_BL.tolist() == [[4, 5, 6, 1, 1, 1, 1, 1], [4, 1, 1, 1, 1, 1, 1, 1]]
    assert text_valid_BL.sum(dim=1).tolist() == [4, 2]


def test_hugging_face_without_eos(tmp_path):
    folder = _hf_folder(tmp_path / "hf", pad_token="<pad>")
    with pytest.raises(UserError, match="has no EOS token"):
        HuggingFaceTokenizer(folder)


def test_hugging_face_folder_without_tokenizer(tmp_path):
    with pytest.raises(UserError, match="does not load as a Hugging Face tokenizer") as error:
        HuggingFaceTokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_hugging_face_folder_that_is_not_there(tmp_path):
    for name in (str(tmp_path / "none"), "./none", "runs/none/tokenizer"):
        with pytest.raises(UserError, match="does not exist"):
            HuggingFaceTokenizer(name)


def test_hugging_face_name_without_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'nobody/none'.*hub could not be reached.*give a folder") as error:
        build_tokenizer("nobody/none", list, 1000)
    assert "\n" not in str(error.value)


# build and load


def test_build(clip, tmp_path):
    assert isinstance(build_tokenizer("bpe", lambda: CAPTIONS, 300), BpeTokenizer)
    folder = _hf_folder(tmp_path / "hf", eos_token="</s>")

    def never():
        raise AssertionError("captions are for the BPE")

    assert isinstance(build_tokenizer("clip", never, 300), ClipTokenizer)
    assert isinstance(build_tokenizer(folder, never, 300), HuggingFaceTokenizer)
    with pytest.raises(UserError, match="tokenizer: ''"):
        build_tokenizer("", never, 300)


def test_load_errors(bpe, tmp_path):
    with pytest.raises(UserError, match=r"caption_tokenizer.json' is not what"):
        load_tokenizer(tmp_path)
    bpe.save(tmp_path)
    marker = tmp_path / "caption_tokenizer.json"
    good = json.loads(marker.read_text())
    for content, message in [
        ("{", "is not what a tokenizer was saved as"),
        ("{}", "KeyError: 'kind'"),
        (json.dumps(good | {"kind": "x"}), "of the kind 'x'; known are bpe, clip, hugging_face"),
        (json.dumps(good | {"vocab_size": 3}), "but was saved with 3"),
    ]:
        marker.write_text(content)
        with pytest.raises(UserError, match=message):
            load_tokenizer(tmp_path)
    marker.write_text(json.dumps(good))
    for content, message in [("{", "is damaged"), (None, "does not exist"), (None, "does not exist")]:
        (tmp_path / "tokenizer.json").write_text(content) if content else (tmp_path / "tokenizer.json").unlink(True)
        with pytest.raises(UserError, match=message):
            load_tokenizer(tmp_path)


# collate_captions


def test_collate():
    text_BL, text_valid_BL = collate_captions([[5, 6, 1], [], [7, 1]], 9)
    assert text_BL.dtype == torch.int64
    assert text_valid_BL.dtype == torch.bool
    assert text_BL.tolist() == [[5, 6, 1, 9, 9, 9, 9, 9], [9] * 8, [7, 1, 9, 9, 9, 9, 9, 9]]
    assert text_valid_BL.tolist() == [[True] * 3 + [False] * 5, [False] * 8, [True] * 2 + [False] * 6]


@pytest.mark.parametrize(("longest", "length"), [(0, 8), (1, 8), (8, 8), (9, 16), (72, 72), (73, 77), (77, 77)])
def test_collated_length(longest, length):
    text_BL, text_valid_BL = collate_captions([[3] * longest, []], 0)
    assert text_BL.shape == text_valid_BL.shape == (2, length)
    assert text_valid_BL.sum() == longest


def test_collate_refuses_what_is_too_long():
    with pytest.raises(ValueError, match="78 ids"):
        collate_captions([[3] * 78], 0)


def test_collate_of_nothing():
    text_BL, text_valid_BL = collate_captions([], 0)
    assert text_BL.shape == text_valid_BL.shape == (0, 8)
