"""Runs of the command line at tiny size, in this process."""

import os
import signal

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from pretrain import cli
from pretrain.export import load_pretrained
from pretrain.types import ImageTextBatch

CONFIG = {
    "seed_everything": 3,
    "trainer": {"max_steps": 4, "val_check_interval": 2, "log_every_n_steps": 1, "enable_progress_bar": False},
    "model": {
        "encoder": {"name": "aimv2_nano_patch4_32", "embed_dim": 32, "depth": 2, "mlp_hidden_dim": 64},
        "objective": {"decoder": {"embed_dim": 32, "depth": 1, "num_heads": 2}},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
    },
    "data": {
        "batch_size": 4,
        "num_workers": 0,
        "num_val": 8,
        "vocab_size": 300,
        "train": {"kind": "scenes", "levels": {"one": 1.0, "word": 1.0}, "captions": {"full": 1.0}},
    },
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny_scenes.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture
def run(config, tmp_path):
    """Run `fit` in this process; returns the exit status."""

    def start(*args, name="a"):
        named = ["--name", name] if name else []
        return cli.main(["fit", "--config", str(config), "--runs", str(tmp_path / "runs"), *named, *args])

    return start


class Spy(Callback):
    """Notes the samples trained on, and sends a signal once a step is reached."""

    def __init__(self, *, kill_at=None):
        self.positions, self.kill_at = [], kill_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch: ImageTextBatch, batch_idx):
        self.positions.append(batch.position_B.tolist())
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def spy(monkeypatch):
    plain = cli.default_callbacks

    def install(**options):
        spy = Spy(**options)
        monkeypatch.setattr(cli, "default_callbacks", lambda: [spy, *plain()])
        return spy

    return install


@pytest.fixture
def weights():
    """All weights of a run's export."""

    def load(run_folder):
        loaded = load_pretrained(run_folder)
        return loaded.encoder.state_dict() | loaded.objective.state_dict()

    return load


@pytest.fixture
def assert_same_weights(weights):
    """Two runs' exports hold the same weights, bit for bit."""

    def check(one, two):
        both = weights(one), weights(two)
        for (name, a), b in zip(both[0].items(), both[1].values(), strict=True):
            assert torch.equal(a, b), name

    return check
