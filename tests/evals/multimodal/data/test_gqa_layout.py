"""GQA's questions, written by hand as visualreasoning.net has them."""

import json

import pytest
from PIL import Image

from evals.multimodal.data.gqa import read_gqa
from evals.multimodal.examples import Example
from pretrain.types import UserError


def entry(image, question, answer, structural, *, balanced=True) -> dict:
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "bowl (0)"}],
        "entailed": [],
        "equivalent": ["20602949"],
        "question": question,
        "imageId": image,
        "isBalanced": balanced,
        "groups": {"global": None, "local": "06-weather_dark"},
        "answer": answer,
        "semanticStr": "select: bowl (0)",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "existAttrC", "semantic": "attr", "structural": structural},
        "fullAnswer": "No, it is bright.",
    }


def content() -> dict:
    return {
        "201307251": entry("n161313", "Is it overcast?", "no", "verify"),
        "201640614": entry("n235859", "Who is wearing the dress?", "woman", "query"),
        "202225914": entry("n161313", "Is the sky dark or bright?", "bright", "choose"),
        "1238592": entry("2375429", "Are the tie and the shirt both blue?", "yes", "logical"),
    }


def read(tmp_path, questions, names=("n161313.jpg", "n235859.jpg", "2375429.jpg")):
    images = tmp_path / "images"
    images.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8), (5, 0, 0)).save(images / name)
    path = tmp_path / "testdev_balanced_questions.json"
    path.write_text(questions if isinstance(questions, str) else json.dumps(questions))
    return read_gqa(path, images, name="gqa", split="testdev")


def error_of(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_questions_with_one_answer_by_structural_type(tmp_path):
    made = read(tmp_path, content())
    assert made.examples == (
        Example("201307251", 0, "Is it overcast?", ("no",), kind="verify"),
        Example("201640614", 1, "Who is wearing the dress?", ("woman",), kind="query"),
        Example("202225914", 0, "Is the sky dark or bright?", ("bright",), kind="choose"),
        Example("1238592", 2, "Are the tie and the shirt both blue?", ("yes",), kind="logical"),
    )
    assert [made.pictures.key(n) for n in range(3)] == ["n161313.jpg", "n235859.jpg", "2375429.jpg"]
    assert made.pictures.load(2).size == (8, 8)
    assert (made.name, made.split, made.synthetic, dict(made.repaired)) == ("gqa", "testdev", False, {})


def test_of_all_questions_the_balanced_ones_are_taken(tmp_path):
    made = read(tmp_path, content() | {"1": entry("n161313", "Is it?", "yes", "verify", balanced=False)})
    assert len(made) == 4
    assert made.describe_repairs() == "gqa testdev: questions left out: not balanced: 1"


def test_a_split_without_answers(tmp_path):
    """test and challenge have the question, its picture and isBalanced."""
    bare = {"201": {"question": "Is it?", "imageId": "n161313", "isBalanced": True}}
    assert "no question that can be scored (without answers: 1)" in error_of(tmp_path, bare)
    made = read(tmp_path, content() | bare)
    assert dict(made.repaired) == {"without answers": 1}
    assert len(made) == 4


def test_missing_pictures(tmp_path):
    made = read(tmp_path, content(), names=("n161313.jpg", "2375429.jpg"))
    assert dict(made.repaired) == {"picture missing": 1}
    assert [e.example_id for e in made.examples] == ["201307251", "202225914", "1238592"]
    (tmp_path / "images" / "2375429.jpg").unlink()
    message = error_of(tmp_path, content(), names=())
    assert f"2 of 3 pictures are not in {str(tmp_path / 'images')!r}; the first is n235859.jpg; wanted: " in message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("imageId", None, "imageId is None; it must be a whole number or a text"),
        ("question", "", "question is ''; it must be a text"),
        ("answer", ["no"], "answer is ['no']; it must be a text"),
        ("types", None, "types is None; it must be an object with 'structural'"),
        ("types", {}, "types: structural is None; it must be a text"),
    ],
)
def test_a_wrong_value_is_named_with_file_and_id(tmp_path, field, value, message):
    questions = content()
    questions["201640614"][field] = value
    assert f"testdev_balanced_questions.json: question 201640614: {message}" in error_of(tmp_path, questions)


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ("{", "cannot be read as JSON"),
        ([content()], "holds a list, not an object"),
        ({"questions": []}, "question questions is [], not an object"),
    ],
)
def test_another_layout(tmp_path, questions, message):
    told = error_of(tmp_path, questions)
    assert message in told
    assert "wanted: GQA's questions" in told
