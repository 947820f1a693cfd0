"""Feeding sentences, training with Lightning, and the command that over-fits eight photographs."""

import json
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from dino_cases import sample, tiny_dino
from PIL import Image
from torch.utils.data import DataLoader

from evals.data.labelled import BadSample
from evals.detection.canvas import CanvasTransform
from evals.grounding import overfit_dino
from evals.grounding.batches import ExpressionBatch, expression_loader
from evals.grounding.dino_config import DinoTraining
from evals.grounding.dino_module import GroundingDinoModule
from evals.grounding.expressions import Expression
from pretrain.types import Fault, UserError


def drawn_set(count=5, *, bad=()):
    """Pictures of 64 x 48 pixels, one sentence each."""

    def load(image_id):
        if image_id in bad:
            raise BadSample(Fault("corrupt", f"{image_id}.jpg", "made so"))
        return Image.new("RGB", (64, 48), (10 * image_id, 0, 0))

    expressions = [
        Expression(f"cat {n}", (4.0, 8.0, 20.0, 24.0), image_id=n, sent_id=100 + n, ref_id=n, ann_id=n)
        for n in range(count)
    ]
    return SimpleNamespace(expressions=expressions, load=load)


def test_sentences_with_their_pictures():
    """The file's 64 x 48 become 32 x 24: boxes are halved."""
    loader = expression_loader(drawn_set(bad=[1]), [3, 1, 0], CanvasTransform(32), batch_size=3)
    (batch,) = loader
    assert batch.texts == ["cat 3", "cat 0"]
    assert batch.sent_ids == [103, 100]
    assert [fault.key for fault in batch.faults] == ["1.jpg"]
    assert batch.samples[0].objects.box_N4.tolist() == [[2.0, 4.0, 10.0, 12.0]]
    assert batch.samples[0].content_hw == (24, 32)
    assert batch.image_BCSS.shape == (2, 3, 32, 32)
    assert batch.image_BCSS[0, 0, 5, 5] == 30


def test_each_sentence_once_an_epoch_in_another_order():
    loader = expression_loader(drawn_set(), np.arange(5), CanvasTransform(32), batch_size=5, seed=0)
    orders = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        orders.append(batch.sent_ids)
        assert sorted(batch.sent_ids) == [100, 101, 102, 103, 104]
    assert len({tuple(order) for order in orders}) > 1


def test_workers_hand_over_the_same():
    whole = [batch.image_BCSS for batch in expression_loader(SET, [0, 1, 2], CanvasTransform(32), batch_size=2)]
    other = expression_loader(SET, [0, 1, 2], CanvasTransform(32), batch_size=2, num_workers=1)
    for one, batch in zip(whole, other, strict=True):
        assert torch.equal(one, batch.image_BCSS)


class _Set:
    """As `drawn_set`, but of a class, which travels to workers."""

    expressions = drawn_set().expressions

    def load(self, image_id):
        return Image.new("RGB", (64, 48), (10 * image_id, 0, 0))


SET = _Set()


def test_mirrored_pictures_are_refused():
    with pytest.raises(AssertionError, match="mirrored"):
        expression_loader(drawn_set(), [0], CanvasTransform(32, flip=True), batch_size=1)


def fit(folder, *, epochs, resume=None):
    """Two batches an epoch, with a look at the answers after each."""
    torch.manual_seed(len(str(folder)) + epochs)  # nothing may depend on it
    batches = [
        ExpressionBatch([sample((2.0, 3.0, 10.0, 12.0), image_id=n)], [text], [n])
        for n, text in enumerate(["the red cat", "a dog"])
    ]
    module = GroundingDinoModule(
        tiny_dino(fusion_dropout=0.2),
        DinoTraining(epochs=4, lr=1e-3, schedule="cosine"),
        steps_per_epoch=2,
        seed=0,
        score=lambda located: {"mean_score": float(np.mean([found.score_K.mean() for found in located]))},
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = [DataLoader(batches, batch_size=None) for _ in range(2)]
    trainer.fit(module, *loaders, ckpt_path=resume)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module


@pytest.mark.filterwarnings("ignore")
def test_stop_and_resume_is_an_unbroken_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = fit(tmp_path / "a", epochs=3)
    fit(tmp_path / "b", epochs=1)
    resumed = fit(tmp_path / "b", epochs=3, resume=tmp_path / "b" / "last.ckpt")
    for (name, one), (_, other) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert whole.losses == resumed.losses
    assert whole.held_out == resumed.held_out
    assert [len(whole.losses), len(whole.held_out), len(whole.answers)] == [3, 3, 2]


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore")
def test_the_command_falls_short_after_one_step(shared_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(overfit_dino, "SENT_IDS", (2, 0))
    args = ["--data", str(shared_data), "--out", str(tmp_path), "--steps", "1", "--every", "1"]
    assert overfit_dino.main(args) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "'the couch'  box 2, 240, 257, 392" in lines[0]
    assert lines[2].startswith("step    1")
    assert lines[-1].startswith("FELL SHORT: precision@1 ")
    row = json.loads((tmp_path / "overfit.json").read_text())
    assert (row["metric"], row["n"], row["passed"], len(row["curve"])) == ("precision@1", 2, False, 1)


@pytest.mark.shared_data
def test_eight_photographs_with_two_objects_each(shared_data):
    """None is tiny, and no two of a picture overlap so much that one box would be right for both."""
    from evals.grounding.metrics import box_iou

    dataset = overfit_dino.chosen_expressions(shared_data)
    assert (len(dataset), len(dataset.image_ids)) == (16, 8)
    for image_id in dataset.image_ids.tolist():
        height, width = dataset.size(image_id)
        boxes = np.array([e.box for e in dataset.expressions if e.image_id == image_id])
        assert ((boxes[:, 2:] - boxes[:, :2]).prod(1) > 0.025 * height * width).all()
        assert box_iou(boxes[:1], boxes[1:])[0, 0] < 0.6


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    assert overfit_dino.main(["--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(UserError, match=r"steps=0 and every=25 must be at least 1"):
        overfit_dino.run(overfit_dino.build_parser().parse_args(["--steps", "0"]))
