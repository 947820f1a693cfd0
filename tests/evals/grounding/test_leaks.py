"""Training pictures that are scored are found by COCO's ids, left out and counted.

The release of ref_cases.py has pictures 581857 (train), 94 (val) and 1 (testA).
"""

import numpy as np
import pytest
from ref_cases import annotation, instances, ref, refs, write_release

from evals.detection.scene_folder import SceneFolder, scene_folder
from evals.grounding.leaks import drop_leaks, find_leaks
from evals.grounding.ref_set import RefSet
from evals.grounding.release import read_release
from pretrain.types import UserError


def split_of(root, split, *, name="refcoco", **files) -> RefSet:
    folder, images = write_release(root, **files)
    return RefSet(read_release(folder), images, name=name, split=split)


def with_shared_pictures():
    """Two more objects for training: on 94, which is in val, and on 1, which is in testA; and a third in no other split."""
    return {
        "content": instances() | {"annotations": [*instances()["annotations"], annotation(17, 1, [0, 0, 9, 9])]},
        "entries": [
            ref(5, 16, 94, "train", "shoe", "brown shoe", "old shoe"),
            *refs(),
            ref(6, 17, 1, "train", "hat"),
        ],
    }


def test_leaks_worked_out_by_hand():
    # samples 0, 2 are on picture 7 (val and test), sample 4 on 9 (test); 5 and 8 are scored nowhere
    leaks = find_leaks(np.array([7, 5, 7, 8, 9]), {"val": np.array([7, 1]), "test": np.array([9, 7, 9, 2])})
    assert leaks.keep_N.tolist() == [False, True, False, True, False]
    assert (leaks.num_pictures, leaks.num_samples) == (2, 3)
    assert leaks.by_split == {"val": 1, "test": 2}
    assert leaks.describe() == (
        "2 training pictures (3 expressions) are left out: they are in splits that are held out or scored (1 in val, 2 in test)"
    )
    assert "(3 pictures)" in leaks.describe(what="pictures")


def test_no_leaks_and_nothing_scored():
    for scored in ({}, {"val": np.array([], dtype=np.int64)}, {"val": np.array([3, 4])}):
        leaks = find_leaks(np.array([7, 5]), scored)
        assert leaks.keep_N.tolist() == [True, True]
        assert (leaks.num_pictures, leaks.num_samples) == (0, 0)
        assert leaks.describe() == "no training picture is in a split that is held out or scored"


def test_ids_of_another_numbering_name_other_pictures():
    ids, scored = np.array([1, 2, 3]), {"val": np.array([2])}
    assert find_leaks(ids, scored, numbering="synthetic scenes [5]").num_samples == 0
    assert find_leaks(ids, scored, scored_numbering="synthetic scenes [5]").num_samples == 0
    assert (
        find_leaks(ids, scored, numbering="synthetic scenes [5]", scored_numbering="synthetic scenes [6]").num_samples
        == 0
    )
    same = find_leaks(ids, scored, numbering="synthetic scenes [5]", scored_numbering="synthetic scenes [5]")
    assert same.keep_N.tolist() == [True, False, True]


def test_a_training_set_goes_without_the_pictures_of_its_val_and_test(tmp_path):
    train, val, test = (split_of(tmp_path, split, **with_shared_pictures()) for split in ("train", "val", "testA"))
    assert [e.ref_id for e in train.expressions] == [5, 5, 5, 1, 1, 2, 6]
    kept, leaks = drop_leaks(train, [val, test])
    assert [(e.ref_id, e.image_id) for e in kept.expressions] == [(1, 581857), (1, 581857), (2, 581857)]
    assert kept.image_ids.tolist() == [581857]
    assert leaks.keep_N.tolist() == [False, False, False, True, True, True, False]
    assert (leaks.num_pictures, leaks.num_samples) == (2, 4)
    assert leaks.by_split == {"refcoco val": 1, "refcoco testA": 1}
    only_val, leaks = drop_leaks(train, [val])
    assert only_val.image_ids.tolist() == [1, 581857]
    assert (leaks.num_pictures, leaks.num_samples) == (1, 3)
    assert len(train) == 7  # is left as it was


def test_a_set_without_leaks_stays_itself(tmp_path):
    train, val = (split_of(tmp_path, split) for split in ("train", "val"))
    kept, leaks = drop_leaks(train, [val])
    assert kept is train
    assert leaks.num_samples == 0
    assert leaks.by_split == {"refcoco val": 0}


def test_pictures_of_another_data_set_are_found_too(tmp_path):
    """RefCOCO's training pictures among RefCOCOg's val pictures, whatever the files are called."""
    content = instances()
    content["images"][0]["file_name"] = "581857.jpg"
    train = split_of(tmp_path / "a", "train")
    entries = [{**entry, "split": "val"} for entry in refs()[:3]]
    _, images = write_release(tmp_path / "b", content=content, entries=entries)
    (images / "COCO_train2014_000000581857.jpg").rename(images / "581857.jpg")
    val = RefSet(read_release(tmp_path / "b" / "refcoco"), images, name="refcocog", split="val")
    with pytest.raises(UserError, match="refcoco: none of the 3 expressions of split 'train' is left"):
        drop_leaks(train, [val])


def test_a_picture_of_two_scored_splits_counts_once(tmp_path):
    entries = [*refs(), ref(7, 16, 94, "testA", "sock"), ref(8, 15, 94, "train", "grass")]
    train, val, test = (split_of(tmp_path, split, entries=entries) for split in ("train", "val", "testA"))
    _, leaks = drop_leaks(train, [val, test])
    assert (leaks.num_pictures, leaks.num_samples) == (1, 1)
    assert leaks.by_split == {"refcoco val": 1, "refcoco testA": 1}


def test_generated_sets_are_told_apart_from_photographs_and_by_their_seed(tmp_path):
    """Scenes are numbered from 1: their ids are those of photographs, or of other scenes, by chance alone."""

    def scenes(seed) -> RefSet:
        root = scene_folder(SceneFolder({"train": 3}, {"two": 1.0}, seed=seed), root=tmp_path)
        return RefSet(read_release(root / "refcoco"), root / "images", name="scenes", split="train")

    own, other = scenes(3), scenes(4)
    assert own.synthetic
    assert own.image_ids.tolist() == other.image_ids.tolist() == [1, 2, 3]
    photographs = split_of(tmp_path / "release", "testA")
    assert photographs.image_ids.tolist() == [1]
    kept, leaks = drop_leaks(own, [other, photographs])
    assert kept is own
    assert leaks.num_samples == 0
    with pytest.raises(UserError, match=r"scenes: none of the [0-9]+ expressions of split 'train' is left"):
        drop_leaks(own, [scenes(3)])
