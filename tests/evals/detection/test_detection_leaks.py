"""Training pictures that the test set has too, and other faults that a review found."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from evals.detection.coco_set import CocoSet
from evals.detection.datasets import without_leaks
from evals.detection.job import DetectionJob, JobConfig
from evals.detection.mmdet_io import data_sample
from evals.detection.module import MAX_PASTED_PIXELS, _parts
from evals.detection.open_vocabulary import draw_prompt
from evals.detection.pages import _examples
from evals.detection.samples import Objects, Sample
from pretrain.types import UserError


def write(folder, name, files, *, first_id=1, objects=True) -> CocoSet:
    """A set of 8 x 8 pictures, `files` relative to the folder, with one object each."""
    images, annotations = [], []
    for number, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(folder / file)
        images.append({"id": first_id + number, "file_name": file, "height": 8, "width": 8})
        box = {
            "id": number + 1,
            "image_id": first_id + number,
            "category_id": 1,
            "bbox": [1, 1, 4, 4],
            "area": 16,
            "iscrowd": 0,
        }
        annotations += [box] if objects else []
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return CocoSet(folder / f"{name}.json", folder, name="mine", split=name, with_masks=False)


def test_training_goes_without_the_test_sets_pictures(tmp_path):
    """By file: ids of a user's two files may both count from 1."""
    train = write(tmp_path, "train", ["a/1.png", "a/2.png", "a/3.png"])
    test = write(tmp_path, "test", ["b/1.png", "a/2.png"])
    clean = without_leaks(train, test)
    assert [clean.key(index) for index in range(len(clean))] == ["a/1.png", "a/3.png"]
    assert (clean.num_leaks, train.num_leaks) == (1, 0)
    assert without_leaks(clean, test) is clean


def test_nothing_is_left_to_train_on(tmp_path):
    train = write(tmp_path, "train", ["a/1.png"])
    with pytest.raises(UserError, match="all 1 training pictures are in the test set too"):
        without_leaks(train, train)


def test_a_test_set_without_objects_cannot_be_scored(tmp_path):
    train, test = write(tmp_path, "train", ["a/1.png"]), write(tmp_path, "test", ["b/1.png"], objects=False)
    from evals.detection.config import DetectionConfig
    from evals.detection.recipes import MaskRCNNRecipe

    with pytest.raises(UserError, match="mine test: no object is annotated"):
        DetectionJob(train, test, JobConfig(MaskRCNNRecipe(DetectionConfig(masks=False))))


def test_a_truncated_picture_is_not_on_the_page_of_examples(tmp_path):
    test = write(tmp_path, "test", ["b/1.png", "b/2.png", "b/3.png"])
    test.file(1).write_bytes(test.file(1).read_bytes()[:40])
    assert len(list(_examples(test, {}))) == 2


def test_two_classes_of_one_name_do_not_stand_in_one_prompt():
    # LVIS has "bow_(weapon)" and "bow_(decorative_ribbons)"
    for seed in range(20):
        prompt = draw_prompt(
            [0],
            ["bow", "bow", "cat"],
            [2, 2, 2],
            num_tokens=20,
            num_negatives=3,
            full_share=1.0,
            rng=np.random.default_rng(seed),
        )
        assert sorted(prompt.labels) == [0, 2]


def test_shares_of_the_maps_reach_as_far_as_whole_patches():
    objects = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, torch.zeros(0, 4))
    sample = Sample(torch.zeros(3, 100, 100, dtype=torch.uint8), objects, 1, (100, 80), (100, 80))
    # 8 patches of 14 pixels cover 112
    assert data_sample(sample, stride=14).batch_input_shape == (112, 112)
    assert data_sample(sample, stride=14).img_shape == (100, 80)
    assert data_sample(sample).batch_input_shape == (100, 100)


def test_large_pictures_are_looked_at_one_by_one():
    def sized(side):
        objects = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, torch.zeros(0, 4))
        return Sample(torch.zeros(3, 4, 4, dtype=torch.uint8), objects, 1, (4, 4), (side, side))

    side = int(MAX_PASTED_PIXELS**0.5)  # two of them are too many
    assert _parts([sized(8), sized(8), sized(8)]) == [(0, 3)]
    assert _parts([sized(side), sized(side), sized(8), sized(2 * side), sized(8)]) == [(0, 1), (1, 3), (3, 4), (4, 5)]
