"""TextVQA's questions, written by hand as TextVQA_0.5.1_val.json has them."""

import json

import pytest
from PIL import Image

from evals.multimodal.data.textvqa import read_textvqa
from evals.multimodal.examples import Example
from pretrain.types import UserError


def entry(question_id, image, question, answers) -> dict:
    return {
        "question": question,
        "image_id": image,
        "image_classes": ["Clock", "Watch"],
        "flickr_original_url": "https://example.invalid/1.jpg",
        "flickr_300k_url": "https://example.invalid/2.jpg",
        "image_width": 1024,
        "image_height": 730,
        "answers": answers,
        "question_tokens": question.lower().split(),
        "question_id": question_id,
        "set_name": "val",
        "ocr_tokens": ["DAKOTA", "DIGITAL"],
    }


def content() -> dict:
    entries = [
        entry(34602, "003a8ae2ef43b901", "what is the brand of this camera?", ["dakota"] * 7 + ["dakota digital"] * 3),
        entry(34603, "0054c91397f2fe05", "what does the small white text spell?", ["copenhagen"] * 10),
    ]
    return {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": entries}


def read(tmp_path, questions, names=("003a8ae2ef43b901.jpg", "0054c91397f2fe05.jpg")):
    images = tmp_path / "train_images"
    images.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8), (5, 0, 0)).save(images / name)
    path = tmp_path / "TextVQA_0.5.1_val.json"
    path.write_text(questions if isinstance(questions, str) else json.dumps(questions))
    return read_textvqa(path, images, name="textvqa", split="val")


def error_of(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_questions_with_ten_answers_and_no_kind(tmp_path):
    made = read(tmp_path, content())
    assert made.examples == (
        Example("34602", 0, "what is the brand of this camera?", ("dakota",) * 7 + ("dakota digital",) * 3),
        Example("34603", 1, "what does the small white text spell?", ("copenhagen",) * 10),
    )
    assert [made.pictures.key(n) for n in (0, 1)] == ["003a8ae2ef43b901.jpg", "0054c91397f2fe05.jpg"]
    assert made.pictures.load(1).size == (8, 8)
    assert (made.name, made.split, made.synthetic, dict(made.repaired)) == ("textvqa", "val", False, {})


def test_test_questions_have_no_answers(tmp_path):
    questions = content()
    for each in questions["data"]:
        del each["answers"]
    assert "no question that can be scored (without answers: 2)" in error_of(tmp_path, questions)


def test_missing_pictures(tmp_path):
    made = read(tmp_path, content(), names=("003a8ae2ef43b901.jpg",))
    assert (dict(made.repaired), len(made)) == ({"picture missing": 1}, 1)
    (tmp_path / "train_images" / "003a8ae2ef43b901.jpg").unlink()
    message = error_of(tmp_path, content(), names=("test.jpg",))
    assert (
        f"2 of 2 pictures are not in {str(tmp_path / 'train_images')!r}; the first is 003a8ae2ef43b901.jpg" in message
    )
    assert "wanted: the folder of TextVQA's pictures" in message


def test_a_doubled_id(tmp_path):
    questions = content()
    questions["data"][1]["question_id"] = 34602
    assert error_of(tmp_path, questions) == (
        "textvqa val: question id '34602' is there 2 times; each needs one of its own"
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_id", None, "question 34603: image_id is None; it must be a whole number or a text"),
        ("question", 3, "question 34603: question is 3; it must be a text"),
        ("answers", "copenhagen", "question 34603: answers is 'copenhagen'; it must be a list of texts"),
        ("answers", [3], "question 34603: answers is [3]; it must be a list of texts"),
        ("question_id", [], "data[1]: question_id is []; it must be a whole number or a text"),
    ],
)
def test_a_wrong_value_is_named_with_file_and_id(tmp_path, field, value, message):
    questions = content()
    questions["data"][1][field] = value
    assert f"TextVQA_0.5.1_val.json: {message}" in error_of(tmp_path, questions)


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list, not an object"),
        ({"questions": []}, "has no 'data', only 'questions'"),
        ({"data": {}}, "'data' is no list of objects"),
    ],
)
def test_another_layout(tmp_path, questions, message):
    told = error_of(tmp_path, questions)
    assert message in told
    assert "wanted: TextVQA's questions" in told
