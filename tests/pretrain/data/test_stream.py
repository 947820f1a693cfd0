"""Batches from sources of every kind, good and bad, as training sees them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.datamodule import ImageTextData
from pretrain.data.order import InOrder, Mixture, Shuffled
from pretrain.data.source_config import SourceConfig
from pretrain.data.sources import FolderSource, TableSource
from pretrain.data.stream import Collate, Part, PositionBatches, SampleStream
from pretrain.data.tokenizers import BpeTokenizer
from pretrain.data.transforms import TrainTransform
from pretrain.types import ImageSpec, UserError


@pytest.fixture
def tokenizer():
    return BpeTokenizer.train(["a red star", "a dog on the grass"] * 20, 300)


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(10):
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    return tmp_path


def table(folder, captions=lambda index: [f"picture {index}", f"another {index}"]):
    path = folder / "captions.jsonl"
    rows = [{"image": f"{index}.png", "caption": captions(index)} for index in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TableSource(path)


def stream(source, tokenizer, *, shuffled=True, seed=0):
    order = Shuffled(len(source), seed=seed) if shuffled else InOrder(len(source))
    return SampleStream(
        [Part(source, TrainTransform(16), order)],
        Mixture([1.0], seed=seed, num_lanes=64),
        tokenizer=tokenizer,
        seed=seed,
        replaces=shuffled,
        length=1000,
    )


def test_each_epoch_takes_every_sample_once_in_another_order(pictures, tokenizer):
    source = stream(table(pictures), tokenizer)
    epochs = [[source.locate(position)[1] for position in range(epoch * 10, epoch * 10 + 10)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = stream(table(pictures), tokenizer, seed=1)
    assert [other.locate(position)[1] for position in range(10)] != epochs[0]


def test_a_sample_is_a_function_of_seed_and_number(pictures, tokenizer):
    first, second = (stream(table(pictures), tokenizer) for _ in range(2))
    for position in (7, 33, 2):
        one, two = first[position], second[position]
        assert torch.equal(one.image_CHW, two.image_CHW)
        assert (one.caption, one.key) == (two.caption, two.key)
    # sample 3's picture comes again in the next epoch, cropped otherwise
    key = first[3].key
    again = next(first[position] for position in range(10, 20) if first[position].key == key)
    assert not torch.equal(first[3].image_CHW, again.image_CHW)


def test_all_captions_of_a_picture_are_used(pictures, tokenizer):
    samples = [stream(table(pictures), tokenizer)[position] for position in range(80)]
    assert {sample.caption.split()[0] for sample in samples} == {"picture", "another"}


def test_unusable_samples_are_replaced_in_training_and_left_out_in_validation(pictures, tokenizer):
    (pictures / "3.png").write_bytes((pictures / "3.png").read_bytes()[:100])
    (pictures / "4.png").unlink()
    source = table(pictures)
    training = [stream(source, tokenizer)[position] for position in range(10)]
    assert all(sample.image_CHW is not None for sample in training)
    kinds = [fault.kind for sample in training for fault in sample.faults]
    assert {"corrupt", "missing"} <= set(kinds)
    assert sum(sample.attempts for sample in training) == 10 + len(kinds)
    again = [stream(source, tokenizer)[position].key for position in range(10)]
    assert again == [sample.key for sample in training], "replacements, too, are a function of the number"

    held_out = stream(source, tokenizer, shuffled=False)
    batch = Collate(0, tokenizer.pad_id)([held_out[position] for position in range(10)])
    assert len(batch) == 8
    assert sorted(fault.kind for fault in batch.faults) == ["corrupt", "missing"]
    assert batch.attempts == 10


def test_nothing_usable_is_an_error_not_a_hang(pictures, tokenizer):
    source = table(pictures)
    for path in pictures.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="100 unusable samples in a row"):
        stream(source, tokenizer)[0]
    empty = Collate(0, 0)([stream(source, tokenizer, shuffled=False)[0]])  # one bad validation batch stops nothing
    assert (len(empty), len(empty.faults), empty.attempts) == (0, 1, 1)


def test_a_folder_without_captions_has_no_valid_token(pictures, tokenizer):
    source = stream(FolderSource(pictures), tokenizer)
    batch = Collate(0, tokenizer.pad_id)([source[position] for position in range(4)])
    assert not batch.text_valid_BL.any()
    assert batch.captions == [""] * 4
    assert batch.image_BCHW.shape == (4, 3, 16, 16)


def test_captions_are_padded_to_the_longest_not_to_the_context(pictures, tokenizer):
    captions = {0: "a", 1: "dog " * 5, 2: "a red star " * 60}
    source = stream(table(pictures, lambda index: captions.get(index, "a dog")), tokenizer, shuffled=False)
    collate = Collate(0, tokenizer.pad_id)
    short = collate([source[0], source[3]])
    assert short.text_BL.shape[1] == 8
    long = collate([source[0], source[2]])
    assert long.text_BL.shape[1] == 77
    assert long.text_BL[1, 76] == tokenizer.eos_id, "EOS is kept where the caption is cut"
    for row in (0, 1):
        valid = short.text_valid_BL[row]
        assert short.text_BL[row][valid][-1] == tokenizer.eos_id
        assert (short.text_BL[row][valid] == tokenizer.eos_id).sum() == 1


def test_ranks_split_a_step_and_resuming_goes_on():
    whole = list(PositionBatches(batch_size=6, num_batches=4))
    ranks = [list(PositionBatches(batch_size=3, num_batches=4, rank=rank, world_size=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    assert list(PositionBatches(batch_size=6, num_batches=4, start_batch=3)) == whole[3:]
    assert len(PositionBatches(batch_size=6, num_batches=4, start_batch=3)) == 4
    validation = [
        list(PositionBatches(batch_size=3, num_batches=2, rank=r, world_size=2, num_samples=7)) for r in range(2)
    ]
    assert validation == [[[0, 1, 2], [6]], [[3, 4, 5]]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SourceConfig("shards"), "data.train.path is needed"),
        (SourceConfig("coco", path="x.json"), "data.train.images is needed"),
        (SourceConfig("scenes", levels={"one": 1.0}), "data.train.captions is needed"),
        (SourceConfig("folder", path="x", caption_field="y"), "caption_field='y' is not used"),
        (SourceConfig("folder", path=["x", "y"]), "one path"),
        (SourceConfig("folder", path="nowhere"), "nowhere"),
    ],
)
def test_bad_source_configs(config, message):
    with pytest.raises(UserError, match=message):
        config.build("train", seed=0, split="train", img_size=32)


def test_photographs_need_a_validation_source():
    with pytest.raises(UserError, match=r"data\.val is needed"):
        ImageTextData(SourceConfig("folder", path="x"), image=ImageSpec(32))


def test_a_mixture_draws_from_each_source_and_names_it(pictures, tokenizer):
    (pictures / "3.png").write_bytes(b"no picture")
    sources = [table(pictures), FolderSource(pictures)]
    parts = [
        Part(source, TrainTransform(16), Shuffled(len(source), seed=0), name)
        for source, name in zip(sources, ("told", "bare"), strict=True)
    ]
    mixture = Mixture([3, 1], seed=0, num_lanes=2)
    mixed = SampleStream(parts, mixture, tokenizer=tokenizer, seed=0, replaces=True, length=1000)
    samples = [mixed[position] for position in range(200)]
    named = [sample.key.split(":")[0] for sample in samples]
    assert 135 <= named.count("told") <= 165
    assert named.count("told") + named.count("bare") == 200
    for sample, name in zip(samples, named, strict=True):
        assert bool(sample.caption) == (name == "told")
    faults = {fault.key for sample in samples for fault in sample.faults}
    assert faults == {"told:3.png", "bare:3.png"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of data.train"),
        (
            {"train": SourceConfig("folder", path="x"), "mixture": {"a": SourceConfig("folder", path="x")}},
            "exactly one",
        ),
        ({"mixture": {}}, "data.mixture is empty"),
        ({"mixture": {"a b": SourceConfig("folder", path="x")}}, "'a b'"),
        ({"train": SourceConfig("folder", path="x", weight=2.0)}, "data.train.weight=2.0"),
        ({"mixture": {"a": SourceConfig("folder", path="x")}}, "data.val is needed with data.mixture"),
        ({"train": SourceConfig("scenes"), "num_lanes": 0}, "data.num_lanes=0"),
        ({"train": SourceConfig("scenes"), "shuffle_window": 0}, "data.shuffle_window=0"),
    ],
)
def test_bad_data_configs(given, message):
    with pytest.raises(UserError, match=message):
        ImageTextData(image=ImageSpec(32), **given)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SourceConfig("shards", path="x", caption_field="a", captions={"b": 1.0}), "not both"),
        (SourceConfig("shards", path="x", captions={"b": 0.0}), "weight above 0"),
        (SourceConfig("parquet"), "data.train.path is needed"),
        (SourceConfig("parquet", path="nowhere"), "nowhere"),
        (SourceConfig("coco", path="x", images="y", captions={"a": 1.0}), "not used by kind=coco"),
    ],
)
def test_bad_caption_kinds(config, message):
    with pytest.raises(UserError, match=message):
        config.build("train", seed=0, split="train", img_size=32)
