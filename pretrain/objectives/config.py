"""Options of the objectives: one dataclass with a `kind`, so that a rival differs from the base in `model.objective` alone.

AIMv2, AIMv1 (`text_weight: 0`), a captioner (Cap, `image_weight: 0`) and CapPa (`parallel` as well) are one class;
CLIP, SigLIP and MAE have options of their own.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from pretrain.models.attention import PrefixConfig
from pretrain.models.decoder import DecoderConfig
from pretrain.types import UserError

Kind = Literal["aimv2", "clip", "siglip", "mae"]


@dataclass(frozen=True)
class AIMv2Config:
    """AIMv2's objective and its ablations.

    Attributes:
        decoder: size of the decoder (of each, where they are separate).
        prefix: distribution of the prefix length.
        image_weight: factor of the pixel loss (0.4 published, Table 9c); 0 switches it off: a captioner.
        text_weight: factor of the caption loss; 0 switches it off: AIMv1.
        separate_decoders: one decoder for pixels and one for text (Table 9d).
        parallel: share of the captions that are predicted in parallel, from a mask token in place of every input, so that no
            word helps with the next one (CapPa, Tschannen et al. 2023: 0.75); needs image_weight: 0. Attention stays
            causal, where theirs is full: over masks the tokens behind add no words, and under full attention they would
            tell how long the caption is.
    """

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    image_weight: float = 0.4
    text_weight: float = 1.0
    separate_decoders: bool = False
    parallel: float = 0.0


@dataclass(frozen=True)
class TextTowerConfig:
    """A causal text transformer, pooled at EOS. Defaults: the released LiT tower (reference, section 5).

    Attributes:
        embed_dim: width in features.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_hidden_dim: hidden width of the feed-forward blocks.
    """

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 6
    mlp_hidden_dim: int = 2048


@dataclass(frozen=True)
class ContrastiveConfig:
    """CLIP's and SigLIP's options.

    Attributes:
        text: the text tower.
        proj_dim: width of the space that pictures and captions meet in (reference, section 5: 768).
        pool_heads: heads of the attention pooling (one learned query) over the encoder's tokens, outside of the encoder.
        temperature: the first one; its inverse is learned as `exp(logit_scale)`. None: 0.07 for CLIP (reference, section 5),
            0.1 for SigLIP (Zhai et al. 2023: t' = log 10).
        max_scale: the learned scale is clamped here, CLIP only (reference, section 5: 100).
        bias: SigLIP's first bias (Zhai et al. 2023: -10).
    """

    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    proj_dim: int = 768
    pool_heads: int = 8
    temperature: float | None = None
    max_scale: float = 100.0
    bias: float = -10.0


@dataclass(frozen=True)
class MAEConfig:
    """Masked autoencoding (He et al. 2022): the encoder sees some patches, a small decoder restores the others' pixels.

    Attributes:
        mask_ratio: share of patches that are hidden (published: 0.75).
        embed_dim: width of the decoder (published: 512).
        depth: its blocks (published: 8).
        num_heads: its attention heads (published: 16).
    """

    mask_ratio: float = 0.75
    embed_dim: int = 512
    depth: int = 8
    num_heads: int = 16


@dataclass(frozen=True)
class ObjectiveConfig(AIMv2Config):
    """What an encoder is trained with.

    Attributes:
        kind: "aimv2" (the fields of `AIMv2Config`), "clip", "siglip" (those of `contrastive`), "mae" (those of `mae`).
        contrastive: CLIP's and SigLIP's options.
        mae: MAE's options.
    """

    kind: Kind = "aimv2"
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    mae: MAEConfig = field(default_factory=MAEConfig)

    def check(self) -> None:
        """UserError for options of another kind: they would have no effect, and silently so."""
        own = {"aimv2": {f.name for f in fields(AIMv2Config)}, "mae": {"mae"}}.get(self.kind, {"contrastive"})
        plain = ObjectiveConfig()
        for one in fields(self):
            if one.name not in own | {"kind"} and getattr(self, one.name) != getattr(plain, one.name):
                raise UserError(
                    f"objective.{one.name} has no effect with objective.kind={self.kind}, which reads "
                    f"{', '.join(sorted(own))}: leave it out"
                )
