"""Grounding DINO as a detector by class names: the recipe a command asks for, training, resuming, rows, the command."""

from dataclasses import replace

import numpy as np
import pytest
from dino_cases import tiny_backbone, tiny_dino_config

from evals import coco
from evals.detection.backbone import BackboneConfig
from evals.detection.config import DetectionConfig
from evals.detection.datasets import DetectionData
from evals.detection.job import DetectionJob, JobConfig
from evals.detection.open_vocabulary import OpenVocabularyModule
from evals.detection.recipes import GroundingDinoRecipe, MaskRCNNRecipe, choose_recipe
from evals.grounding.dino_config import DinoRecipe, DinoTraining, load_recipe
from evals.results import read
from pretrain.types import UserError

TRAINING = DinoTraining(epochs=2, batch_size=4, lr=1e-3, num_negatives=4)
DINO = DinoRecipe(
    img_size=None, backbone=BackboneConfig(window=0, drop_path=0.0), dino=tiny_dino_config(), training=TRAINING
)
RECIPE = GroundingDinoRecipe(DINO, num_held_out=4)


def build():
    return tiny_backbone().encoder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    data = DetectionData(
        kind="scenes", split_rule="", source="", license="", name="scenes", num_train=12, num_test=4, levels={"two": 1.0},
        synthetic=True,
    )  # fmt: skip
    return data.build(with_masks=False, root=tmp_path_factory.mktemp("data"))


def job(sets, folder, recipe=RECIPE, notes=None):
    note = notes.append if notes is not None else lambda _: None
    own = JobConfig(recipe, out=folder / "out", results=folder / "rows.jsonl")
    return DetectionJob(*sets, own, note=note, accelerator="cpu")


def test_rows_are_not_mask_rcnns_and_are_not_made_again(sets, tmp_path):
    notes = []
    first = job(sets, tmp_path, notes=notes).run(build(), seed=0)
    rows = {row.metric: row for row in first.rows}
    row = rows["box_ap"]
    assert (row.task, row.dataset, row.synthetic, row.n) == ("detection_open", "scenes", True, 4)
    assert row.interval[0] <= row.value <= row.interval[1]
    assert not any(metric.startswith("mask") for metric in rows)
    assert [point[0] for point in row.details["curve"]] == [1, 2]
    assert row.details["unreadable"] == {"training": 0, "held-out": 0, "test": 0}
    assert len(first.found) == 4
    assert first.folder.parts[-3:-1] == ("detection_open", "scenes")
    names = {path.name for path in first.folder.iterdir()}
    assert {"detector.safetensors", "detections.json", "scores.json", "metrics.csv"} <= names
    assert "checkpoints" not in names
    again = job(sets, tmp_path, notes=notes).run(build(), seed=0)
    assert "is in" in notes[-1]
    assert again.scores["box"].ap == pytest.approx(first.scores["box"].ap, abs=1e-3)
    assert len(read(tmp_path / "rows.jsonl")) == len(first.rows)
    other = replace(RECIPE, recipe=replace(DINO, training=replace(TRAINING, lr=2e-3)))
    hashes = {job(sets, tmp_path, recipe).run(build(), seed=0).rows[0].config_hash for recipe in (RECIPE, other)}
    assert len(hashes) == 2


class Stop(Exception):
    pass


def test_an_interrupted_training_goes_on(sets, tmp_path, monkeypatch):
    whole = job(sets, tmp_path / "a").run(build(), seed=0)
    original = OpenVocabularyModule.training_step

    def stopping(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise Stop
        return original(self, batch, batch_idx)

    monkeypatch.setattr(OpenVocabularyModule, "training_step", stopping)
    with pytest.raises(Stop):
        job(sets, tmp_path / "b").run(build(), seed=0)
    monkeypatch.setattr(OpenVocabularyModule, "training_step", original)
    resumed = job(sets, tmp_path / "b").run(build(), seed=0)
    assert resumed.curve == whole.curve
    for one, other in zip(whole.found, resumed.found, strict=True):
        assert np.array_equal(one.box_K4, other.box_K4)
        assert np.array_equal(one.score_K, other.score_K)


def test_faults_of_training_are_not_forgotten_at_a_look(sets, tmp_path):
    """Two of eight training pictures cannot be read, all of those held out can: the look inside of the epoch hides nothing."""
    import shutil

    from evals.detection.coco_set import CocoSet

    shutil.copytree(sets[0].folder.parents[1], tmp_path / "copy")
    files = tmp_path / "copy/annotations/instances_train.json", tmp_path / "copy/images/train"
    train = CocoSet(*files, name="scenes", split="train", with_masks=False)
    own = job((train, sets[1]), tmp_path)
    fit_S, _ = own._split(0)
    for index in fit_S[:2]:
        train.file(int(index)).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"scenes training: 2 of 8 pictures could not be read"):
        own.run(build(), seed=0)


def choose(model="grounding_dino", *, dino=None, given=None, **train):
    return choose_recipe(model, DetectionConfig(**train), dino=dino, given=train if given is None else given)


