"""Grounding DINO on an encoder, the paper's protocol: training, resuming, rows, the command."""

from dataclasses import replace

import pytest
import torch
from dino_cases import tiny_backbone, tiny_dino_config
from PIL import Image
from safetensors.torch import load_file

from evals import refcoco
from evals.detection.backbone import BackboneConfig
from evals.grounding.answers import read_answers
from evals.grounding.datasets import RefConfig
from evals.grounding.dino_config import DinoRecipe, DinoTraining
from evals.grounding.dino_job import DinoJob, DinoJobConfig
from evals.grounding.dino_module import GroundingDinoModule
from evals.grounding.metrics import place
from evals.results import read
from pretrain.types import UserError

TRAINING = DinoTraining(epochs=2, batch_size=4, lr=1e-3)
RECIPE = DinoRecipe(
    img_size=None,
    backbone=BackboneConfig(window=0, drop_path=0.0),
    dino=tiny_dino_config(max_per_img=12),
    training=TRAINING,
)
METRICS = ["precision_at_1", "precision_at_5", "precision_at_10", "mean_iou"]


def build(**options):
    return tiny_backbone(**options).encoder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    config = RefConfig(
        kind="scenes", split_rule="", source="", license="", name="few", counts={"train": 2, "val": 2, "test": 2},
        levels={"two": 1.0}, scored=["val", "test"],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("data"))
        built = config.build(img_size=32)
        # its folder is relative to the place where it was made
        for part in built.splits():
            part.folder = part.pictures.folder = part.folder.resolve()
    return built


def job(data, folder, recipe=RECIPE, *, out=None, notes=None, seed=0, encoder=None):
    note = notes.append if notes is not None else lambda _: None
    config = DinoJobConfig(recipe, out=out or folder / "out", results=folder / "rows.jsonl")
    return DinoJob(encoder or build(), data, config, seed=seed, note=note, accelerator="cpu")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A job that was run without a break, its rows, and the encoder's weights before it."""
    folder = tmp_path_factory.mktemp("whole")
    encoder = build()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    done = job(data, folder, encoder=encoder)
    return done, done.run(), before


def test_rows_of_each_split(data, whole):
    done, rows, _ = whole
    assert [(row.split, row.metric) for row in rows] == [
        (split, metric) for split in ("val", "test") for metric in METRICS
    ]
    assert {(row.task, row.dataset, row.synthetic, row.seed) for row in rows} == {("grounding_dino", "few", True, 0)}
    value = {(row.split, row.metric): row.value for row in rows}
    for part in data.scored:
        right = [value[part.split, metric] for metric in METRICS[:3]]
        assert right == sorted(right)
        own = [row for row in rows if row.split == part.split]
        assert {row.n for row in own} == {len(part)}
        # the table of answers holds the ten boxes that the rows were made from, and no more
        answers = read_answers(done.folder / f"answers_{part.split}.csv")
        assert {len(answer.score_K) for answer in answers} == {10}
        placed = place(part.expressions, answers)
        assert right == pytest.approx([placed.precision(k) for k in (1, 5, 10)])
        assert own[3].value == pytest.approx(placed.mean_iou(), abs=0.01)
        details = own[0].details
        assert len(details["held_out_precision_at_1"]) == 2
        assert details["watched"] == "val"
        assert details["pictures"] == 2
        assert set(details["unreadable"].values()) == {0}
        assert 0 < details["chance"]["random_object"] <= 50
    # the watched split was looked at last with the weights that are scored
    assert rows[0].details["held_out_precision_at_1"][-1] == pytest.approx(value["val", "precision_at_1"])
    names = {path.name for path in done.folder.iterdir()}
    assert {"detector.safetensors", "scores.json", "metrics.csv", "answers_val.csv", "answers_test.csv"} <= names
    assert "checkpoints" not in names


class Stop(Exception):
    pass


def stop(*_):
    raise Stop


def test_rows_are_made_once_and_whole(data, whole, tmp_path, monkeypatch):
    """The second call reads them. It trains where a crash has cut them short, without the last of eight, and where the answers,
    which pictures and differences are made from, are gone."""
    done, rows, _ = whole
    monkeypatch.setattr(DinoJob, "_fit", stop)
    notes, lines = [], done.config.results.read_text().splitlines(keepends=True)
    results = tmp_path / "rows.jsonl"
    assert len(lines) == len(rows)
    results.write_text("".join(lines))
    again = job(data, tmp_path, out=done.config.out, notes=notes).run()
    assert notes == [f"tiny: grounding_dino on few is in {results} already"]
    assert [(row.split, row.metric, row.value) for row in again] == [(row.split, row.metric, row.value) for row in rows]
    assert results.read_text() == "".join(lines)
    with pytest.raises(Stop):
        job(data, tmp_path).run()
    results.write_text("".join(lines[:-1]))
    with pytest.raises(Stop):
        job(data, tmp_path, out=done.config.out).run()


