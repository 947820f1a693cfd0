"""LVIS's layout: three pictures written by hand, their scores worked out, Mask R-CNN on them, and every bad input's one line."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import VisionTransformer

from evals.detection.config import DetectionConfig, MaskRCNNConfig
from evals.detection.datasets import DetectionData, load_detection_config
from evals.detection.job import DetectionJob, JobConfig
from evals.detection.pages import draw_pages, judged
from evals.detection.recipes import MaskRCNNRecipe
from evals.detection.samples import Detections
from evals.detection.scoring import result_rows, score_outcome
from evals.encoder import BlockEncoder, Provenance
from evals.transforms import ImageTransform
from pretrain.types import ImageSpec, UserError

URL = "http://images.cocodataset.org/"


def image(image_id, folder, *, absent=(), not_exhaustive=()):
    return {
        "id": image_id, "coco_url": f"{URL}{folder}/{image_id:012d}.jpg", "height": 48, "width": 64,
        "neg_category_ids": list(absent), "not_exhaustive_category_ids": list(not_exhaustive),
    }  # fmt: skip


def annotation(number, image_id, category_id, x, y, side):
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {
        "id": number, "image_id": image_id, "category_id": category_id, "bbox": [x, y, side, side], "area": side * side,
        "segmentation": [corners],
    }  # fmt: skip


#: a dog, searched for crabs in vain; a cup of more that are there, no dog; nothing, and nothing was searched for
CONTENT = {
    "images": [
        image(9, "train2017", absent=[1]),
        image(25, "val2017", absent=[5], not_exhaustive=[2]),
        image(30, "train2017"),
    ],
    "annotations": [annotation(1, 9, 5, 8, 8, 16), annotation(2, 25, 2, 4, 4, 12)],
    "categories": [
        {"id": 5, "name": "dog", "frequency": "f"},
        {"id": 1, "name": "crab_(animal)", "frequency": "r"},
        {"id": 2, "name": "cup", "frequency": "c"},
    ],
}
CRAB, CUP, DOG = 0, 1, 2


def write(folder, content=CONTENT):
    """COCO's folder with LVIS's files in it."""
    (folder / "annotations").mkdir(exist_ok=True)
    text = json.dumps(content)
    # the same pictures under other names: a training set goes without the pictures of the test set
    (folder / "annotations" / "lvis_v1_train.json").write_text(text.replace("2017/0", "2017/1"))
    (folder / "annotations" / "lvis_v1_val.json").write_text(text)
    for number, one in enumerate(content["images"]):
        if isinstance(one.get("coco_url"), str):
            pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            for url in (one["coco_url"], one["coco_url"].replace("2017/0", "2017/1")):
                path = folder / url.removeprefix(URL)
                path.parent.mkdir(exist_ok=True, parents=True)
                Image.fromarray(pixels).save(path)
    return folder


def read(folder, **options):
    data = DetectionData(
        kind="lvis", split_rule="", source="", license="", name="lvis", path=str(folder),
        train_annotations="annotations/lvis_v1_train.json", train_images=".",
        test_annotations="annotations/lvis_v1_val.json", test_images=".",
    )  # fmt: skip
    return replace(data, **options).build(with_masks=True)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path)


def found(image_id, *entries):
    """Detections of (class, score, x, y, side)."""
    box_K4 = np.array([(x, y, x + side, y + side) for _, _, x, y, side in entries], np.float32).reshape(-1, 4)
    scores, labels = [entry[1] for entry in entries], [entry[0] for entry in entries]
    return Detections(image_id, box_K4, np.array(scores, np.float32), np.array(labels, np.int64))


#: What COCO's evaluation would call wrong and LVIS's does not judge: a cup at 9, a second cup at 25, all of 30.
FOUND = [
    found(9, (CUP, 0.95, 30, 8, 10), (DOG, 0.9, 8, 8, 16)),
    found(25, (DOG, 0.95, 30, 8, 10), (CUP, 0.8, 40, 30, 12), (CUP, 0.5, 4, 4, 12)),
    found(30, (DOG, 0.99, 8, 8, 16)),
]


def test_pictures_lie_where_their_address_says(folder):
    train, test = read(folder)
    assert train.lvis
    assert [train.key(index) for index in range(3)] == [
        "train2017/100000000009.jpg",
        "val2017/100000000025.jpg",
        "train2017/100000000030.jpg",
    ]
    assert (train.classes, train.category_ids) == (("crab_(animal)", "cup", "dog"), (1, 2, 5))
    picture, objects = test.load(0)
    assert picture.size == (64, 48)
    assert objects.box_N4.tolist() == [[8, 8, 24, 24]]
    assert objects.label_N.tolist() == [DOG]
    assert len(objects.crowd_M4) == 0
    assert int(objects.mask_NHW.sum()) == 16 * 16


def test_the_ground_truth_keeps_lvis_fields(folder):
    train, _ = read(folder)
    truth = train.subset([25, 9]).ground_truth()
    fields = [(i["id"], i["neg_category_ids"], i["not_exhaustive_category_ids"]) for i in truth["images"]]
    assert fields == [(25, [5], [2]), (9, [1], [])]
    assert [(c["id"], c["frequency"]) for c in truth["categories"]] == [(1, "r"), (2, "c"), (5, "f")]


def test_the_identity_knows_what_was_searched_for(folder, tmp_path_factory):
    other = copy.deepcopy(CONTENT)
    other["images"][2]["neg_category_ids"] = [5]
    identities = [read(write(tmp_path_factory.mktemp("other"), content))[0].identity() for content in (CONTENT, other)]
    assert read(folder)[0].identity() == identities[0] != identities[1]


def test_scores_and_rows_by_hand(folder):
    """Dogs: of the two that are judged the wrong one comes first: precision 1/2 at each recall. Cups: one, which is right."""
    _, test = read(folder)
    outcome = score_outcome(test, test.ground_truth(), FOUND, kinds=["box"])
    assert outcome.matches == {}
    key = {
        "task": "detection",
        "dataset": "lvis",
        "seed": 0,
        "config_hash": "",
        "checkpoint_hash": "",
        "code_hash": "",
        "run": "",
    }
    rows = result_rows(outcome, test, Provenance("one", "one"), key, seconds=1.0, details={})
    values = {row.metric: row.value for row in rows}
    assert values == pytest.approx(
        {"box_ap": 75, "box_ap50": 75, "box_ap75": 75, "box_ap_common": 100, "box_ap_frequent": 50}
    )
    assert {row.interval for row in rows} == {None}
    assert rows[0].details["per_class"] == {"crab_(animal)": None, "cup": pytest.approx(100), "dog": pytest.approx(50)}


def test_what_can_be_judged(folder):
    _, test = read(folder)
    kept = judged(test.ground_truth(), FOUND, category_ids=test.category_ids)
    assert [one.label_K.tolist() for one in kept] == [[DOG], [DOG, CUP], []]
    assert kept[1].score_K.tolist() == pytest.approx([0.95, 0.5])


def test_pages_show_no_detection_that_nobody_can_judge(folder, tmp_path, monkeypatch):
    _, test = read(folder)
    truth, shown = test.ground_truth(), []
    monkeypatch.setattr("evals.detection.pages.draw_misses", lambda page, misses, **_: shown.append(misses) or page)
    outcome = score_outcome(test, truth, FOUND, kinds=["box"])
    pages = draw_pages(test, truth, {"one": outcome}, outcome, tmp_path / "pages")
    assert [page.name for page in pages] == ["examples.png", "worst_misses.png"]
    assert [(miss.image_id, miss.label) for miss in shown[0].wrong] == [(25, DOG)]


def build_encoder():
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0, class_token=False, global_pool="avg",
        fc_norm=False, weight_init="",
    )  # fmt: skip
    return BlockEncoder(vit, transform=ImageTransform(ImageSpec(32)), provenance=Provenance("tiny", "tiny"))


def test_mask_rcnn(folder, tmp_path):
    tiny = MaskRCNNConfig(channels=8, factors=(2.0, 1.0), fc_channels=16, num_proposals=12, num_anchors=8, num_rois=8)
    config = DetectionConfig(detector=tiny, epochs=1, batch_size=2, num_held_out=1, warmup_steps=0)
    recipe = MaskRCNNRecipe(config)
    own = JobConfig(recipe, out=tmp_path / "out", results=tmp_path / "rows.jsonl")
    job = DetectionJob(*read(folder), own, note=lambda _: None, accelerator="cpu")
    outcome = job.run(build_encoder(), seed=0)
    metrics = {row.metric for row in outcome.rows}
    assert {"box_ap", "mask_ap", "box_ap_common", "mask_ap_frequent"} <= metrics
    assert not metrics & {"box_ap_small", "box_ar100", "box_ap_rare"}
    assert len(outcome.curve) == 1
    # blind boxes are taken from these very pictures: cups and dogs everywhere, in each of the two's own place
    chance = job.chance()
    assert chance.scores["box"].ap_common == pytest.approx(100)
    module = recipe.build(build_encoder(), job.train, steps_per_epoch=1, seed=0, score_held_out=None, fingerprint="")
    assert module.detector.roi_head.test_cfg.max_per_img == 300


def test_the_shipped_config_is_the_official_layout(folder):
    data = load_detection_config("lvis_v1", path=str(folder), allow_sizes=True)
    assert (data.kind, data.num_train, data.num_classes) == ("lvis", 100170, 1203)
    with pytest.raises(UserError, match="lvis_v1: 3 classes are there, 1203 are expected"):
        data.build(with_masks=False)
    train, _ = replace(data, num_classes=None).build(with_masks=False)
    assert len(train) == 3


def changed(table, number, **values):
    content = copy.deepcopy(CONTENT)
    content[table][number] |= values
    for name, value in values.items():
        if value is None:
            del content[table][number][name]
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            changed("categories", 0, frequency=None),
            r"lvis_v1_train.json: category 5: frequency is None; in LVIS's layout it is 'r', 'c' or 'f'",
        ),
        (changed("categories", 1, frequency="x"), r"category 1: frequency is 'x'"),
        (
            changed("images", 1, neg_category_ids=None),
            r"image 25: neg_category_ids is None; in LVIS's layout it is a list",
        ),
        (changed("images", 1, not_exhaustive_category_ids=[7]), r"image 25: not_exhaustive_category_ids is \[7\]"),
        (
            changed("images", 2, coco_url=None),
            r"image 30: coco_url is None; in LVIS's layout it ends with the picture's folder",
        ),
        (changed("images", 2, coco_url="30.jpg"), r"image 30: coco_url is '30.jpg'"),
        (changed("images", 2, coco_url="http://x/30.jpg"), r"image 30: coco_url is 'http://x/30.jpg'"),
    ],
)
def test_bad_files_are_one_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, content))


def test_a_file_of_the_other_layout(folder):
    with pytest.raises(
        UserError, match=r"image 9 has a coco_url and no file_name: a file in LVIS's layout is read with kind: lvis"
    ):
        read(folder, kind="coco")
