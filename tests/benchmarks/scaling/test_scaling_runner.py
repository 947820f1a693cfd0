import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scaling.__main__ import main
from benchmarks.scaling.rows import append_once, num_params, portable, read_rows
from pretrain.types import UserError

HERE = Path(__file__).parent
#: The command with the stand-in, in a process of its own that can be killed.
DRIVER = """
import sys
sys.path.insert(0, {here!r})
import benchmarks.scaling.runner as runner
from conftest import fake_start
from benchmarks.scaling.__main__ import main
runner.start = fake_start
sys.exit(main(sys.argv[1:]))
"""


def options(study, *, workers=2):
    runs = study.parent / "runs"
    return [str(study), "--runs", str(runs), "--results", str(runs / "small.jsonl"), "--workers", str(workers)]


def started(folder: Path) -> list[str]:
    return (folder / "small" / "started.txt").read_text().splitlines()


def test_a_study_from_start_to_end(study, tmp_path, fake_fit, capsys):
    arguments = options(study)
    assert main(arguments) == 0
    rows, problems = read_rows(tmp_path / "runs" / "small.jsonl")
    assert not problems
    assert sorted((one.row.size, one.row.budget) for one in rows) == sorted(
        (s, b) for s in ("w8", "w16") for b in (160, 320, 640)
    )
    row = next(one.row for one in rows if (one.row.size, one.row.budget) == ("w16", 320))
    # 20 steps of 16; the stand-in's encoder has 16 x 16 x 12 weights, its speed is 100 images/s
    assert (row.samples_seen, row.start, row.steps, row.encoder_params, row.objective_params, row.seconds) == (
        320,
        16,
        20,
        3072,
        16,
        3.2,
    )
    assert row.val["loss"] == pytest.approx(1 + 20 / 320**0.5 + 3 / 16)
    # each branch started at its own step of the trunk, each run once
    steps = sorted(int(line.split()[1]) for line in started(tmp_path / "runs"))
    assert steps == [0, 0, 8, 8, 16, 16, 32, 32]
    assert not list((tmp_path / "runs").rglob("*.ckpt"))
    assert str(tmp_path) not in (tmp_path / "runs" / "small.jsonl").read_text()
    assert "about 1 min" in capsys.readouterr().out  # (22.08 + 8 x 15) / 2 s

    assert main(arguments) == 0
    assert len(started(tmp_path / "runs")) == 8
    assert len((tmp_path / "runs" / "small.jsonl").read_text().splitlines()) == 6


def test_a_budget_more_runs_the_trunk_again(study, tmp_path, fake_fit):
    arguments = options(study)
    assert main(arguments) == 0
    study.write_text(study.read_text().replace("[160,", "[80, 160,"))
    assert main(arguments) == 0
    # the trunks' checkpoints are gone: two trunks and two branches from step 4
    assert sorted(int(line.split()[1]) for line in started(tmp_path / "runs")[8:]) == [0, 0, 4, 4]
    assert len(read_rows(tmp_path / "runs" / "small.jsonl")[0]) == 8


def test_a_summary_without_its_row_is_not_run_again(study, tmp_path, fake_fit):
    arguments = options(study)
    assert main(arguments) == 0
    results = tmp_path / "runs" / "small.jsonl"
    before = results.read_bytes()
    lines = before.splitlines(keepends=True)
    results.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])  # killed while it wrote
    assert main(arguments) == 0
    rows, problems = read_rows(results)
    assert [one.line for one in rows] == [1, 2, 3, 4, 5, 7]
    assert [one.line for one in problems] == [6]
    assert len(started(tmp_path / "runs")) == 8


def test_a_failed_trunk_is_named_and_others_go_on(study, tmp_path, fake_fit, capsys):
    study.write_text(study.read_text().replace("embed_dim: 8}", "embed_dim: wide}"))
    assert main(options(study, workers=1)) == 1
    assert "3 missing" in capsys.readouterr().out
    assert {one.row.size for one in read_rows(tmp_path / "runs" / "small.jsonl")[0]} == {"w16"}


def test_killed_again_and_again(study, tmp_path):
    """kill -9 of the runner at random moments: it goes on, no row is lost, none doubled."""
    command = [sys.executable, "-c", DRIVER.format(here=str(HERE)), *options(study)]
    rng, kills, began = random.Random(0), 0, time.monotonic()
    seen: list[str] = []
    while kills < 3 and time.monotonic() - began < 120:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        before = len(seen)
        while process.poll() is None and len(seen) <= before:  # until it has started one more run
            path = tmp_path / "runs" / "small" / "started.txt"
            seen = path.read_text().splitlines() if path.exists() else []
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1.0)  # the stand-in is started without the death signal of the real one: let it end
        kills += 1
    assert kills >= 1
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "runs" / "small.jsonl").read_text().splitlines()]
    assert len({(one["size"], one["budget"], one["seed"]) for one in lines}) == len(lines) == 6


def test_rows_are_never_doubled(make_row, tmp_path):
    path = tmp_path / "rows.jsonl"
    assert append_once(make_row(), path)
    assert not append_once(make_row(), path)
    assert append_once(make_row(seed=1), path)
    assert append_once(replace(make_row(), code_hash="other"), path)
    assert len(path.read_text().splitlines()) == 3


def test_lines_that_are_no_rows(make_row, tmp_path):
    path = tmp_path / "rows.jsonl"
    for seed in range(3):
        append_once(make_row(seed=seed), path)
    first, second, third = path.read_bytes().splitlines()
    changed = second.replace(b'"precision": "32"', b'"precision": "16"')
    assert changed != second
    path.write_bytes(b"\n".join([first, b"\xff\xfe", changed, b"[1]", b'{"size": 1}', first, third, third[:30]]))
    rows, problems = read_rows(path)
    assert [(one.line, one.row.seed) for one in rows] == [(1, 0), (7, 2)]
    assert [one.line for one in problems] == [2, 3, 4, 5, 6, 8]
    assert "digest" in problems[1].message
    assert "row of line 1 again" in problems[4].message


def test_commands_without_folders_of_the_machine():
    here = str(Path.cwd())
    words = (
        "pretrain",
        "fit",
        "--config",
        f"{here}/configs/a.yaml",
        "--runs",
        "/elsewhere/runs",
        "--branch_from=/elsewhere/b.ckpt",
    )
    assert portable(words) == "python -m pretrain fit --config configs/a.yaml --runs runs --branch_from=b.ckpt"


def test_user_errors_are_one_line(tmp_path, capsys):
    assert main(["nothing-of-that-name"]) == 2
    assert main(["nano", "--seeds", "0"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
    with pytest.raises(UserError, match="safetensors"):
        num_params(tmp_path / "absent")
