"""Results files in every state that a crash or a hand can leave them in."""

import hashlib
import json
import random
from dataclasses import asdict

import pytest

from benchmarks.rows import read_all, read_rows, seal
from evals.results import EvalResult, append


def row(**changes) -> EvalResult:
    values = {
        "task": "knn",
        "dataset": "scenes",
        "synthetic": True,
        "split": "test",
        "metric": "top1",
        "value": 12.5,
        "n": 10,
        "seed": 0,
        "encoder": "runs/a",
        "objective": "aimv2",
        "samples_seen": 100,
        "training_flops": None,
        "config_hash": "c",
        "checkpoint_hash": "k",
        "code_hash": "h",
        "run": "",
        "command": "python -m evals imagenet",
        "wall_s": 1.0,
        "interval": (10.0, 15.0),
    }
    return EvalResult(**values | changes)


def line(**changes) -> bytes:
    """A row as JSON, its fields replaced by any content; a field set to ... is left out."""
    content = asdict(row()) | changes
    return json.dumps({name: value for name, value in content.items() if value is not ...}).encode()


@pytest.fixture
def read(tmp_path):
    """Reads a file of these lines; a problem as (line, message), its file having been checked."""

    def read_lines(*lines: bytes, end: bytes = b"\n"):
        path = tmp_path / "results.jsonl"
        path.write_bytes(b"\n".join(lines) + end)
        found = read_rows(path)
        assert {one.file for one in (*found.rows, *found.problems)} <= {str(path)}
        return [(one.line, one.row) for one in found.rows], [(one.line, one.message) for one in found.problems]

    return read_lines


