"""Tasks by name: shipped configs, official layouts through them, generated scenes, and what is told of wrong ones.

Prompts and splits are restated from the reference, section 7, C2.
"""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from evals.multimodal.data.scene_questions import QUESTION_SEED
from evals.multimodal.data.tasks import CAPTIONS, QUESTIONS, load_task, task_names
from evals.multimodal.examples import Example
from evals.multimodal.metrics.registry import metric
from pretrain.data.scene_render import render
from pretrain.data.scenes import draw_scene
from pretrain.types import UserError

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."
SCENES = ("scenes_choice", "scenes_object", "scenes_text")
LEVELS = {"one": 0.1, "two": 0.1, "three": 0.2, "word": 0.3, "crowd": 0.3}
VQA = {"kind": "vqav2", "metric": "vqa", "split": "val", "max_tokens": 4, "path": "here"}
VQA |= {"questions": "q.json", "annotations": "a.json", "images": "val2014"}
OF_SCENES = {"kind": "scenes", "metric": "vqa", "split": "test", "max_tokens": 4}
OF_SCENES |= {"question_kind": "object", "num": 3, "levels": {"one": 1}}
CAPTIONED = {"kind": "scene_captions", "metric": "captions", "split": "test", "max_tokens": 4}
CAPTIONED |= {"styles": ["short"], "num": 3, "levels": {"one": 1}}


@pytest.fixture
def config_file(tmp_path):
    def write(base=VQA, **content):
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


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def picture(width=8) -> Image.Image:
    return Image.fromarray(np.full((6, width, 3), 90, dtype=np.uint8))


