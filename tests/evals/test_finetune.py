"""Full fine-tuning from pictures to rows: what is learned, resuming, what is saved, the command."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from evals import classify, finetune
from evals.data.config import load_dataset_config
from evals.features import encode
from evals.finetuning import job as jobs
from evals.finetuning.config import FinetuneConfig
from evals.finetuning.job import FinetuneJob, JobConfig
from evals.finetuning.module import FinetuneModule
from evals.finetuning.save import load_finetuned
from evals.load import load_encoder
from evals.probe.heads import HeadConfig
from evals.results import read
from pretrain.export import save_json, save_tensors
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.types import UserError

RECIPE = Path(finetune.__file__).parents[1] / "configs/evals/finetune_mae_base.yaml"
TINY = EncoderConfig(embed_dim=32, depth=2, num_heads=4, mlp_hidden_dim=64, img_size=16)
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
CONFIG = FinetuneConfig(
    head=HeadConfig(num_heads=2, batch_norm=False), precision="fp32", batch_size=16, epochs=4, lr=3e-3, warmup_epochs=1
)


@pytest.fixture
def run(tmp_path):
    """A run's export with random weights and statistics of its own."""
    export = tmp_path / "run" / "export"
    torch.manual_seed(0)
    save_tensors(build_encoder(TINY).state_dict(), export / "encoder.safetensors")
    image = {"img_size": 16, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    info = {"samples_seen": 1234}
    encoder = {name: value for name, value in vars(TINY).items() if value is not None}
    save_json({"format": 1, "encoder": encoder, "image": image, "info": info}, export / "encoder.json")
    return str(tmp_path / "run")


@pytest.fixture
def start(tmp_path, drawn_set, monkeypatch):
    """A job on drawn pictures, 120 to train on and 42 to test."""

    def build(spec, config=CONFIG, *, seed=0, train=None, test=None, augment="none", out="evals"):
        sets = {"train": train or drawn_set(120), "test": test or drawn_set(42, split="test")}
        monkeypatch.setattr(classify, "build_set", lambda dataset, split, *, img_size: sets[split])
        dataset = dataclasses.replace(
            load_dataset_config("scenes_shape"), name="drawn", num_train=None, num_test=None, augment=augment
        )
        job_config = JobConfig(config, num_workers=0, out=tmp_path / out, results=tmp_path / f"{out}.jsonl")
        notes = []
        job = FinetuneJob(load_encoder(spec), dataset, job_config, seed=seed, note=notes.append, accelerator="cpu")
        job.notes, job.sets = notes, sets
        return job

    return build


def folder_of(rows):
    return rows[0].run


def test_colours_are_learned(start, run):
    job = start(run)
    rows = job.run()
    assert [row.metric for row in rows] == ["top1", "top5", "mean_per_class"]
    assert [row.task for row in rows] == ["finetune"] * 3
    top1 = rows[0]
    assert top1.value > 90
    assert rows[1].value == 100
    assert top1.n == 42
    assert top1.samples_seen == 1234
    assert top1.interval[0] <= top1.value <= top1.interval[1]
    assert len(top1.details["held_out_top1"]) == 4
    assert top1.details["held_out_top1"][-1] > 90
    assert job.sets["test"].num_loads == 42, "the test set is looked at once"
    assert job.sets["train"].num_loads == 4 * (6 * 16 + 12), "6 batches of 16 an epoch, and the 12 that are held out"
    assert read(job.job.results) == rows


def test_what_is_written(start, run, tmp_path):
    rows = start(run).run()
    folder = tmp_path / "evals/finetune/drawn" / folder_of(rows).rpartition("/")[2]
    assert sorted(path.name for path in folder.iterdir()) == [
        "encoder",
        "head.safetensors",
        "metrics.csv",
        "predictions.csv",
        "scores.json",
    ], "the checkpoint, three times as large as the encoder, is gone once the rows are there"
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["test"]["top1"] == rows[0].value
    assert scores["encoder"] == str(folder / "encoder")
    lines = (folder / "predictions.csv").read_text().splitlines()[1:]
    right = sum(line.split(",")[1] == line.split(",")[2] for line in lines)
    assert rows[0].value == pytest.approx(100 * right / 42)
    assert json.loads((folder / "encoder/encoder.json").read_text())["info"]["fine_tuned_on"] == "drawn"


def test_finished_rows_are_reused(start, run):
    first = start(run).run()
    again = start(run)
    assert again.run() == first
    assert any("already" in note for note in again.notes)
    assert again.sets["train"].num_loads == 0
    other = start(run, dataclasses.replace(CONFIG, epochs=2))
    assert other.run() != first


def timm_file(tmp_path, *, name="vit_tiny_patch16_224", **args):
    """A ViT's weights and the config.json that says how its pictures enter."""
    import timm

    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=0, **args)
    save_tensors(model.state_dict(), tmp_path / "w" / "model.safetensors")
    pictures = {"mean": [0.3, 0.3, 0.3], "std": [0.2, 0.2, 0.2], "crop_pct": 0.875, "interpolation": "bilinear"}
    about = {"architecture": name, "model_args": args, "pretrained_cfg": pictures}
    save_json(about, tmp_path / "w" / "config.json")
    return tmp_path / "w"


