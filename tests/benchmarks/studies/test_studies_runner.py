"""The runner with stand-ins for trainings and evaluations: what is finished stays, what is killed goes on, nothing doubles."""

import random
import signal
import subprocess
import time
from collections import Counter

import pytest
import yaml

from benchmarks import ablations
from benchmarks.rows import read_rows
from benchmarks.studies.budgets import samples_at_equal_compute
from benchmarks.studies.ledger import add_job
from benchmarks.studies.rehearsal import SECONDS
from benchmarks.studies.runner import Runner
from benchmarks.study_kills import command, kill_again_and_again, write_study
from evals.results import EvalResult
from pretrain.types import UserError


def call(study, *more, results="results.jsonl"):
    folder = study.parent
    return ablations.main([str(study), "--runs", str(folder / "runs"), "--results", str(folder / results), *more])


def numbers(study, results="results.jsonl"):
    found = read_rows(study.parent / results)
    assert not found.problems
    return Counter((one.row.details["arm_label"], one.row.seed, one.row.metric) for one in found.rows)


def expected(num_seeds):
    labels = ("base", "clip", "clip, compute", "weight")
    return Counter(
        {(label, seed, metric): 1 for label in labels for seed in range(num_seeds) for metric in ("top1", "top5")}
    )


def test_runs_all_rows_once_and_skips_them_then(stand_in, capsys):
    study, notes = stand_in
    assert call(study, "--seeds", "1") == 0
    assert numbers(study) == expected(1)
    printed = capsys.readouterr().out
    assert "4 trainings (1 seeds), 0 of them" in " ".join(printed.split())
    assert "| base (base) |" in printed
    before = notes.read_text()
    assert call(study, "--seeds", "1") == 0  # all is there
    assert notes.read_text() == before
    assert call(study, "--seeds", "2") == 0  # a seed more
    assert numbers(study) == expected(2)
    assert notes.read_text().count("evaluate") == before.count("evaluate") + 4


def test_rows_stay_finished_when_the_runs_are_gone(stand_in):
    study, notes = stand_in
    assert call(study, "--seeds", "1") == 0
    subprocess.run(["rm", "-r", str(study.parent / "runs")], check=True)
    before = notes.read_text()
    assert call(study, "--seeds", "1") == 0
    assert notes.read_text() == before


def test_equal_compute_gives_the_cheaper_objective_more_samples(stand_in):
    """A sample costs the base 3 and clip 2 in the stand-in: 1,600 x 3 / 2 = 2,400 samples."""
    study, _ = stand_in
    assert call(study, "--seeds", "1") == 0
    seen = {
        one.row.details["arm_label"]: one.row.samples_seen for one in read_rows(study.parent / "results.jsonl").rows
    }
    assert seen == {"base": 1600, "clip": 1600, "clip, compute": 2400, "weight": 1600}
    flops = {
        one.row.details["arm_label"]: one.row.training_flops for one in read_rows(study.parent / "results.jsonl").rows
    }
    assert flops["clip, compute"] == flops["base"]


def test_budgets_are_whole_batches():
    assert samples_at_equal_compute(1000, base_flops=3.0, own_flops=2.0, batch_size=16) == 1504  # 93.75 batches
    assert samples_at_equal_compute(16, base_flops=1.0, own_flops=100.0, batch_size=16) == 16


def test_a_failed_row_is_named_and_the_others_go_on(stand_in, capsys):
    study, _ = stand_in
    content = yaml.safe_load(study.read_text())
    content["rows"].insert(1, {"name": "bad", "change": {"model.objective.kind": "broken"}})
    study.write_text(yaml.safe_dump(content))
    assert call(study, "--seeds", "1") == 1
    captured = capsys.readouterr()
    assert "bad, seed 0" in captured.err
    assert "error: broken" in captured.err
    assert numbers(study) == expected(1)
    assert "| bad | " in captured.out
    assert "not run" in captured.out


def test_a_number_that_cannot_be_read_back_is_refused_and_not_written(stand_in, tmp_path):
    row = EvalResult(
        task="t", dataset="d", synthetic=True, split="test", metric="top1", value=float("nan"), n=1, seed=0, encoder="e",
        objective="o", samples_seen=1, training_flops=1.0, config_hash="c", checkpoint_hash="h", code_hash="k", run="r",
        command="x", wall_s=0.0,
    )  # fmt: skip
    with pytest.raises(UserError, match="t top1: value is nan"):
        add_job([row], tmp_path / "r.jsonl", about={"arm": "a", "eval": "e", "eval_key": "k"})
    assert not (tmp_path / "r.jsonl").exists()


def test_what_breaks_one_job_is_shown_and_the_others_are_done(stand_in, capsys, monkeypatch):
    """Also where it is none of the errors that a user makes: a worker must not die with its other jobs undone."""
    study, _ = stand_in
    whole = Runner._about

    def broken(self, arm, *more):
        if arm.label == "clip":
            raise KeyError("val")
        return whole(self, arm, *more)

    monkeypatch.setattr(Runner, "_about", broken)
    assert call(study, "--seeds", "1", "--workers", "1") == 1
    assert "clip, seed 0: KeyError: 'val'" in capsys.readouterr().err
    assert {label for label, _, _ in numbers(study)} == {"base", "clip, compute", "weight"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds 0"),
        (["--weights", "x=hub"], "no study here has such a row"),
        (["--weights", "x"], "ROW=FILE"),
    ],
)
def test_arguments_that_cannot_be_meant(stand_in, capsys, arguments, message):
    assert call(stand_in[0], *arguments) == 2
    assert message in capsys.readouterr().err


def test_one_runner_at_a_time(stand_in, capsys):
    study, _ = stand_in
    with ablations.alone(study.parent / "runs"):
        assert call(study, "--seeds", "1") == 2
    assert "another runner" in capsys.readouterr().err


def test_a_cut_line_is_reported_and_its_row_made_again(stand_in, capsys):
    study, _ = stand_in
    assert call(study, "--seeds", "1") == 0
    results = study.parent / "results.jsonl"
    content = results.read_bytes()
    results.write_bytes(content[:-40])  # the last row's end
    assert call(study, "--seeds", "1") == 0
    number = content.count(b"\n")
    assert f"line {number}" in " ".join(capsys.readouterr().out.split())
    found = read_rows(results)
    assert [problem.line for problem in found.problems] == [number]
    assert Counter((one.row.details["arm_label"], one.row.seed, one.row.metric) for one in found.rows) == expected(1)


def test_killed_at_random_moments(tmp_path):
    """Three of the ten kills of `make kills-ablations`."""
    found = kill_again_and_again(write_study(tmp_path), kills=3, seeds=2, pause_s=0.5, rng=random.Random(1))
    assert len(found["kills"]) == 3
    assert (found["exit_status"], found["rows_lost"], found["rows_doubled"], found["lines_unreadable"]) == (0, 0, 0, 0)
    assert found["rows_wanted"] == 16


def test_interrupted_it_stops_its_children_and_goes_on(stand_in, monkeypatch):
    study, notes = stand_in
    monkeypatch.setenv(SECONDS, "0.5")
    process = subprocess.Popen(command(study, seeds=1), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not notes.read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "the same command goes on" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    monkeypatch.setenv(SECONDS, "0")
    assert call(study, "--seeds", "1") == 0
    assert numbers(study) == expected(1)
