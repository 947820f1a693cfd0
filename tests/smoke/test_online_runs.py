"""Runs that are evaluated on the way: the training does not notice, each evaluation is made once, errors are one line."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain import cli

ROOT = Path(__file__).parents[2]
PART = ROOT / "configs" / "pretrain" / "parts" / "online.yaml"
ONLINE = ["--trainer.callbacks+=evals.online.OnlineProbe"]
ONLINE += [f"--trainer.callbacks.{field}" for field in ("num_train=60", "num_test=40", "knn_k=5", "epochs=2")]
EVERY_2 = [*ONLINE, "--trainer.callbacks.every_n_steps=2"]


def evaluations(folder, name="online") -> dict[int, dict[str, float]]:
    """Both values by step, from all metrics files of a run; a step must not come twice."""
    found = {}
    for path in sorted(folder.glob("metrics*.csv")):
        for row in csv.DictReader(path.open()):
            values = {
                key: float(row[f"{name}/{key}"]) for key in ("knn_top1", "probe_top1") if row.get(f"{name}/{key}")
            }
            if values:
                assert int(row["step"]) not in found
                assert len(values) == 2
                found[int(row["step"])] = values
    return found


@pytest.mark.parametrize(
    "options",
    [[], ["--trainer.precision=bf16-mixed", "--trainer.accumulate_grad_batches=2", "--data.num_workers=2"]],
    ids=["plain", "bf16, accumulation, workers"],
)
def test_the_training_does_not_notice(run, spy, tmp_path, capsys, options, assert_same_weights):
    watched = spy()
    assert run(*options, name="without") == 0
    capsys.readouterr()
    seen = spy()
    assert run(*options, *EVERY_2, name="with") == 0
    assert seen.positions == watched.positions
    without, folder = tmp_path / "runs/without", tmp_path / "runs/with"
    assert_same_weights(without, folder)
    assert validation(without) == validation(folder)
    values = evaluations(folder)
    assert list(values) == [0, 2, 4]
    assert all(0 <= value <= 100 for each in values.values() for value in each.values())
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("online, step")]
    assert [line.split(":")[0] for line in printed] == ["online, step 0", "online, step 2", "online, step 4"]
    assert f"k-NN {values[4]['knn_top1']:.1f}% (" in printed[2]
    assert f"; {values[0]['probe_top1']:.1f} at step 0)" in printed[2]
    events = EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("online/knn_top1")] == [
        (step, pytest.approx(each["knn_top1"])) for step, each in values.items()
    ]


def validation(folder) -> list[str]:
    return [row["val/loss"] for row in csv.DictReader((folder / "metrics.csv").open()) if row["val/loss"]]


def test_the_config_is_kept_and_so_are_the_callbacks_that_are_always_there(run, tmp_path):
    assert run(*EVERY_2) == 0
    folder = tmp_path / "runs/a"
    callbacks = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["callbacks"]
    assert [callback["class_path"] for callback in callbacks] == ["evals.online.OnlineProbe"]
    assert callbacks[0]["init_args"]["every_n_steps"] == 2
    assert callbacks[0]["init_args"]["dataset"] == "scenes_shape"
    states = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    assert any(name.startswith("OnlineProbe") for name in states)
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"imgs_per_s", "baseline/text_ce", "online/knn_top1"} <= set(header)
    assert (folder / "summary.json").is_file()
    assert (folder / "pictures/step_0000004.png").is_file()


def test_stop_and_resume_repeats_and_loses_nothing(run, spy, tmp_path, assert_same_weights):
    options = [*ONLINE, "--trainer.callbacks.every_n_steps=2", "--trainer.max_steps=6"]
    spy()
    assert run(*options, name="whole") == 0
    for stop, resume in ((2, []), (3, ["--ckpt_path", "last"])):
        spy(kill_at=stop)
        assert run(*options, *resume, name="parts") == 130
    spy()
    assert run(*options, "--ckpt_path", "last", name="parts") == 0
    assert_same_weights(tmp_path / "runs/whole", tmp_path / "runs/parts")
    whole, parts = (evaluations(tmp_path / "runs" / name) for name in ("whole", "parts"))
    assert list(whole) == [0, 2, 4, 6]
    assert whole == parts


def test_the_end_is_evaluated_once_and_a_longer_budget_goes_on_from_it(run, tmp_path):
    options = [*ONLINE, "--trainer.callbacks.every_n_steps=3", "--trainer.callbacks.at_start=false"]
    assert run(*options) == 0
    assert list(evaluations(tmp_path / "runs/a")) == [3, 4]
    assert run(*options, "--ckpt_path", "last", "--trainer.max_steps=5") == 0
    assert list(evaluations(tmp_path / "runs/a")) == [5, 3, 4]  # metrics.csv is the last attempt's


def test_a_run_that_stops_in_front_of_an_evaluation_makes_it_when_it_goes_on(run, spy, tmp_path):
    """Stopped at step 2 without the callback, gone on with it: step 2 is its turn, step 0 is over."""
    spy(kill_at=2)
    assert run() == 130
    assert run(*EVERY_2, "--ckpt_path", "last") == 0
    assert list(evaluations(tmp_path / "runs/a")) == [2, 4]


def test_two_data_sets_by_two_names(run, tmp_path):
    second = [*EVERY_2, "--trainer.callbacks.dataset=scenes_shape_color", "--trainer.callbacks.name=colour"]
    assert run(*EVERY_2, *second, "--trainer.max_steps=2") == 0
    folder = tmp_path / "runs/a"
    assert list(evaluations(folder)) == list(evaluations(folder, "colour")) == [0, 2]
    assert evaluations(folder) != evaluations(folder, "colour")


def test_the_shipped_part_adds_to_a_config(config, tmp_path):
    """Before the run's own config, which names the run, and with other callbacks beside it."""
    part = tmp_path / "online.yaml"
    content = yaml.safe_load(PART.read_text())
    content["trainer"]["callbacks+"][0]["init_args"] |= {"num_train": 60, "num_test": 40}
    part.write_text(yaml.safe_dump(content))
    args = ["fit", "--config", str(part), "--config", str(config), "--runs", str(tmp_path / "runs")]
    other = "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"
    assert cli.main([*args, other, "--trainer.max_steps=2"]) == 0
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if not path.is_symlink())
    assert folder.name.startswith("tiny_scenes-")
    assert list(evaluations(folder)) == [0, 2]
    assert "lr-" in (folder / "metrics.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--trainer.callbacks.every_n_steps=0"], ["every_n_steps=0", "at least 1"]),
        (["--trainer.callbacks.every_n_steps=often"], ["every_n_steps", "often"]),
        (["--trainer.callbacks.dataset=scenes_shap"], ["scenes_shap", "scenes_shape"]),
        (["--trainer.callbacks.dataset=cifar10", "--trainer.callbacks.data=nowhere"], ["cifar10", "nowhere"]),
        (["--trainer.callbacks.num_train=20001"], ["num_train=20001", "20,000"]),
        (["--trainer.callbacks.num_test=20000"], ["num_test=20000", "20,000"]),
        (["--trainer.callbacks.num_train=800000"], ["num_train=800000", "2,048 MiB"]),
        (["--trainer.callbacks.num_heads=3"], ["num_heads=3", "width 32"]),
        (["--trainer.callbacks.epoch=3"], ["epoch"]),
        ([*EVERY_2, "--trainer.callbacks.seed=1"], ["2 callbacks", "name"]),
    ],
)
def test_user_errors_are_one_line_before_the_first_step(run, spy, capsys, args, words):
    watched = spy()
    assert run(*ONLINE, *args) == 2
    assert not watched.positions
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in error