def test_rows_as_they_were_appended(tmp_path):
    path = tmp_path / "results.jsonl"
    rows = [row(seed=seed, value=10.0 + seed / 3) for seed in range(3)]
    append(rows, path)
    found = read_rows(path)
    assert [one.row for one in found.rows] == rows
    assert [one.line for one in found.rows] == [1, 2, 3]
    assert found.problems == ()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (line()[:50], "no JSON"),
        (b"hello", "no JSON"),
        (b"\xff" + line(), "byte 1 is not UTF-8 (0xff)"),
        (b"\0" * 4096, "4096 NUL bytes"),
        (line(run="\0").replace(b"\\u0000", b"\0"), "1 NUL bytes"),
        (b"[1, 2]", "[1, 2] is no row"),
        (b"null", "None is no row"),
        (b"[" * 100_000, "no JSON"),
        (line(run="\ud800"), "surrogate"),
        (line(colour="red"), "field 'colour' is unknown; known are task, dataset"),
        (line(value=..., n=...), "field 'value', 'n' is missing"),
        (line()[:-1] + b', "value": 99.0}', "field 'value' is there twice"),
        (line(value="12.5"), "value is '12.5'; give a finite number"),
        (line(value=True), "value is True"),
        (line(value=None), "value is None"),
        (line(value=float("nan")), "value is nan; give a finite number"),
        (line(value=float("-inf")), "value is -inf"),
        (line(value=10**400), "value is 1000"),
        (line(value=100.1), "value is 100.1, and top1 lies in 0..100"),
        (line(value=-0.1), "value is -0.1, and top1 lies in 0..100"),
        (line(value=0.545, metric=3), "metric is 3; give text"),
        (line(interval=[1.0]), "interval is [1.0]; give two finite numbers or null"),
        (line(interval=[1.0, "2"]), "give two finite numbers"),
        (line(interval=[1.0, float("nan")]), "give two finite numbers"),
        (line(interval="12"), "give two finite numbers"),
        (line(interval=[2.0, 1.0]), "give the lower bound first"),
        (line(n=1.5), "n is 1.5; give a whole number"),
        (line(n=-1), "n is -1; give a whole number, 0 or more"),
        (line(seed=None), "seed is None; give a whole number"),
        (line(synthetic="yes"), "synthetic is 'yes'; give true or false"),
        (line(wall_s=float("inf")), "wall_s is inf; give a finite number"),
        (line(samples_seen="many"), "samples_seen is 'many'; give a whole number, 0 or more, or null"),
        (line(training_flops=float("nan")), "training_flops is nan"),
        (line(details=[1]), "details is [1]; give a mapping"),
        (line(details=None), "details is None; give a mapping"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_bad_line_is_reported_and_its_neighbours_survive(read, bad, said):
    rows, problems = read(line(seed=1), bad, line(seed=2))
    assert [(number, one.seed) for number, one in rows] == [(1, 1), (3, 2)]
    [(number, message)] = problems
    assert number == 2
    assert said in message
    assert "\n" not in message
    assert len(message) < 500


def test_a_line_that_is_cut_short_wherever_it_is_cut(read):
    whole = line(seed=1)
    for end in [1, 2, *range(10, len(whole), 7), len(whole) - 1]:
        rows, problems = read(line(), whole[:end], end=b"")
        assert [number for number, _ in rows] == [1]
        [(number, message)] = problems
        assert number == 2
        assert "cut short" in message
    assert [number for number, _ in read(line(), whole, end=b"")[0]] == [1, 2]


def test_characters_that_end_lines_elsewhere_do_not_end_them_here(read):
    text = "a\u2028b\x85c"
    rows, problems = read(json.dumps(asdict(row(run=text)), ensure_ascii=False).encode() + b"\r", b"", line(seed=1))
    assert [(number, one.run) for number, one in rows] == [(1, text), (3, "")]
    assert problems == []


@pytest.mark.parametrize(
    "fields",
    [
        {"metric": "cider_d", "value": 363.5},
        {"metric": "score_points", "value": 1472.0},
        {"metric": "length_words", "value": 120.0},
        {"task": "detection_difference", "metric": "box_ap", "value": -7.0},
        {"value": 100.00000000000001},
        {"value": 0},
        {"interval": None},
        {"interval": ...},
        {"details": ...},
    ],
    ids=str,
)
def test_what_is_right(read, fields):
    rows, problems = read(line(**fields))
    assert problems == []
    assert isinstance(rows[0][1].value, float)


def test_a_difference_has_bounds_too(read):
    assert "lies in -100..100" in read(line(task="detection_difference", value=-101.0))[1][0][1]
    assert "lies in 0..1000" in read(line(metric="cider_d", value=1001.0))[1][0][1]


def test_the_seal_is_the_hash_of_sorted_json():
    plain = {"value": 1.5, "details": {"b": 1}, "interval": [1, 2]}
    by_hand = hashlib.sha256(b'{"details":{"b":1},"interval":[1,2],"value":1.5}').hexdigest()
    sealed = seal(plain)
    assert by_hand.startswith(sealed["details"]["seal"])
    assert len(sealed["details"]["seal"]) == 16
    assert plain == {"value": 1.5, "details": {"b": 1}, "interval": [1, 2]}
    assert seal(sealed) == sealed
    assert seal(dict(reversed(plain.items()))) == sealed


def sealed_row(**changes) -> EvalResult:
    # whole numbers as keys: text in the file, and in another order there
    details = {"by_count": {2: 1.0, 10: 2.0, 1: 3.0}, "picture": "ü"}
    return EvalResult(**seal(asdict(row(details=details, **changes))))


def test_a_sealed_row_comes_back(tmp_path):
    append([sealed_row(value=0.1 + 0.2, training_flops=1e18)], tmp_path / "r.jsonl")
    found = read_rows(tmp_path / "r.jsonl")
    assert found.problems == ()
    assert found.rows[0].row.value == 0.1 + 0.2


def test_any_edit_of_a_sealed_row_is_seen(read):
    whole = json.dumps(asdict(sealed_row()), sort_keys=True)
    edits = [('"value": 12.5', '"value": 12.6'), ('"seed": 0', '"seed": 1'), ('"n": 10', '"n": 100')]
    edits += [("10.0, 15.0", "10.0, 14.0"), ('"10": 2.0', '"10": 2.5'), ("runs/a", "runs/b"), ("aimv2", "clip")]
    for old, new in edits:
        edited = whole.replace(old, new)
        assert edited != whole
        rows, problems = read(edited.encode(), line(seed=7))
        assert [number for number, _ in rows] == [2]
        assert problems[0][0] == 1
        assert "changed after it was written" in problems[0][1]
    assert read(whole.encode())[1] == []
    for wrong in (3, None, ""):
        assert "its seal is" in read(line(details={"seal": wrong}))[1][0][1]


def test_equal_rows_count_once(read):
    rows, problems = read(line(), line(seed=1), line(), line())
    assert [number for number, _ in rows] == [1, 2]
    assert [number for number, _ in problems] == [3, 4]
    assert problems[0][1] == "the same row as line 1; it counts once, remove one of them"
    # another run of the same, with the same outcome
    rows, problems = read(line(), line(wall_s=9.0))
    assert [number for number, _ in rows] == [1]
    assert problems == [(2, "the same key and number as line 1; it counts once, remove one of them")]


@pytest.mark.parametrize("change", [{"value": 13.0}, {"interval": [9.0, 15.0]}, {"n": 11}, {"interval": None}], ids=str)
def test_rows_that_contradict_each_other_do_not_count(read, change):
    rows, problems = read(line(), line(seed=1), line(**change), line())
    assert [(number, one.seed) for number, one in rows] == [(2, 1)]
    [(number, message)] = problems
    assert number == 4
    assert "line 1 says 12.5 [10.0, 15.0] (n = 10), line 3 says" in message
    assert "seed 0" in message
    assert "none counts" in message


def test_a_damaged_copy_does_not_count_against_the_whole_one(read):
    rows, problems = read(line(), line(value="12.5"))
    assert [number for number, _ in rows] == [1]
    assert len(problems) == 1


def test_absent_and_unreadable_files(tmp_path):
    assert read_rows(tmp_path / "none.jsonl") == read_all(tmp_path / "none")
    assert read_rows(tmp_path / "none.jsonl").problems == ()
    assert "there is no such file" in str(read_rows(tmp_path / "none.jsonl", must_exist=True).problems[0])
    assert "is no folder" in str(read_all(tmp_path / "none", must_exist=True).problems[0])
    assert "cannot be read" in str(read_rows(tmp_path).problems[0])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert read_rows(tmp_path / "empty.jsonl", must_exist=True).problems == ()


def test_a_folder(tmp_path):
    a, b, other = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "notes.txt"))
    a.write_bytes(line() + b"\n" + line(seed=1) + b"\n")
    b.write_bytes(line(seed=2) + b"\nhello\n" + line() + b"\n" + line(seed=1, value=50.0) + b"\n")
    other.write_bytes(b"hello")
    found = read_all(tmp_path)
    assert [(one.file, one.line, one.row.seed) for one in found.rows] == [(str(a), 1, 0), (str(b), 1, 2)]
    assert [(one.file, one.line) for one in found.problems] == [(str(b), 2), (str(b), 3), (str(b), 4)]
    assert f"the same row as {a}, line 1" in found.problems[1].message
    assert f"{a}, line 2 says 12.5" in found.problems[2].message


def test_no_damage_raises(tmp_path):
    """Bytes changed, dropped and put in at random: rows that are left are those that were written."""
    path, draw = tmp_path / "r.jsonl", random.Random(0)
    rows = [EvalResult(**seal(asdict(row(seed=seed, value=float(seed))))) for seed in range(5)]
    append(rows, path)
    whole, unsealed = path.read_bytes(), 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(data))
            data[place : place + draw.choice((0, 1, 1, 40))] = bytes(draw.choices(range(256), k=draw.choice((0, 1, 3))))
        path.write_bytes(data)
        found = read_rows(path)
        # a row whose seal is gone, its name damaged, is read as an older one is
        assert all(one.row in rows for one in found.rows if "seal" in one.row.details)
        unsealed += sum("seal" not in one.row.details for one in found.rows)
        assert len({one.row.seed for one in found.rows}) == len(found.rows)
        assert all(str(one).isprintable() for one in found.problems)
        lost = 5 - len(found.rows)
        assert not lost or found.problems or data.count(b"\n") < 5
    assert unsealed < 10
