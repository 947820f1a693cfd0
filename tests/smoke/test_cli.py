"""The command line end to end at tiny size: a run, its folder, resuming it, and every error as one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pretrain import cli
from pretrain.export import load_encoder, load_pretrained

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"


def test_a_run_leaves_everything_in_its_folder(run, tmp_path, capsys):
    assert run() == 0
    folder = tmp_path / "runs" / "a"
    assert (tmp_path / "runs" / "latest").resolve() == folder.resolve()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["samples_seen"]) == (4, 16)
    assert set(summary["baseline"]) == {"text_ce", "image_mse_prefix25", "image_mse_prefix50", "image_mse_prefix75"}
    assert set(summary["val"]) == {*summary["baseline"], "loss"}
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["model"]["encoder"]["depth"] == 2
    assert (folder / "pictures" / "step_0000004.png").stat().st_size > 10_000
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert {"train/loss", "val/text_ce", "imgs_per_s", "baseline/text_ce"} <= set(header.split(","))
    assert list(folder.glob("events.out.tfevents*"))
    printed = capsys.readouterr().out
    assert "unigram baseline" in printed
    assert "nothing skipped" in printed
    encoder, image = load_encoder(folder)
    assert image.img_size == 32
    assert encoder.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert "hyper_parameters" not in checkpoint


@pytest.mark.parametrize("options", [[], ["--data.num_workers=2"], ["--trainer.accumulate_grad_batches=2"]])
def test_stop_and_resume_equals_the_unbroken_run(run, spy, tmp_path, options, assert_same_weights):
    whole = spy()
    assert run(*options, name="whole") == 0
    first = spy(kill_at=2)
    assert run(*options, name="parts") == 130
    assert not (tmp_path / "runs" / "parts" / "export").exists()
    second = spy()
    assert run(*options, "--ckpt_path", "last", name="parts") == 0
    assert first.positions + second.positions == whole.positions
    assert len(second.positions) * 2 == len(whole.positions)
    assert_same_weights(tmp_path / "runs/whole", tmp_path / "runs/parts")
    both = [json.loads((tmp_path / "runs" / name / "summary.json").read_text()) for name in ("whole", "parts")]
    assert both[0]["val"] == both[1]["val"]


def test_workers_and_micro_batches_draw_the_same_samples(run, spy):
    seen = []
    for name, options in {
        "0": [],
        "2": ["--data.num_workers=2"],
        "m": ["--data.batch_size=2", "--trainer.accumulate_grad_batches=2"],
    }.items():
        watched = spy()
        assert run(*options, name=name) == 0
        seen.append([position for positions in watched.positions for position in positions])
    assert seen[0] == seen[1] == seen[2] == list(range(16))


def test_override_reaches_the_model(run, tmp_path):
    assert run("--model.encoder.depth=3", "--model.objective.decoder.depth=2", "--trainer.max_steps=2") == 0
    loaded = load_pretrained(tmp_path / "runs" / "a")
    assert len(loaded.encoder.blocks) == 3
    assert len(loaded.objective.decoder.blocks) == 2


def test_budget_in_samples(run, tmp_path):
    assert run("--trainer.max_steps=-1", "--max_samples=13") == 0
    assert json.loads((tmp_path / "runs/a/summary.json").read_text())["samples_seen"] == 12


def test_bf16(run, tmp_path):
    assert run("--trainer.precision=bf16-mixed") == 0
    summary = json.loads((tmp_path / "runs/a/summary.json").read_text())
    assert all(torch.isfinite(torch.tensor(value)) for value in summary["val"].values())


def test_unnamed_runs_do_not_collide_with_named_ones(run, tmp_path):
    assert run("--trainer.max_steps=2", name=None) == 0
    names = [path.name for path in (tmp_path / "runs").iterdir() if not path.is_symlink()]
    assert len(names) == 1
    assert names[0].startswith("tiny_scenes-20")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model.encoder.dept=3"], ["model.encoder.dept"]),
        (["--data.train.levls={}"], ["data.train.levls"]),
        (["--model.optim.lr=fast"], ["model.optim.lr", "fast"]),
        (["--model.encoder.name=aimv2_nano"], ["aimv2_nano_patch4_32"]),
        (["--max_samples=100"], ["trainer.max_steps", "max_samples", "exactly one"]),
        (["--trainer.max_steps=-1"], ["trainer.max_steps", "max_samples", "exactly one"]),
        (["--model.optim.warmup_steps=9"], ["warm-up of 9 steps", "4 steps"]),
        (["--model.optim.warmup_samples=9"], ["warmup_steps", "warmup_samples"]),
        (["--ckpt_path", "last"], ["there is no checkpoint"]),
        (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "no such file"]),
        (["--name", "x/y"], ["x/y", "plain folder name"]),
        (["--data.train.levels={one: 1, huge: 2}"], ["huge", "one"]),
        (["--data.train.captions={long: 1}"], ["long", "full"]),
        (["--data.train.path=somewhere"], ["data.train.path", "kind=scenes"]),
        (["--data.batch_size=0"], ["data.batch_size=0"]),
        (["--data.train.kind=shards", "--data.train.levels=null", "--data.train.captions=null"], ["data.val"]),
        (["--model.objective.prefix.kind=bidirectional"], ["objective.image_weight=0"]),
        (["--config", "missing.yaml"], ["missing.yaml"]),
    ],
)  # fmt: skip
def test_user_errors_are_one_short_line(run, capsys, args, words):
    assert run(*args) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert len(error) < 500
    for word in words:
        assert word in error


def test_a_second_run_of_the_same_name_is_refused(run, capsys):
    assert run() == 0
    assert run() == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_non_finite_loss_stops_the_run_and_names_the_batch(run, monkeypatch, tmp_path, capsys):
    from pretrain.objectives import aimv2

    real = aimv2.pixel_loss_sum
    calls = []

    def poisoned(prediction, target):
        calls.append(1)
        return real(prediction, target) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(aimv2, "pixel_loss_sum", poisoned)
    assert run() == 2
    assert "not finite at step 1" in capsys.readouterr().err
    record = json.loads((tmp_path / "runs/a/nonfinite_rank0.json").read_text())
    assert record["positions"] == [4, 5, 6, 7]
    assert len(record["keys"]) == 4
    assert record["terms"]["text_ce"] > 0
    assert not (tmp_path / "runs" / "latest").exists()


def test_a_finished_run_goes_on_under_a_longer_budget_and_keeps_its_curves(run, spy, tmp_path):
    assert run() == 0
    later = spy()
    assert run("--ckpt_path", "last", "--trainer.max_steps=6") == 0
    assert later.positions == [[16, 17, 18, 19], [20, 21, 22, 23]]
    folder = tmp_path / "runs" / "a"
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6
    assert "train/loss" in (folder / "metrics_1.csv").read_text()
    assert "train/loss" in (folder / "metrics.csv").read_text()


def test_two_interruptions_between_micro_batches_change_nothing(run, spy, tmp_path, assert_same_weights):
    """An interval checkpoint must not fall between the micro-batches of a step."""
    options = ["--trainer.accumulate_grad_batches=2", "--checkpoint.every_n_train_steps=1"]
    spy()
    assert run(*options, name="whole") == 0
    for step in (1, 2):
        spy(kill_at=step)
        assert run(*options, *(["--ckpt_path", "last"] if step > 1 else []), name="parts") == 130
    spy()
    assert run(*options, "--ckpt_path", "last", name="parts") == 0
    assert_same_weights(tmp_path / "runs/whole", tmp_path / "runs/parts")


@pytest.mark.parametrize(("option", "word"), [("--seed_everything=4", "seed"), ("--data.batch_size=2", "batch size")])
def test_resuming_with_other_samples_is_refused(run, spy, capsys, option, word):
    spy(kill_at=2)
    assert run() == 130
    assert run("--ckpt_path", "last", option) == 2
    assert word in capsys.readouterr().err


def test_gradients_are_clipped(run, tmp_path):
    assert run("--trainer.gradient_clip_val=0.01", "--trainer.max_steps=2") == 0
    checkpoint = torch.load(tmp_path / "runs/a/checkpoints/last.ckpt", weights_only=True)
    # after two steps of gradients of norm at most 0.01, the first moments' norm is below 0.1 * (0.9 + 1) * 0.01
    moments = [state["exp_avg"] for state in checkpoint["optimizer_states"][0]["state"].values()]
    norm = torch.stack([moment.norm() for moment in moments]).norm()
    assert 0 < norm <= 0.1 * 1.9 * 0.01 * 1.001


def photographs(folder, count=12, *, broken=()):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(count):
        path = folder / f"{index:03d}.jpg"
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
        if index in broken:
            path.write_bytes(path.read_bytes()[:200])
    return folder


def source(kind, train, val=None):
    fields = {"kind": kind, "levels": None, "captions": None}
    return [f"--data.train={json.dumps(fields | train)}", f"--data.val={json.dumps(fields | (val or train))}"]


def test_pictures_without_captions_train_the_pixels(run, tmp_path):
    folder = photographs(tmp_path / "pictures")
    assert run(*source("folder", {"path": str(folder)}), "--data.tokenizer=clip") == 0
    summary = json.loads((tmp_path / "runs/a/summary.json").read_text())
    assert "text_ce" not in summary["val"]
    assert summary["val"]["loss"] > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_photographs_are_counted_and_shown(run, tmp_path, capsys, workers):
    folder = photographs(tmp_path / "pictures", broken=(3,))
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n" + "".join(f"{i:03d}.jpg,picture number {i}\n" for i in range(13)))
    options = source("table", {"path": str(table), "images": str(folder)})
    assert run(*options, f"--data.num_workers={workers}", "--data.num_val=12") == 0
    skipped = json.loads((tmp_path / "runs/a/summary.json").read_text())["skipped"]
    assert "corrupt" in skipped
    assert "missing" in skipped
    assert "corrupt" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_photographs_stop_the_run_with_one_line(run, tmp_path, capsys, workers):
    folder = photographs(tmp_path / "pictures", broken=range(12))
    options = source("folder", {"path": str(folder)})
    assert run(*options, "--data.tokenizer=clip", f"--data.num_workers={workers}") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "corrupt" in error


SHIPPED = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("rivals/*_nano_*.yaml")])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_run_two_steps(path, tmp_path, request):
    options = ["--trainer.max_steps=2", "--model.optim.warmup_steps=1", "--data.num_val=4", "--data.batch_size=2"]
    if "flickr1k" in path.stem:
        data = request.getfixturevalue("shared_data") / "flickr1k"
        options += [f"--data.train.path={data}/train-000000.tar", f"--data.val.path={data}/val-000000.tar"]
    if "cifar10" in path.stem:
        data = request.getfixturevalue("shared_data") / "cifar10"
        for split, part in (("train", "train"), ("val", "test")):
            options += [f"--data.{split}.path={data}/{part}-00000-of-00001.parquet"]
            options += [f"--data.{split}.class_names={data}/classes.txt"]
    args = ["fit", "--config", str(path), "--runs", str(tmp_path), "--name", "a", "--pictures.num_images=2"]
    assert cli.main([*args, *options, "--trainer.enable_progress_bar=false"]) == 0
    assert (tmp_path / "a" / "export" / "encoder.safetensors").is_file()
