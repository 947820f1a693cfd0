"""Runs with CLIP's, SigLIP's and MAE's objectives from the command line, on one process and on two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pretrain.export import load_pretrained
from pretrain.export_formats import export_as

ROOT = Path(__file__).parents[2]
TOWERS = {"text": {"embed_dim": 24, "depth": 1, "num_heads": 2, "mlp_hidden_dim": 40}, "proj_dim": 16, "pool_heads": 2}
OBJECTIVES = {
    "clip": {"kind": "clip", "contrastive": TOWERS},
    "siglip": {"kind": "siglip", "contrastive": TOWERS},
    "mae": {"kind": "mae", "mae": {"embed_dim": 24, "depth": 1, "num_heads": 2}},
}


@pytest.fixture(params=list(OBJECTIVES))
def rival(request, config):
    """The tiny config with a rival's objective in place of its own."""
    fields = yaml.safe_load(config.read_text())
    fields["model"]["objective"] = OBJECTIVES[request.param]
    config.write_text(yaml.safe_dump(fields))
    return request.param


def test_a_run_ends_with_an_export_and_a_card(rival, run, tmp_path, capsys):
    assert run() == 0
    folder = tmp_path / "runs" / "a"
    draws = rival == "mae"  # contrastive objectives predict nothing that could be looked at
    assert bool(list(folder.glob("pictures/*.png"))) == draws
    assert (str(folder / "pictures") in capsys.readouterr().out.split("look at")[1]) == draws
    summary = json.loads((folder / "summary.json").read_text())
    names = {"masked_mse"} if rival == "mae" else {"contrastive", "retrieval_error"}
    assert set(summary["val"]) == names | {"loss"}
    assert summary["baseline"] == {}
    assert summary["training_flops"] > 0
    loaded = load_pretrained(folder)
    assert not {name for name in loaded.encoder.state_dict() if name.startswith(("pool", "text", "logit"))}
    for layout in ("timm", "hf"):
        assert f"tags: [{rival}, image-feature-extraction]" in (export_as(folder, layout) / "README.md").read_text()


@pytest.mark.parametrize("rival", ["clip"], indirect=True)
def test_accumulation_is_refused(rival, run, capsys):
    assert run("--trainer.accumulate_grad_batches=2") == 2
    error = capsys.readouterr().err
    assert "trainer.accumulate_grad_batches=2: objective.kind=clip takes a step's samples as each other's" in error


@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(rival, config, run, weights, tmp_path, strategy):
    # nine held-out samples: one process validates a batch more than the other
    assert run("--data.num_val=9", name="one") == 0
    command = [sys.executable, "-m", "pretrain", "fit", "--config", str(config), "--runs", str(tmp_path / "runs")]
    command += ["--trainer.accelerator=cpu", "--trainer.devices=2", f"--trainer.strategy={strategy}", "--name=two"]
    done = subprocess.run(
        [*command, "--data.batch_size=2", "--data.num_val=9"],
        capture_output=True, text=True, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (weights(tmp_path / "runs" / name) for name in ("one", "two"))
    assert list(one) == list(two)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0, msg=name)
