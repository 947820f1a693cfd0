"""RefCOCO's release in its own layout, written by hand (ref_cases.py) and as the shared data has it; its splits and pictures."""

import json
import math
import os
import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from ref_cases import SIZES, annotation, file_name, instances, pixels, ref, refs, write_release

from evals.data.labelled import BadSample
from evals.grounding.expressions import Expression
from evals.grounding.ref_set import RefSet, find_images
from evals.grounding.release import Picture, inside, read_release
from pretrain.types import UserError


def build(tmp_path, split, *, content=None, entries=None, split_by="unc") -> RefSet:
    folder, images = write_release(tmp_path, content=content, entries=entries, split_by=split_by)
    return RefSet(read_release(folder, split_by=split_by), images, name="refcoco", split=split)


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fault_of(dataset, image_id):
    with pytest.raises(BadSample) as caught:
        dataset.load(image_id)
    return caught.value.fault


def test_expressions_of_the_official_layout(tmp_path):
    train = build(tmp_path, "train")
    assert train.expressions == [
        Expression("left cup", (5, 6, 25, 16), 581857, sent_id=10, ref_id=1, ann_id=11),
        Expression("the cup on the left", (5, 6, 25, 16), 581857, sent_id=11, ref_id=1, ann_id=11),
        Expression("table", (0, 10, 40, 30), 581857, sent_id=20, ref_id=2, ann_id=12),
    ]
    assert (len(train), train.split, train.name, train.synthetic, train.numbering) == (
        3,
        "train",
        "refcoco",
        False,
        "coco",
    )


@pytest.mark.parametrize("split_by", ["unc", "umd", "google"])
def test_each_authors_splits(tmp_path, split_by):
    entries = refs()
    for entry in entries:
        entry["split"] = {"testA": "test"}.get(entry["split"], entry["split"])
    folder, _ = write_release(tmp_path, entries=entries, split_by=split_by)
    release = read_release(folder, split_by=split_by)
    assert release.splits == ["test", "train", "val"]
    assert [each.ref_id for each in release.refs] == [1, 2, 3, 4]
    assert release.pictures[581857] == Picture("COCO_train2014_000000581857.jpg", 30, 40)


def test_pictures_are_found_by_instances_json_and_not_by_the_refs(tmp_path):
    train = build(tmp_path, "train")
    assert not (train.folder / refs()[0]["file_name"]).exists()
    assert train.pictures.file(0) == train.folder / "COCO_train2014_000000581857.jpg"
    image = train.load(581857)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(image, dtype=int) - pixels(581857)).max() < 6  # as far as a JPEG has it


def test_pictures_of_a_split_are_there_once_in_the_order_of_their_ids(tmp_path):
    entries = [{**entry, "split": "train"} for entry in refs()]
    train = build(tmp_path, "train", entries=entries)
    assert train.image_ids.tolist() == [1, 94, 581857]
    assert [train.pictures.key(k) for k in range(3)] == [file_name(i) for i in (1, 94, 581857)]
    assert [train.pictures.size(k) for k in range(3)] == [(50, 20), (32, 32), (30, 40)]
    assert [train.pictures.load(k).size for k in range(3)] == [SIZES[i] for i in (1, 94, 581857)]
    assert train.size(1) == (50, 20)
    assert train.pictures.index(94) == 1
    for absent in (0, 93, 581858):
        with pytest.raises(KeyError):
            train.load(absent)


def test_a_picture_of_another_split_is_not_in_this_one(tmp_path):
    val = build(tmp_path, "val")
    assert val.image_ids.tolist() == [94]
    with pytest.raises(KeyError):
        val.load(1)


def test_objects_are_all_that_is_annotated_but_crowds(tmp_path):
    val = build(tmp_path, "val")
    assert val.objects(94).tolist() == [[4, 4, 12, 12], [20, 20, 26, 24]]
    assert val.objects(94).dtype == np.float32
    assert val.objects(1).shape == (0, 4)


