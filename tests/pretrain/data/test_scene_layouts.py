import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pretrain.data.scene_layouts import coco_captions, coco_instances, image_id, refcoco, vqa_v2, write_layouts
from pretrain.data.scene_render import boxes_xywh, masks, render
from pretrain.data.scenes import LEVELS, SHAPES, draw_scene
from pretrain.types import UserError

ALL = dict.fromkeys(LEVELS, 1.0)
SCENES = [draw_scene(2, "val", index, ALL) for index in range(60)]
SIZE = 64


def as_coco(content: dict) -> COCO:
    coco = COCO()
    coco.dataset = json.loads(json.dumps(content))
    coco.createIndex()
    return coco


def test_instances_load_with_pycocotools_and_equal_the_masks():
    coco = as_coco(coco_instances(SCENES, SIZE))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(SHAPES)
    assert coco.getCatIds() == list(range(1, 9))
    for scene in SCENES:
        visible = masks(scene, SIZE)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id(scene)))
        assert len(annotations) == len(scene.objects)
        for annotation, obj, mask, box in zip(annotations, scene.objects, visible, boxes_xywh(visible), strict=True):
            assert isinstance(annotation["segmentation"]["counts"], str)
            assert (coco.annToMask(annotation).astype(bool) == mask).all()
            assert annotation["area"] == mask.sum() > 0
            assert annotation["bbox"] == box.tolist()
            assert annotation["iscrowd"] == 0
            assert SHAPES[annotation["category_id"] - 1] == obj.shape
    ids = [annotation["id"] for annotation in coco.dataset["annotations"]]
    assert len(set(ids)) == len(ids)


def test_five_captions_each():
    coco = as_coco(coco_captions(SCENES, SIZE))
    for scene in SCENES:
        texts = [a["caption"] for a in coco.loadAnns(coco.getAnnIds(imgIds=image_id(scene)))]
        assert len(texts) == 5
        assert all(f"{scene.largest.color} {scene.largest.shape}" in text for text in texts)
    assert len({annotation["id"] for annotation in coco.dataset["annotations"]}) == 300


def test_refs_point_at_their_annotations():
    instances, refs = refcoco(SCENES, SIZE)
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    names = {image["id"]: image["file_name"] for image in instances["images"]}
    sent_ids = [sent_id for ref in refs for sent_id in ref["sent_ids"]]
    assert len(set(sent_ids)) == len(sent_ids)
    for ref in refs:
        # the fields of the official refs(unc).p
        official = {"ref_id", "ann_id", "image_id", "category_id", "file_name", "split", "sentences", "sent_ids"}
        assert set(ref) == official
        assert ref["split"] == "val"
        annotation = annotations[ref["ann_id"]]
        assert (annotation["image_id"], annotation["category_id"]) == (ref["image_id"], ref["category_id"])
        assert names[ref["image_id"]] == ref["file_name"]
        assert [sentence["sent_id"] for sentence in ref["sentences"]] == ref["sent_ids"]
        for sentence in ref["sentences"]:
            assert set(sentence) == {"tokens", "raw", "sent", "sent_id"}
            assert " ".join(sentence["tokens"]) == sentence["sent"]
            # the noun comes first; behind it, a relation may name another object's shape
            noun = next(word for word in sentence["tokens"] if word in (*SHAPES, "shape"))
            assert noun in ("shape", SHAPES[annotation["category_id"] - 1])


def test_vqa_has_ten_answers_and_matching_ids():
    asked, answered = vqa_v2(SCENES)
    by_id = {item["question_id"]: item for item in asked["questions"]}
    assert len(by_id) == len(asked["questions"]) == len(answered["annotations"])
    kinds = set()
    for annotation in answered["annotations"]:
        question = by_id[annotation["question_id"]]
        assert question["image_id"] == annotation["image_id"]
        assert question["question"].startswith(annotation["question_type"])
        assert annotation["answer_type"] in ("yes/no", "number", "other")
        assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
        assert {answer["answer"] for answer in annotation["answers"]} == {annotation["multiple_choice_answer"]}
        assert {answer["answer_confidence"] for answer in annotation["answers"]} == {"yes"}
        kinds.add(annotation["kind"])
    assert kinds == {"object", "text", "choice"}


def test_splits_have_numbers_of_their_own():
    splits = [[draw_scene(2, split, k, ALL) for k in range(20)] for split in ("train", "val", "test")]
    assert len({image_id(scene) for scenes in splits for scene in scenes}) == 60


def test_written_folder_holds_all_splits(tmp_path):
    write_layouts(tmp_path, 2, "train", 12, SIZE, ALL)
    summary = write_layouts(tmp_path, 2, "val", 8, SIZE, ALL)
    assert (summary["num_images"], summary["num_captions"]) == (8, 40)
    assert len(json.loads((tmp_path / "annotations/instances_train.json").read_text())["images"]) == 12
    instances = json.loads((tmp_path / "annotations/instances_val.json").read_text())
    assert len(instances["annotations"]) == summary["num_objects"]
    for image, scene in zip(instances["images"], SCENES, strict=False):
        picture = np.asarray(Image.open(tmp_path / "images/val" / image["file_name"]))
        assert (picture == render(scene, SIZE)).all()
    for kind in ("questions", "annotations"):
        with open(summary[kind]) as file:
            assert len(json.load(file)[kind]) == summary["num_questions"]
    refs = pickle.loads((tmp_path / "refcoco/refs(unc).p").read_bytes())
    joined = json.loads((tmp_path / "refcoco/instances.json").read_text())
    assert {ref["split"] for ref in refs} == {"train", "val"}
    assert sum(ref["split"] == "val" for ref in refs) == summary["num_refs"]
    assert len(joined["images"]) == 20
    assert all((tmp_path / "images" / image["file_name"]).is_file() for image in joined["images"])


def test_writing_again_is_the_same_and_does_not_pile_up(tmp_path):
    first = write_layouts(tmp_path, 2, "val", 6, SIZE, ALL)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    assert write_layouts(tmp_path, 2, "val", 6, SIZE, ALL) == first
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize(("num", "img_size", "level"), [(0, 64, "one"), (3, 24, "one"), (3, 64, "hard")])
def test_bad_arguments_are_user_errors_and_write_nothing(tmp_path, num, img_size, level):
    with pytest.raises(UserError):
        write_layouts(tmp_path, 0, "train", num, img_size, {level: 1})
    assert list(tmp_path.iterdir()) == []
