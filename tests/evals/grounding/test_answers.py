"""Answers on a split as a file: written, read again, and what is told of another file.

The val split of ref_cases.py has sentences 30 and 31 on picture 94.
"""

import csv

import numpy as np
import pytest
from ref_cases import write_release

from evals.grounding.answers import has_answers, read_answers, write_answers
from evals.grounding.expressions import Located
from evals.grounding.ref_set import RefSet
from evals.grounding.release import read_release
from pretrain.types import UserError

HEAD = "sent_id,image_id,score,x0,y0,x1,y1\n"


@pytest.fixture
def val(tmp_path) -> RefSet:
    folder, images = write_release(tmp_path)
    return RefSet(read_release(folder), images, name="refcoco", split="val")


def located(sent_id, boxes, scores) -> Located:
    return Located(sent_id, np.array(boxes, dtype=np.float32), np.array(scores, dtype=np.float32))


def error_of(path) -> str:
    with pytest.raises(UserError) as caught:
        read_answers(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path} holds no answers of a grounding evaluation: ")
    return text


def test_the_file_is_as_it_says(val, tmp_path):
    path = tmp_path / "answers.csv"
    answers = [located(31, [[1.5, 2, 3.25, 4]], [0.5]), located(30, [[0, 0, 1, 1], [4, 4, 12, 12.0004]], [0.25, 0.75])]
    write_answers(path, val, answers)
    assert path.read_text() == (
        f"{HEAD}31,94,0.50000,1.500,2.000,3.250,4.000\n"
        "30,94,0.75000,4.000,4.000,12.000,12.000\n"
        "30,94,0.25000,0.000,0.000,1.000,1.000\n"
    )


def test_round_trip(val, tmp_path):
    rng = np.random.default_rng(0)
    answers = [
        located(sent_id, rng.uniform(-5, 4000, (count, 4)), np.sort(rng.normal(size=count))[::-1])
        for sent_id, count in ((31, 3), (30, 1))
    ]
    write_answers(tmp_path / "a.csv", val, answers)
    found = read_answers(tmp_path / "a.csv")
    assert [answer.sent_id for answer in found] == [31, 30]
    for answer, wanted in zip(found, answers, strict=True):
        assert answer.box_K4.dtype == answer.score_K.dtype == np.float32
        np.testing.assert_allclose(answer.box_K4, wanted.box_K4, atol=1e-3)
        np.testing.assert_allclose(answer.score_K, wanted.score_K, atol=1e-5)


def test_boxes_come_by_falling_score_and_equal_scores_stay_in_order(val, tmp_path):
    boxes = [[k, 0, k + 1, 1] for k in range(4)]
    write_answers(tmp_path / "a.csv", val, [located(30, boxes, [0.1, 0.5, 0.9, 0.5])])
    (found,) = read_answers(tmp_path / "a.csv")
    assert found.box_K4[:, 0].tolist() == [2, 1, 3, 0]


def test_lines_of_a_sentence_need_not_be_neighbours(tmp_path):
    (tmp_path / "a.csv").write_text(f"{HEAD}5,1,0.9,0,0,1,1\n6,1,0.8,2,2,3,3\n5,1,0.7,4,4,5,5\n")
    first, second = read_answers(tmp_path / "a.csv")
    assert (first.sent_id, first.box_K4.tolist()) == (5, [[0, 0, 1, 1], [4, 4, 5, 5]])
    assert (second.sent_id, second.score_K.tolist()) == (6, [np.float32(0.8)])


def test_no_answers_are_no_error(val, tmp_path):
    write_answers(tmp_path / "a.csv", val, [])
    assert read_answers(tmp_path / "a.csv") == []


def test_a_sentence_of_another_split_is_a_mistake_of_ours(val, tmp_path):
    with pytest.raises(KeyError):
        write_answers(tmp_path / "a.csv", val, [located(10, [[0, 0, 1, 1]], [1])])
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "its columns are None"),
        (b"sent_id,score,x0\n1,2,3\n", "its columns are ['sent_id', 'score', 'x0']"),
        (f"{HEAD}5,1,high,0,0,1,1\n".encode(), "could not convert string to float: 'high'"),
        (f"{HEAD}5.5,1,0.5,0,0,1,1\n".encode(), "invalid literal for int() with base 10: '5.5'"),
        (f"{HEAD}5,1,0.5,0,0\n".encode(), "NoneType"),  # a line that was cut
        (HEAD.encode() + b"5,1,\xff", "can't decode byte 0xff"),
        (f"{HEAD}5,1,{'9' * (csv.field_size_limit() + 1)},0,0,1,1\n".encode(), "field larger than field limit"),
        (f"{HEAD}5,1,0.5,0\rx,0,1,1\n".encode(), "NoneType"),
    ],
)
def test_files_of_another_kind(tmp_path, content, told):
    path = tmp_path / "answers_val.csv"
    path.write_bytes(content)
    assert told in error_of(path)


def test_no_such_file(tmp_path):
    assert "No such file" in error_of(tmp_path / "answers_val.csv")


def test_answers_are_there_when_those_of_every_split_are(val, tmp_path):
    test = RefSet(read_release(tmp_path / "refcoco"), val.folder, name="refcoco", split="testA")
    write_answers(tmp_path / "answers_val.csv", val, [])
    assert has_answers(tmp_path, [val])
    assert not has_answers(tmp_path, [val, test])
    write_answers(tmp_path / "answers_testA.csv", test, [])
    assert has_answers(tmp_path, [val, test])
