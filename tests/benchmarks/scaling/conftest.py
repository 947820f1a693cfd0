"""A small study, and the stand-in for the real entry point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scaling.rows import ScalingRow

FAKE = Path(__file__).with_name("fake_fit.py")
STUDY = """
title: small
base: {base}
budgets: [160, 320, 640]
sizes:
  w8: {{imgs_per_s: 100, change: {{model.encoder.embed_dim: 8}}}}
  w16: {{imgs_per_s: 50, change: {{model.encoder.embed_dim: 16}}}}
"""


@pytest.fixture
def study(tmp_path) -> Path:
    """Ten steps of 16, 20 and 40, for two sizes."""
    base = tmp_path / "base.yaml"
    base.write_text("data: {batch_size: 16}\nmodel: {optim: {warmup_samples: 16}}\n")
    path = tmp_path / "small.yaml"
    path.write_text(STUDY.format(base=base))
    return path


def fake_start(command, *, log, cpus=None, gpu=None):
    """As `benchmarks.processes.start`, but the stand-in runs."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-S", str(FAKE), *command], stdout=output, stderr=output, env=dict(os.environ)
        )


@pytest.fixture
def fake_fit(monkeypatch):
    monkeypatch.setattr("benchmarks.scaling.runner.start", fake_start)


@pytest.fixture
def make_row():
    """Rows with losses of a known law: 1 + 20 D^-0.5 + 3 / width + noise."""

    def make(*, width: int = 16, budget: int = 320, seed: int = 0, noise: float = 0.0) -> ScalingRow:
        loss = 1 + 20 * budget**-0.5 + 3 / width + noise
        return ScalingRow(
            study="small",
            size=f"w{width}",
            budget=budget,
            seed=seed,
            encoder_params=12 * width**2,
            objective_params=width,
            samples_seen=budget,
            start=budget * 4 // 80,
            steps=budget // 16,
            training_flops=72.0 * budget * width**2,
            seconds=budget * width / 100,
            val={"loss": loss, "text_ce": loss / 2, "image_mse_prefix50": loss / 3},
            baseline={},
            precision="32",
            config_hash=f"{width}-{budget}",
            code_hash="code",
            command="python -m pretrain fit",
            trunk_command="python -m pretrain fit",
        )

    return make
