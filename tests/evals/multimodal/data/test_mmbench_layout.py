"""MMBench's table, written by hand as MMBench_DEV_EN.tsv has it: tabs, csv's quoting, pictures as base64."""

import base64
import csv
import io

import numpy as np
import pytest
from PIL import Image

from evals.multimodal.data.mmbench import read_mmbench
from evals.multimodal.examples import Example
from evals.multimodal.metrics.choices import circular_scores
from pretrain.types import UserError

COLUMNS = [
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
]


def encoded(color, *, side=8) -> str:
    buffer = io.BytesIO()
    pixels = np.full((side, side, 3), color, dtype=np.uint8)
    if side > 8:  # noise does not compress, so that the cell is long
        pixels[:, 4:] = np.random.default_rng(0).integers(0, 256, (side, side - 4, 3))
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def row(index, question, choices, answer, *, hint="", category="attribute_recognition", image="") -> dict:
    letters = dict(zip("ABCD", [*choices, "", "", ""]))
    head = {"index": index, "question": question, "hint": hint, "answer": answer, "category": category, "image": image}
    return {"source": "made", "l2-category": "finegrained_perception", "comment": "", "split": "dev"} | head | letters


def rows() -> list[dict]:
    return [
        row(241, "What colour is it?", ["red", "blue", "green", "grey"], "C", image=encoded((1, 0, 0))),
        row(
            252,
            'Can it "fly"?',
            ["yes", "no"],
            "B",
            hint="It is a penguin.\nIt swims.",
            category="physical",
            image="241",
        ),
        row(253, "Which is it?", ["a", "b", "c"], "A", image=encoded((2, 0, 0))),
    ]


def write(tmp_path, entries, columns=COLUMNS):
    path = tmp_path / "MMBench_DEV_EN.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(entries)
    return path


def read(tmp_path, entries, *, columns=COLUMNS, **options):
    return read_mmbench(write(tmp_path, entries, columns), name="mmbench", split="dev", **options)