def test_settings_and_seeds_have_folders_of_their_own(data, tmp_path):
    other = replace(RECIPE, training=replace(TRAINING, lr=2e-3))
    folders = {job(data, tmp_path, recipe, seed=seed).folder for recipe in (RECIPE, other) for seed in (0, 1)}
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path / "out/grounding_dino/few"}
    with pytest.raises(UserError, match=r"training\.lr=0 must be above 0"):
        job(data, tmp_path, replace(RECIPE, training=replace(TRAINING, lr=0)))


def test_the_encoder_is_trained_unless_it_is_frozen(data, whole, tmp_path):
    done, rows, before = whole
    assert any(not torch.equal(tensor, before[name]) for name, tensor in done.encoder.state_dict().items())
    # the rows name the weights that it began with
    assert {row.checkpoint_hash for row in rows} == {build().fingerprint()}
    encoder = build()
    frozen = replace(RECIPE, backbone=replace(RECIPE.backbone, frozen=True), training=replace(TRAINING, epochs=1))
    job(data, tmp_path, frozen, encoder=encoder).run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_an_interrupted_training_goes_on(data, whole, tmp_path, monkeypatch):
    _, rows, _ = whole
    original = GroundingDinoModule.training_step

    def stopping(self, batch, batch_idx):
        return stop() if self.current_epoch == 1 else original(self, batch, batch_idx)

    monkeypatch.setattr(GroundingDinoModule, "training_step", stopping)
    with pytest.raises(Stop):
        job(data, tmp_path).run()
    assert read(tmp_path / "rows.jsonl") == []
    monkeypatch.setattr(GroundingDinoModule, "training_step", original)
    resumed = job(data, tmp_path).run()
    assert [(row.value, row.interval) for row in resumed] == [(row.value, row.interval) for row in rows]
    assert resumed[0].details == rows[0].details
    tensors = [load_file(f"{found[0].run}/detector.safetensors") for found in (rows, resumed)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


YAML = """
img_size: null
backbone: {window: 0, num_global: 0, drop_path: 0.0}
dino:
  {num_queries: 12, encoder_layers: 1, decoder_layers: 1, embed_dim: 32, num_heads: 4, ffn_dim: 32, text_heads: 4,
   text_ffn_dim: 32, fusion_dim: 32, fusion_heads: 4, factors: [1.0, 0.5], num_extra: 0, dn_queries: 4, max_per_img: 12,
   language: {max_tokens: 64, frozen: true}}
training: {lr: 0.001, epochs: 1, batch_size: 4}
"""
SCENES = """
{kind: scenes, split_rule: "", source: "", license: "", counts: {train: 2, val: 1, test: 2}, levels: {two: 1.0}, scored: [test]}
"""


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(refcoco, "load_encoder", lambda spec, seed: build())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(YAML)
    (tmp_path / "few.yaml").write_text(SCENES)
    args = ["--model=grounding_dino", "--dino=own.yaml", "--dataset=few.yaml", "--encoder=one=a", "--encoder=two=b"]
    assert refcoco.main(args) == 0
    printed = capsys.readouterr()
    assert "Grounding on few (synthetic, IoU 0.5 or more is right)" in printed.out
    for column in ("precision@1", "@5", "@10", "mean IoU"):
        assert column in printed.out
    # the head's controls are not made for it
    assert "other picture" not in printed.out
    assert "chance: any object of the picture" in printed.out
    assert "one is +0.0 points above two" in printed.out
    assert "Grounding DINO, the encoder trained, 1 epochs" in printed.err
    # both are the same encoder with the same seed
    assert "is in runs/results.jsonl already" in printed.err
    for name in ("examples", "learning"):
        page = tmp_path / f"runs/evals/grounding_dino/few/pictures-s0/{name}.png"
        assert min(Image.open(page).size) > 200
    rows = read(tmp_path / "runs/results.jsonl")
    assert [row.metric for row in rows] == METRICS
    assert refcoco.main(args) == 0
    assert len(read(tmp_path / "runs/results.jsonl")) == len(rows)