def test_what_is_given_goes_on_top_of_the_recipe():
    plain = choose(dino="grounding_dino_scenes")
    assert plain.recipe == load_recipe("grounding_dino_scenes")
    assert plain.feeding().epochs == plain.recipe.training.epochs
    given = {"epochs": 7, "backbone": {"frozen": True}, "num_held_out": 5, "img_size": 64}
    train = {"epochs": 7, "backbone": BackboneConfig(frozen=True), "num_held_out": 5, "img_size": 64}
    own = choose(dino="grounding_dino_scenes", given=given, **train)
    assert (own.feeding().epochs, own.feeding().num_held_out, own.feeding().img_size) == (7, 5, 64)
    assert own.recipe.backbone == replace(plain.recipe.backbone, frozen=True)
    assert own.recipe.training == replace(plain.recipe.training, epochs=7)
    assert choose().recipe == load_recipe("grounding_dino_small")
    assert choose("mask_rcnn", epochs=7) == MaskRCNNRecipe(DetectionConfig(epochs=7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "yolo"}, "--model='yolo' is unknown; it must be one of mask_rcnn, grounding_dino"),
        ({"model": "mask_rcnn", "dino": "x"}, "--dino='x' is not used by --model=mask_rcnn"),
        (
            {"masks": True},
            "--train.masks=True is Mask R-CNN's and not used by --model=grounding_dino: it has boxes only",
        ),
        ({"layer_decay": 0.5}, r"--train.layer_decay=0.5 is Mask R-CNN's .* its recipe \(--dino\)"),
        (
            {"dino": "no_such"},
            "grounding recipe 'no_such' is not there; give a .yaml or one of .*grounding_dino_scenes",
        ),
    ],
)
def test_what_cannot_be_meant(options, message):
    with pytest.raises(UserError, match=message):
        choose(**options)


def test_feeding_that_cannot_be_meant(sets, tmp_path):
    with pytest.raises(UserError, match=r"train\.num_held_out=-1 must not be negative"):
        job(sets, tmp_path, replace(RECIPE, num_held_out=-1))
    with pytest.raises(UserError, match=r"train\.num_held_out=12: scenes has 12 training pictures"):
        job(sets, tmp_path, replace(RECIPE, num_held_out=12)).run(build(), seed=0)


YAML = """
img_size: null
backbone: {window: 0, num_global: 0, drop_path: 0.0}
dino:
  {num_queries: 12, encoder_layers: 1, decoder_layers: 1, embed_dim: 32, num_heads: 4, ffn_dim: 32, text_heads: 4,
   text_ffn_dim: 32, fusion_dim: 32, fusion_heads: 4, factors: [1.0, 0.5], num_extra: 0, dn_queries: 4, max_per_img: 12,
   language: {max_tokens: 64, frozen: true}}
training: {lr: 0.001, epochs: 3, batch_size: 4, num_negatives: 4}
"""


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coco, "load_encoder", lambda spec, seed: build())
    original = coco.load_detection_config

    def small(name, **options):
        return replace(original(name, **options), num_train=12, num_test=4)

    monkeypatch.setattr(coco, "load_detection_config", small)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(YAML)
    args = ["--model=grounding_dino", "--dino=own.yaml", "--encoder=one=a", "--encoder=two=b"]
    args += ["--train.epochs=1", "--train.num_held_out=4"]
    assert coco.main(args) == 0
    printed = capsys.readouterr()
    assert "Detection by class names (Grounding DINO) on scenes" in printed.out
    assert "chance (picture-blind)" in printed.out
    assert "one less two" in printed.out
    assert "1 epochs in batches of 4" in printed.err
    assert "mask AP" not in printed.out
    for name in ("examples", "precision_recall_box", "learning_curves", "worst_misses"):
        assert (tmp_path / f"runs/evals/detection_open/scenes/pictures-s0/{name}.png").is_file()
    rows = read(tmp_path / "runs/results.jsonl")
    assert {row.task for row in rows} == {"detection_open", "detection_chance", "detection_open_difference"}
    assert coco.main(args) == 0
    assert len(read(tmp_path / "runs/results.jsonl")) == len(rows)


def test_the_default_recipe_on_scenes_is_theirs():
    parser = coco.build_parser()
    args = ["--model", "grounding_dino", "--train.epochs=5"]
    options = parser.instantiate_classes(parser.parse_args(args))
    assert coco.given_options(parser, args) == {"epochs": 5}
    wanted = load_recipe("grounding_dino_scenes")
    found = coco.read_recipe(options, "scenes", given={"epochs": 5})
    assert found.recipe == replace(wanted, training=replace(wanted.training, epochs=5))
    assert coco.read_recipe(options, "coco2017", given={}).recipe == load_recipe("grounding_dino_small")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--train.masks=true"], "--train.masks=True is Mask R-CNN's"),
        (["--masks"], "masks"),
        (["--dino", "no_such"], "grounding recipe 'no_such' is not there"),
        (["--train.detector.channels=8"], "--train.detector={'channels': 8} is Mask R-CNN's"),
    ],
)
def test_bad_command_lines_are_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert coco.main(["--model=grounding_dino", *args, "--encoder", "random:timm:aimv2_nano_patch4_32"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