@pytest.mark.parametrize(
    ("bbox", "found", "clipped"),
    [
        ((5, 6, 25, 16), (5, 6, 25, 16), False),
        ((0, 0, 40, 30), (0, 0, 40, 30), False),
        ((-4, 10, 56, 40), (0, 10, 40, 30), True),
        ((-0.005, 0, 40.009, 30), (0, 0, 40, 30), False),  # rounding of two decimals
        ((0, 0, 40.5, 30), (0, 0, 40, 30), True),
        ((5, 5, 5, 9), None, False),  # no width
        ((5, 9, 8, 7), None, False),  # a height below 0
        ((40, 3, 50, 9), None, False),  # beside the picture
        ((-9, 3, 0, 9), None, False),
        ((3, 30, 9, 33), None, False),  # below it
        ((39.5, 29.5, 60, 60), (39.5, 29.5, 40, 30), True),
    ],
)
def test_the_part_of_a_box_inside_its_picture(bbox, found, clipped):
    assert inside(bbox, Picture("a.jpg", 30, 40)) == (found, clipped)


def test_boxes_are_repaired_and_counted_by_split(tmp_path):
    content, entries = instances(), refs()
    content["annotations"] += [
        annotation(21, 94, [10, 10, 0, 5]),
        annotation(22, 94, [40, 40, 5, 5]),
        annotation(23, 94, [30, 30, 9.5, 1]),
    ]
    entries += [
        ref(21, 21, 94, "val", "of no width", "thin one"),
        ref(22, 22, 94, "val", "outside"),
        ref(23, 23, 94, "val", "in the corner", " "),
    ]
    train, val = (build(tmp_path, split, content=content, entries=entries) for split in ("train", "val"))
    assert train.repaired == {"box_clipped": 1}
    assert val.repaired == {"box_clipped": 1, "box_empty": 2, "no_words": 1}
    assert [(e.text, e.box) for e in val.expressions[2:]] == [("in the corner", (30, 30, 32, 31))]
    assert val.describe_repairs() == (
        "refcoco val: 1 boxes reach outside their picture and are clipped; 2 boxes have no extent inside their picture: "
        "their sentences are left out; 1 sentences have no words and are left out"
    )
    test = build(tmp_path, "testA", content=content, entries=entries)
    assert (test.repaired, test.describe_repairs()) == ({}, "")


def test_raw_is_taken_where_there_is_no_sent(tmp_path):
    entries = refs()
    for sentence in entries[2]["sentences"]:
        del sentence["sent"]
    assert [e.text for e in build(tmp_path, "val", entries=entries).expressions] == ["small dog.", "dog."]


def test_numbers_may_be_numpys_or_whole_floats(tmp_path):
    entries, content = refs(), instances()
    entries[2]["ann_id"], entries[2]["ref_id"] = np.int64(13), 3.0
    content["images"][1]["id"] = 94.0
    folder, _ = write_release(tmp_path, content=content)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(entries))
    found = next(each for each in read_release(folder).refs if each.split == "val")
    assert (found.ann_id, found.ref_id, found.image_id) == (13, 3, 94)
    assert type(found.ref_id) is type(found.ann_id) is int


def changed_refs(change):
    entries = refs()
    change(entries)
    return {"entries": entries}


