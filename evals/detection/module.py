"""The LightningModule of a detector on an encoder: mmdet's losses and predictions, this suite's training.

Shape letters: B batch, C channels, S side of the canvas.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from evals.detection.backbone import checked_backbone
from evals.detection.config import DetectionConfig
from evals.detection.feeding import DetectionBatch, FaultCount
from evals.detection.mask_rcnn import build_mask_rcnn
from evals.detection.mmdet_io import data_sample, detections, normalised
from evals.detection.samples import Detections, Sample
from evals.encoder import BlockEncoder, TokenEncoder
from evals.finetuning.layers import parameter_groups
from evals.finetuning.module import step_draws
from evals.finetuning.schedule import adamw_with_schedule
from pretrain.models.attention import choose_fused_attention
from pretrain.types import UserError

#: Pixels of files whose masks are pasted at once: 1 GB for 100 masks a picture.
MAX_PASTED_PIXELS = 10_000_000
#: What held-out pictures are scored by: detections to (AP, AP50) in percent.
Scorer = Callable[[list[Detections]], tuple[float, float]]


class DetectionModule(lightning.LightningModule):
    """Trains a detector, looks at held-out pictures now and then, and finds the objects of the test set.

    Args:
        encoder: of `load_encoder`; trained in place unless it is frozen.
        config: detector and training.
        num_classes: of the data set.
        steps_per_epoch: batches of an epoch.
        seed: of the heads, and of all draws of a step.
        score_held_out: scores what was found on the held-out pictures.
        max_per_img: objects that are found on a picture: as many as the evaluation counts.
        fingerprint: the encoder's, where it is known already.

    Attributes:
        curve: (epoch, AP, AP50) of the held-out pictures, as far as it has come.
        found: of the test set.

    Raises:
        UserError: settings that cannot be meant, or not with this encoder; a backbone whose features are not the encoder's.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        config: DetectionConfig,
        *,
        num_classes: int,
        steps_per_epoch: int,
        seed: int,
        score_held_out: Scorer | None = None,
        max_per_img: int = 100,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        config.check()
        _check_encoder(encoder, config)
        self.config, self.steps_per_epoch, self.seed = config, steps_per_epoch, seed
        self.score_held_out, self.spec = score_held_out, encoder.transform.spec
        fingerprint = fingerprint or encoder.fingerprint()
        # while the heads are drawn nothing else is, so that they are the same on any encoder
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            backbone = checked_backbone(encoder, config.backbone, fingerprint=fingerprint)
            sizes = {"num_classes": num_classes, "max_per_img": max_per_img}
            self.detector = build_mask_rcnn(backbone, config.detector, masks=config.masks, **sizes)
        self.curve: list[tuple[float, float, float]] = []
        self.found: list[Detections] = []
        self.faults = {part: FaultCount(f"{part} pictures") for part in ("training", "held-out", "test")}
        self._held: list[Detections] = []
        self._last_loss: Tensor | None = None
        self.train()

    @property
    def encoder(self) -> TokenEncoder:
        return self.detector.backbone.encoder

    def setup(self, stage: str) -> None:
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        choose_fused_attention(self.encoder, device_type=self.trainer.strategy.root_device.type, dtype=dtype)

    def _maps(self, samples: Sequence[Sample]) -> tuple[Tensor, ...]:
        """The pyramid's maps, in fp32."""
        image_BCSS = normalised(samples, self.spec)
        with torch.autocast(image_BCSS.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            maps = self.detector.extract_feat(image_BCSS)
        return tuple(one.float() for one in maps)

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """mmdet's loss terms by name, and "loss", their sum."""
        told = [data_sample(sample, masks=self.config.masks) for sample in samples]
        with given_maps(self.detector, self._maps(samples)):
            total, terms = self.detector.parse_losses(self.detector.loss(None, told))
        return {**terms, "loss": total}

    @torch.no_grad()
    def find(self, samples: Sequence[Sample]) -> list[Detections]:
        """Objects of pictures, in pixels of their files."""
        found: list[Detections] = []
        for start, stop in _parts(samples):
            found += self._find(samples[start:stop])
        return found

    def _find(self, samples: Sequence[Sample]) -> list[Detections]:
        told = [data_sample(sample, truth=False) for sample in samples]
        with given_maps(self.detector, self._maps(samples)):
            predicted = self.detector.predict(None, told, rescale=True)
        return detections(predicted, masks=self.config.masks)

    def on_train_epoch_start(self) -> None:
        self.faults["training"].begin()

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor | None:
        if not self.faults["training"].usable(batch):
            return None
        with step_draws(self.seed, self.current_epoch * self.steps_per_epoch + batch_idx, self.device):
            terms = self.losses(batch.samples)
        self._last_loss = terms["loss"].detach()
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "loss", batch_size=len(batch))
        return terms["loss"]

    def on_train_epoch_end(self) -> None:
        """In front of the checkpoint: weights that are of no use are not kept."""
        self.faults["training"].end()
        if self._last_loss is not None and not torch.isfinite(self._last_loss):
            raise UserError(
                f"the detector diverged in epoch {self.current_epoch + 1} of {self.config.epochs} (its loss is "
                f"{float(self._last_loss)}): train.lr={self.config.lr} must be smaller"
            )

    def configure_optimizers(self) -> dict[str, Any]:
        """One schedule for all groups: blocks have their share of every rate of it."""
        config = self.config
        heads = nn.ModuleDict({name: part for name, part in self.detector.named_children() if name != "backbone"})
        groups = parameter_groups(self.encoder, heads, config)
        total_steps = config.epochs * -(-self.steps_per_epoch // config.accumulate)
        return adamw_with_schedule(groups, config, warmup_steps=config.warmup_steps, total_steps=total_steps)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.clip, foreach=True)

    def on_validation_epoch_start(self) -> None:
        self._held = []
        self.faults["held-out"].begin()

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        if self.faults["held-out"].usable(batch):
            self._held += self.find(batch.samples)

    def on_validation_epoch_end(self) -> None:
        self.faults["held-out"].end()
        if self.score_held_out is None:
            return
        ap, ap50 = self.score_held_out(self._held)
        self.curve.append((self.current_epoch + 1, ap, ap50))
        self.log_dict({"held_out/box_ap": ap, "held_out/box_ap50": ap50}, prog_bar=True)

    def on_test_epoch_start(self) -> None:
        self.found = []
        self.faults["test"].begin()

    def test_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        if self.faults["test"].usable(batch):
            self.found += self.find(batch.samples)

    def on_test_epoch_end(self) -> None:
        self.faults["test"].end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curve"] = [list(point) for point in self.curve]
        checkpoint["unreadable"] = {part: sorted(count.unreadable) for part, count in self.faults.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curve = [tuple(point) for point in checkpoint["curve"]]
        for part, keys in checkpoint["unreadable"].items():
            self.faults[part].unreadable = set(keys)


class given_maps:
    """Inside, a detector takes these maps for its features: they were computed under autocast, its heads run without."""

    def __init__(self, detector: nn.Module, maps: tuple[Tensor, ...]) -> None:
        self.detector, self.maps = detector, maps

    def __enter__(self) -> None:
        self.detector.extract_feat = lambda _: self.maps

    def __exit__(self, *error: object) -> None:
        del self.detector.extract_feat


def _parts(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Where to cut a batch, so that the masks of each part fit: mmdet pastes 100 of them at the size of each file's picture."""
    cuts, pixels = [0], 0
    for number, sample in enumerate(samples):
        own = sample.original_hw[0] * sample.original_hw[1]
        if pixels and pixels + own > MAX_PASTED_PIXELS:
            cuts.append(number)
            pixels = 0
        pixels += own
    return list(pairwise([*cuts, len(samples)]))


def _check_encoder(encoder: TokenEncoder, config: DetectionConfig) -> None:
    if not isinstance(encoder, BlockEncoder) and config.layer_decay != 1 and not config.backbone.frozen:
        raise UserError(
            f"encoder {encoder.provenance.spec!r}: its blocks cannot be reached, which layer-wise rates need; "
            "train it with --train.layer_decay=1 or --train.backbone.frozen=true"
        )
