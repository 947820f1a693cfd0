"""The published recipes run two steps at tiny size, and runs start from weights in every layout."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from PIL import Image
from safetensors.torch import load_file

from pretrain import cli
from pretrain.export import load_pretrained, save_json, save_tensors
from pretrain.export_formats import export_as
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.models.weights import load_weights
from pretrain.objectives.build import exported_objective

RECIPES = Path(__file__).parents[2] / "configs" / "pretrain" / "recipes"
TINY = {
    "model.encoder": {"img_size": 28, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_hidden_dim": 64},
    "model.objective.decoder": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    "model.optim": {"warmup_steps": 1},
    "data": {"batch_size": 2, "num_workers": 0, "num_val": 4, "tokenizer": "clip"},
    "trainer": {
        "max_steps": 2, "num_nodes": 1, "devices": 1, "accelerator": "cpu", "strategy": "auto", "val_check_interval": 2,
        "enable_progress_bar": False,
    },
    "pictures": {"num_images": 1},
}  # fmt: skip


def as_fields(groups):
    return [f"--{group}.{key}={value}" for group, fields in groups.items() for key, value in fields.items()]


@pytest.fixture
def shards(tmp_path):
    """A tar of pictures with a json of two kinds of caption."""
    rng = np.random.default_rng(0)
    path = tmp_path / "shards" / "0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for index in range(12):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(picture, "JPEG")
            captions = json.dumps(
                {"alt": f"noise {index}", "synthetic": f"a picture of noise, number {index}"}
            ).encode()
            for suffix, content in (("jpg", picture.getvalue()), ("json", captions)):
                info = tarfile.TarInfo(f"{index:03d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_recipes_run_two_steps(name, shards, tmp_path):
    sources = ["dfn2b", "coyo"] + ([] if name.endswith("_public") else ["hqitp"])
    paths = [f"--data.mixture.{source}.path={shards}" for source in sources] + [f"--data.val.path={shards}"]
    args = ["fit", "--config", str(RECIPES / f"{name}.yaml"), "--runs", str(tmp_path / "runs"), "--name", "a"]
    index = f"--data.index_cache={tmp_path / 'index'}"
    assert cli.main([*args, *as_fields(TINY), *paths, index]) == 0
    encoder = load_pretrained(tmp_path / "runs" / "a").encoder
    assert (len(encoder.blocks), encoder.embed_dim, encoder.patch_embed.num_patches) == (2, 32, 4)
    # the run's config.yaml, which nobody else reads, tells the card where the samples came from
    card = (export_as(tmp_path / "runs" / "a", "timm") / "README.md").read_text()
    assert "coyo" in card
    assert "weight: 9" in card
    assert str(tmp_path) not in card


RIVALS = RECIPES.parent / "rivals"
TINY_RIVALS = {
    "clip": {"model.objective.contrastive.text": {"embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_hidden_dim": 64}},
    "siglip": {"model.objective.contrastive.text": {"embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_hidden_dim": 64}},
    "mae": {"model.objective.mae": {"embed_dim": 32, "depth": 1, "num_heads": 2}},
}


@pytest.mark.parametrize("name", sorted(path.stem for path in RIVALS.glob("*_large_*.yaml")))
def test_rivals_of_published_size_run_two_steps(name, shards, tmp_path):
    kind = name.split("_")[0]
    tiny = {
        group: fields for group, fields in TINY.items() if group != "model.objective.decoder" or kind not in TINY_RIVALS
    }
    tiny |= TINY_RIVALS.get(kind, {})
    if kind in ("clip", "siglip"):
        tiny["model.objective.contrastive"] = tiny.get("model.objective.contrastive", {}) | {"pool_heads": 2}
    paths = [f"--data.mixture.{source}.path={shards}" for source in ("dfn2b", "coyo", "hqitp")]
    args = ["fit", "--config", str(RIVALS / f"{name}.yaml"), "--runs", str(tmp_path / "runs"), "--name", "a"]
    index = f"--data.index_cache={tmp_path / 'index'}"
    assert cli.main([*args, *as_fields(tiny), *paths, f"--data.val.path={shards}", index]) == 0
    assert exported_objective(tmp_path / "runs" / "a" / "export") == {"cap": "captioner"}.get(kind, kind)


CONFIG = {
    "seed_everything": 3,
    "trainer": {"max_steps": 2, "val_check_interval": 2, "enable_progress_bar": False, "accelerator": "cpu"},
    "pictures": {"num_images": 1},
    "model": {
        "encoder": {"name": "aimv2_nano_patch4_32", "embed_dim": 32, "depth": 2, "mlp_hidden_dim": 64},
        "objective": {"decoder": {"embed_dim": 32, "depth": 1, "num_heads": 2}},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
    },
    "data": {
        "batch_size": 4,
        "num_workers": 0,
        "num_val": 4,
        "vocab_size": 300,
        "train": {"kind": "scenes", "levels": {"one": 1.0}, "captions": {"full": 1.0}},
    },
}


class AtStart(Callback):
    """Keeps the encoder's weights as they are before the first step."""

    def __init__(self):
        self.state = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.state is None:
            self.state = {name: tensor.clone() for name, tensor in pl_module.encoder.state_dict().items()}
            self.step = trainer.global_step


