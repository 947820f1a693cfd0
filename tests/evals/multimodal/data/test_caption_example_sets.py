"""Captions as examples and as conversations, from scenes, from shards, COCO's layout and JSONL."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from evals.multimodal.data.caption_sets import CaptionSource, caption_examples, caption_instructions
from evals.multimodal.data.scene_questions import QUESTION_SEED, scene_examples
from evals.multimodal.examples import Conversation, Example
from pretrain.types import UserError

LEVELS = {"one": 1, "word": 1, "crowd": 1}
SCENES = {"kind": "scenes", "num": 60, "levels": LEVELS, "styles": ("short",)}


def examples(name="cap", img_size=32, **source):
    return caption_examples(CaptionSource(**source), name=name, img_size=img_size)


def taught(prompt="describe it.", name="cap", img_size=32, **source):
    return caption_instructions(CaptionSource(**source), prompt=prompt, name=name, img_size=img_size)


def error_of(**source) -> str:
    with pytest.raises(UserError) as caught:
        examples(**source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def jpeg(color) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "JPEG")
    return buffer.getvalue()


def shard(path, samples):
    """WebDataset: members of one stem are a sample."""
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def coco(folder, names, captions, *, absent=()):
    (folder / "images").mkdir()
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    notes = [{"id": k, "image_id": number, "caption": text} for k, (number, text) in enumerate(captions)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    for number, name in enumerate(names):
        if name not in absent:
            (folder / "images" / name).write_bytes(jpeg((10 * number, 0, 0)))
    return {"kind": "coco", "path": str(folder), "annotations": "captions.json", "images": "images"}


def jsonl(folder, lines):
    (folder / "images").mkdir()
    for line in lines:
        (folder / "images" / line["image"]).write_bytes(jpeg((200, 0, 0)))
    (folder / "caps.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return {"kind": "jsonl", "path": str(folder), "annotations": "caps.jsonl", "images": "images"}


def short_of(scene) -> str:
    named = ", ".join(f"{'an' if obj.color[0] == 'o' else 'a'} {obj.color} {obj.shape}" for obj in scene.objects)
    return f"{named}; {scene.text.content.lower()}" if scene.text else named


def test_short_captions_of_scenes_name_all_objects_and_the_text():
    made = examples(**SCENES)
    assert len(made) == len(made.pictures) == 60
    for number, example in enumerate(made.examples):
        scene = made.pictures.scene(number)
        assert example == Example(scene.key, number, "", (short_of(scene),))
    assert made.synthetic
    assert (made.name, made.split, dict(made.repaired)) == ("cap", "test", {})
    assert made.pictures.load(0).size == (32, 32)


def test_styles_are_references_in_their_order():
    made = examples(**SCENES | {"styles": ("full", "short", "alt")})
    for example in made.examples:
        scene = made.pictures.scene(example.picture)
        full, short, _ = example.answers
        assert short == short_of(scene)
        assert all(f"{obj.color} {obj.shape}" in full for obj in scene.objects)
        assert scene.background.color in full
    assert len({example.answers[2] for example in made.examples}) > 30
    assert made.identity() == examples(**SCENES | {"styles": ("full", "short", "alt")}).identity()


def test_scenes_of_captions_are_those_of_questions():
    questions = scene_examples("object", split="test", num=60, img_size=32, levels=LEVELS, name="q")
    made = examples(**SCENES)
    assert made.pictures.pictures_identity() == questions.pictures.pictures_identity()
    others = [
        examples(**SCENES | {"styles": ("full",)}),
        examples(**SCENES | {"seed": QUESTION_SEED + 1}),
        examples(**SCENES | {"split": "train"}),
        examples(**SCENES, img_size=40),
    ]
    assert len({one.identity() for one in [made, *others]}) == 5
    assert others[0].pictures.pictures_identity() == made.pictures.pictures_identity()


def test_captions_of_scenes_to_learn():
    made = taught(**SCENES | {"split": "train", "styles": ("short", "full")})
    told = examples(**SCENES | {"split": "train", "styles": ("short", "full")})
    assert made.independent
    assert made.synthetic
    assert len(made) == 60
    for number, (conversation, example) in enumerate(zip(made.conversations, told.examples)):
        short, full = example.answers
        turns = (("describe it.", short), ("describe it.", full))
        assert conversation == Conversation(example.example_id, number, turns)
    assert taught(prompt="", **SCENES).conversations[0].turns[0][0] == ""
    assert taught(prompt="", **SCENES).identity() != taught(**SCENES).identity()


def test_shards(tmp_path):
    caps = {"captions": ["a red cup.", "one cup"]}
    shard(tmp_path / "val-0.tar", {"p0": {"jpg": jpeg((250, 0, 0)), "json": json.dumps(caps).encode()}})
    shard(
        tmp_path / "val-1.tar",
        {
            "p1": {"jpg": jpeg((0, 250, 0)), "txt": b"a green cup"},
            "p2": {"jpg": jpeg((0, 0, 250)), "txt": b" "},
        },
    )
    shard(tmp_path / "train-0.tar", {"p3": {"jpg": jpeg((0, 0, 0)), "txt": b"a black cup"}})
    made = examples(kind="shards", split="val", path=str(tmp_path), shards="val-*.tar")
    assert made.examples == (
        Example("val-0.tar/p0", 0, "", ("a red cup.", "one cup")),
        Example("val-1.tar/p1", 1, "", ("a green cup",)),
    )
    assert np.asarray(made.pictures.load(1))[0, 0].argmax() == 1
    assert made.describe_repairs() == "cap val: questions left out: without answers: 1"
    assert not made.synthetic
    (only,) = taught(kind="shards", split="train", path=str(tmp_path / "train-{0..0}.tar")).conversations
    assert only == Conversation("train-0.tar/p3", 0, (("describe it.", "a black cup"),))


def test_coco_captions(tmp_path):
    source = coco(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], [(0, "one"), (2, "three"), (0, "uno")], absent=["c.jpg"])
    made = examples(**source, split="val2017")
    assert made.examples == (Example("a.jpg", 0, "", ("one", "uno")),)
    assert dict(made.repaired) == {"without answers": 1, "picture missing": 1}
    learned = taught(**source)
    assert tuple(learned.conversations) == (
        Conversation("a.jpg", 0, (("describe it.", "one"), ("describe it.", "uno"))),
    )
    assert dict(learned.repaired) == dict(made.repaired)
    assert not learned.synthetic


def test_a_random_part(tmp_path):
    names = [f"{number:02d}.jpg" for number in range(20)]
    source = coco(tmp_path, names, [(number, f"caption {number}") for number in range(20)])
    parts = [examples(**source, num=5, seed=seed) for seed in (0, 0, 1)]
    ids = [[example.example_id for example in part.examples] for part in parts]
    assert ids[0] == ids[1] == sorted(ids[0])
    assert len(ids[0]) == 5
    assert ids[0] != ids[2]
    assert all(e.answers == (f"caption {int(e.example_id[:2])}",) for e in parts[0].examples)


def test_jsonl(tmp_path):
    lines = [
        {"id": 1, "image": "a.jpg", "answers": ["a cup.", " ", "one cup"], "kind": "in-domain"},
        {"id": 2, "image": "b.jpg", "answers": ["a dog"]},
        {"id": 3, "image": "b.jpg", "answers": []},
    ]
    source = jsonl(tmp_path, lines)
    made = examples(**source, split="val")
    assert made.examples == (
        Example("1", 0, "", ("a cup.", "one cup"), kind="in-domain"),
        Example("2", 1, "", ("a dog",)),
    )
    assert dict(made.repaired) == {"without answers": 1, "blank caption among others": 1}
    assert len(examples(**source, num=1)) == 1
    assert [c.turns for c in taught(**source).conversations] == [
        (("describe it.", "a cup."), ("describe it.", "one cup")),
        (("describe it.", "a dog"),),
    ]


def test_jsonl_with_pictures_beside_it(tmp_path):
    source = jsonl(tmp_path, [{"id": 1, "image": "a.jpg", "answers": ["a cup"]}])
    (tmp_path / "caps.jsonl").rename(tmp_path / "images" / "caps.jsonl")
    made = examples(**source | {"annotations": "images/caps.jsonl", "images": None})
    assert made.pictures.load(0).size == (8, 8)


@pytest.mark.shared_data
def test_flickr1k(shared_data):
    source = {"kind": "shards", "path": str(shared_data / "flickr1k")}
    val = examples(**source, split="val", shards="val-*.tar")
    train = taught(**source, split="train", shards="train-*.tar", prompt="")
    # shared/data/README.md: 875 and 125 photographs, five captions each
    assert (len(val), len(train)) == (125, 875)
    assert {len(example.answers) for example in val.examples} == {5}
    assert {len(conversation.turns) for conversation in train.conversations} == {5}
    own = {example.example_id.split("/")[1] for example in val.examples}
    assert not own & {conversation.conversation_id.split("/")[1] for conversation in train.conversations}


def test_missing_pictures(tmp_path):
    names = [f"{number}.jpg" for number in range(22)]
    captions = [(number, "a cup") for number in range(22)]
    # 5% of 22 is 1.1
    source = coco(tmp_path, names, captions, absent=["3.jpg", "4.jpg"])
    told = error_of(**source)
    assert told.startswith("cap test: 2 of 22 pictures cannot be read, more than 5%; the first is 3.jpg (missing: ")


def test_wrong_sources(tmp_path):
    assert error_of(kind="table") == "cap: kind='table' is unknown; there are scenes, shards, coco, jsonl"
    assert error_of(kind="shards") == "cap: path=None; kind shards needs the field 'path'"
    assert "kind coco needs the field 'annotations'" in error_of(kind="coco", path="x", images="i")
    assert "kind coco needs the field 'images'" in error_of(kind="coco", path="x", annotations="a")
    assert "kind jsonl needs the field 'annotations'" in error_of(kind="jsonl", path="x")
    assert "kind scenes needs the field 'num'" in error_of(**SCENES | {"num": None})
    assert "kind scenes needs the field 'levels'" in error_of(**SCENES | {"levels": {}})
    assert "kind scenes needs the field 'styles'" in error_of(**SCENES | {"styles": ()})
    assert "style 'ful' of captions is unknown (did you mean 'full'?)" in error_of(**SCENES | {"styles": ("ful",)})
    assert "scene level 'four' is unknown" in error_of(**SCENES | {"levels": {"four": 1}})
    assert "split='dev' is no split of scenes" in error_of(**SCENES | {"split": "dev"})
    assert "num=-1 must be at least 1" in error_of(**SCENES | {"num": -1})
    assert "no folder" in error_of(kind="coco", path=str(tmp_path / "absent"), annotations="a", images="i")
    assert "absent.jsonl" in error_of(kind="jsonl", path=str(tmp_path), annotations="absent.jsonl")
    assert "absent" in error_of(kind="shards", path=str(tmp_path / "absent.tar"))


def test_jsonl_with_questions_are_no_captions(tmp_path):
    source = jsonl(tmp_path, [{"id": "q7", "image": "a.jpg", "question": "what is it?", "answers": ["a cup"]}])
    assert error_of(**source) == (
        "cap test: id 'q7' has the question 'what is it?'; lines with captions have none, only answers"
    )