def changed_instances(change):
    content = instances()
    change(content)
    return {"content": content}


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (changed_refs(lambda r: r[0].update(ann_id=99)), "ref 1: its annotation 99 is not in instances.json; both must be"),
        (changed_refs(lambda r: r[2].update(image_id=1)), "ref 3: its picture is 1, its annotation 13 is on picture 94;"),
        (changed_refs(lambda r: r[2].update(image_id=7)), "ref 3: its picture is 7, its annotation 13 is on picture 94;"),
        (changed_refs(lambda r: r[1].update(ref_id=1)), "ref 1: ref_id 1 is there twice"),
        (changed_refs(lambda r: r[1]["sentences"][0].update(sent_id=11)), "ref 2: sent_id 11 is there twice"),
        (changed_refs(lambda r: r[1].update(ref_id="b")), "entry 1: ref_id is 'b'; it must be a whole number"),
        (changed_refs(lambda r: r[1].update(ann_id=1.5)), "ref 2: ann_id is 1.5; it must be a whole number"),
        (changed_refs(lambda r: r[1].update(image_id=2**63)), "ref 2: image_id is 9223372036854775808; it must be"),
        (changed_refs(lambda r: r[1].pop("split")), "ref 2: split is None; it must be a name such as 'train'"),
        (changed_refs(lambda r: r[1].update(sentences=None)), "ref 2: sentences holds no entries with sent_id and sent"),
        (changed_refs(lambda r: r[1]["sentences"][0].update(sent=3)), "sentences[0]: sent is 3; it must be a text"),
        (changed_refs(lambda r: r[1]["sentences"][0].pop("sent_id")), "sentences[0]: sent_id is None; it must be a whole"),
        ({"entries": [{}]}, "entry 0: ref_id is None"),
        ({"entries": {"refs": []}}, "holds dict, not a list of refs; wanted: a folder of the official release"),
        ({"content": []}, "instances.json holds list, not an object"),
        ({"content": {"images": []}}, "'images' is no list of entries"),
        (changed_instances(lambda c: c.pop("annotations")), "'annotations' is no list of entries"),
        (changed_instances(lambda c: c["images"][2].update(id=94)), "images[2]: id 94 is there twice"),
        (changed_instances(lambda c: c["images"][2].update(width=0)), "of 0 x 50 pixels; it must name a picture"),
        (changed_instances(lambda c: c["images"][2].update(file_name=None)), "images[2]: file_name None of 20 x 50"),
        (changed_instances(lambda c: c["images"][2].pop("height")), "images[2]: height is None; it must be a whole number"),
        (changed_instances(lambda c: c["annotations"][1].update(id=11)), "annotation 11 is there twice"),
        (changed_instances(lambda c: c["annotations"][1].update(image_id=3)), "image_id 3 is none of the 3 pictures"),
        (changed_instances(lambda c: c["annotations"][1].update(bbox=[1, 2, 3])), "annotation 12: bbox is [1, 2, 3]; it must"),
        (changed_instances(lambda c: c["annotations"][1].update(bbox=[1, 2, 3, math.nan])), "it must be four numbers"),
        (changed_instances(lambda c: c["annotations"][1].update(bbox=[1, 2, 3, 10**400])), "it must be four numbers"),
        (changed_instances(lambda c: c["annotations"][1].pop("bbox")), "annotation 12: bbox is None; it must be four"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_told_in_one_line(tmp_path, broken, told):
    folder, _ = write_release(tmp_path, **broken)
    assert told in error_of(read_release, folder)


def test_files_that_are_missing(tmp_path):
    folder, _ = write_release(tmp_path)
    text = error_of(read_release, folder, split_by="umd")
    assert "refs(umd).p' is not there (did you mean 'refs(unc).p'?); wanted: a folder of the official release" in text
    (folder / "instances.json").write_text('{"images": [')
    assert "instances.json cannot be read as JSON" in error_of(read_release, folder)
    (folder / "instances.json").unlink()
    assert "instances.json' is not there" in error_of(read_release, folder)
    assert "is not a folder; wanted: a folder of the official release: instances.json" in error_of(
        read_release, tmp_path / "x"
    )


def test_code_in_the_refs_does_not_run(tmp_path):
    folder, _ = write_release(tmp_path)
    (folder / "refs(unc).p").write_bytes(b"cos\nmkdir\n(S'" + os.fsencode(tmp_path / "made") + b"'\ntR.")
    assert "asks for os.mkdir" in error_of(read_release, folder)
    assert not (tmp_path / "made").exists()


def test_an_unknown_split(tmp_path):
    text = error_of(build, tmp_path, "testa")
    assert "has no split 'testa' (did you mean 'testA'" in text
    assert text.endswith("it has testA, train, val")


def test_a_split_of_which_nothing_is_left(tmp_path):
    content = instances()
    content["annotations"][2]["bbox"] = [4, 4, 0, 0]
    assert "no sentence of split 'val' in" in error_of(build, tmp_path, "val", content=content)


def test_a_folder_of_pictures_that_is_missing_or_another(tmp_path):
    folder, images = write_release(tmp_path)
    release = read_release(folder)
    text = error_of(RefSet, release, tmp_path / "train2017", name="refcoco", split="val")
    assert "train2017' is not there; wanted: the folder that holds 'COCO_train2014_000000000094.jpg'" in text
    assert "--images" in text
    text = error_of(RefSet, release, folder, name="refcoco", split="val")
    assert "lacks the pictures that instances.json names; wanted: the folder that holds" in text
    assert "--images" in text
    assert len(RefSet(release, images, name="refcoco", split="val")) == 2


def test_the_first_folder_of_pictures_that_is_there(tmp_path):
    _, images = write_release(tmp_path)
    assert find_images(tmp_path, ["train2017", "train2014", "."], name="refcoco") == images
    assert find_images(tmp_path / "refcoco", ["../train2014"], name="refcoco").resolve() == images
    text = error_of(find_images, tmp_path, ["a", "b", "c", "d"], name="refcoco")
    assert "has no folder of pictures (a, b, c and 1 more); wanted: train2014" in text


def test_pictures_that_cannot_be_used_are_faults_and_not_errors(tmp_path):
    entries = [{**entry, "split": "val"} for entry in refs()]
    val = build(tmp_path, "val", entries=entries)
    paths = {image_id: val.folder / file_name(image_id) for image_id in SIZES}
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(paths[94])
    content = paths[94].read_bytes()
    assert np.asarray(val.load(94)).std() > 20
    paths[94].write_bytes(content[: len(content) - 200])  # the head is whole, the last pixels are not there
    fault = fault_of(val, 94)
    assert (fault.kind, fault.key) == ("corrupt", file_name(94))
    paths[94].write_bytes(b"not a picture")
    assert fault_of(val, 94).detail == "13 bytes that are no picture Pillow knows"
    paths[1].unlink()
    assert fault_of(val, 1).kind == "missing"
    Image.new("RGB", (30, 40)).save(paths[581857])
    assert fault_of(val, 581857).detail == "the file is 30 x 40 pixels, on its side, instances.json says 40 x 30"


def test_pictures_are_neither_turned_nor_left_grey(tmp_path):
    """COCO's annotations know no EXIF: a picture with a note to turn it is used as its pixels lie."""
    val = build(tmp_path, "val")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) // 4
    Image.fromarray(grey.astype(np.uint8)).save(val.folder / file_name(94), exif=exif, quality=95)
    found = np.asarray(val.load(94), dtype=int)
    assert found.shape == (32, 32, 3)
    assert np.abs(found - grey[..., None]).max() < 12


