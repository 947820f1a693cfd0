"""Files in COCO's layout: masks against pycocotools, repairs, and every bad input's one line."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evals.data.labelled import BadSample
from evals.detection.coco_set import CocoSet
from pretrain.types import UserError

#: ids with gaps and not in order, as COCO has them
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}]
#: what columns 1 and 2 and rows 0 and 1 cover, as a polygon
POLYGON = [[1, 0, 3, 0, 3, 2, 1, 2]]


def annotation(number, *, image=1, category=3, bbox=(1, 0, 2, 2), segmentation=POLYGON, **others):
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), "area": 4, "iscrowd": 0}
    return {**entry, "segmentation": segmentation, **others}


class Files:
    """An annotation file and pictures of 4 x 3 pixels beside it."""

    def __init__(self, folder):
        self.folder, self.pictures = folder, folder / "pictures"
        self.path = folder / "instances.json"
        self.pictures.mkdir()

    def write(self, *annotations, images=(1,), categories=CATEGORIES, size=(4, 3)):
        entries = []
        for image in images:
            entry = image if isinstance(image, dict) else {"id": image, "width": size[0], "height": size[1]}
            entry = {"file_name": f"{entry['id']}.png", **entry}
            entries.append(entry)
            pixels = np.random.default_rng(int(entry["id"])).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.pictures / entry["file_name"])
        content = {"images": entries, "annotations": list(annotations), "categories": categories}
        self.path.write_text(json.dumps(content))
        return self

    def read(self, **options):
        return CocoSet(self.path, self.pictures, name="drawn", split="train", **options)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def average_precision(truth, detections, *, kind):
    coco = COCO()
    coco.dataset = json.loads(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        scores = COCOeval(coco, coco.loadRes(detections), kind)
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    return scores


def as_detections(truth):
    return [
        {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]


def test_classes_are_numbered_in_the_order_of_their_ids(files):
    dataset = files.write(annotation(1, category=18), annotation(2, category=90), annotation(3, category=3)).read()
    assert dataset.classes == ("car", "dog", "toothbrush")
    assert dataset.category_ids == (3, 18, 90)
    _, objects = dataset.load(0)
    assert objects.label_N.tolist() == [1, 2, 0]
    assert [a["category_id"] for a in dataset.ground_truth()["annotations"]] == [18, 90, 3]


def test_three_kinds_of_segmentation_by_hand(files):
    # 4 x 3 pixels, down the columns: 3 off, 2 on, 1 off, 2 on, 4 off
    expected = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    numbers = {"size": [3, 4], "counts": [3, 2, 1, 2, 4]}
    text = coco_mask.encode(np.asfortranarray(expected.numpy().astype(np.uint8)))
    text = {"size": [3, 4], "counts": text["counts"].decode()}
    dataset = files.write(*(annotation(k, segmentation=s) for k, s in enumerate((POLYGON, numbers, text), 1))).read()
    _, objects = dataset.load(0)
    assert objects.mask_NHW.dtype == torch.bool
    assert objects.mask_NHW.shape == (3, 3, 4)
    for mask in objects.mask_NHW:
        assert torch.equal(mask, expected)
    # x, y, width, height are 1, 0, 2, 2
    assert objects.box_N4.tolist() == [[1, 0, 3, 2]] * 3
    assert objects.box_N4.dtype == torch.float32


@pytest.mark.shared_data
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_photographs_equal_pycocotools(shared_data, split):
    path = shared_data / "coco_mini" / "annotations" / f"instances_{split}.json"
    dataset = CocoSet(path, shared_data / "coco_mini" / split, name="coco_mini", split="test")
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCO(str(path))
    assert len(dataset) == len(official.imgs)
    assert dataset.repaired == {}
    crowds = 0
    for index, image_id in enumerate(dataset.image_ids.tolist()):
        image, objects = dataset.load(index)
        entry = official.imgs[image_id]
        assert (image.mode, image.size) == ("RGB", (entry["width"], entry["height"]))
        assert dataset.file(index).name == entry["file_name"]
        annotations = official.loadAnns(official.getAnnIds(imgIds=image_id))
        single = [a for a in annotations if not a["iscrowd"]]
        crowds += len(annotations) - len(single)
        assert len(objects) == len(single)
        for a, box, mask, label in zip(single, objects.box_N4, objects.mask_NHW, objects.label_N, strict=True):
            x, y, w, h = a["bbox"]
            assert torch.allclose(box, torch.tensor([x, y, x + w, y + h]))
            assert np.array_equal(mask.numpy(), official.annToMask(a).astype(bool))
            assert official.cats[a["category_id"]]["name"] == dataset.classes[label]
        assert len(objects.crowd_M4) == len(annotations) - len(single)
    assert dataset.counts["crowds"] == crowds > 0
    truth = {a["id"]: a for a in dataset.ground_truth()["annotations"]}
    assert truth.keys() == official.anns.keys()
    for number, a in official.anns.items():
        assert (truth[number]["bbox"], truth[number]["area"]) == (a["bbox"], a["area"])
        assert truth[number]["iscrowd"] == a["iscrowd"]
        assert coco_mask.area(truth[number]["segmentation"]) == coco_mask.area(official.annToRLE(a))


def test_boxes_that_reach_out_are_clipped_and_those_without_a_part_inside_are_left_out(files):
    dataset = files.write(
        annotation(1, bbox=(-1, 1, 3, 5)),  # clipped to 0, 1 .. 2, 3
        annotation(2, bbox=(4, 0, 2, 2)),  # begins where the picture ends
        annotation(3, bbox=(1, 1, 0, 2)),
        annotation(4, bbox=(1, 1, 2, -1)),
        annotation(5, bbox=(0, 0, 4.005, 3)),  # rounding
        annotation(6, bbox=(0.1, 0.2, 3.9, 2.8)),
    ).read()
    assert dataset.repaired == {"box_clipped": 1, "box_outside": 1, "box_empty": 2}
    assert "1 annotations reach outside their picture and are clipped" in dataset.describe_repairs()
    _, objects = dataset.load(0)
    assert objects.box_N4.tolist() == [[0, 1, 2, 3], [0, 0, 4, 3], pytest.approx([0.1, 0.2, 4, 3])]
    assert (objects.box_N4[:, 2:] <= torch.tensor([4.0, 3.0])).all()
    truth = dataset.ground_truth()["annotations"]
    assert [a["id"] for a in truth] == [1, 5, 6]
    assert [a["bbox"] for a in truth] == [[0, 1, 2, 2], [0, 0, 4.005, 3], [0.1, 0.2, 3.9, 2.8]]
    assert len(objects.mask_NHW) == 3


def test_pictures_without_annotations_and_classes_without_objects_stay(files):
    dataset = files.write(annotation(1), images=(1, 2)).read()
    assert dataset.counts == {
        "pictures": 2,
        "pictures_without_objects": 1,
        "objects": 1,
        "crowds": 0,
        "classes": 3,
        "classes_without_objects": 2,
    }
    _, objects = dataset.load(1)
    assert (len(objects), objects.box_N4.shape, objects.mask_NHW.shape) == (0, (0, 4), (0, 3, 4))
    truth = dataset.ground_truth()
    assert [image["id"] for image in truth["images"]] == [1, 2]
    assert len(truth["categories"]) == 3
    scores = average_precision(truth, as_detections(truth), kind="bbox")
    # by class: car is found, the others have no ground truth, which pycocotools writes as -1
    assert scores.eval["precision"][0, :, :, 0, 2].mean(0) == pytest.approx([1.0, -1.0, -1.0])


def test_no_annotations_at_all(files):
    dataset = files.write(images=(1, 2)).read()
    assert dataset.counts["objects"] == 0
    assert len(dataset.load(0)[1]) == 0
    assert dataset.ground_truth()["annotations"] == []


def test_crowds_are_no_objects_and_stay_in_the_ground_truth(files):
    crowd = annotation(2, bbox=(0, 0, 4, 3), iscrowd=1, segmentation={"size": [3, 4], "counts": [0, 12]})
    dataset = files.write(annotation(1), crowd).read()
    _, objects = dataset.load(0)
    assert len(objects) == len(objects.mask_NHW) == 1
    assert objects.crowd_M4.tolist() == [[0, 0, 4, 3]]
    truth = dataset.ground_truth()["annotations"]
    assert [a["iscrowd"] for a in truth] == [0, 1]
    assert coco_mask.area(truth[1]["segmentation"]) == 12
    assert dataset.counts["crowds"] == 1


def test_ids_from_zero_do_not_cost_a_match(files):
    dataset = files.write(
        annotation(0), annotation(1, bbox=(0, 0, 1, 3), segmentation=[[0, 0, 1, 0, 1, 3, 0, 3]])
    ).read()
    truth = dataset.ground_truth()
    assert [a["id"] for a in truth["annotations"]] == [1, 2]
    for kind in ("bbox", "segm"):
        assert average_precision(truth, as_detections(truth), kind=kind).stats[0] == pytest.approx(1)


def test_objects_without_a_mask(files):
    files.write(annotation(1), annotation(2, segmentation=[]), annotation(3, segmentation=[[1, 1, 2, 2]]))
    assert files.read().repaired == {"no_mask": 2}
    assert len(files.read().load(0)[1]) == 1
    boxes_only = files.read(with_masks=False)
    assert boxes_only.repaired == {}
    objects = boxes_only.load(0)[1]
    assert (len(objects), objects.mask_NHW) == (3, None)
    assert all("segmentation" not in a for a in boxes_only.ground_truth()["annotations"])
    files.write(annotation(1, segmentation=None))
    with pytest.raises(UserError, match="no annotation has a segmentation; detect boxes only"):
        files.read()


def test_a_mask_without_a_pixel_is_not_trained_on_but_asked_for(files):
    outside = [[10, 10, 12, 10, 12, 12, 10, 12]]
    dataset = files.write(annotation(1), annotation(2, segmentation=outside)).read()
    assert dataset.repaired == {"mask_empty": 1}
    objects = dataset.load(0)[1]
    assert len(objects) == 1
    assert objects.mask_NHW.flatten(1).any(1).all()
    assert [a["id"] for a in dataset.ground_truth()["annotations"]] == [1, 2]


def test_missing_areas_are_made_up_for(files):
    without = annotation(1)
    del without["area"]
    files.write(without)
    assert files.read().ground_truth()["annotations"][0]["area"] == 4
    assert files.read(with_masks=False).ground_truth()["annotations"][0]["area"] == 4
    assert files.read().repaired == {"no_area": 1}


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([annotation(7, image=5)], r"instances.json: annotation 7: image_id 5 is none of the 1 pictures"),
        ([annotation(7, category=4)], r"instances.json: annotation 7: category_id 4 is none of the 3"),
        ([annotation(7), annotation(7)], r"annotation 7 is there twice"),
        ([annotation("x")], r"annotations\[0\]: id is 'x'; it must be a whole number"),
        ([annotation(7, bbox=(1, 2, 3))], r"annotation 7: bbox is \[1, 2, 3\]; it must be four numbers"),
        ([annotation(7, bbox=(1, 2, 3, float("nan")))], r"annotation 7: bbox is .*nan\]; it must be four numbers"),
        ([annotation(7, area=-1)], r"annotation 7: area is -1; it must be a number of pixels"),
        ([annotation(7, segmentation=[[0, 0, 1, 1, 2, 2, 3]])], r"annotation 7: its segmentation .* odd number"),
        ([annotation(7, segmentation=[["a"] * 6])], r"annotation 7: its segmentation cannot be read"),
        ([annotation(7, segmentation=12)], r"annotation 7: its segmentation cannot be read"),
        ([annotation(7, segmentation={"size": [4, 3], "counts": [12]})], r"its size is \[4, 3\].*\[3, 4\]"),
        ([annotation(7, segmentation={"size": [3, 4], "counts": [3, 2]})], r"add up to 3 x 4"),
        ([annotation(7, segmentation={"size": [3, 4], "counts": "zz9"})], r"annotation 7: its segmentation"),
        ([annotation(7, segmentation={"size": [3, 4]})], r"annotation 7: its segmentation cannot be read \('counts'\)"),
    ],
)
def test_annotations_that_are_wrong(files, annotations, message):
    with pytest.raises(UserError, match=message) as error:
        files.write(*annotations).read()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"images": ({"id": 1, "width": 4, "height": 3}, {"id": 1, "width": 4, "height": 3})},
            "image 1 is there twice",
        ),
        ({"images": ({"id": 1, "width": 4},)}, "image 1: height is None; it must be a whole number, 1 or more"),
        ({"categories": [{"id": 3, "name": "car"}, {"id": 3, "name": "dog"}]}, r"categories\[1\]: id 3 or name 'dog'"),
        ({"categories": []}, "'categories' is empty"),
        ({"images": ()}, "'images' is empty"),
    ],
)
def test_pictures_and_classes_that_are_wrong(files, options, message):
    with pytest.raises(UserError, match=message):
        files.write(annotation(1), **options).read()


def test_files_that_are_no_annotations(files):
    with pytest.raises(UserError, match=r"instances.json' is not there; wanted: an annotation file"):
        files.read()
    files.path.write_text("[1")
    with pytest.raises(UserError, match=r"instances.json cannot be read as JSON"):
        files.read()
    files.path.write_text('{"images": [], "annotations": {}}')
    with pytest.raises(UserError, match=r"'annotations' is no list|'images' is empty"):
        files.read()


def test_a_missing_folder_and_a_wrong_one(files, tmp_path):
    files.write(annotation(1))
    with pytest.raises(UserError, match=r"nowhere' is not a folder; wanted: the pictures that .*instances.json names"):
        CocoSet(files.path, tmp_path / "nowhere", name="drawn", split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty' lacks the pictures that .* names, e.g. '1.png'"):
        CocoSet(files.path, tmp_path / "empty", name="drawn", split="train")


def test_a_truncated_a_missing_and_a_resized_picture(files):
    dataset = files.write(annotation(1), images=(1, 2, 3, 4)).read()
    path = dataset.file(0)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadSample, match=r"corrupt: 1.png"):
        dataset.load(0)
    dataset.file(1).unlink()
    with pytest.raises(BadSample, match=r"missing: 2.png"):
        dataset.load(1)
    Image.new("RGB", (3, 4)).save(dataset.file(2))
    with pytest.raises(BadSample, match=r"3.png: the file is 3 x 4 pixels, on its side, instances.json says 4 x 3"):
        dataset.load(2)
    file = io.BytesIO()
    Image.effect_noise((4, 3), 50).resize((4, 3)).convert("RGB").save(file, "JPEG")
    dataset.file(0).write_bytes(file.getvalue()[:-8])  # cut within the pixels
    with pytest.raises(BadSample, match=r"corrupt: 1.png: .*truncated"):
        dataset.load(0)
    dataset.file(3).write_text("no picture")
    with pytest.raises(BadSample, match=r"corrupt: 4.png: 10 bytes that are no picture"):
        dataset.load(3)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "I;16"])
def test_every_picture_becomes_rgb(files, mode):
    dataset = files.write(annotation(1)).read()
    grey = np.full((3, 4), 204, dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
    picture.save(dataset.file(0), format="TIFF")
    image, _ = dataset.load(0)
    assert (image.mode, image.size) == ("RGB", (4, 3))
    assert np.abs(np.asarray(image).astype(int) - 204).max() <= 2


def test_pictures_are_read_as_stored(files):
    dataset = files.write(annotation(1)).read()
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns this one by a quarter
    picture = Image.new("RGB", (4, 3), (10, 20, 30))
    picture.save(dataset.file(0), format="JPEG", exif=exif)
    assert dataset.load(0)[0].size == (4, 3)


def test_subsets(files):
    whole = files.write(
        annotation(1, image=1), annotation(2, image=3, bbox=(-1, 0, 3, 2)), annotation(3, image=2), images=(1, 2, 3)
    ).read()
    part = whole.subset([3, 1])
    assert part.image_ids.tolist() == [3, 1]
    assert (len(part), part.key(0)) == (2, "3.png")
    assert part.classes == whole.classes
    assert [a["id"] for a in part.ground_truth()["annotations"]] == [2, 1]
    assert whole.subset([1, 2]).repaired == {}
    assert part.repaired == whole.repaired == {"box_clipped": 1}
    assert np.array_equal(np.asarray(part.load(0)[0]), np.asarray(whole.load(2)[0]))
    assert part.subset([1]).image_ids.tolist() == [1]
    with pytest.raises(UserError, match="image_ids: 7 are none of drawn's 3 train pictures"):
        whole.subset([1, 7])
    with pytest.raises(UserError, match="image_ids: 2 ids, 1 different ones"):
        whole.subset([1, 1])


def test_the_identity_follows_what_decides_a_number(files):
    first = files.write(annotation(1), images=(1, 2)).read()
    assert first.identity() == files.read().identity()
    assert first.subset([1, 2]).identity() == first.identity()
    others = [first.subset([2, 1]).identity(), files.read(with_masks=False).identity()]
    others.append(files.write(annotation(1, category=18), images=(1, 2)).read().identity())
    others.append(files.write(annotation(1, bbox=(1, 0, 2, 2.5)), images=(1, 2)).read().identity())
    files.write(annotation(1), images=(1, 2))
    Image.new("RGB", (4, 3)).save(files.pictures / "2.png")
    others.append(files.read().identity())
    assert len({first.identity(), *others}) == 6
