"""What every objective is: a module that owns its extra parts, is handed the encoder, and returns loss terms."""

from typing import Protocol

from timm.models import VisionTransformer

from pretrain.flops import Attention, Flops
from pretrain.types import ImageTextBatch, LossTerm


class Objective(Protocol):
    """The contract between objectives and the LightningModule; objectives are `nn.Module`s beside.

    One that contrasts has `after_step()` as well, called when the optimiser has moved its parameters.

    Attributes:
        predicts_text: whether a decoder predicts captions (generation, the unigram baseline).
        predicts_pixels: whether a causal decoder predicts the next patch (pictures, the mean-patch baseline).
        contrasts: whether a step's samples are each other's negatives: then it can not be accumulated from smaller ones.
    """

    predicts_text: bool
    predicts_pixels: bool
    contrasts: bool

    def forward(self, encoder: VisionTransformer, batch: ImageTextBatch) -> dict[str, LossTerm]:
        """Loss terms of a training step by name. All random draws are functions of (batch.seed, batch.position_B)."""

    def validation_terms(self, encoder: VisionTransformer, batch: ImageTextBatch) -> dict[str, LossTerm]:
        """Loss terms without random draws, under the names of `validation_names`."""

    def validation_names(self) -> list[str]: ...

    def validation_weights(self) -> dict[str, float]:
        """Share of each validation term in `val/loss`."""

    def flops(self, encoder: VisionTransformer, batch: ImageTextBatch, *, attention: Attention = "causal") -> Flops:
        """Matrix-product FLOPs of the forward pass on a batch, of which sizes and valid tokens count, in closed form.

        What is drawn counts with its expectation; a contrastive loss takes the batch for the global one.
        """