def test_a_part_of_a_split(tmp_path):
    entries = [{**entry, "split": "train"} for entry in refs()]
    train = build(tmp_path, "train", entries=entries)
    assert len(train.objects(94)) == 2
    part = train.subset([5, 0])
    assert [e.text for e in part.expressions] == ["man", "left cup"]
    assert part.image_ids.tolist() == [1, 581857]
    assert part.objects(1).tolist() == [[2, 3, 7, 10]]
    assert part.objects(94).shape == (0, 4)
    assert (len(train), train.image_ids.tolist()) == (7, [1, 94, 581857])
    assert part.identity() != train.identity()
    assert "none of the 7 expressions of split 'train' is left" in error_of(train.subset, [])


def test_identity_tells_what_decides_a_split_and_nothing_else(tmp_path):
    own = build(tmp_path / "a", "train").identity()
    write_release(tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "train2014")
    shutil.copytree(tmp_path / "a" / "train2014", tmp_path / "b" / "train2014")
    release = read_release(tmp_path / "b" / "refcoco")
    assert RefSet(release, tmp_path / "b" / "train2014", name="elsewhere", split="train").identity() == own
    moved, renamed, again = instances(), refs(), refs()
    moved["annotations"][0]["bbox"] = [5, 6, 20, 11]
    renamed[0]["sentences"][0]["sent"] = "right cup"
    again[1]["sentences"][0]["sent_id"] = 77
    elsewhere = instances()
    elsewhere["annotations"][3]["bbox"] = [2, 3, 5, 8]  # of testA
    others = [
        build(tmp_path / "c", "train", content=moved).identity(),
        build(tmp_path / "d", "train", entries=renamed).identity(),
        build(tmp_path / "e", "train", entries=again).identity(),
    ]
    assert len({own, *others}) == 4
    assert build(tmp_path / "f", "train", content=elsewhere).identity() == own
    Image.new("RGB", (40, 30)).save(tmp_path / "b" / "train2014" / file_name(581857))
    assert RefSet(release, tmp_path / "b" / "train2014", name="x", split="train").identity() != own


