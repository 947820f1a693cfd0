"""VQAv2's questions and annotations, written by hand as visualqa.org has them; OK-VQA's; and scenes in that layout."""

import json

import numpy as np
import pytest
from PIL import Image

from evals.multimodal.data.vqa_v2 import read_vqa_v2
from evals.multimodal.examples import Example
from pretrain.data.scene_layouts import image_id, write_layouts
from pretrain.data.scene_render import render
from pretrain.data.scenes import draw_scene
from pretrain.types import UserError

HEAD = {
    "info": {"description": "This is Balanced Binary", "version": "2.0", "year": 2017},
    "license": {"url": "http://creativecommons.org/licenses/by/4.0/"},
    "data_type": "mscoco",
    "data_subtype": "val2014",
}


def asked() -> dict:
    return HEAD | {
        "task_type": "Open-Ended",
        "questions": [
            {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
            {"image_id": 262148, "question": "Is he outside?", "question_id": 262148001},
            {"image_id": 42, "question": "How many dogs are there?", "question_id": 42000},
        ],
    }


def annotation(question_id, image, answer_type, answers) -> dict:
    return {
        "question_type": "none of the above",
        "multiple_choice_answer": answers[0],
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1} for n, a in enumerate(answers)],
        "image_id": image,
        "answer_type": answer_type,
        "question_id": question_id,
    }


def answered() -> dict:
    # in another order than the questions, as nothing promises that it is the same
    return HEAD | {
        "annotations": [
            annotation(42000, 42, "number", ["2"] * 9 + [""]),
            annotation(262148000, 262148, "other", ["down"] * 6 + ["at table"] * 4),
            annotation(262148001, 262148, "yes/no", ["yes"] * 10),
        ]
    }


def write(
    tmp_path,
    *,
    questions=None,
    annotations=None,
    names=("COCO_val2014_000000262148.jpg", "COCO_val2014_000000000042.jpg"),
):
    images = tmp_path / "val2014"
    images.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(images / name)
    paths = (
        tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json",
        tmp_path / "v2_mscoco_val2014_annotations.json",
    )
    for path, content in zip(paths, (questions or asked(), annotations or answered())):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return *paths, images


def read(tmp_path, **options):
    return read_vqa_v2(*write(tmp_path, **options), name="vqav2", split="val")


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_questions_and_their_ten_answers(tmp_path):
    made = read(tmp_path)
    assert made.examples == (
        Example("262148000", 0, "Where is he looking?", ("down",) * 6 + ("at table",) * 4, kind="other"),
        Example("262148001", 0, "Is he outside?", ("yes",) * 10, kind="yes/no"),
        Example("42000", 1, "How many dogs are there?", ("2",) * 9 + ("",), kind="number"),
    )
    assert [made.pictures.key(n) for n in (0, 1)] == ["COCO_val2014_000000262148.jpg", "COCO_val2014_000000000042.jpg"]
    assert made.pictures.load(0).size == (8, 8)
    assert (made.name, made.split, made.synthetic, dict(made.repaired)) == ("vqav2", "val", False, {})


@pytest.mark.parametrize("names", [("000000262148.jpg", "000000000042.jpg"), ("262148.png", "42.jpeg")])
def test_plain_names_serve_too(tmp_path, names):
    made = read(tmp_path, names=names)
    assert [made.pictures.key(e.picture) for e in made.examples] == [names[0], names[0], names[1]]


def test_two_files_for_one_picture_are_an_error(tmp_path):
    names = ("COCO_val2014_000000262148.jpg", "COCO_val2014_000000000042.jpg", "000000000042.jpg")
    message = error_of(read, tmp_path, names=names)
    assert "000000000042.jpg and COCO_val2014_000000000042.jpg for picture 42; one of them must go" in message


def test_okvqa_has_this_layout(tmp_path):
    """Its annotations have a raw answer beside the one that its evaluation compares, and one type for all."""
    questions, annotations = asked(), answered()
    for entry in annotations["annotations"]:
        entry |= {"answer_type": "other", "question_type": "four", "confidence": 3}
        for answer in entry["answers"]:
            answer["raw_answer"] = answer["answer"] + "s"
    made = read(tmp_path, questions=questions, annotations=annotations)
    assert made.examples[0].answers[0] == "down"
    assert {e.kind for e in made.examples} == {"other"}


def test_questions_without_annotation_or_answers_are_left_out_and_counted(tmp_path):
    annotations = answered()
    del annotations["annotations"][2]
    annotations["annotations"][0]["answers"] = []
    made = read(tmp_path, annotations=annotations)
    assert [e.example_id for e in made.examples] == ["262148000"]
    assert made.describe_repairs() == "vqav2 val: questions left out: without answers: 2"


def test_a_missing_picture_is_left_out_and_counted(tmp_path):
    made = read(tmp_path, names=("COCO_val2014_000000262148.jpg",))
    assert dict(made.repaired) == {"picture missing": 1}
    assert len(made.pictures) == 1