@pytest.fixture
def run_two(config, tmp_path):
    """Start `fit` on two processes, each with half of a batch."""

    def start(*args):
        command = [sys.executable, "-m", "pretrain", "fit", "--config", str(config), "--runs", str(tmp_path / "runs")]
        command += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--data.batch_size=2", *args]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT
        )

    return start


@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_evaluate_once_and_train_as_one(run, run_two, tmp_path, weights, strategy):
    """At steps 0, 2, 3, in the middle of the run and at its end; what is encoded is what one process trains."""
    assert run(*EVERY_2, "--trainer.max_steps=3", name="one") == 0
    done = run_two(*EVERY_2, "--trainer.max_steps=3", f"--trainer.strategy={strategy}", "--name", "two")
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (evaluations(tmp_path / "runs" / name) for name in ("one", "two"))
    assert list(one) == list(two) == [0, 2, 3]
    # weights differ by rounding: of 40 pictures one may fall on the other side
    assert all(two[step][key] == pytest.approx(value, abs=2.6) for step in one for key, value in one[step].items())
    assert done.stdout.count("online, step") == 3
    both = [weights(tmp_path / "runs" / name) for name in ("one", "two")]
    for name, tensor in both[0].items():
        torch.testing.assert_close(both[1][name], tensor, atol=1e-5, rtol=0, msg=name)


@pytest.mark.timeout(600)
def test_two_processes_stop_on_an_error_of_the_first(run_two):
    done = run_two(*ONLINE, "--trainer.callbacks.num_train=20001", "--trainer.strategy=ddp", "--name", "two")
    assert done.returncode == 2
    assert "error: online: num_train=20001" in done.stderr
    assert "Traceback" not in done.stderr