def spec_of(kind, tmp_path, run):
    if kind == "run":
        return run
    if kind == "random run":
        return f"random:{run}"
    if kind == "timm":
        return f"timm:vit_tiny_patch16_224@{timm_file(tmp_path, **SMALL, class_token=False, global_pool='avg')}"
    if kind == "timm, untrained":
        options = ",".join(f"{name}={value}" for name, value in SMALL.items())
        return f"random:timm:vit_tiny_patch16_224[{options}]"
    if kind == "timm map":
        return "random:timm:resnet10t[img_size=32]"
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path / "clip")
    return f"hf:{tmp_path / 'clip'}"


@pytest.mark.parametrize("head", ["attentive", "linear"])
@pytest.mark.parametrize("kind", ["run", "random run", "timm", "timm, untrained", "hf", "timm map"])
def test_what_is_saved_is_what_was_trained(start, run, tmp_path, kind, head):
    """Features and logits of the loaded encoder and head are those in memory; they are not those it started from."""
    config = dataclasses.replace(CONFIG, head=dataclasses.replace(CONFIG.head, kind=head), epochs=1, warmup_epochs=0.0)
    if kind in ("hf", "timm map"):
        config = dataclasses.replace(config, layer_decay=1.0, drop_path=0.0)
    spec = spec_of(kind, tmp_path, run)
    job = start(spec, config)
    rows = job.run()
    encoder, loaded_head = load_finetuned(folder_of(rows))
    assert encoder.transform == job.encoder.transform
    size = encoder.transform.spec.img_size
    image_BCHW = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    trained, loaded, before = (
        encode(e, image_BCHW, precision="fp32") for e in (job.encoder, encoder, load_encoder(spec))
    )
    assert torch.equal(loaded.all_tokens(), trained.all_tokens())
    assert torch.equal(loaded.summary(), trained.summary())
    assert not torch.allclose(loaded.all_tokens(), before.all_tokens(), atol=1e-4)
    assert loaded_head.classes == ["class0", "class1", "class2"]
    name = rows[0].details["encoder"]
    if kind == "hf":
        assert name is None
    else:
        again = load_encoder(name)
        assert again.fingerprint() == encoder.fingerprint()
        assert torch.equal(encode(again, image_BCHW, precision="fp32").all_tokens(), trained.all_tokens())


def test_a_timm_tag_does_not_stand_for_other_weights(start, tmp_path):
    spec = f"timm:vit_base_patch16_224.mae@{timm_file(tmp_path, name='vit_base_patch16_224', **SMALL)}"
    rows = start(spec, dataclasses.replace(CONFIG, epochs=1, warmup_epochs=0.0)).run()
    assert rows[0].objective == "mae"
    assert load_encoder(rows[0].details["encoder"]).provenance.objective == "unknown"


def test_predictions_are_those_of_the_loaded_encoder(start, run):
    """Restated from the files: transform, encoder, head, argmax."""
    job = start(run)
    rows = job.run()
    encoder, head = load_finetuned(folder_of(rows))
    image_BCHW = encoder.preprocess([job.test.load(index) for index in range(42)])
    predicted_B = head(encoder(image_BCHW).all_tokens()).argmax(1)
    assert rows[0].value == pytest.approx(
        100 * float((predicted_B == torch.from_numpy(job.test.label_N)).float().mean())
    )


@pytest.mark.parametrize("stop", [(2, 3), (0, 1)])
def test_an_interrupted_fit_goes_on(start, run, monkeypatch, stop):
    """Drop path, mixing and augmentation on: stopped in the middle of an epoch and gone on with, the weights are the same."""
    config = dataclasses.replace(CONFIG, drop_path=0.3, mixup=0.8, cutmix=1.0, epochs=3)
    whole = start(run, config, augment="published", out="whole").run()

    def interrupted(module, batch, batch_idx):
        if (module.current_epoch, batch_idx) == stop:
            raise KeyboardInterrupt
        return plain(module, batch, batch_idx)

    plain = FinetuneModule.training_step
    monkeypatch.setattr(FinetuneModule, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(run, config, augment="published", out="broken").run()
    monkeypatch.setattr(FinetuneModule, "training_step", plain)
    torch.manual_seed(1234)  # another process, other random numbers
    broken = start(run, config, augment="published", out="broken").run()
    assert broken[0].details["held_out_top1"] == whole[0].details["held_out_top1"]
    pairs = [load_finetuned(folder_of(rows)) for rows in (whole, broken)]
    for part in (0, 1):
        states = [pair[part].state_dict() for pair in pairs]
        for name, tensor in states[0].items():
            assert torch.equal(tensor, states[1][name]), name


def test_a_crash_before_the_rows_loses_no_epoch(start, run, drawn_set, monkeypatch):
    def broken(*args, **options):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "append", broken)
        with pytest.raises(OSError):
            start(run, train=drawn_set(120, bad=[5])).run()
    job = start(run, train=drawn_set(120, bad=[5]))
    rows = job.run()
    assert job.sets["train"].num_loads == 0
    assert rows[0].details["unreadable"] == 1


