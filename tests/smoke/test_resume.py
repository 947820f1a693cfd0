"""Resuming: what the command line says wins, branches leave their trunk, a full disk or a kill loses nothing."""

import errno
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

from pretrain.callbacks import checkpoint as checkpoint_module


def rates(folder: Path) -> list[float]:
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return [group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]]


def test_the_command_line_wins_over_the_checkpoint(run, spy, tmp_path):
    spy(kill_at=2)
    assert run() == 130
    options = ["--model.optim.lr=3e-3", "--model.optim.weight_decay=0.01", "--model.optim.schedule=constant"]
    assert run("--ckpt_path", "last", *options) == 0
    group = torch.load(tmp_path / "runs/a/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0][
        "param_groups"
    ][0]
    assert group["lr"] == pytest.approx(3e-3)
    assert group["weight_decay"] == pytest.approx(0.01 / 3e-3)


def test_a_branch_goes_on_with_the_trunks_samples_and_its_own_schedule(run, spy, tmp_path):
    assert run("--model.optim.schedule=half_cosine", "--keep.every_n_steps=2", name="trunk") == 0
    trunk = tmp_path / "runs" / "trunk"
    kept = trunk / "checkpoints/step_0000002.ckpt"
    assert (trunk / "checkpoints/step_0000004.ckpt").is_file()
    leaving = torch.load(kept, weights_only=True)["optimizer_states"][0]["param_groups"][0]["lr"]
    cooldown = ["--model.optim.schedule=cooldown", "--model.optim.min_lr=1e-6", "--trainer.max_steps=6"]
    watched = spy()
    assert run("--branch_from", str(kept), *cooldown, name="branch") == 0
    assert watched.positions == [[8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19], [20, 21, 22, 23]]
    branch = tmp_path / "runs" / "branch"
    assert rates(trunk) != rates(branch) == pytest.approx([1e-6] * 2)
    saved = torch.load(branch / "checkpoints/last.ckpt", weights_only=True)
    assert saved["branch"] == [2, leaving]
    assert (branch / "tokenizer").is_dir()
    assert torch.load(kept, weights_only=True)["global_step"] == 2, "the trunk is as it was"


def test_a_branch_resumes_as_a_branch(run, spy, tmp_path, assert_same_weights):
    assert run("--model.optim.schedule=half_cosine", "--trainer.max_steps=3", name="trunk") == 0
    trunk = str(tmp_path / "runs/trunk")
    options = ["--branch_from", trunk, "--model.optim.schedule=cooldown", "--trainer.max_steps=6"]
    assert run(*options, name="whole") == 0
    spy(kill_at=4)
    assert run(*options, name="parts") == 130
    assert run(*options, "--ckpt_path", "last", name="parts") == 0
    assert_same_weights(tmp_path / "runs/whole", tmp_path / "runs/parts")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.optim.schedule=cooldown"], "--branch_from"),
        (["--branch_from", "nowhere"], "neither a checkpoint nor a run"),
        (["--branch_from", "{config}"], "no checkpoint of this suite"),
        (["--keep.every_n_steps=-1"], "keep.every_n_steps=-1"),
    ],
)
def test_branch_errors(run, config, capsys, options, words):
    assert run(*(option.replace("{config}", str(config)) for option in options)) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error


def test_a_resumed_run_keeps_its_tokenizer(run, spy, monkeypatch):
    spy(kill_at=2)
    assert run() == 130
    monkeypatch.setattr("pretrain.data.datamodule.build_tokenizer", lambda *_: pytest.fail("trained anew"))
    assert run("--ckpt_path", "last") == 0


def test_a_branch_of_no_steps_is_refused(run, capsys, tmp_path):
    assert run(name="trunk") == 0
    assert run("--branch_from", str(tmp_path / "runs/trunk"), "--model.optim.schedule=cooldown", name="b") == 2
    assert "the trunk has 4 steps already" in capsys.readouterr().err


