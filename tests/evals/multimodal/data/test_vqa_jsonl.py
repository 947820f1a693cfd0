"""The suite's own layout for questions and captions; the examples of its documentation are read as they stand there."""

import json
import re

import pytest
from PIL import Image

from evals.multimodal.data import jsonl
from evals.multimodal.data.jsonl import read_jsonl
from evals.multimodal.examples import Example
from pretrain.types import UserError

QUESTION = {"id": 1, "image": "a.png", "question": "what is it?", "answers": ["a cup"]}
CHOICE = {"id": 2, "image": "a.png", "question": "which?", "choices": ["red", "blue"], "answer": "B"}


def write(tmp_path, lines, names=("a.png",)):
    for name in names:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (5, 0, 0)).save(path, "PNG")
    (tmp_path / "images").mkdir(exist_ok=True)
    file = tmp_path / "task.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file, tmp_path / "images"


def read(tmp_path, lines, **options):
    return read_jsonl(*write(tmp_path, lines, **options), name="docvqa", split="val")


def error_of(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_questions_captions_and_choices(tmp_path):
    lines = [
        QUESTION | {"kind": "table", "group": "doc1", "hint": "Two lines:\nread both."},
        {"id": "caption/1", "image": "sub/b.jpg", "answers": ["a cup.", "one cup"]},
        CHOICE | {"hint": "It is the sky."},
    ]
    made = read(tmp_path, lines, names=("a.png", "sub/b.jpg"))
    assert made.examples == (
        Example("1", 0, "Two lines:\nread both.\nwhat is it?", ("a cup",), kind="table", group="doc1"),
        Example("caption/1", 1, "", ("a cup.", "one cup")),
        Example("2", 0, "It is the sky.\nwhich?\nA. red\nB. blue", ("B",), choices=("red", "blue")),
    )
    assert [made.pictures.key(n) for n in (0, 1)] == ["a.png", "sub/b.jpg"]
    assert made.pictures.load(1).size == (8, 8)
    assert (made.name, made.split, made.synthetic, dict(made.repaired)) == ("docvqa", "val", False, {})


@pytest.mark.parametrize(("answer", "letter"), [("A", "A"), ("b", "B"), (" B ", "B"), (0, "A"), (1, "B")])
def test_the_right_choice_is_a_letter_or_an_index_from_0(tmp_path, answer, letter):
    assert read(tmp_path, [CHOICE | {"answer": answer}]).examples[0].answers == (letter,)


def test_pictures_lie_beside_the_file_where_no_folder_is_given(tmp_path):
    file, _ = write(tmp_path, [QUESTION | {"image": "images/a.png"}])
    assert read_jsonl(file, name="docvqa", split="val").pictures.key(0) == "images/a.png"


def test_empty_lines_are_nothing(tmp_path):
    assert len(read(tmp_path, ["", json.dumps(QUESTION), "  ", json.dumps(CHOICE), ""])) == 2


def test_lines_without_answers_or_picture_are_left_out_and_counted(tmp_path):
    bare = {"image": "a.png", "question": "what?"}
    lines = [
        QUESTION,
        bare | {"id": 10},
        bare | {"id": 11, "answers": []},
        bare | {"id": 12, "choices": ["red", "blue"]},
        bare | {"id": 13, "choices": ["red", "blue"], "answer": None},
        QUESTION | {"id": 14, "image": "sub/absent.png"},
    ]
    made = read(tmp_path, lines)
    assert [e.example_id for e in made.examples] == ["1"]
    assert made.describe_repairs() == "docvqa val: questions left out: without answers: 4, picture missing: 1"


def test_missing_pictures(tmp_path):
    lines = [QUESTION | {"id": number, "image": f"sub/{number}.png"} for number in range(2)]
    message = error_of(tmp_path, [QUESTION | {"id": "a"}, *lines])
    assert message == (
        f"docvqa val: 2 of 3 pictures are not in {str(tmp_path / 'images')!r}; the first is sub/0.png; wanted: the folder "
        "that `image` in task.jsonl is relative to"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds a list, not an object"),
        (QUESTION | {"anwsers": []}, "field 'anwsers' is unknown (did you mean 'answers'"),
        (QUESTION | {"id": None}, "id is None; it must be a whole number or a text"),
        (QUESTION | {"id": True}, "id is True; it must be a whole number or a text"),
        (QUESTION | {"id": "2"}, "id '2' is that of line 1 too; each line needs one of its own"),
        (QUESTION | {"image": None}, "image is None; it must be a text"),
        (QUESTION | {"image": "/a.png"}, "image is '/a.png'; it must be a path below the folder of pictures"),
        (QUESTION | {"image": "b/../../a.png"}, "image is 'b/../../a.png'; it must be a path below the folder"),
        (QUESTION | {"image": "a\0.png"}, "image is 'a\\x00.png'; it must be a path below the folder of pictures"),
        (QUESTION | {"question": 3}, "question is 3; it must be a text"),
        (QUESTION | {"kind": 3}, "kind is 3; it must be a text"),
        (QUESTION | {"answers": "a cup"}, "answers is 'a cup'; it must be a list of texts"),
        (QUESTION | {"answers": [2]}, "answers is [2]; it must be a list of texts"),
        (QUESTION | {"answer": "A"}, "answer is for lines with choices; give answers, a list of texts"),
        (CHOICE | {"id": 3, "answers": ["B"]}, "answers is for lines without choices; give answer, a letter or an"),
        (CHOICE | {"id": 3, "choices": ["red"]}, "choices is ['red']; it must be 2 to 26 texts, none empty"),
        (CHOICE | {"id": 3, "choices": ["red", " "]}, "choices is ['red', ' ']; it must be 2 to 26 texts, none empty"),
        (CHOICE | {"id": 3, "answer": "C"}, "answer is 'C'; it must be a letter from A to B or an index from 0 to 1"),
        (CHOICE | {"id": 3, "answer": "AB"}, "answer is 'AB'; it must be a letter from A to B or an index from 0"),
        (CHOICE | {"id": 3, "answer": 2}, "answer is 2; it must be a letter from A to B or an index from 0 to 1"),
        (CHOICE | {"id": 3, "answer": -1}, "answer is -1; it must be a letter from A to B or an index from 0 to 1"),
        (CHOICE | {"id": 3, "answer": True}, "answer is True; it must be a letter from A to B or an index from 0"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(tmp_path, line, message):
    told = error_of(tmp_path, [CHOICE, "", line])
    assert f"{tmp_path / 'task.jsonl'}: line 3" in told
    assert message in told


def test_files_that_are_no_text_or_not_there(tmp_path):
    file, images = write(tmp_path, [])
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"task\.jsonl cannot be read as text"):
        read_jsonl(file, images, name="docvqa", split="val")
    with pytest.raises(UserError, match=r"absent\.jsonl.*one object a line"):
        read_jsonl(tmp_path / "absent.jsonl", images, name="docvqa", split="val")
    assert "(it holds none)" in error_of(tmp_path, [])


def documented() -> dict[str, dict]:
    """Data set -> the example line of the module's documentation, where it is wrapped."""
    found = re.findall(
        r"^(\w[\w-]+): .*\n(?:(?!    ).*\n)*((?:    .*\n)+)", jsonl.__doc__.split("are left out")[1], re.MULTILINE
    )
    return {name: json.loads(" ".join(text.split())) for name, text in found}


def test_the_documented_example_of_every_data_set_is_read(tmp_path):
    lines = documented()
    wanted = ["OK-VQA", "DocVQA", "InfoVQA", "ChartQA", "ScienceQA", "MME", "SEED", "POPE", "TextCaps", "NoCaps"]
    assert list(lines) == wanted
    made = read(tmp_path, lines.values(), names=[line["image"] for line in lines.values()])
    assert len(made) == len(made.pictures) == 10
    by_name = dict(zip(wanted, made.examples))
    assert all(bool(e.question) == (name not in ("TextCaps", "NoCaps")) for name, e in by_name.items())
    assert [name for name, e in by_name.items() if e.choices] == ["ScienceQA", "SEED"]
    assert by_name["ScienceQA"].answers == ("A",)
    assert (by_name["MME"].kind, by_name["MME"].group) == ("color", "000000012120")


def test_every_field_is_documented():
    assert re.findall(r"^    (\w+): ", jsonl.__doc__.split("Lines without")[0], re.MULTILINE) == list(jsonl.FIELDS)
