import json
import multiprocessing
from dataclasses import replace

import pytest

from evals import results
from evals.results import EvalResult, append, find, hash_of, read, source_hash
from pretrain.types import UserError

ROW = EvalResult(
    task="knn",
    dataset="drawn",
    synthetic=True,
    split="test",
    metric="top1",
    value=12.5,
    n=8,
    seed=0,
    encoder="runs/a",
    objective="aimv2",
    samples_seen=100,
    training_flops=None,
    config_hash="c",
    checkpoint_hash="w",
    code_hash="s",
    run="",
    command="python",
    wall_s=1.0,
    interval=(1.0, 30.0),
    details={"k": 10},
)


def test_rows_come_back(tmp_path):
    rows = [ROW, replace(ROW, seed=1, interval=None, details={})]
    append(rows[:1], tmp_path / "r.jsonl")
    append(rows[1:], tmp_path / "r.jsonl")
    assert read(tmp_path / "r.jsonl") == rows
    assert read(tmp_path / "absent.jsonl") == []


def _append_many(path, seed):
    for number in range(50):
        append([replace(ROW, seed=seed, n=number, details={"long": "x" * 5000})], path)


def test_writers_wait_for_each_other(tmp_path):
    """Rows longer than a pipe's atomic write, from four processes at once: none is torn, none is lost."""
    path = tmp_path / "r.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_many, args=(path, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = read(path)
    assert sorted((row.seed, row.n) for row in rows) == [(seed, number) for seed in range(4) for number in range(50)]


def test_a_line_cut_short_spoils_nothing(tmp_path):
    path = tmp_path / "r.jsonl"
    append([ROW], path)
    with path.open("a") as file:
        file.write('{"task": "kn')
    assert read(path) == [ROW]
    append([replace(ROW, seed=2)], path)
    assert [row.seed for row in read(path)] == [0, 2]


def test_rows_of_another_version(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"task": "knn", "colour": "red"}) + "\n")
    with pytest.raises(UserError, match=r"r.jsonl, line 1: this is no row of results of this version"):
        read(path)


def test_find_takes_the_last():
    rows = [ROW, replace(ROW, value=50.0), replace(ROW, seed=1)]
    assert find(rows, {"task": "knn", "seed": 0}).value == 50.0
    assert find(rows, {"task": "knn", "seed": 2}) is None


def test_hashes_tell_settings_apart():
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    assert hash_of({"a": 1}) != hash_of({"a": 2})


def test_code_is_hashed_by_content(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_ROOT", tmp_path)
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "a.py").write_text("x = 1\n")
    first, file = source_hash.__wrapped__("evals"), source_hash.__wrapped__("evals/a.py")
    assert source_hash.__wrapped__("evals") == first
    (tmp_path / "evals" / "a.py").write_text("x = 2\n")
    assert source_hash.__wrapped__("evals") != first
    assert source_hash.__wrapped__("evals/a.py") != file