@pytest.fixture(scope="module")
def mini_files():
    """What the shared release holds, by json and pickle alone."""

    def read(shared_data):
        folder = shared_data / "refcoco_mini" / "refcoco"
        entries = pickle.loads((folder / "refs(unc).p").read_bytes())  # ours
        return entries, json.loads((folder / "instances.json").read_text())

    return read


@pytest.mark.shared_data
def test_the_shared_release_has_all_its_refs_and_sentences(shared_data):
    """Counted once in its two files: 150 photographs, 1,295 objects, 545 of which are referred to by 1,090 sentences."""
    release = read_release(shared_data / "refcoco_mini" / "refcoco")
    assert Counter(each.split for each in release.refs) == {"train": 293, "val": 88, "testA": 74, "testB": 90}
    assert (len(release.pictures), len(release.annotations)) == (150, 1295)
    numbers = {"train": (586, 76), "val": (176, 53), "testA": (148, 48), "testB": (180, 52)}
    for split, (num_sentences, num_pictures) in numbers.items():
        part = RefSet(release, shared_data / "coco_mini", name="mini", split=split)
        assert (len(part), len(part.image_ids)) == (num_sentences, num_pictures)
        assert part.repaired == {}
        assert (part.synthetic, part.numbering) == (False, "coco")


@pytest.mark.shared_data
def test_boxes_and_texts_of_the_shared_release_are_the_annotations(shared_data, mini_files):
    entries, content = mini_files(shared_data)
    bbox = {each["id"]: each["bbox"] for each in content["annotations"]}
    release = read_release(shared_data / "refcoco_mini" / "refcoco")
    for split in release.splits:
        part = RefSet(release, shared_data / "coco_mini", name="mini", split=split)
        wanted = [
            (sentence["sent_id"], sentence["sent"], entry["image_id"], bbox[entry["ann_id"]])
            for entry in entries
            if entry["split"] == split
            for sentence in entry["sentences"]
        ]
        found = [(e.sent_id, e.text, e.image_id) for e in part.expressions]
        assert found == [line[:3] for line in wanted]
        x0, y0, x1, y1 = np.array([e.box for e in part.expressions]).T
        np.testing.assert_allclose(np.stack([x0, y0, x1 - x0, y1 - y0], 1), [line[3] for line in wanted], atol=1e-9)


@pytest.mark.shared_data
def test_every_picture_of_the_shared_release_loads_at_its_size(shared_data, mini_files):
    _, content = mini_files(shared_data)
    sizes = {each["id"]: (each["width"], each["height"]) for each in content["images"]}
    release, loaded = read_release(shared_data / "refcoco_mini" / "refcoco"), set()
    for split in release.splits:
        part = RefSet(release, shared_data / "coco_mini", name="mini", split=split)
        for image_id in set(part.image_ids.tolist()) - loaded:
            assert part.load(image_id).size == sizes[image_id]
            loaded.add(image_id)
    assert loaded == set(sizes)