def test_drop_path_is_on_while_the_trainer_trains(start, run, monkeypatch):
    modes = {"train": set(), "eval": set()}
    plain_train, plain_val = FinetuneModule.training_step, FinetuneModule.validation_step

    def spy_train(module, *args):
        modes["train"].add(all(m.training for m in module.modules()))
        return plain_train(module, *args)

    def spy_val(module, *args):
        modes["eval"].add(any(m.training for m in (module.encoder, *module.encoder.modules())))
        return plain_val(module, *args)

    monkeypatch.setattr(FinetuneModule, "training_step", spy_train)
    monkeypatch.setattr(FinetuneModule, "validation_step", spy_val)
    start(run, dataclasses.replace(CONFIG, epochs=2, warmup_epochs=0.0)).run()
    assert modes == {"train": {True}, "eval": {False}}


def test_bf16_learns_too(start, run):
    rows = start(run, dataclasses.replace(CONFIG, precision="bf16")).run()
    assert rows[0].value > 90


def test_divergence_is_told(start, run, tmp_path):
    config = dataclasses.replace(CONFIG, lr=1e30, warmup_epochs=0.0, clip=None)
    with pytest.raises(UserError, match=r"diverged in epoch 1 of 4 .*finetune.lr=1e\+30 must be smaller") as caught:
        start(run, config).run()
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "evals").rglob("*.ckpt")), "weights of no use are not gone on with"


def test_unreadable_pictures_are_counted(start, run, drawn_set):
    train, test = drawn_set(120, bad=[5, 8]), drawn_set(42, split="test", bad=[0])
    config = dataclasses.replace(CONFIG, mixup=0.8, epochs=2, warmup_epochs=0.0)
    rows = start(run, config, train=train, test=test).run()
    assert rows[0].n == 41
    assert rows[0].details["unreadable"] == 3


def test_an_encoder_that_could_not_be_saved_is_refused_before_training(start, tiny_encoder, monkeypatch):
    monkeypatch.setitem(globals(), "load_encoder", lambda spec: tiny_encoder())
    with pytest.raises(UserError, match="tiny is neither a run nor an export"):
        start("tiny")


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="no folder that a fine-tuning has finished"):
        load_finetuned(tmp_path)


# the command


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """The command on a few scenes; returns status, output and errors."""
    plain = load_dataset_config

    def few(name, **options):
        return dataclasses.replace(plain(name, **options), num_train=48, num_test=16)

    monkeypatch.setattr(finetune, "load_dataset_config", few)
    fixed = ["--out", str(tmp_path / "evals"), "--results", str(tmp_path / "r.jsonl"), "--num_workers=0"]

    def start(*args):
        status = finetune.main([*fixed, *args])
        return status, *capsys.readouterr()

    return start


def test_command(command, run, tmp_path):
    args = [
        "--encoder",
        f"ours={run},{run}",
        "--encoder",
        f"random:{run}",
        "--finetune.epochs=1",
        "--finetune.batch_size=16",
    ]
    status, out, _ = command(*args)
    assert status == 0
    assert "Fine-tuned on scenes_shape (synthetic, chance 12.5)" in out
    assert "2 seeds" in out
    rows = read(tmp_path / "r.jsonl")
    assert [(row.metric, row.seed) for row in rows if row.metric == "top1"] == [("top1", 0), ("top1", 1), ("top1", 0)]
    assert {row.objective for row in rows} == {"unknown", "random"}
    assert all(row.run in out.replace("\n", "") for row in rows)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--finetune.layer_decay=2"], "finetune.layer_decay=2.0 must be at most 1"),
        (["--finetune.laier_decay=1"], "finetune.laier_decay"),
        (["--num_workers=-1"], "num_workers=-1 must be 0 or more"),
        (["--dataset", "cifar11"], "'cifar11' is unknown"),
        (["--encoder", "random:timm:resnet18"], "its blocks cannot be reached"),
    ],
)
def test_command_with_bad_input(command, run, args, words):
    status, _, err = command(*args, *([] if "--encoder" in args else ["--encoder", run]))
    assert status == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]


def test_the_shipped_recipe_is_read_and_run(command, run, tmp_path):
    """MAE's numbers (Table 9; FINETUNE.md), and two steps with them."""
    args = ["--config", str(RECIPE), "--encoder", run]
    options = finetune.build_parser().parse_args(args)
    config = finetune.build_parser().instantiate_classes(options).finetune
    assert (config.lr, config.layer_decay, config.epochs, config.batch_size) == (5e-4 * 1024 / 256, 0.65, 100, 1024)
    assert (config.mixup, config.cutmix, config.drop_path, config.warmup_epochs, config.clip) == (
        0.8,
        1.0,
        0.1,
        5,
        None,
    )
    small = [
        "--num_workers=0",
        "--finetune.epochs=2",
        "--finetune.warmup_epochs=1",
        "--finetune.batch_size=16",
        "--finetune.head.num_heads=2",
    ]
    assert command(*args, *small)[0] == 0