class FullDisk:
    """A file on which there is room for so many bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_disk_that_is_full_while_saving_leaves_the_last_checkpoint_whole(
    run, spy, tmp_path, monkeypatch, capsys, assert_same_weights, room
):
    options = ["--checkpoint.every_n_train_steps=1"]
    assert run(*options, name="whole") == 0
    real, saves = torch.save, []

    def save(content, file):
        saves.append(1)
        real(content, FullDisk(file, room) if len(saves) == 3 else file)

    monkeypatch.setattr(checkpoint_module.torch, "save", save)
    assert run(*options, name="parts") == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "No space left on device" in error
    assert "go on with --ckpt_path last" in error
    monkeypatch.setattr(checkpoint_module.torch, "save", real)
    folder = tmp_path / "runs/parts/checkpoints"
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2
    assert run(*options, "--ckpt_path", "last", name="parts") == 0
    assert_same_weights(tmp_path / "runs/whole", tmp_path / "runs/parts")


def test_kill_9_and_what_it_leaves(config, run, tmp_path, assert_same_weights):
    """Killed for good while it saves at every step; `make kills` does this fifty times."""
    options = ["--checkpoint.every_n_train_steps=1", "--trainer.max_steps=12", "--model.optim.warmup_steps=1"]
    assert run(*options, name="whole") == 0
    command = [sys.executable, "-m", "pretrain", "fit", "--config", str(config), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen([*command, "--name", "parts", *options], stdout=subprocess.DEVNULL)
    last = tmp_path / "runs/parts/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    leftover = last.with_name(".last.ckpt.1.tmp")
    leftover.write_bytes(b"half a checkpoint")
    assert run(*options, "--ckpt_path", "last", name="parts") == 0
    assert not leftover.exists()
    assert_same_weights(tmp_path / "runs/whole", tmp_path / "runs/parts")


def photographs(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{index:03d}.jpg")
    return folder


def test_shards_and_folders_in_a_mixture_resume_bit_for_bit(run, spy, tmp_path, assert_same_weights):
    from pretrain.data.shards import ShardSource

    write_shards(tmp_path / "shards", 3, 5)
    folder = photographs(tmp_path / "pictures", 7)
    assert len(ShardSource(str(tmp_path / "shards"))) == 15
    mixture = {
        "told": {
            "kind": "shards",
            "path": str(tmp_path / "shards"),
            "captions": {"alt": 0.5, "long": 0.5},
            "weight": 2.0,
        },
        "bare": {"kind": "folder", "path": str(folder)},
    }
    val = {"kind": "folder", "path": str(folder), "levels": None, "captions": None}
    options = ["--data.train=null", f"--data.mixture={json.dumps(mixture)}", f"--data.val={json.dumps(val)}"]
    options += ["--data.num_workers=2", "--data.num_lanes=2", "--data.shuffle_window=4"]
    whole = spy()
    assert run(*options, name="whole") == 0
    first = spy(kill_at=2)
    assert run(*options, name="parts") == 130
    second = spy()
    assert run(*options, "--ckpt_path", "last", name="parts") == 0
    assert first.positions + second.positions == whole.positions
    assert_same_weights(tmp_path / "runs/whole", tmp_path / "runs/parts")


def write_shards(folder: Path, num_shards: int, per_shard: int) -> None:
    import io
    import tarfile

    rng = np.random.default_rng(1)
    folder.mkdir()
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for index in range(per_shard):
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "JPEG")
                record = {"alt": f"picture {index}", "long": [f"a long text on picture {index} of {shard}"]}
                for suffix, data in (("jpg", buffer.getvalue()), ("json", json.dumps(record).encode())):
                    info = tarfile.TarInfo(f"{shard:03d}_{index:03d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def test_other_shards_on_resume_are_refused(run, spy, tmp_path, capsys):
    write_shards(tmp_path / "shards", 2, 5)
    source = {
        "kind": "shards",
        "path": str(tmp_path / "shards"),
        "caption_field": "alt",
        "levels": None,
        "captions": None,
    }
    options = [f"--data.train={json.dumps(source)}", f"--data.val={json.dumps(source)}"]
    spy(kill_at=2)
    assert run(*options) == 130
    (tmp_path / "shards/000.tar").rename(tmp_path / "shards/009.tar")
    assert run(*options, "--ckpt_path", "last") == 2
    assert "the checkpoint's data" in capsys.readouterr().err
