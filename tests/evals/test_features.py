import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch

from evals import features as module
from evals.features import FeatureConfig, cached_features
from pretrain.types import UserError


@pytest.fixture
def config(tmp_path):
    return FeatureConfig(folder=tmp_path / "features", dtype="float32", precision="fp32", batch_size=4, num_workers=0)


@pytest.mark.parametrize("class_token", [False, True])
def test_rows_are_the_encoders_output(config, tiny_encoder, drawn_set, class_token):
    encoder, dataset = tiny_encoder(class_token=class_token), drawn_set(10)
    found = cached_features(encoder, dataset, config)
    images = encoder.preprocess([dataset.load(index) for index in range(10)])
    tokens = encoder.vit.forward_features(images)
    assert torch.allclose(found.tokens(np.arange(10)), tokens, atol=1e-5)
    summary = tokens[:, 0] if class_token else tokens.mean(1)
    assert torch.allclose(found.summaries(np.arange(10)), summary, atol=1e-5)
    assert found.usable_N.tolist() == list(range(10))
    picked = np.array([7, 2])
    assert torch.equal(found.tokens(picked), found.tokens(np.arange(10))[[7, 2]])


def test_the_second_time_nothing_is_encoded(config, tiny_encoder, drawn_set):
    encoder, dataset = tiny_encoder(), drawn_set(10)
    first = cached_features(encoder, dataset, config)
    dataset.num_loads = 0
    second = cached_features(encoder, dataset, config)
    assert dataset.num_loads == 0
    assert np.array_equal(first.tokens_STD, second.tokens_STD)


def test_other_labels_share_the_features(config, tiny_encoder, drawn_set):
    encoder = tiny_encoder()
    cached_features(encoder, drawn_set(10), config)
    relabelled = drawn_set(10, name="other")
    relabelled.label_N = relabelled.label_N[::-1].copy()
    found = cached_features(encoder, relabelled, config)
    assert relabelled.num_loads == 0
    assert np.array_equal(found.label_S, relabelled.label_N)


@pytest.mark.parametrize("what", ["weights", "pictures", "transform", "precision", "dtype"])
def test_what_changes_features_changes_their_place(config, tiny_encoder, drawn_set, what):
    folders = [cached_features(tiny_encoder(), drawn_set(6), config).folder]
    encoder, dataset = tiny_encoder(seed=int(what == "weights")), drawn_set(6, seed=int(what == "pictures"))
    if what == "transform":
        encoder.transform = replace(encoder.transform, crop_pct=0.5)
    changed = {"precision": {"precision": "bf16"}, "dtype": {"dtype": "float16"}}.get(what, {})
    folders.append(cached_features(encoder, dataset, replace(config, **changed)).folder)
    assert folders[0] != folders[1]


def test_an_interruption_loses_no_finished_picture(config, tiny_encoder, drawn_set, monkeypatch):
    """Interrupted in the third batch of four: the second call reads the rest alone, and all rows are those of one go."""
    monkeypatch.setattr(module, "_FLUSH_EVERY", 1)
    encoder, dataset, calls = tiny_encoder(), drawn_set(16), []
    plain = module.encode

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:  # the first call asks for the shape
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    monkeypatch.setattr(module, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached_features(encoder, dataset, config)
    monkeypatch.setattr(module, "encode", plain)
    dataset.num_loads = 0
    broken = cached_features(encoder, dataset, config)
    assert dataset.num_loads == 8
    whole = cached_features(encoder, dataset, replace(config, folder=config.folder / "whole"))
    assert np.array_equal(broken.tokens_STD, whole.tokens_STD)
    assert np.array_equal(broken.summary_SE, whole.summary_SE)


def test_unreadable_pictures_are_left_out_and_counted(config, tiny_encoder, drawn_set):
    found = cached_features(tiny_encoder(), drawn_set(40, bad=[3]), config)
    assert found.num_unreadable == 1
    assert 3 not in found.usable_N
    assert not found.tokens_STD[3].any()
    faults = (found.folder / "faults.jsonl").read_text().splitlines()
    assert len(faults) == 1
    assert '"kind": "corrupt"' in faults[0]
    again = cached_features(tiny_encoder(), dataset := drawn_set(40, bad=[3]), config)
    assert again.num_unreadable == 1
    assert dataset.num_loads == 1, "it is tried again: it may have been mended"
    assert len((found.folder / "faults.jsonl").read_text().splitlines()) == 1


def test_too_many_unreadable_pictures(config, tiny_encoder, drawn_set):
    for _ in range(3):  # the features of the good ones are kept, and the bad ones are not forgotten
        with pytest.raises(UserError, match=r"drawn train: \d of 40 pictures cannot be read, more than 5%"):
            cached_features(tiny_encoder(), drawn_set(40, bad=range(5)), config)


def test_a_mended_picture_is_encoded(config, tiny_encoder, drawn_set):
    dataset = drawn_set(40, bad=[3])
    identity = dataset.pictures_identity()
    assert cached_features(tiny_encoder(), dataset, config).num_unreadable == 1
    mended = drawn_set(40)
    mended.pictures_identity = lambda: identity
    found = cached_features(tiny_encoder(), mended, config)
    assert found.num_unreadable == 0
    assert mended.num_loads == 1
    assert found.tokens_STD[3].any()


def test_changed_code_encodes_anew(config, tiny_encoder, drawn_set, monkeypatch):
    first = cached_features(tiny_encoder(), drawn_set(6), config).folder
    monkeypatch.setattr(module, "source_hash", lambda *places: "other")
    assert cached_features(tiny_encoder(), drawn_set(6), config).folder != first


def test_a_disk_that_is_too_small(config, tiny_encoder, drawn_set, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(UserError, match=r"features of 10 pictures take .*MiB, .* has 0.0 MiB left"):
        cached_features(tiny_encoder(), drawn_set(10), config)
    monkeypatch.undo()
    assert len(cached_features(tiny_encoder(), drawn_set(10), config).usable_N) == 10


def test_features_beyond_float16(config, tiny_encoder, drawn_set):
    encoder = tiny_encoder()
    torch.nn.init.constant_(encoder.vit.norm.bias, 1e5)
    with pytest.raises(UserError, match=r"not finite as torch.float16: set --features.dtype=float32"):
        cached_features(encoder, drawn_set(10), replace(config, dtype="float16"))


@pytest.mark.parametrize(
    ("change", "message"), [({"batch_size": 0}, "features.batch_size=0"), ({"num_workers": -1}, "num_workers=-1")]
)
def test_numbers_that_cannot_be_meant(config, change, message):
    with pytest.raises(UserError, match=message):
        replace(config, **change).check()
