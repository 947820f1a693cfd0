"""A detector on an encoder: what goes into mmdet and comes out of it, training, resuming, rows, the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from timm.models import VisionTransformer

from evals import coco
from evals.detection.backbone import BackboneConfig
from evals.detection.config import DetectionConfig, MaskRCNNConfig
from evals.detection.datasets import DetectionData
from evals.detection.job import DetectionJob, JobConfig
from evals.detection.mmdet_io import data_sample, detections, normalised
from evals.detection.module import DetectionModule
from evals.detection.recipes import MaskRCNNRecipe
from evals.detection.record import read_detections, write_detections
from evals.detection.samples import Detections, Objects, Sample
from evals.encoder import BlockEncoder, Provenance
from evals.results import read
from evals.transforms import ImageTransform
from pretrain.types import ImageSpec, UserError

SPEC = ImageSpec(img_size=32, mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.25))
TINY = MaskRCNNConfig(channels=8, factors=(2.0, 1.0), fc_channels=16, num_proposals=12, num_anchors=8, num_rois=8)
CONFIG = DetectionConfig(detector=TINY, epochs=2, batch_size=4, warmup_steps=2, num_held_out=4, lr=1e-3)


def build(seed: int = 0) -> BlockEncoder:
    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0, class_token=False, global_pool="avg",
        fc_norm=False, weight_init="",
    )  # fmt: skip
    return BlockEncoder(vit, transform=ImageTransform(SPEC), provenance=Provenance("tiny", "tiny", samples_seen=5))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    data = DetectionData(
        kind="scenes", split_rule="", source="", license="", name="scenes", num_train=16, num_test=6,
        levels={"two": 1.0, "three": 1.0}, synthetic=True,
    )  # fmt: skip
    return data.build(with_masks=True, root=tmp_path_factory.mktemp("data"))


def sample(*, content=(6, 8), original=(12, 16), crowd=()) -> Sample:
    objects = Objects(
        torch.tensor([[1.0, 2, 5, 6]]),
        torch.tensor([3]),
        torch.ones(1, 8, 8, dtype=torch.bool),
        torch.tensor(crowd).reshape(-1, 4),
    )
    return Sample(torch.full((3, 8, 8), 255, dtype=torch.uint8), objects, 7, content, original)


def test_what_no_picture_covers_is_the_mean():
    image = normalised([sample()], SPEC)[0]
    assert torch.equal(image[:, 6:], torch.zeros(3, 2, 8))
    assert torch.allclose(
        image[:, :6, 0], ((1 - torch.tensor(SPEC.mean)) / torch.tensor(SPEC.std))[:, None].expand(3, 6)
    )


def test_what_mmdet_is_told():
    told = data_sample(sample(crowd=(0.0, 0, 4, 4)), masks=True)
    assert told.scale_factor == (0.5, 0.5)
    assert (told.img_shape, told.ori_shape, told.batch_input_shape) == ((6, 8), (12, 16), (8, 8))
    assert told.gt_instances.masks.masks.shape == (1, 8, 8)
    assert told.ignored_instances.bboxes.tolist() == [[0, 0, 4, 4]]
    blind = data_sample(sample(), masks=True, truth=False)
    assert "gt_instances" not in blind


def test_predictions_come_by_falling_score():
    from mmengine.structures import InstanceData

    told = data_sample(sample(), masks=True)
    mask_KHW = torch.zeros(2, 12, 16, dtype=torch.bool)
    mask_KHW[1, 2:5, 3:7] = True
    told.pred_instances = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 2, 2], [3, 2, 7, 5]]),
        scores=torch.tensor([0.2, 0.9]),
        labels=torch.tensor([1, 4]),
        masks=mask_KHW,
    )
    (found,) = detections([told], masks=True)
    assert (found.image_id, found.label_K.tolist()) == (7, [4, 1])
    assert found.box_K4[0].tolist() == [3, 2, 7, 5]
    assert coco_mask.toBbox(found.masks[0]).tolist() == [3, 2, 4, 3]


def test_detections_on_the_disk(tmp_path):
    rle = coco_mask.encode(np.asfortranarray(np.eye(4, dtype=np.uint8)))
    found = [
        Detections(5, np.array([[1, 2, 4, 6]], np.float32), np.array([0.5], np.float32), np.array([1]), [rle]),
        Detections(6, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), []),
    ]
    write_detections(tmp_path / "d.json", found, category_ids=(10, 20))
    assert json.loads((tmp_path / "d.json").read_text())[0]["bbox"] == [1, 2, 3, 4]
    (back,) = read_detections(tmp_path / "d.json", category_ids=(10, 20))
    assert (back.image_id, back.label_K.tolist(), back.box_K4.tolist()) == (5, [1], [[1, 2, 4, 6]])
    assert back.masks[0]["counts"] == rle["counts"]
    with pytest.raises(UserError, match="this is no list of COCO results for these classes"):
        read_detections(tmp_path / "d.json", category_ids=(10, 30))


def module_of(config=CONFIG, encoder=None, seed=0) -> DetectionModule:
    return DetectionModule(encoder or build(), config, num_classes=8, steps_per_epoch=3, seed=seed)


def batch(sets, num=4):
    from evals.detection.canvas import CanvasTransform

    return [CanvasTransform(32)(*sets[0].load(i), image_id=int(sets[0].image_ids[i])) for i in range(num)]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_changes_all_that_is_trained(sets, frozen):
    config = replace(CONFIG, backbone=BackboneConfig(frozen=frozen), layer_decay=0.5)
    module = module_of(config)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    losses = module.losses(batch(sets))
    losses["loss"].backward()
    optimizer.step()
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    inside = {name for name in before if name.startswith("detector.backbone.encoder")}
    assert changed & inside == (set() if frozen else inside)
    heads = set(before) - inside
    # with so few boxes a bias of a class or an anchor may have no gradient
    assert heads - changed <= {name for name in heads if name.endswith("bias")}
    assert {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"} <= losses.keys()


def test_rates_by_layer():
    module = module_of(replace(CONFIG, layer_decay=0.5, lr=1.0))
    rates = {g["name"]: g["initial_lr"] for g in module.configure_optimizers()["optimizer"].param_groups}
    assert rates == {"encoder 0": 0.125, "encoder 1": 0.25, "encoder 2": 0.5, "encoder 3": 1.0, "head": 1.0}


def test_heads_are_the_same_on_any_encoder_of_a_seed():
    one, other, third = module_of(), module_of(encoder=build(seed=4)), module_of(seed=1)
    heads = [{n: p for n, p in m.detector.state_dict().items() if "backbone" not in n} for m in (one, other, third)]
    assert all(torch.equal(heads[0][n], heads[1][n]) for n in heads[0])
    assert not all(torch.equal(heads[0][n], heads[2][n]) for n in heads[0])


def test_a_crowd_is_no_background():
    """An anchor inside a crowd teaches nothing; elsewhere it is background."""
    module = module_of()
    anchors = torch.tensor([[0.0, 0, 8, 8], [20, 20, 30, 30]])
    from mmengine.structures import InstanceData

    assigner = module.detector.rpn_head.assigner
    none = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    crowd = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]))
    far = InstanceData(bboxes=torch.tensor([[12.0, 0, 16, 4]]), labels=torch.zeros(1, dtype=torch.long))
    assert assigner.assign(InstanceData(priors=anchors), far, crowd).gt_inds.tolist() == [-1, 0]
    assert assigner.assign(InstanceData(priors=anchors), none, None).gt_inds.tolist() == [0, 0]


def job(sets, folder, config=CONFIG, notes=None):
    note = notes.append if notes is not None else lambda _: None
    own = JobConfig(MaskRCNNRecipe(config), out=folder / "out", results=folder / "rows.jsonl")
    return DetectionJob(*sets, own, note=note, accelerator="cpu")


def test_rows_and_reuse(sets, tmp_path):
    notes = []
    first = job(sets, tmp_path, notes=notes).run(build(), seed=0)
    metrics = {row.metric: row for row in first.rows}
    assert {"box_ap", "box_ap50", "mask_ap", "box_ap_small", "box_ar100"} <= metrics.keys()
    assert "box_ap_large" not in metrics  # there is none at 32 pixels
    row = metrics["box_ap"]
    assert (row.task, row.dataset, row.synthetic, row.n, row.samples_seen) == ("detection", "scenes", True, 6, 5)
    assert row.interval[0] <= row.value <= row.interval[1]
    assert [point[0] for point in row.details["curve"]] == [1, 2]
    assert {p.name for p in first.folder.iterdir()} >= {
        "detector.safetensors",
        "detections.json",
        "scores.json",
        "metrics.csv",
    }
    assert not (first.folder / "checkpoints").exists()
    again = job(sets, tmp_path, notes=notes).run(build(), seed=0)
    assert "is in" in notes[-1]
    assert len(read(tmp_path / "rows.jsonl")) == len(first.rows)
    # scores change in float32's last digits on their way through JSON, so that ties could break another way
    assert again.scores["box"].ap == pytest.approx(first.scores["box"].ap, abs=1e-3)


def test_chance_is_scored_once(sets, tmp_path):
    first, again = job(sets, tmp_path).chance(), job(sets, tmp_path).chance()
    assert [r.value for r in first.rows] == [r.value for r in again.rows]
    assert len(read(tmp_path / "rows.jsonl")) == len(first.rows)
    assert first.rows[0].encoder == "chance"


class Stop(Exception):
    pass


def test_an_interrupted_training_goes_on(sets, tmp_path, monkeypatch):
    whole = job(sets, tmp_path / "a").run(build(), seed=0)
    original = DetectionModule.training_step
    steps = []

    def stopping(self, batch, batch_idx):
        steps.append(batch_idx)
        if self.current_epoch == 1:
            raise Stop
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DetectionModule, "training_step", stopping)
    with pytest.raises(Stop):
        job(sets, tmp_path / "b").run(build(), seed=0)
    monkeypatch.setattr(DetectionModule, "training_step", original)
    resumed = job(sets, tmp_path / "b").run(build(), seed=0)
    assert resumed.curve == whole.curve
    for one, other in zip(whole.found, resumed.found, strict=True):
        assert np.array_equal(one.box_K4, other.box_K4)
        assert np.array_equal(one.score_K, other.score_K)


def test_a_truncated_picture_is_left_out_and_counted(sets, tmp_path):
    import shutil

    folder = sets[0].folder.parents[1]
    shutil.copytree(folder, tmp_path / "copy")
    from evals.detection.coco_set import CocoSet

    train = CocoSet(
        tmp_path / "copy/annotations/instances_train.json", tmp_path / "copy/images/train", name="scenes", split="train"
    )
    config = replace(CONFIG, num_held_out=0, check_every_epochs=0, epochs=1)
    train.file(3).write_bytes(train.file(3).read_bytes()[:60])
    outcome = job((train, sets[1]), tmp_path, config).run(build(), seed=0)
    assert outcome.rows[0].details["unreadable"] == {"training": 1, "held-out": 0, "test": 0}
    # two of sixteen are more than the bound of 5% (of at least 20)
    train.file(5).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"training pictures: 2 of 16 pictures could not be read"):
        job((train, sets[1]), tmp_path, config).run(build(), seed=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "train.lr=0.0 must be above 0"),
        ({"layer_decay": 1.5}, "train.layer_decay=1.5 must be at most 1"),
        ({"jitter": (2.0, 0.1)}, r"train.jitter=\[2.0, 0.1\]"),
        ({"num_held_out": 16}, "train.num_held_out=16: scenes has 16 training pictures"),
        ({"detector": MaskRCNNConfig(factors=(3.0,))}, r"detector.factors=\[3.0\]"),
        ({"min_lr": 1.0}, "train.min_lr=1.0 is above train.lr"),
    ],
)
def test_settings_that_cannot_be_meant(sets, tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        job(sets, tmp_path, replace(CONFIG, **values)).run(build(), seed=0)


def test_the_published_recipe_is_readable():
    options = coco.build_parser().parse_args(["--config", "configs/evals/mask_rcnn_vitdet_large.yaml"])
    train = coco.build_parser().instantiate_classes(options).train
    train.check()
    assert train.batch_size * train.accumulate == 64
    assert (train.img_size, train.epochs, train.backbone.window, tuple(train.jitter)) == (1024, 100, 16, (0.1, 2.0))


def test_the_command_needs_no_arguments_but_an_encoder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coco, "load_encoder", lambda spec, seed: build(seed=int(spec)))
    monkeypatch.setattr("evals.detection.datasets.DetectionData.check", lambda self: None)
    original = coco.load_detection_config

    def small(name, **options):
        return replace(original(name, **options), num_train=12, num_test=4)

    monkeypatch.setattr(coco, "load_detection_config", small)
    monkeypatch.chdir(tmp_path)
    tiny = ["channels=8", "fc_channels=16", "num_proposals=12", "num_anchors=8", "num_rois=8"]
    args = [
        "--encoder",
        "one=0",
        "--encoder",
        "two=1",
        "--train.epochs=1",
        "--train.num_held_out=4",
        "--train.batch_size=4",
    ]
    args += [f"--train.detector.{value}" for value in tiny]
    assert coco.main(args) == 0
    out = capsys.readouterr().out
    assert "chance (picture-blind)" in out
    assert "one less two" in out
    for name in ("examples", "precision_recall_box", "precision_recall_mask", "learning_curves", "worst_misses"):
        assert (tmp_path / f"runs/evals/detection/scenes/pictures-s0/{name}.png").is_file()
    rows = len(read(tmp_path / "runs/results.jsonl"))
    assert coco.main(args) == 0
    assert len(read(tmp_path / "runs/results.jsonl")) == rows


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--dataset", "scene"], "scene"),
        (["--data", "nowhere"], "nowhere"),
        (["--train.epoch=3"], "epoch"),
        (["--dataset", "coco_mini"], "path"),
    ],
)
def test_bad_command_lines_are_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert coco.main([*args, "--encoder", "random:timm:aimv2_nano_patch4_32"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