def write_pictures(folder, *names):
    """The n-th is 8 + n pixels wide, so that it is known again."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(8 + number).save(folder / name)


def write_lines(path, *entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_vqa(root, questions, annotations):
    ids = {"question_id": 420, "image_id": 42}
    write_json(
        root / questions,
        {
            "data_type": "mscoco",
            "data_subtype": "val2014",
            "questions": [ids | {"question": "What sport?"}, {"question_id": 7, "image_id": 8, "question": "Is it?"}],
        },
    )
    answers = [{"answer": answer} for answer in ["race"] * 7 + ["racing"] * 3]
    own = {"question_id": 7, "image_id": 8, "answer_type": "yes/no", "answers": [{"answer": "yes"}] * 10}
    write_json(root / annotations, {"annotations": [ids | {"answer_type": "other", "answers": answers}, own]})
    write_pictures(root / "val2014", "COCO_val2014_000000000042.jpg", "COCO_val2014_000000000008.jpg")


# ----- what is shipped


@pytest.mark.parametrize(
    ("names", "kind", "scored", "prompt", "split"),
    [
        (["vqav2", "okvqa"], "vqav2", "vqa", SHORT, "val"),
        (["gqa"], "gqa", "gqa", SHORT, "val"),
        (["textvqa"], "textvqa", "textvqa", SHORT, "val"),
        (["mmbench"], "mmbench", "circular", LETTER, "dev"),
        # the paper's test, but only the official server has its answers
        (["docvqa", "infovqa"], "jsonl", "anls", SHORT, "val"),
        (["chartqa"], "jsonl", "relaxed", SHORT, "test"),
        (["scienceqa", "seed"], "jsonl", "choice", LETTER, "test"),
        (["mme"], "jsonl", "mme", SHORT, "test"),
        (["pope"], "jsonl", "yes_no", SHORT, "test"),
        (["scenes_object", "scenes_text"], "scenes", "vqa", "", "test"),
        (["scenes_choice"], "scenes", "circular", "", "test"),
    ],
)
def test_shipped_tasks_with_questions(names, kind, scored, prompt, split):
    for name in names:
        config = load_task(name)
        assert (config.name, config.kind, config.metric) == (name, kind, scored)
        assert (config.prompt, config.split) == (prompt, split)
        assert config.file == f"{name}_{split}.jsonl" or kind != "jsonl"


def test_every_shipped_config_is_read_and_says_where_its_data_come_from():
    assert task_names() == [
        *["chartqa", "docvqa", "gqa", "infovqa", "mmbench", "mme", "okvqa", "pope"],
        *["scenes_choice", "scenes_object", "scenes_text", "scienceqa", "seed", "textvqa", "vqav2"],
    ]
    assert task_names(CAPTIONS) == ["coco_captions", "coco_mini", "flickr1k", "nocaps", "scenes", "textcaps"]
    for folder in (QUESTIONS, CAPTIONS):
        for name in task_names(folder):
            config = load_task(name, folder=folder)
            assert config.name == name
            assert (config.metric == "captions") == (folder == CAPTIONS)
            assert (config.path is None) == (config.kind in ("scenes", "scene_captions"))
            if folder == CAPTIONS:
                assert config.prompt == CAPTION
            text = (folder / f"{name}.yaml").read_text()
            assert text.startswith("# ")
            assert "https://" in text or "pretrain/data/scenes.py" in text or name == "flickr1k"


def test_scenes_have_the_levels_that_they_should():
    assert [load_task(name).levels for name in SCENES] == [LEVELS] * 3
    default = yaml.safe_load((QUESTIONS.parents[1] / "pretrain" / "aimv2_nano_scenes.yaml").read_text())
    captions = load_task("scenes", folder=CAPTIONS)
    assert captions.levels == default["data"]["train"]["levels"]
    assert captions.styles == list(default["data"]["train"]["captions"])
    assert {load_task(name).num for name in SCENES} == {1000}


@pytest.mark.parametrize(
    ("question", "prompt", "asked"),
    [
        ("What sport?", SHORT, f"What sport?\n{SHORT}"),
        ("Which?\nA. red\nB. blue", LETTER, f"Which?\nA. red\nB. blue\n{LETTER}"),
        ("what is written?", "", "what is written?"),
        ("", CAPTION, CAPTION),
        ("", "", ""),
    ],
)
def test_what_is_asked(question, prompt, asked):
    config = replace(load_task("vqav2"), prompt=prompt)
    assert config.asked(Example("1", 0, question, ("x",))) == asked


# ----- scenes


def small(name, folder=QUESTIONS, **changes):
    return replace(load_task(name, folder=folder), **({"num": 12} | changes))


def test_the_three_tasks_about_scenes_share_their_pictures():
    built = {name: small(name).build(img_size=32) for name in SCENES}
    assert len({made.pictures.pictures_identity() for made in built.values()}) == 1
    assert len({made.identity() for made in built.values()}) == 3
    for name, made in built.items():
        assert (made.name, made.split, made.synthetic, len(made.pictures)) == (name, "test", True, 12)
        for number in range(12):
            scene = draw_scene(QUESTION_SEED, "test", number, LEVELS)
            assert made.pictures.key(number) == scene.key
            if number < 2:
                assert np.array_equal(np.asarray(made.pictures.load(number)), render(scene, 32))
    # each scene has one question with four choices, and it is asked in four rotations
    assert len(built["scenes_choice"]) == 4 * 12
    assert len({example.group for example in built["scenes_choice"].examples}) == 12
    assert all(example.choices == () for example in built["scenes_object"].examples)
    written = {example.picture for example in built["scenes_text"].examples}
    assert written == {n for n in range(12) if draw_scene(QUESTION_SEED, "test", n, LEVELS).text}


@pytest.mark.parametrize("name", SCENES)
def test_right_answers_score_everything_with_the_task_s_metric(name):
    config = small(name)
    examples = config.build(img_size=32).examples
    right = metric(config.metric)(examples, [example.answers[0] for example in examples])
    wrong = metric(config.metric)(examples, ["walrus"] * len(examples))
    assert next(iter(right.values.values())) == pytest.approx(100)
    assert next(iter(wrong.values.values())) == 0


def test_settings_of_scenes_reach_them():
    base = small("scenes_object").build(img_size=32)
    assert small("scenes_object").build(img_size=48).pictures.load(0).size == (48, 48)
    assert len(small("scenes_object", num=5).build(img_size=32).pictures) == 5
    for change in ({"seed": 3}, {"split": "val"}):
        other = small("scenes_object", **change).build(img_size=32)
        assert set(map(other.pictures.key, range(12))).isdisjoint(map(base.pictures.key, range(12)))
    two = small("scenes_object", levels={"two": 1.0}).build(img_size=32)
    assert all(two.pictures.key(number).endswith("_two") for number in range(12))
    assert small("scenes_object", seed=QUESTION_SEED).build(img_size=32).identity() == base.identity()


def test_captions_of_scenes():
    made = small("scenes", CAPTIONS).build(img_size=32)
    assert (len(made), made.split, made.synthetic) == (12, "test", True)
    levels = load_task("scenes", folder=CAPTIONS).levels
    for example in made.examples:
        scene = draw_scene(QUESTION_SEED, "test", example.picture, levels)
        named = [f"{obj.color} {obj.shape}" for obj in scene.objects]
        assert (example.question, len(example.answers)) == ("", 1)
        assert all(name in example.answers[0] for name in named)
    both = small("scenes", CAPTIONS, styles=["short", "full"]).build(img_size=32)
    assert [len(example.answers) for example in both.examples] == [2] * 12
    assert [example.answers[0] for example in both.examples] == [example.answers[0] for example in made.examples]


def test_a_part_for_a_quick_look():
    config = small("scenes_choice")
    whole, part = config.build(img_size=32), config.build(img_size=32, limit=8)
    assert len(part) == 8
    assert len({example.group for example in part.examples}) == 2
    assert {example.example_id for example in part.examples} < {example.example_id for example in whole.examples}
    assert config.build(img_size=32, limit=8).identity() == part.identity()
    others = [config.build(img_size=32, limit=8, seed=seed).identity() for seed in range(1, 4)]
    assert len({part.identity(), *others}) > 1
    assert config.build(img_size=32, limit=1000).identity() == whole.identity()
    assert "a part of 0 examples cannot be taken" in error_of(config.build, img_size=32, limit=0)


# ----- official layouts


@pytest.mark.parametrize(
    ("name", "questions", "annotations"),
    [
        # visualqa.org/download and okvqa.allenai.org/download
        ("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
        ("okvqa", "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
    ],
)
def test_vqav2_and_okvqa(tmp_path, name, questions, annotations):
    write_vqa(tmp_path, questions, annotations)
    notes = []
    made = load_task(name, path=str(tmp_path)).build(img_size=32, note=notes.append)
    assert (made.name, made.split, made.synthetic, notes) == (name, "val", False, [])
    assert [example.example_id for example in made.examples] == ["420", "7"]
    assert made.examples[0].answers == ("race",) * 7 + ("racing",) * 3
    assert made.pictures.load(made.examples[1].picture).size == (9, 6)
    identity = made.identity()
    (tmp_path / "val2014").rename(tmp_path / "elsewhere")
    config = load_task(name, path=str(tmp_path))
    assert "val2014' is not a folder" in error_of(config.build, img_size=32)
    assert config.build(img_size=32, images=str(tmp_path / "elsewhere")).identity() == identity


def test_gqa(tmp_path):
    types = {"structural": "query"}
    entry = {"imageId": "2375429", "question": "What color?", "answer": "pink", "types": types, "isBalanced": True}
    other = entry | {"imageId": "n161313", "isBalanced": False}
    write_json(tmp_path / "val_balanced_questions.json", {"05515938": entry, "1": other})
    write_pictures(tmp_path / "images", "2375429.jpg", "n161313.jpg")
    notes = []
    made = load_task("gqa", path=str(tmp_path)).build(img_size=32, note=notes.append)
    assert [(example.example_id, example.answers, example.kind) for example in made.examples] == [
        ("05515938", ("pink",), "query")
    ]
    assert notes == ["gqa val: questions left out: not balanced: 1"]


def test_textvqa(tmp_path):
    entry = {"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "What brand?"}
    write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": [entry | {"answers": ["dakota"] * 10}]})
    write_pictures(tmp_path / "train_images", "003a8ae2ef43b901.jpg")
    made = load_task("textvqa", path=str(tmp_path)).build(img_size=32)
    assert (made.split, made.examples[0].answers) == ("val", ("dakota",) * 10)
    assert made.pictures.load(0).size == (8, 6)


def test_mmbench_is_asked_in_rotations_for_its_circular_rule_alone(tmp_path, config_file):
    file = io.BytesIO()
    picture().save(file, format="PNG")
    row = ["241", "Which color?", "", "red", "blue", "green", "", "B", "color", base64.b64encode(file.getvalue())]
    head = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    row[-1] = row[-1].decode()
    (tmp_path / "MMBench_DEV_EN.tsv").write_text("\t".join(head) + "\n" + "\t".join(row) + "\n")
    config = load_task("mmbench", path=str(tmp_path))
    made = config.build(img_size=32)
    assert (len(made), made.split, len({example.group for example in made.examples})) == (3, "dev", 1)
    assert config.asked(made.examples[0]) == f"Which color?\nA. red\nB. blue\nC. green\n{LETTER}"
    once = replace(config, metric="choice").build(img_size=32)
    assert [(example.answers, example.group) for example in once.examples] == [(("B",), "")]
    assert "--images=here: kind mmbench has no folder of pictures" in error_of(config.build, img_size=32, images="here")


@pytest.mark.parametrize(
    ("name", "images", "own"),
    [
        ("docvqa", "spdocvqa_images", {"image": "documents/a.png", "answers": ["0.28"]}),
        ("infovqa", "infographicsvqa_images", {"image": "38609.jpeg", "answers": ["twitter"]}),
        ("chartqa", ".", {"image": "test/png/1.png", "answers": ["14"], "kind": "human"}),
        ("scienceqa", "images", {"image": "test/5/image.png", "choices": ["ethos", "logos"], "answer": 0}),
        ("seed", "SEED-Bench-image", {"image": "1_2.jpg", "choices": ["One", "Two", "3", "4"], "answer": "A"}),
        ("mme", "MME_Benchmark_release_version", {"image": "color/1.jpg", "answers": ["Yes"]}),
        ("pope", "val2014", {"image": "COCO_val2014_000000310196.jpg", "answers": ["yes"], "kind": "random"}),
    ],
)
def test_tasks_in_this_suite_s_own_layout(tmp_path, name, images, own):
    lines = [{"id": 1, "question": "What?"} | own]
    if name == "mme":  # its metric needs two questions a picture
        lines = [line | {"kind": "color", "group": "1", "id": n} for n in (1, 2) for line in lines]
    config = load_task(name, path=str(tmp_path))
    write_lines(tmp_path / f"{name}_{config.split}.jsonl", *lines)
    write_pictures(tmp_path / images, own["image"])
    made = config.build(img_size=32)
    assert (len(made), made.name, made.synthetic) == (len(lines), name, False)
    assert made.pictures.load(0).size == (8, 6)
    scored = metric(config.metric)(made.examples, [example.answers[0] for example in made.examples])
    # MME's are points: 100 for each question right and 100 for both of a picture
    assert next(iter(scored.values.values())) == pytest.approx(200 if name == "mme" else 100)


@pytest.mark.parametrize("name", ["textcaps", "nocaps"])
def test_captions_in_this_suite_s_own_layout(tmp_path, monkeypatch, name):
    config = load_task(name, folder=CAPTIONS, path=str(tmp_path / "data"))
    write_lines(
        tmp_path / "data" / f"{name}_val.jsonl",
        {"id": "a8", "image": "a8.jpg", "answers": ["A page.", "A book."]},
        {"id": "a9", "image": "a8.jpg", "answers": []},
    )
    write_pictures(tmp_path / "data" / config.images, "a8.jpg")
    notes = []
    made = config.build(img_size=32, note=notes.append)
    assert [(example.question, example.answers) for example in made.examples] == [("", ("A page.", "A book."))]
    assert notes == [f"{name} val: questions left out: without answers: 1"]
    # a folder that is named is named from where commands are run, not from the data's
    (tmp_path / "data" / config.images).rename(tmp_path / "pics")
    monkeypatch.chdir(tmp_path)
    assert config.build(img_size=32, images="pics", note=notes.append).pictures.load(0).size == (8, 6)


def test_coco_captions(tmp_path):
    names = ["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000073.jpg"]
    captions = [(42, "A shoe."), (73, "A bike."), (42, "Shoes.")]
    content = {
        "images": [{"id": int(name[-6:-4]), "file_name": name} for name in names],
        "annotations": [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(captions)],
    }
    write_json(tmp_path / "annotations" / "captions_val2014.json", content)
    write_pictures(tmp_path / "val2014", *names)
    config = load_task("coco_captions", folder=CAPTIONS, path=str(tmp_path))
    made = config.build(img_size=32)
    assert (made.split, [example.answers for example in made.examples]) == (
        "val2014",
        [("A shoe.", "Shoes."), ("A bike.",)],
    )
    assert made.pictures.load(1).size == (9, 6)
    assert "coco_captions val2014: a part of 0" in error_of(config.build, img_size=32, limit=0)
    (tmp_path / "val2014").rename(tmp_path / "elsewhere")
    assert len(config.build(img_size=32, images=str(tmp_path / "elsewhere"))) == 2


@pytest.mark.shared_data
def test_photographs_beside_the_project(shared_data):
    """Their README: 125 val photographs of flickr1k, 79 of coco_mini, with five captions each."""
    for name, num, split in (("flickr1k", 125, "val"), ("coco_mini", 79, "val2017")):
        made = load_task(name, folder=CAPTIONS, path=str(shared_data / name)).build(img_size=32)
        assert (len(made), made.split, made.synthetic) == (num, split, False)
        assert {len(example.answers) for example in made.examples} == {5}
        assert min(made.pictures.load(3).size) > 32


# ----- what is told


@pytest.mark.parametrize("name", ["vqav2", "gqa", "textvqa", "mmbench", "docvqa"])
def test_folders_that_are_not_there_or_empty(tmp_path, name):
    config = load_task(name, path=str(tmp_path / "nowhere"))
    told = config.questions or config.file
    text = error_of(config.build, img_size=32)
    assert f"nowhere' is not a folder; wanted: the folder of {told}" in text
    assert text.endswith("; name it with --data")
    (tmp_path / "nowhere").mkdir()
    assert f"{told}' is not there; wanted: " in error_of(config.build, img_size=32)


@pytest.mark.parametrize("name", ["coco_captions", "textcaps", "nocaps"])
def test_folders_of_captions_that_are_not_there(tmp_path, name):
    config = load_task(name, folder=CAPTIONS, path=str(tmp_path / "nowhere"))
    told = config.annotations or config.file
    assert f"nowhere' is not a folder; wanted: the folder of {told}" in error_of(config.build, img_size=32)


def test_shards_that_are_not_there(tmp_path):
    config = load_task("flickr1k", folder=CAPTIONS, path=str(tmp_path))
    assert "val-*.tar" in error_of(config.build, img_size=32)
    assert "kind shards has no folder of pictures" in error_of(config.build, img_size=32, images="here")


@pytest.mark.parametrize(
    ("base", "change", "told"),
    [
        (VQA, {"path": None}, "path is needed with kind vqav2; name the data's folder with --data"),
        (VQA, {"questions": None}, "questions is needed with kind vqav2"),
        (VQA, {"annotations": None}, "annotations is needed with kind vqav2"),
        (VQA, {"images": None}, "images is needed with kind vqav2"),
        (VQA, {"images": ""}, "images is needed with kind vqav2"),
        (VQA, {"file": "x.json"}, "file='x.json' is not used by kind vqav2; leave it out"),
        (VQA, {"num": 0}, "num=0 is not used by kind vqav2"),
        (VQA, {"question_kind": "text"}, "question_kind='text' is not used by kind vqav2"),
        (VQA, {"levels": {"one": 1}}, "levels={'one': 1.0} is not used by kind vqav2"),
        (VQA, {"styles": ["short"]}, "styles=['short'] is not used by kind vqav2"),
        (VQA, {"seed": 0}, "seed=0 is not used by kind vqav2"),
        (VQA, {"kind": "gqa"}, "annotations='a.json' is not used by kind gqa"),
        (VQA, {"kind": "gqa", "annotations": None, "questions": None}, "questions is needed with kind gqa"),
        (VQA, {"kind": "textvqa"}, "file is needed with kind textvqa"),
        (VQA, {"kind": "mmbench"}, "file is needed with kind mmbench"),
        (VQA, {"kind": "jsonl"}, "file is needed with kind jsonl"),
        (VQA, {"kind": "shards"}, "file is needed with kind shards"),
        (VQA, {"metric": "accuracy"}, "metric='accuracy' is not known; known are vqa, textvqa"),
        (VQA, {"metric": "captions"}, "metric='captions' does not score answers to questions, which kind vqav2 asks"),
        (VQA, {"metric": "circular"}, "metric='circular' needs lettered choices, which kind vqav2 has not"),
        (VQA, {"metric": "choice"}, "metric='choice' needs lettered choices, which kind vqav2 has not"),
        (VQA, {"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        (OF_SCENES, {"question_kind": None}, "question_kind is needed with kind scenes"),
        (OF_SCENES, {"num": None}, "num is needed with kind scenes"),
        (OF_SCENES, {"num": 0}, "num=0 must be at least 1"),
        (OF_SCENES, {"seed": -1}, "seed=-1 must be at least 0"),
        (OF_SCENES, {"levels": {}}, "levels is needed with kind scenes"),
        (OF_SCENES, {"levels": {"ten": 1}}, "scene level 'ten' is unknown; known levels: one, two"),
        (OF_SCENES, {"path": "x"}, "path='x' is not used by kind scenes"),
        (OF_SCENES, {"styles": ["short"]}, "styles=['short'] is not used by kind scenes"),
        (
            OF_SCENES,
            {"split": "train"},
            "split='train' must be one of val, test with kind scenes; models are taught on",
        ),
        (OF_SCENES, {"split": "dev"}, "split='dev' must be one of val, test with kind scenes"),
        (OF_SCENES, {"metric": "circular"}, "needs lettered choices, which kind scenes, question_kind object has not"),
        (CAPTIONED, {"styles": []}, "styles is needed with kind scene_captions"),
        (CAPTIONED, {"styles": ["long"]}, "styles: 'long' is unknown; known are full, alt, short"),
        (CAPTIONED, {"metric": "vqa"}, "metric='vqa' does not score captions; with kind scene_captions it must be"),
        (CAPTIONED, {"question_kind": "text"}, "question_kind='text' is not used by kind scene_captions"),
    ],
)
def test_configs_that_cannot_be_meant(config_file, base, change, told):
    text = error_of(load_task, config_file(base, **change))
    assert text.startswith("task mine.yaml: ")
    assert told in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "vqa"}, "vqa"),
        ({"question_kind": "colour"}, "colour"),
        ({"max_tokens": "six"}, "six"),
        ({"num": 2.5}, "2.5"),
        ({"prompt": ["a"]}, "prompt"),
        ({"maxtokens": 3}, "field 'maxtokens' is unknown; known are kind, metric, split, max_tokens"),
        *(({name: None}, name) for name in ("kind", "metric", "split", "max_tokens")),
    ],
)
def test_fields_of_a_wrong_type_and_fields_that_every_task_needs(config_file, change, told):
    text = error_of(load_task, config_file(**change))
    assert "mine.yaml" in text
    assert told in text


def test_names_that_there_are_not(tmp_path):
    assert "task: 'vqa2' is unknown; give one of chartqa, docvqa" in error_of(load_task, "vqa2")
    assert "task: 'vqav2' is unknown; give one of coco_captions" in error_of(load_task, "vqav2", folder=CAPTIONS)
    assert "task: " in (text := error_of(load_task, str(tmp_path / "x.yaml")))
    assert "is no file" in text


def test_scenes_are_neither_read_from_a_folder_nor_with_other_pictures():
    text = error_of(load_task, "scenes_text", path="here")
    assert "task scenes_text.yaml: --data=here: scenes are drawn, not read; leave it out" in text
    for config in (load_task("scenes_text"), load_task("scenes", folder=CAPTIONS)):
        assert "--images=here: scenes are drawn, not read" in error_of(config.build, img_size=32, images="here")