def error_of(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_questions_with_lettered_choices(tmp_path):
    made = read(tmp_path, rows(), circular=False)
    assert made.examples == (
        Example(
            "241",
            0,
            "What colour is it?\nA. red\nB. blue\nC. green\nD. grey",
            ("C",),
            kind="attribute_recognition",
            choices=("red", "blue", "green", "grey"),
        ),
        Example(
            "252",
            0,  # it shares the picture of row 241
            'It is a penguin.\nIt swims.\nCan it "fly"?\nA. yes\nB. no',
            ("B",),
            kind="physical",
            choices=("yes", "no"),
        ),
        Example(
            "253", 1, "Which is it?\nA. a\nB. b\nC. c", ("A",), kind="attribute_recognition", choices=("a", "b", "c")
        ),
    )
    assert [np.asarray(made.pictures.load(n))[0, 0, 0] for n in (0, 1)] == [1, 2]
    assert [made.pictures.key(n) for n in (0, 1)] == ["241", "253"]
    assert (len(made.pictures), made.name, made.split, dict(made.repaired)) == (2, "mmbench", "dev", {})


def test_each_question_once_for_each_of_its_choices(tmp_path):
    made = read(tmp_path, rows())
    assert len(made) == 4 + 2 + 3
    groups = [e.group for e in made.examples]
    assert groups == ["241"] * 4 + ["252"] * 2 + ["253"] * 3
    first = made.examples[:4]
    # the next choice comes first each time; the right one, green, moves from C to B, A and then D
    assert [e.answers for e in first] == [("C",), ("B",), ("A",), ("D",)]
    assert [e.question.splitlines()[1] for e in first] == ["A. red", "A. blue", "A. green", "A. grey"]
    assert made.examples[5].question == 'It is a penguin.\nIt swims.\nCan it "fly"?\nA. no\nB. yes'
    assert {e.picture for e in made.examples[:6]} == {0}
    assert {e.kind for e in made.examples[:4]} == {"attribute_recognition"}
    # who always says A is right once in each group, and never in all of its rotations
    scores = circular_scores(made.examples, ["A"] * len(made))
    assert scores.values["circular"] == 0
    assert scores.score_N.tolist() == [0, 0, 1, 0, 0, 1, 1, 0, 0]


def test_a_part_keeps_rotations_together(tmp_path):
    made = read(tmp_path, rows())
    for seed in range(5):
        part = made.subset(1, seed)
        assert [e.group for e in part.examples] in (["241"] * 4 + ["252"] * 2, ["253"] * 3)


@pytest.mark.parametrize(("circular", "num"), [(True, 9), (False, 3)])
def test_the_rotations_that_a_file_has_itself_are_left_out_and_counted(tmp_path, circular, num):
    own = [
        row(1000241, "What colour is it?", ["blue", "green", "grey", "red"], "B", image="241"),
        row(2000241, "What colour is it?", ["green", "grey", "red", "blue"], "A", image=encoded((1, 0, 0))),
    ]
    without, made = read(tmp_path, rows(), circular=circular), read(tmp_path, rows() + own, circular=circular)
    assert len(made) == num
    assert made.examples == without.examples
    assert made.identity() == without.identity()
    assert made.describe_repairs() == "mmbench dev: questions left out: the file's own rotations: 2"


def test_a_rotation_without_its_question(tmp_path):
    message = error_of(tmp_path, [*rows(), row(1000999, "Is it?", ["yes", "no"], "A", image="241")])
    assert "MMBench_DEV_EN.tsv: row 1000999: it is a rotation of row 999, which the file lacks" in message


def test_cells_beyond_the_csv_modules_limit_and_the_limit_is_put_back(tmp_path):
    before = csv.field_size_limit()
    long = encoded((3, 0, 0), side=256)
    assert len(long) > before
    entries = rows()
    entries[0]["image"] = long
    made = read(tmp_path, entries, circular=False)
    assert made.pictures.load(0).size == (256, 256)
    assert csv.field_size_limit() == before
    path = write(tmp_path, entries)
    path.write_text(path.read_text() + '9\t"never closed')
    with pytest.raises(UserError):
        read_mmbench(path, name="mmbench", split="dev")
    assert csv.field_size_limit() == before


def test_a_split_without_answers_is_the_official_servers(tmp_path):
    message = error_of(tmp_path, rows(), columns=[column for column in COLUMNS if column != "answer"])
    assert message.endswith(
        "there is no column 'answer': MMBench's own server scores that split; give one with answers, dev"
    )
    blank = [each | {"answer": ""} for each in rows()]
    assert "(without answers: 3); give a split whose answers are public" in error_of(tmp_path, blank)


def test_without_answer_or_picture_a_question_is_left_out_and_counted(tmp_path):
    entries = [*rows(), row(254, "Is it?", ["yes", "no"], "", image="241"), row(255, "Is it?", ["yes", "no"], "A")]
    made = read(tmp_path, entries)
    assert dict(made.repaired) == {"without answers": 1, "picture missing": 1}
    assert len(made) == 9
    message = error_of(tmp_path, [*entries, row(256, "Is it?", ["yes", "no"], "A")])
    assert "2 of 4 pictures are not in" in message
    assert "MMBench_DEV_EN.tsv'; the first is of row 255; wanted: MMBench's table" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "999"}, "row 252: image names row 999, which holds no picture; it must be one that does"),
        ({"image": "252"}, "row 252: image names row 252, which holds no picture; it must be one that does"),
        ({"answer": "C"}, "question 252: answer 'C' names none of its 2 choices; it must be a letter"),
        ({"answer": "AB"}, "question 252: answer 'AB' names none of its 2 choices; it must be a letter"),
        ({"B": ""}, "question 252: choices A are filled; it must be A, B and further ones without a gap"),
        ({"D": "maybe"}, "question 252: choices A, B, D are filled; it must be A, B and further ones without a gap"),
        ({"question": ""}, "row 252: question is ''; it must be a text"),
        ({"index": "x"}, "line 4: index is 'x'; it must be a whole number"),
        ({"index": "241"}, "line 4: index 241 is there twice; each row needs one of its own"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path, change, message):
    # row 252 ends in the file's line 4, since its hint has two lines
    entries = rows()
    entries[1] |= change
    assert message in error_of(tmp_path, entries)


@pytest.mark.parametrize("missing", ["index", "question", "A", "B", "category", "image"])
def test_a_missing_column(tmp_path, missing):
    message = error_of(tmp_path, rows(), columns=[column for column in COLUMNS if column != missing])
    assert f"there is no column {missing!r}" in message
    assert "wanted: MMBench's table" in message


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"9\tWhat?\n", "line 6: the row has not the 14 cells of the first line"),
        (b"\t".join([b"9"] * 15) + b"\n", "line 6: the row has not the 14 cells of the first line"),
        (b'9\t"never closed', "cannot be read as a table"),
        (b"9\t\xff\xfe\n", "cannot be read as a table"),
    ],
)
def test_a_damaged_file(tmp_path, tail, message):
    path = write(tmp_path, rows())
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(UserError) as caught:
        read_mmbench(path, name="mmbench", split="dev")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"absent\.tsv.*wanted: MMBench's table"):
        read_mmbench(tmp_path / "absent.tsv", name="mmbench", split="dev")
    assert "no column 'index'" in error_of(tmp_path, [], columns=[])
    assert "(it holds none)" in error_of(tmp_path, [])