@pytest.fixture
def run(tmp_path, monkeypatch):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    plain = cli.default_callbacks

    def start(*args, name="a"):
        """Exit status, and the encoder's weights before the first step."""
        spy = AtStart()
        monkeypatch.setattr(cli, "default_callbacks", lambda: [spy, *plain()])
        fit = ["fit", "--config", str(path), "--runs", str(tmp_path / "runs"), "--name", name]
        return cli.main([*fit, *args]), spy

    return start


@pytest.fixture
def source(tmp_path):
    """An export with random weights, and its weights."""
    torch.manual_seed(5)
    config = EncoderConfig(**CONFIG["model"]["encoder"])
    encoder, image = build_encoder(config), config.image_spec()
    folder = tmp_path / "source"
    save_tensors(encoder.state_dict(), folder / "encoder.safetensors")
    save_json({"format": 1, "encoder": vars(config), "image": vars(image), "info": {}}, folder / "encoder.json")
    return folder, encoder.state_dict()


@pytest.mark.parametrize("layout", ["timm", "hf", "aim"])
def test_a_run_starts_from_weights(run, source, tmp_path, layout):
    folder, expected = source
    weights = export_as(folder, layout, out=tmp_path / "weights")
    status, spy = run(f"--model.encoder.weights={weights}", "--trainer.max_steps=2")
    assert status == 0
    assert all(torch.equal(spy.state[name], tensor) for name, tensor in expected.items())
    about = json.loads((tmp_path / "runs/a/export/encoder.json").read_text())
    assert about["encoder"]["weights"] is None
    assert about["info"]["started_from"] == str(weights)
    assert "whose licence applies" in (export_as(tmp_path / "runs" / "a", "timm") / "README.md").read_text()


def test_nothing_needs_the_weights_once_a_run_has_started(run, tmp_path):
    assert run(name="first")[0] == 0
    weights = tmp_path / "runs" / "first"  # a run is weights too
    expected = load_file(weights / "export" / "encoder.safetensors")
    status, spy = run(f"--model.encoder.weights={weights}", name="second")
    assert status == 0
    assert all(torch.equal(spy.state[name], tensor) for name, tensor in expected.items())
    shutil.rmtree(weights)
    assert load_pretrained(tmp_path / "runs" / "second").config.weights is None
    trained = load_file(tmp_path / "runs/second/export/encoder.safetensors")
    again = [f"--model.encoder.weights={weights}", "--ckpt_path", "last", "--trainer.max_steps=3"]
    status, spy = run(*again, name="second")
    assert (status, spy.step) == (0, 2)
    assert all(torch.equal(spy.state[name], tensor) for name, tensor in trained.items())


def test_positions_of_another_picture_size_are_resampled(run, source):
    folder, _ = source
    status, spy = run(f"--model.encoder.weights={folder}", "--model.encoder.img_size=48")
    assert status == 0
    config = EncoderConfig(**CONFIG["model"]["encoder"], img_size=48)
    expected = build_encoder(config)
    load_weights(expected, folder, image=config.image_spec())
    assert spy.state["pos_embed"].shape == (1, 144, 32)
    assert torch.equal(spy.state["pos_embed"], expected.pos_embed)


def test_two_processes_with_shards_start_from_weights(source, tmp_path):
    """FSDP2 over gloo at a rate of nothing: the export is the weights that the run started from."""
    folder, expected = source
    config = tmp_path / "tiny.yaml"
    still = {"lr": 1e-12, "min_lr": 0.0, "warmup_start_lr": 0.0, "weight_decay": 0.0, "warmup_steps": 1}
    config.write_text(yaml.safe_dump(CONFIG | {"model": CONFIG["model"] | {"optim": still}}))
    command = [sys.executable, "-m", "pretrain", "fit", "--config", str(config), "--runs", str(tmp_path / "runs")]
    options = ["--name", "a", "--trainer.devices=2", "--trainer.strategy=fsdp2", f"--model.encoder.weights={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=280, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    trained = load_file(tmp_path / "runs/a/export/encoder.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, atol=1e-6, rtol=0, msg=name)


def test_weights_that_do_not_fit_are_one_line(run, tmp_path, capsys):
    for weights, words in ((tmp_path / "nowhere", "no such file or folder"), (tmp_path, "holds no weights")):
        assert run(f"--model.encoder.weights={weights}")[0] == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: encoder.weights=")
        assert words in error
