"""Settings of full fine-tuning. The paper publishes none (reference, section 10): every value here is this suite's choice."""

from dataclasses import dataclass, field

from evals.encoder import BlockEncoder, TokenEncoder
from evals.features import Precision
from evals.probe.heads import HeadConfig
from pretrain.types import UserError


@dataclass(frozen=True)
class FinetuneConfig:
    """Protocol of full fine-tuning.

    The usual one is MAE's (He et al. 2022, Table 9, and FINETUNE.md of its code; BEiT's is nearly the same): AdamW with betas
    0.9 and 0.999, weight decay 0.05, layer-wise rate decay 0.65 (ViT-B) or 0.75 (ViT-L), drop path 0.1 (ViT-B), label smoothing
    0.1, 5 epochs of warm-up, 100 epochs (ViT-B) of batches of 1,024, peak rate 5e-4 (ViT-B) x batch / 256, mixup 0.8 and cutmix
    1.0. It stands in configs/evals/finetune_mae_base.yaml. Defaults take from it what does not depend on the budget; epochs,
    batch, rate and warm-up are for minutes on a CPU, clipping and no mixup or cutmix are ours. Of the published pictures'
    treatment random erasing is left out (its effect there is "smaller than random variance").

    Attributes:
        head: on the encoder: "attentive" over all tokens, or "linear" on the model's own summary or the mean of the tokens.
        lr: peak rate of the head and of what stands behind the last block; it does not depend on `batch_size`. The default
            is for this suite's small encoders and minutes: large released ones want less (see the recipe).
        layer_decay: factor of the rate from one layer to the one in front of it; 1 trains all of them alike.
        weight_decay: AdamW's, of matrices; norms, biases, positions, class tokens and queries have none.
        beta1: AdamW's first moment.
        beta2: AdamW's second moment.
        warmup_epochs: epochs of linear warm-up, a fraction is fine.
        warmup_start_lr: rate of the first step, on the scale of `lr`: layers have their share of it.
        min_lr: rate of the last step, likewise.
        epochs: passes over the training set.
        batch_size: pictures a step.
        clip: bound of the gradient's norm over encoder and head; None does not clip.
        drop_path: share of samples whose residual branch is left out in the last block, rising from 0 in the first.
        label_smoothing: share of the target that is spread over all classes.
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of cutmix; 0 is off; with both on each batch draws one of them.
        precision: of the encoder: "bf16" is autocast over fp32 weights; the head is fp32.
        held_out: share of the training set that is not trained on but looked at after each epoch.
    """

    head: HeadConfig = field(default_factory=HeadConfig)
    lr: float = 3e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_epochs: float = 0.2
    warmup_start_lr: float = 1e-6
    min_lr: float = 1e-6
    epochs: int = 2
    batch_size: int = 64
    clip: float | None = 3.0
    drop_path: float = 0.1
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    precision: Precision = "bf16"
    held_out: float = 0.1

    @property
    def mixes(self) -> bool:
        """Whether pictures of a batch are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        for name, low, high in (
            ("layer_decay", 0.0, None),
            ("lr", 0.0, None),
            ("epochs", 0, None),
            ("batch_size", 0, None),
            ("clip", 0.0, None),
            ("held_out", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if value is not None and not (value > low and (high is None or value < high)):
                bound = f"above {low:g}" + (f" and below {high:g}" if high else "")
                raise UserError(f"finetune.{name}={value} must be {bound}")
        if self.layer_decay > 1:
            raise UserError(f"finetune.layer_decay={self.layer_decay} must be at most 1: earlier layers learn slower")
        for name in ("weight_decay", "warmup_epochs", "warmup_start_lr", "min_lr", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UserError(f"finetune.{name}={getattr(self, name)} must not be negative")
        for name in ("beta1", "beta2", "drop_path", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"finetune.{name}={getattr(self, name)} must be at least 0 and below 1")
        if self.min_lr > self.lr:
            raise UserError(f"finetune.min_lr={self.min_lr} is above finetune.lr={self.lr}")
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"finetune.warmup_epochs={self.warmup_epochs} must be below finetune.epochs={self.epochs}")

    def check_encoder(self, encoder: TokenEncoder) -> None:
        """Raise UserError for an encoder that cannot be trained so."""
        if not isinstance(encoder, BlockEncoder) and (self.layer_decay != 1 or self.drop_path):
            raise UserError(
                f"encoder {encoder.provenance.spec!r}: its blocks cannot be reached, which layer-wise rates and drop path need; "
                "train it whole with --finetune.layer_decay=1 --finetune.drop_path=0"
            )
        if self.head.kind == "attentive":
            self.head.check(encoder.embed_dim)
