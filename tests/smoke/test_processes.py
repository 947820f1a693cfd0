"""Two processes on a CPU (gloo), under DDP and under FSDP2: what one process does on the same samples."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import cli
from pretrain.callbacks import summary

#: two processes of PyTorch on a machine that has other work
pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "configs" / "cluster"
#: a vocabulary that does not divide by two, and a last validation batch that only one rank has a sample of
UNEVEN = ["--data.vocab_size=301", "--data.num_val=9", "--pictures.num_images=2"]

MODEL_PARALLEL = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}


@pytest.fixture
def run_two(config, tmp_path):
    """Run `fit` on two processes, each with half of a batch; returns what it wrote on standard error."""

    def start(*args, name, batch_size=2):
        command = [sys.executable, "-m", "pretrain", "fit", "--config", str(config), "--runs", str(tmp_path / "runs")]
        command += ["--trainer.accelerator=cpu", "--trainer.devices=2", f"--data.batch_size={batch_size}", *args]
        command += ["--name", name] if name else []
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=240, env=environment, check=False, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    return start


@pytest.fixture
def assert_near(tmp_path, weights):
    """Two runs have the same validation losses and weights to 1e-5."""

    def check(one, two):
        folders = [tmp_path / "runs" / name for name in (one, two)]
        losses = [json.loads((folder / "summary.json").read_text())["val"] for folder in folders]
        assert losses[0].keys() == losses[1].keys()
        for name, value in losses[0].items():
            assert losses[1][name] == pytest.approx(value, abs=1e-5), name
        both = [weights(folder) for folder in folders]
        assert list(both[0]) == list(both[1])
        for name, tensor in both[0].items():
            torch.testing.assert_close(both[1][name], tensor, atol=1e-5, rtol=0, msg=name)

    return check


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_and_read_each_others_checkpoints(run, run_two, tmp_path, assert_near, strategy):
    options, strategy = [*UNEVEN, "--keep.every_n_steps=2"], f"--trainer.strategy={strategy}"
    half = "checkpoints/step_0000002.ckpt"
    assert run(*options, name="one") == 0
    done = run_two(*options, strategy, name="two")
    assert "UserWarning" not in done.stderr, done.stderr
    assert_near("one", "two")
    # the checkpoint of either is a file of the same tensors, and the other goes on from it
    saved = [torch.load(tmp_path / "runs" / name / half, weights_only=True) for name in ("one", "two")]
    assert list(saved[0]["state_dict"]) == list(saved[1]["state_dict"])
    groups = [[group["params"] for group in each["optimizer_states"][0]["param_groups"]] for each in saved]
    assert groups[0] == groups[1]
    torch.testing.assert_close(
        *(each["optimizer_states"][0]["state"] for each in saved), atol=1e-5, rtol=0, check_device=False
    )
    run_two(*options, strategy, "--ckpt_path", str(tmp_path / "runs/one" / half), name="one_then_two")
    assert_near("one", "one_then_two")
    assert run(*options, "--ckpt_path", str(tmp_path / "runs/two" / half), name="two_then_one") == 0
    assert_near("one", "two_then_one")
    norms = [(tmp_path / "runs" / name / "metrics.csv").read_text() for name in ("one", "two")]
    assert gradient_norms(norms[1]) == pytest.approx(gradient_norms(norms[0]), abs=1e-5)


def gradient_norms(csv):
    header, *rows = (line.split(",") for line in csv.splitlines())
    column = header.index("train/grad_norm")
    values = [float(row[column]) for row in rows if row[column]]
    assert len(values) == 4
    return values


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_pictures_without_captions_and_accumulation_on_two_processes(run, run_two, tmp_path, assert_near, strategy):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(9):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{index}.jpg")
    source = json.dumps({"kind": "folder", "path": str(folder), "levels": None, "captions": None})
    options = [f"--data.train={source}", f"--data.val={source}", "--data.tokenizer=clip", "--data.num_val=9"]
    options += ["--trainer.accumulate_grad_batches=2", "--pictures.num_images=1", "--trainer.max_steps=2"]
    assert run(*options, "--data.batch_size=2", name="one") == 0
    # without a name, which both processes must agree on
    run_two(*options, f"--trainer.strategy={strategy}", name=None, batch_size=1)
    names = {path.name for path in (tmp_path / "runs").iterdir()} - {"one", "latest"}
    assert len(names) == 1, names
    assert_near("one", names.pop())


@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_two_processes_save_on_sigterm_and_one_goes_on(config, run, tmp_path, launcher):
    """With shards, bf16 and activation checkpointing: by the shipped script, and as Lightning starts processes."""
    values = {"NAME": "a", "DEVICES": "2", "PORT": "0", "CONFIG": str(config), "RUNS": str(tmp_path / "runs")}
    environment = os.environ | values | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    options = ["--trainer.accelerator=cpu", "--model.activation_checkpointing=true", "--data.batch_size=2"]
    options += [
        "--trainer.max_steps=1000000",
        "--trainer.val_check_interval=1000000",
        "--checkpoint.every_n_train_steps=2",
    ]
    last = tmp_path / "runs/a/checkpoints/last.ckpt"
    with (tmp_path / "log").open("w") as log:
        command = ["bash", str(CLUSTER / "torchrun.sh"), *options]
        if launcher == "lightning":
            command = [sys.executable, "-m", "pretrain", "fit", "--config", str(config), "--name", "a", *options]
            command += ["--runs", values["RUNS"], "--trainer.devices=2", "--trainer.strategy=fsdp2"]
            command += ["--trainer.precision=bf16-mixed"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)
        deadline = time.monotonic() + 240
        while not last.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
    written = (tmp_path / "log").read_text()
    assert "stopped at step" in written, written[-3000:]
    assert str(last) in written
    assert launcher == "torchrun" or status == 130
    step = torch.load(last, weights_only=True)["global_step"]
    assert f"stopped at step {step};" in written
    assert run("--trainer.precision=bf16-mixed", f"--trainer.max_steps={step + 1}", "--ckpt_path", "last") == 0
    assert json.loads((tmp_path / "runs/a/summary.json").read_text())["steps"] == step + 1


def test_too_little_memory_is_a_warning_and_no_error(run, monkeypatch, capsys):
    monkeypatch.setattr(summary, "device_bytes", lambda *args, **options: 2**20)
    assert run("--trainer.max_steps=2") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "memory of a device, estimated" in printed
    assert "warning: a device has 1.0 MiB" in printed


@pytest.fixture
def parse_only(monkeypatch):
    """Parse a command line with the real parser, and stop there; returns the configuration."""
    monkeypatch.setattr(cli.PretrainCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(cli.PretrainCLI, "_run_subcommand", lambda self, name: None)
    return lambda args: cli.build_cli(args).config["fit"]


@pytest.mark.parametrize("script", sorted(CLUSTER.iterdir()), ids=lambda path: path.name)
@pytest.mark.parametrize("resumed", [False, True], ids=["new", "resumed"])
def test_cluster_scripts_name_options_that_exist(script, resumed, config, tmp_path, parse_only):
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    stub = tmp_path / "stub"  # stands for python, srun and scontrol: writes down how it was called
    stub.write_text(f'#!/bin/bash\nprintf "%s\\n" "$(basename "$0")" "$@" >> {tmp_path}/calls\nexit 130\n')
    stub.chmod(0o755)
    for name in ("srun", "scontrol"):
        (tmp_path / name).symlink_to(stub)
    if resumed:
        (tmp_path / "runs/a/checkpoints").mkdir(parents=True)
        torch.save({}, tmp_path / "runs/a/checkpoints/last.ckpt")
    values = {"NAME": "a", "NODES": "3", "DEVICES": "4", "CONFIG": str(config), "RUNS": str(tmp_path / "runs")}
    values |= {"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_ID": "17", "PYTHON": str(stub)}
    environment = os.environ | values | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script), "--data.batch_size=5"], env=environment, check=False)
    assert done.returncode == 130
    calls = (tmp_path / "calls").read_text().splitlines()
    if script.suffix == ".sbatch":
        assert calls[-3:] == ["scontrol", "requeue", "17"]
        calls = calls[:-3]
    parsed = parse_only(calls[calls.index("fit") :])
    assert (parsed.trainer.num_nodes, int(parsed.trainer.devices), parsed.trainer.strategy) == (3, 4, "fsdp2")
    assert (parsed.name, parsed.data.batch_size) == ("a", 5)
    assert (parsed.ckpt_path is not None) == resumed


@pytest.mark.parametrize(
    ("environment", "args", "words"),
    [
        ({"WORLD_SIZE": "2"}, [], ["--name", "2"]),
        ({}, ["--trainer.num_nodes=2"], ["--name", "2"]),
        ({}, ["--trainer.strategy=deepspeed"], ["trainer.strategy=deepspeed", "ddp or fsdp2"]),
        ({}, [f"--trainer.strategy={json.dumps(MODEL_PARALLEL)}"], ["ModelParallelStrategy", "ddp or fsdp2"]),
    ],
)
def test_what_cannot_work_is_one_line(run, monkeypatch, capsys, environment, args, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run(*args, name=None) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in error
