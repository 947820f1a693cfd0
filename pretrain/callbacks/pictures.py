"""Pictures of what the model predicts: the visible prefix, the predicted patches in pixels, the caption; what MAE restores.

Shape letters: B batch, N patches, P patch pixels.
"""

from pathlib import Path
from typing import Any

import lightning
import matplotlib
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from pretrain.callbacks.throughput import restart_clock
from pretrain.data.stream import Collate
from pretrain.models.sharding import is_sharded
from pretrain.objectives.aimv2 import AIMv2Objective
from pretrain.objectives.losses import patch_statistics, patchify, unpatchify
from pretrain.objectives.mae import MAEObjective
from pretrain.types import ImageSpec, ImageTextBatch, UserError

matplotlib.use("Agg")  # no screen is needed
from matplotlib import pyplot as plt

GREY = 128


def predicted_pictures(
    objective: AIMv2Objective, encoder: torch.nn.Module, image_BCHW: Tensor, *, prefix_len: int, spec: ImageSpec
) -> tuple[Tensor, Tensor]:
    """The prefix alone, and the prefix with every patch behind it as predicted; uint8 [B, 3, H, W] both.

    A prediction is a normalised patch: it is put back into pixels with the true patch's mean and deviation, as MAE's
    pictures are, so that what is judged is the structure within a patch. Each patch is predicted from the true patches
    in front of it, not from other predictions.
    """
    size, img_size = objective.patch_size, image_BCHW.shape[-1]
    patch_BNP = patchify(image_BCHW, patch_size=size)
    mean, std = patch_statistics(patch_BNP)
    prediction_BNP = objective.predict_patches(encoder, image_BCHW, prefix_len=prefix_len).float()
    shown_BNP = patch_BNP.clone()
    shown_BNP[:, prefix_len:] = (prediction_BNP * std[:, 1:] + mean[:, 1:])[:, prefix_len - 1 :]
    visible = spec.denormalise(unpatchify(patch_BNP, patch_size=size, img_size=img_size))
    hidden = torch.zeros_like(patch_BNP)
    hidden[:, prefix_len:] = 1
    hidden = unpatchify(hidden, patch_size=size, img_size=img_size).bool()
    predicted = spec.denormalise(unpatchify(shown_BNP, patch_size=size, img_size=img_size))
    return visible.masked_fill(hidden, GREY), predicted


class Pictures(Callback):
    """Every so many steps, and at the end: pictures/step_*.png with predicted patches and generated captions.

    Args:
        every_n_steps: optimiser steps between pictures; 0 for none but the last.
        num_images: held-out pictures shown.
        prefix_share: share of the patches that the prefix holds.
    """

    def __init__(self, every_n_steps: int = 1000, num_images: int = 6, prefix_share: float = 0.5) -> None:
        if num_images < 1 or not 0 < prefix_share < 1:
            raise UserError(
                f"pictures: num_images={num_images} must be at least 1, prefix_share={prefix_share} between 0 and 1"
            )
        self.every_n_steps, self.num_images, self.prefix_share = every_n_steps, num_images, prefix_share
        self._drawn_at = -1

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any) -> None:
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step not in (0, self._drawn_at):
            self.draw(trainer, pl_module)
            restart_clock(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.global_step != self._drawn_at:
            self.draw(trainer, pl_module)

    def _batch(self, trainer: lightning.Trainer, device: torch.device) -> ImageTextBatch:
        data = trainer.datamodule
        samples = [data.val_stream[position] for position in range(min(self.num_images, len(data.val_stream)))]
        batch = Collate(data.val_stream.seed, data.tokenizer.pad_id)(samples)
        return data.normalise(batch.to(device))

    @torch.no_grad()
    def draw(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw, save and log on the first process; where weights are in shards, the others pass the same batch along."""
        self._drawn_at = trainer.global_step
        if not isinstance(pl_module.objective, AIMv2Objective | MAEObjective):  # contrastive ones predict nothing
            return
        sharded = is_sharded(pl_module.encoder)
        if not trainer.is_global_zero and not sharded:
            return
        objective, encoder, data = pl_module.objective, pl_module.encoder, trainer.datamodule
        batch = self._batch(trainer, pl_module.device)
        if not len(batch):  # the first held-out pictures are all unusable; validation counts them
            return
        was_training = pl_module.training
        pl_module.eval()
        with trainer.precision_plugin.forward_context():
            columns = [("picture", data.image.denormalise(batch.image_BCHW))]
            if isinstance(objective, MAEObjective):
                shown_BCHW, hidden_B1HW = objective.predict(encoder, batch.image_BCHW)
                columns.append(("visible", columns[0][1].masked_fill(hidden_B1HW, GREY)))
                columns.append(("restored", data.image.denormalise(shown_BCHW)))
            if objective.predicts_pixels:
                prefix_len = max(1, round(objective.num_patches * self.prefix_share))
                pair = predicted_pictures(objective, encoder, batch.image_BCHW, prefix_len=prefix_len, spec=data.image)
                columns += zip((f"prefix of {prefix_len}", "predicted patches"), pair, strict=True)
            captions = None
            if objective.predicts_text:
                # in shards every rank must take as many steps as the others, so that none may find its captions done
                eos_id = -1 if sharded else data.tokenizer.eos_id
                ids_BL = objective.generate(encoder, batch.image_BCHW, eos_id=eos_id)
                captions = [data.tokenizer.decode(ids) for ids in ids_BL.tolist()]
        pl_module.train(was_training)
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "pictures"
        folder.mkdir(exist_ok=True)
        figure = draw_figure(
            columns, references=batch.captions, captions=captions, title=f"step {trainer.global_step:,}"
        )
        figure.savefig(folder / f"step_{trainer.global_step:07d}.png", dpi=110)
        self._log(trainer, figure, batch.captions, captions)
        plt.close(figure)

    @staticmethod
    def _log(trainer: lightning.Trainer, figure: plt.Figure, references: list[str], captions: list[str] | None) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("predictions", figure, trainer.global_step, close=False)
                if captions is not None:
                    rows = "\n".join(f"| {a} | {b} |" for a, b in zip(references, captions, strict=True))
                    table = f"| reference | generated |\n|---|---|\n{rows}"
                    logger.experiment.add_text("captions", table, trainer.global_step)


def draw_figure(
    columns: list[tuple[str, Tensor]], *, references: list[str], captions: list[str] | None, title: str
) -> plt.Figure:
    """One row a picture: the columns' pictures (uint8 [B, 3, H, W]), then reference and generated caption."""
    rows = len(references)
    figure, axes = plt.subplots(
        rows,
        len(columns) + 1,
        figsize=(1.5 * len(columns) + 5.5, 1.5 * rows + 0.5),
        width_ratios=[1] * len(columns) + [3.4],
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(title, fontsize=10)
    for row in range(rows):
        for column, (name, pictures) in enumerate(columns):
            picture: np.ndarray = pictures[row].permute(1, 2, 0).cpu().numpy()
            axes[row, column].imshow(picture, interpolation="nearest")
            if row == 0:
                axes[row, column].set_title(name, fontsize=9)
        lines = [f"reference: {references[row] or '(none)'}"]
        if captions is not None:
            lines.append(f"generated: {captions[row]}")
        # early captions hold characters that no font has, and a dollar sign would start a formula
        lines = ["".join(char if char.isprintable() and ord(char) < 0x2000 else "?" for char in line) for line in lines]
        text = "\n\n".join(lines).replace("$", r"\$")
        axes[row, -1].text(0, 0.5, text, va="center", wrap=True, fontsize=8)
        for axis in axes[row]:
            axis.axis("off")
    return figure
