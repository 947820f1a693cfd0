"""Training data by name: shipped configs, what they are built of, and that nothing of it is asked about later."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evals.multimodal.data.instructions import FOLDER, instruction_names, load_instructions
from evals.multimodal.data.scene_questions import QUESTION_SEED
from evals.multimodal.data.tasks import CAPTIONS, QUESTIONS, load_task, task_names
from pretrain.data.scenes import draw_scene
from pretrain.types import UserError

SCENES = {"kind": "scenes", "num": 3, "levels": {"word": 1}, "kinds": ["text"]}
LLAVA = {"kind": "llava", "path": "here", "file": "x.json", "images": "."}
COCO = {"kind": "coco_captions", "path": "here", "annotations": "a.json", "images": "train2014"}
SHARDS = {"kind": "shards", "path": "here", "file": "*.tar"}
CAPTIONED = {"kind": "scene_captions", "num": 3, "levels": {"one": 1}, "styles": ["short"]}


@pytest.fixture
def config_file(tmp_path):
    def write(base, **content):
        path = tmp_path / "mine.yaml"
        content = {key: value for key, value in (base | content).items() if value is not None}
        path.write_text(json.dumps(content))  # JSON is YAML
        return str(path)

    return write


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_pictures(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8 + number, 3), 90, dtype=np.uint8)).save(folder / name)


def small(name, **changes):
    return replace(load_instructions(name), **({"num": 10} | changes))


def test_every_shipped_config_is_read_and_says_where_its_data_come_from():
    assert instruction_names() == ["coco_captions", "flickr1k", "llava", "scenes", "scenes_captions"]
    for name in instruction_names():
        assert load_instructions(name).name == name
        text = (FOLDER / f"{name}.yaml").read_text()
        assert text.startswith("# ")
        assert "https://" in text or "pretrain/data/scenes.py" in text or name == "flickr1k"


@pytest.mark.parametrize("name", ["scenes_object", "scenes_text", "scenes_choice"])
def test_scenes_are_taught_as_they_are_asked_about(name):
    taught, task = load_instructions("scenes"), load_task(name)
    assert (taught.levels, taught.seed) == (task.levels, task.seed)
    assert task.question_kind in taught.kinds
    assert (taught.num, task.prompt) == (4000, "")
    # what is answered is worded as what was taught: of few words, all in small letters
    made = small("scenes", num=60).build(img_size=32)
    learned = {
        word for conversation in made.conversations for _, answer in conversation.turns for word in answer.split()
    }
    examples = replace(task, num=20).build(img_size=32).examples
    answers = {example.answers[0] for example in examples if example.kind != "string"}
    assert {word for answer in answers for word in answer.split() if word.isalpha() and len(word) > 1} <= learned


@pytest.mark.parametrize(
    ("taught", "task"),
    [("scenes_captions", "scenes"), ("flickr1k", "flickr1k"), ("coco_captions", "coco_captions")],
)
def test_captions_are_taught_with_the_prompt_that_asks_for_them(taught, task):
    taught, task = load_instructions(taught), load_task(task, folder=CAPTIONS)
    assert taught.prompt == task.prompt == "Provide a one-sentence caption for the provided image."
    assert (taught.levels, taught.styles, taught.seed) == (task.levels, task.styles, task.seed)
    places = [(config.file, config.annotations, config.images) for config in (taught, task)]
    assert taught.path == task.path
    assert taught.kind == "scene_captions" or places[0] != places[1]


def test_no_scene_is_taught_and_asked_about():
    """A scene is what its key says: seed, split, number and level. The first 150 of each shipped config stand for all."""
    num = 150
    taught = [small(name, num=num).build(img_size=32).pictures for name in ("scenes", "scenes_captions")]
    configs = [load_task(name, folder=folder) for folder in (QUESTIONS, CAPTIONS) for name in task_names(folder)]
    asked = [replace(c, num=num).build(img_size=32).pictures for c in configs if c.kind in ("scenes", "scene_captions")]
    assert len(asked) == 4
    taught_keys, asked_keys = (
        {pictures.key(number) for pictures in part for number in range(num)} for part in (taught, asked)
    )
    assert (len(taught_keys) >= num, len(asked_keys) >= num) == (True, True)
    assert taught_keys.isdisjoint(asked_keys)
    assert all(key.startswith(f"scene_s{QUESTION_SEED}_train_") for key in taught_keys)
    for number in range(5):
        assert not np.array_equal(taught[0].load(number), asked[0].load(number))


def test_questions_about_scenes():
    made = small("scenes").build(img_size=32)
    assert (len(made), made.name, made.synthetic, made.independent) == (10, "scenes", True, True)
    levels = load_instructions("scenes").levels
    for number, conversation in enumerate(made.conversations):
        scene = draw_scene(QUESTION_SEED, "train", number, levels)
        assert (conversation.conversation_id, conversation.picture) == (scene.key, number)
        answers = dict(conversation.turns)
        assert answers["how many shapes are there?"] == str(len(scene.objects))
    notes = []
    written = small("scenes", kinds=["text"]).build(img_size=48, note=notes.append)
    assert written.pictures.load(0).size == (48, 48)
    with_text = [n for n in range(10) if draw_scene(QUESTION_SEED, "train", n, levels).text]
    assert [conversation.picture for conversation in written.conversations] == with_text
    assert notes == [f"scenes: left out or mended: scenes without such a question: {10 - len(with_text)}"]
    assert small("scenes", seed=3).build(img_size=32).identity() != made.identity()
    assert small("scenes", seed=QUESTION_SEED).build(img_size=32).identity() == made.identity()


def test_captions_of_scenes():
    config = small("scenes_captions", styles=["short", "full"])
    made = config.build(img_size=32)
    assert (len(made), made.synthetic, made.independent) == (10, True, True)
    for number, conversation in enumerate(made.conversations):
        scene = draw_scene(QUESTION_SEED, "train", number, config.levels)
        assert [prompt for prompt, _ in conversation.turns] == [config.prompt] * 2
        assert all(scene.largest.shape in caption for _, caption in conversation.turns)
    other = replace(config, prompt="what is this?").build(img_size=32)
    assert other.conversations[0].turns[0][0] == "what is this?"


def test_llava(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A bus."}]
    more = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "In town."}]
    entries = [
        {"id": "33471", "image": "coco/train2017/000000033471.jpg", "conversations": turns + more},
        {"id": "text", "conversations": more},
        {"id": "gone", "image": "gqa/images/1.jpg", "conversations": turns},
    ]
    (tmp_path / "llava_v1_5_mix665k.json").write_text(json.dumps(entries))
    write_pictures(tmp_path, "coco/train2017/000000033471.jpg")
    config, notes = load_instructions("llava", path=str(tmp_path)), []
    made = config.build(img_size=32, note=notes.append)
    assert (made.name, made.synthetic, made.independent) == ("llava", False, False)
    assert [(one.conversation_id, one.picture) for one in made.conversations] == [("33471", 0), ("text", None)]
    assert made.conversations[0].turns == (("What is it?", "A bus."), ("Where?", "In town."))
    assert notes == ["llava: left out or mended: picture missing: 1"]
    identity = made.identity()
    (tmp_path / "coco").rename(tmp_path / "pics")
    assert "2 of 2 pictures are not in" in error_of(config.build, img_size=32)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pics").rename(tmp_path / "elsewhere" / "coco")
    again = config.build(img_size=32, images=str(tmp_path / "elsewhere"), note=notes.append)
    assert again.identity() == identity


def test_coco_captions(tmp_path):
    (tmp_path / "annotations").mkdir()
    content = {
        "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}],
        "annotations": [{"id": n, "image_id": 9, "caption": text} for n, text in enumerate(["Food.", "A meal."])],
    }
    (tmp_path / "annotations" / "captions_train2014.json").write_text(json.dumps(content))
    write_pictures(tmp_path / "train2014", "COCO_train2014_000000000009.jpg")
    config = load_instructions("coco_captions", path=str(tmp_path))
    made = config.build(img_size=32)
    assert made.independent
    assert [one.turns for one in made.conversations] == [((config.prompt, "Food."), (config.prompt, "A meal."))]
    assert made.pictures.load(0).size == (8, 6)
    (tmp_path / "train2014").rename(tmp_path / "elsewhere")
    assert len(config.build(img_size=32, images=str(tmp_path / "elsewhere"))) == 1


@pytest.mark.shared_data
def test_photographs_beside_the_project(shared_data):
    """875 photographs for training, five captions each; none of them is one of the 125 that the task asks about."""
    made = load_instructions("flickr1k", path=str(shared_data / "flickr1k")).build(img_size=32)
    assert (len(made), made.synthetic, made.independent) == (875, False, True)
    assert {len(conversation.turns) for conversation in made.conversations} == {5}
    task = load_task("flickr1k", folder=CAPTIONS, path=str(shared_data / "flickr1k")).build(img_size=32)
    taught, asked = (
        {one_set.pictures.key(number).split("/")[-1] for number in range(len(one_set.pictures))}
        for one_set in (made, task)
    )
    assert (len(taught), len(asked)) == (875, 125)
    assert taught.isdisjoint(asked)


@pytest.mark.parametrize(
    ("base", "change", "told"),
    [
        (SCENES, {"kinds": []}, "kinds is needed with kind scenes"),
        (SCENES, {"num": None}, "num is needed with kind scenes"),
        (SCENES, {"num": -1}, "num=-1 must be at least 1"),
        (SCENES, {"seed": -1}, "seed=-1 must be at least 0"),
        (SCENES, {"levels": None}, "levels is needed with kind scenes"),
        (SCENES, {"levels": {"word": 0}}, "level weights {'word': 0.0} add up to 0"),
        (SCENES, {"styles": ["short"]}, "styles=['short'] is not used by kind scenes"),
        (SCENES, {"prompt": "Say."}, "prompt='Say.' is not used by kind scenes"),
        (SCENES, {"path": "x"}, "path='x' is not used by kind scenes"),
        (LLAVA, {"path": None}, "path is needed with kind llava; name the data's folder with --data"),
        (LLAVA, {"file": None}, "file is needed with kind llava"),
        (LLAVA, {"images": None}, "images is needed with kind llava"),
        (LLAVA, {"annotations": "x"}, "annotations='x' is not used by kind llava"),
        (LLAVA, {"num": 3}, "num=3 is not used by kind llava"),
        (LLAVA, {"prompt": "Say."}, "prompt='Say.' is not used by kind llava"),
        (COCO, {"annotations": None}, "annotations is needed with kind coco_captions"),
        (COCO, {"images": None}, "images is needed with kind coco_captions"),
        (COCO, {"file": "x"}, "file='x' is not used by kind coco_captions"),
        (COCO, {"kinds": ["text"]}, "kinds=['text'] is not used by kind coco_captions"),
        (SHARDS, {"file": None}, "file is needed with kind shards"),
        (SHARDS, {"images": "x"}, "images='x' is not used by kind shards"),
        (SHARDS, {"seed": 0}, "seed=0 is not used by kind shards"),
        (CAPTIONED, {"styles": None}, "styles is needed with kind scene_captions"),
        (CAPTIONED, {"styles": ["long"]}, "styles: 'long' is unknown; known are full, alt, short"),
        (CAPTIONED, {"kinds": ["text"]}, "kinds=['text'] is not used by kind scene_captions"),
    ],
)
def test_configs_that_cannot_be_meant(config_file, base, change, told):
    text = error_of(load_instructions, config_file(base, **change))
    assert text.startswith("instructions mine.yaml: ")
    assert told in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "vqav2"}, "vqav2"),
        ({"kind": None}, "kind"),
        ({"kinds": ["colour"]}, "colour"),
        ({"num": "ten"}, "ten"),
        ({"split": "test"}, "field 'split' is unknown; known are kind, name"),
    ],
)
def test_fields_of_a_wrong_type_and_unknown_ones(config_file, change, told):
    text = error_of(load_instructions, config_file(SCENES, **change))
    assert "mine.yaml" in text
    assert told in text


def test_a_kind_of_question_twice(config_file):
    config = load_instructions(config_file(SCENES, kinds=["text", "text"]))
    assert "each once" in error_of(config.build, img_size=32)


def test_names_and_places_that_there_are_not(tmp_path):
    assert "instructions: 'llava2' is unknown; give one of coco_captions, flickr1k" in error_of(
        load_instructions, "llava2"
    )
    for name, told in (("llava", "llava_v1_5_mix665k.json"), ("coco_captions", "annotations/captions_train2014.json")):
        config = load_instructions(name, path=str(tmp_path / "nowhere"))
        text = error_of(config.build, img_size=32)
        assert f"nowhere' is not a folder; wanted: the folder of {told}" in text
    assert "train-*.tar" in error_of(load_instructions("flickr1k", path=str(tmp_path)).build, img_size=32)


def test_scenes_are_neither_read_from_a_folder_nor_with_other_pictures():
    assert "instructions scenes.yaml: --data=here: scenes are drawn, not read; leave it out" in error_of(
        load_instructions, "scenes", path="here"
    )
    assert "--taught_images=here: scenes are drawn, not read" in error_of(
        small("scenes").build, img_size=32, images="here"
    )