def test_the_wrong_folder_is_named_with_the_first_missing_file(tmp_path):
    message = error_of(read, tmp_path, names=("COCO_train2014_000000000009.jpg",))
    assert message == (
        f"vqav2 val: 2 of 2 pictures are not in {str(tmp_path / 'val2014')!r}; the first is COCO_val2014_000000262148.jpg; "
        "wanted: the folder of files such as COCO_val2014_000000000042.jpg, e.g. val2014 of COCO 2014"
    )


def test_files_that_are_not_of_one_split(tmp_path):
    annotations = answered()
    annotations["annotations"].append(annotation(9000, 9, "other", ["red"]))
    message = error_of(read, tmp_path, annotations=annotations)
    assert "v2_mscoco_val2014_annotations.json: annotation of question 9000: " in message
    assert "v2_OpenEnded_mscoco_val2014_questions.json has no such question" in message
    annotations = answered()
    annotations["annotations"][0]["image_id"] = 43
    message = error_of(read, tmp_path, annotations=annotations)
    assert "annotation of question 42000: image_id is 43, in v2_OpenEnded_mscoco_val2014_questions.json 42" in message


def test_doubled_ids(tmp_path):
    questions, annotations = asked(), answered()
    questions["questions"].append(questions["questions"][0])
    assert "questions.json: question 262148000 is there twice" in error_of(read, tmp_path, questions=questions)
    annotations["annotations"].append(annotations["annotations"][0])
    assert "annotations.json: question 42000 is there twice" in error_of(read, tmp_path, annotations=annotations)


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("questions", "image_id", "42", "question 262148000: image_id is '42'; it must be a whole number"),
        ("questions", "question", "  ", "question 262148000: question is '  '; it must be a text"),
        ("questions", "question_id", None, "entry 0: question_id is None; it must be a whole number"),
        ("annotations", "answers", None, "annotation of question 42000: answers is None; it must be a list of"),
        ("annotations", "answers", ["2"], "annotation of question 42000: answers is ['2']; it must be a list of"),
        ("annotations", "answer_type", 3, "annotation of question 42000: answer_type is 3; it must be a text"),
        ("annotations", "question_id", True, "entry 0: question_id is True; it must be a whole number"),
    ],
)
def test_a_wrong_value_is_named_with_file_and_id(tmp_path, file, path, value, message):
    content = {"questions": asked(), "annotations": answered()}
    entry = content[file][file][0]
    if path == "image_id":
        content["annotations"]["annotations"][1]["image_id"] = value
    entry[path] = value
    told = error_of(read, tmp_path, **content)
    assert f"{file}.json: {message}" in told


@pytest.mark.parametrize("file", ["questions", "annotations"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"questions": [', "cannot be read as JSON"),
        ("[]", "holds a list, not an object"),
        ('{"info": {}}', "has no '{file}', only 'info'"),
        ('{"questions": 3, "annotations": 3}', "'{file}' is no list of objects"),
        ('{"questions": [3], "annotations": [3]}', "'{file}' is no list of objects"),
    ],
)
def test_a_damaged_file(tmp_path, file, content, message):
    told = error_of(read, tmp_path, **{file: content})
    assert message.format(file=file) in told
    assert f"{file}.json" in told
    assert "wanted: VQAv2's " + file in told


def test_a_file_that_is_not_there(tmp_path):
    questions, annotations, images = write(tmp_path)
    absent = annotations.with_name("v2_mscoco_val2014_annotation.json")
    message = error_of(read_vqa_v2, questions, absent, images, name="vqav2", split="val")
    assert "did you mean" in message
    assert "the answers of test splits are not public" in message


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return write_layouts(folder, 3, "val", 4, 32, {"word": 1.0})


def test_scenes_in_this_layout(scenes):
    made = read_vqa_v2(scenes["questions"], scenes["annotations"], scenes["images"], name="scenes", split="val")
    assert (len(made), len(made.pictures), made.synthetic) == (scenes["num_questions"], 4, True)
    assert made.pictures.synthetic
    assert {e.kind for e in made.examples} == {"object", "text", "choice"}  # our own field, not VQAv2's answer type
    assert all(len(e.answers) == 10 and len(set(e.answers)) == 1 for e in made.examples)
    assert dict(made.repaired) == {}
    for index in range(4):
        scene = draw_scene(3, "val", index, {"word": 1.0})
        assert made.pictures.key(index) == f"scenes_val_{image_id(scene):012d}.png"
        np.testing.assert_array_equal(np.asarray(made.pictures.load(index)), render(scene, 32))
    # question 0 is "what colour is the largest shape?"
    first = next(e for e in made.examples if e.picture == 0)
    assert first.answers[0] == draw_scene(3, "val", 0, {"word": 1.0}).largest.color


def test_scenes_whose_pictures_are_elsewhere(scenes, tmp_path):
    message = error_of(read_vqa_v2, scenes["questions"], scenes["annotations"], tmp_path, name="scenes", split="val")
    number = image_id(draw_scene(3, "val", 0, {"word": 1.0}))
    assert f"the first is scenes_val_{number:012d}.png" in message
