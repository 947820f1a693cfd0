"""Settings of the light grounding head. The paper has none: it grounds with Grounding DINO (reference, section 7, Table 4)."""

from dataclasses import dataclass, field

from evals.features import Precision
from pretrain.types import UserError


@dataclass(frozen=True)
class LightHeadConfig:
    """Sizes of the head; small, so that what is compared is the encoder, and chosen for minutes on a CPU.

    Attributes:
        embed_dim: width of its transformer; a multiple of 4 (2-D sine positions) and of `num_heads`.
        depth: layers; the last one is of the learned token alone.
        num_heads: attention heads.
        mlp_ratio: hidden width of a layer's MLP over `embed_dim`.
        dropout: behind attention and MLPs.
    """

    embed_dim: int = 128
    depth: int = 2
    num_heads: int = 4
    mlp_ratio: float = 1.0
    dropout: float = 0.0

    def check(self) -> None:
        """Raise UserError for sizes that cannot be meant."""
        for name in ("embed_dim", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise UserError(f"head.{name}={getattr(self, name)} must be at least 1")
        if self.embed_dim % 4 or self.embed_dim % self.num_heads:
            raise UserError(
                f"head.embed_dim={self.embed_dim} must be a multiple of 4 and of head.num_heads={self.num_heads}"
            )
        if not self.mlp_ratio > 0:
            raise UserError(f"head.mlp_ratio={self.mlp_ratio} must be above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"head.dropout={self.dropout} must be at least 0 and below 1")


@dataclass(frozen=True)
class LightConfig:
    """How the head is trained; the encoder and the text encoder are frozen.

    Attributes:
        head: its sizes.
        lr: peak rate of AdamW.
        weight_decay: of matrices.
        beta1: AdamW's first moment.
        beta2: AdamW's second moment.
        warmup_epochs: epochs of linear warm-up, a fraction is fine.
        warmup_start_lr: rate of the first step.
        min_lr: rate of the last step.
        epochs: passes over the objects of the training split; each time one of an object's sentences is drawn.
        batch_size: sentences a step.
        clip: bound of the gradient's norm; None does not clip.
        l1_weight: of the L1 distance of (centre x, centre y, width, height); 5, as in DETR (Carion et al. 2020, A.4) and TransVG
            (Deng et al. 2021, its code: loss_bbox 5, loss_giou 2).
        giou_weight: of 1 - GIoU; 2, likewise.
        precision: of the head in training: "bf16" is autocast over fp32 weights.
        img_size: side in pixels of the pictures that the encoder sees; its own where None. Pictures are squeezed into a square: a
            crop would cut objects off.
        text_encoder: folder or hub's name of a Hugging Face text encoder; the packaged MiniLM where None.
    """

    head: LightHeadConfig = field(default_factory=LightHeadConfig)
    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    warmup_epochs: float = 0.2
    warmup_start_lr: float = 1e-5
    min_lr: float = 1e-5
    epochs: int = 12
    batch_size: int = 32
    clip: float | None = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    precision: Precision = "bf16"
    img_size: int | None = None
    text_encoder: str | None = None

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        self.head.check()
        for name in ("lr", "epochs", "batch_size", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"light.{name}={value} must be above 0")
        for name in ("weight_decay", "warmup_epochs", "warmup_start_lr", "min_lr", "l1_weight", "giou_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"light.{name}={getattr(self, name)} must not be negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"light.{name}={getattr(self, name)} must be at least 0 and below 1")
        if not self.l1_weight + self.giou_weight > 0:
            raise UserError("light.l1_weight and light.giou_weight are both 0; nothing would be learned")
        if self.min_lr > self.lr:
            raise UserError(f"light.min_lr={self.min_lr} is above light.lr={self.lr}")
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"light.warmup_epochs={self.warmup_epochs} must be below light.epochs={self.epochs}")
        if self.img_size is not None and self.img_size < 1:
            raise UserError(f"light.img_size={self.img_size} must be at least 1")
