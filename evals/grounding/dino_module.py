"""The LightningModule of Grounding DINO: training, and where it places sentences.

Shape letters: B sentences (pictures) of a batch, C channels, S side of the canvas, K boxes.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from evals.detection.feeding import DetectionBatch, FaultCount
from evals.detection.mmdet_io import data_sample, normalised
from evals.finetuning.module import step_draws
from evals.grounding.batches import ExpressionBatch
from evals.grounding.dino_config import DinoTraining
from evals.grounding.expressions import Located
from pretrain.types import UserError

#: Last part of the name of weights that are not decayed: [pretrain] names positions (`absolute_pos_embed`).
_UNDECAYED = frozenset({"pos_embed", "position_embeddings", "cls_token", "reg_token"})
#: What a solver of assignments says to scores that are no numbers.
_NOT_FINITE = "invalid numeric entries"


def sentence_prompt(text: str) -> tuple[str, list[list[list[int]]]]:
    """A referring expression as Grounding DINO reads it, and the characters that stand for its object.

    In small letters and closed by a full stop, as mmdet's `RandomSamplingNegPos.vg_aug` has it. All of the sentence stands
    for the object, as at prediction (`tokens_positive` is -1 in its datasets/mdetr_style_refcoco.py: the best token counts).
    In training mmdet takes the characters from MDETR's annotations (its tools/dataset_converters/refcoco2odvg.py), which
    RefCOCO's release does not have.

    Returns:
        The prompt, and label 0's spans: [[[first, behind the last]]].
    """
    words = text.lower().strip().rstrip(". ") or "."
    return f"{words}. ", [[[0, len(words)]]]


def rate_schedule(training: DinoTraining, *, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor of the peak rate at optimiser step 0, 1, ...: the warm-up's times the schedule's, as mmengine multiplies them.

    Args:
        training: the schedule.
        steps_per_epoch: batches of an epoch; the last step of an epoch may be of fewer than `accumulate`.
    """
    steps_per_epoch = -(-steps_per_epoch // training.accumulate)
    total_steps = training.epochs * steps_per_epoch
    warmup_steps = min(training.warmup_steps, total_steps)

    def factor(step: int) -> float:
        warm = 1.0
        if step < warmup_steps:
            warm = training.warmup_start + (1 - training.warmup_start) * step / warmup_steps
        if training.schedule == "cosine":
            progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
        return warm * training.gamma ** sum(step >= milestone * steps_per_epoch for milestone in training.milestones)

    return factor


class DinoModule(lightning.LightningModule):
    """Trains a Grounding DINO; what a batch asks and what is answered is for those that inherit from it.

    Args:
        detector: of `build_grounding_dino`, trained in place. Its backbone's `encoder.transform.spec` normalises pictures.
        training: rates and schedule.
        steps_per_epoch: batches of an epoch.
        seed: of all that a step draws: denoising, dropout, prompts.
        name: of the data set, for errors.
        score: what validation makes of the answers: name -> value, e.g. precision@1; logged under "held_out/".

    Attributes:
        losses: mean of the parts of the loss in each epoch.
        answers: of the last pass of validation or test, in the order of the batches.
        held_out: what `score` made of each pass of validation.
        faults: counts what could not be read, by part: "training", "held-out", "test". Validation comes inside of an epoch's
            training, so that one count would forget the other.
    """

    def __init__(
        self,
        detector: nn.Module,
        training: DinoTraining,
        *,
        steps_per_epoch: int,
        seed: int,
        name: str = "data",
        score: Callable[[Sequence[Any]], dict[str, float]] | None = None,
    ) -> None:
        super().__init__()
        training.check()
        self.detector, self.training_config, self.seed, self.score = detector, training, seed, score
        self.steps_per_epoch = steps_per_epoch
        self.faults = {part: FaultCount(f"{name} {part}") for part in ("training", "held-out", "test")}
        self.losses: list[dict[str, float]] = []
        self.held_out: list[dict[str, float]] = []
        self.answers: list[Any] = []
        self._sums: dict[str, Tensor] = {}
        self._num_steps = 0
        self.train()

    @abstractmethod
    def data_samples(self, batch: Any, *, step: int) -> list[Any]:
        """mmdet's samples of a batch for training, prompts included; `step` is what random prompts are drawn from."""

    @abstractmethod
    def predict(self, batch: Any) -> list[Any]:
        """One answer for each sample of a batch; the module must be in evaluation mode, and objects are not read."""

    @property
    def stride(self) -> int:
        """Pixels of a patch."""
        return int(getattr(self.detector.backbone, "stride", 1))

    def pixels(self, batch: ExpressionBatch | DetectionBatch) -> Tensor:
        """The pictures of a batch as the encoder takes them: its own statistics, 0 outside of what they fill."""
        return normalised(batch.samples, self.detector.backbone.encoder.transform.spec)

    def loss(self, batch: ExpressionBatch | DetectionBatch, *, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch at an optimiser step, with all that training draws; and its parts, detached.

        Raises:
            UserError: the scores are no numbers any more.
        """
        image_BCSS = self.pixels(batch)
        with step_draws(self.seed, step, image_BCSS.device):
            try:
                parts = self.detector.loss(image_BCSS, self.data_samples(batch, step=step))
            except ValueError as error:
                if _NOT_FINITE not in str(error):
                    raise
                raise self._diverged() from error
        parts = {name: value.mean() for name, value in parts.items()}  # some have an axis of length 1
        return sum(parts.values()), {name: value.detach() for name, value in parts.items()}

    def _diverged(self) -> UserError:
        return UserError(
            f"Grounding DINO diverged in epoch {self.current_epoch + 1} of {self.training_config.epochs}: "
            f"training.lr={self.training_config.lr} must be smaller"
        )

    def on_train_epoch_start(self) -> None:
        self.faults["training"].begin()
        self._sums, self._num_steps = {}, 0

    def training_step(self, batch: ExpressionBatch | DetectionBatch, batch_idx: int) -> Tensor | None:
        if not self.faults["training"].usable(batch):
            return None
        loss, parts = self.loss(batch, step=self.current_epoch * self.steps_per_epoch + batch_idx)
        for name, value in (parts | {"loss": loss.detach()}).items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._num_steps += 1
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def on_train_epoch_end(self) -> None:
        """In front of the checkpoint: weights that are of no use are not kept."""
        self.faults["training"].end()
        if self._num_steps:
            self.losses.append({name: float(total) / self._num_steps for name, total in self._sums.items()})
            if not math.isfinite(self.losses[-1]["loss"]):
                raise self._diverged()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """AdamW's groups: the rest, the encoder and the text encoder at a part of the rate; positions without decay."""
        training = self.training_config
        factors = {"backbone": training.backbone_factor, "language_model": training.language_factor}
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in self.detector.named_parameters():
            if parameter.requires_grad:
                path = name.split(".")
                part, decayed = path[0] if path[0] in factors else "rest", not _UNDECAYED & set(path[-2:])
                groups.setdefault((part, decayed), []).append(parameter)
        return [
            {
                "name": part if decayed else f"{part}, positions",
                "params": parameters,
                "lr": training.lr * factors.get(part, 1.0),
                "weight_decay": training.weight_decay if decayed else 0.0,
            }
            for (part, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameter_groups(), lr=self.training_config.lr, fused=True)
        factor = rate_schedule(self.training_config, steps_per_epoch=self.steps_per_epoch)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.training_config.clip, foreach=True)

    def _begin(self, part: str) -> None:
        self.faults[part].begin()
        self.answers = []

    def _answer(self, batch: ExpressionBatch | DetectionBatch, part: str) -> None:
        if self.faults[part].usable(batch):
            self.answers += self.predict(batch)

    def on_validation_epoch_start(self) -> None:
        self._begin("held-out")

    def on_test_epoch_start(self) -> None:
        self._begin("test")

    def validation_step(self, batch: ExpressionBatch | DetectionBatch, batch_idx: int) -> None:
        self._answer(batch, "held-out")

    def test_step(self, batch: ExpressionBatch | DetectionBatch, batch_idx: int) -> None:
        self._answer(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self.faults["held-out"].end()
        if self.score is not None and not self.trainer.sanity_checking:
            self.held_out.append(self.score(self.answers))
            self.log_dict({f"held_out/{name}": value for name, value in self.held_out[-1].items()}, prog_bar=True)

    def on_test_epoch_end(self) -> None:
        self.faults["test"].end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"losses": list(self.losses), "held_out": list(self.held_out)}
        checkpoint["unreadable"] = {part: sorted(count.unreadable) for part, count in self.faults.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses, self.held_out = list(checkpoint["losses"]), list(checkpoint["held_out"])
        for part, keys in checkpoint["unreadable"].items():
            self.faults[part].unreadable = set(keys)


class GroundingDinoModule(DinoModule):
    """Trains on sentences with a box each, and places sentences; `answers` are `Located`."""

    def data_samples(self, batch: ExpressionBatch, *, step: int) -> list[Any]:
        samples = []
        for sample, text in zip(batch.samples, batch.texts, strict=True):
            prompt, spans = sentence_prompt(text)
            samples.append(data_sample(sample, text=prompt, tokens_positive=spans, stride=self.stride))
        return samples

    @torch.no_grad()
    def predict(self, batch: ExpressionBatch) -> list[Located]:
        """Where the sentences are: `dino.max_per_img` boxes each, by falling score, in pixels of the files' pictures.

        A box's score is that of its best token.
        """
        asked = [
            # without the blank at its end: mmdet puts another full stop behind it
            data_sample(
                sample, truth=False, text=sentence_prompt(text)[0].rstrip(), tokens_positive=-1, stride=self.stride
            )
            for sample, text in zip(batch.samples, batch.texts, strict=True)
        ]
        found = [answer.pred_instances for answer in self.detector.predict(self.pixels(batch), asked, rescale=True)]
        return [
            Located(sent_id, boxes.bboxes.float().cpu().numpy(), boxes.scores.float().cpu().numpy())
            for sent_id, boxes in zip(batch.sent_ids, found, strict=True)
        ]
