"""Settings of Grounding DINO: the model, and how it is trained.

The source of a value is mmdet 3.3.0, folder `.mim/configs/mm_grounding_dino` of the installed package:

    [pretrain]  grounding_dino_swin-t_pretrain_obj365.py
    [refcoco]   refcoco/grounding_dino_swin-t_finetune_8xb4_5e_refcoco.py
    [lvis]      lvis/grounding_dino_swin-t_pretrain_zeroshot_lvis.py

The paper of AIMv2 fine-tunes MM-Grounding-DINO with the encoder as its backbone, but publishes no schedule, rates or epochs
(reference, section 10). What no source says is this suite's choice, marked "ours".
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentError, ArgumentParser

from evals.detection.backbone import BackboneConfig
from evals.detection.pyramid import FACTORS
from pretrain.cli import shorten
from pretrain.types import UserError

#: configs/evals/grounding
FOLDER = Path(__file__).parents[2] / "configs" / "evals" / "grounding"


@dataclass(frozen=True)
class LanguageConfig:
    """The text encoder.

    Attributes:
        model: a folder or a name on the hub; None is the packaged MiniLM, which needs no network (ours: [pretrain] has
            bert-base-uncased).
        max_tokens: longer texts are cut [pretrain]. It also is the width of the scores.
        frozen: not trained. [pretrain] trains it, at a tenth of the rate.
    """

    model: str | None = None
    max_tokens: int = 256
    frozen: bool = False


@dataclass(frozen=True)
class GroundingDinoConfig:
    """The detector; defaults are [pretrain]'s.

    Attributes:
        num_queries: boxes that the decoder starts from, the best tokens of the encoder's.
        encoder_layers: of image and text with each other (feature enhancer).
        decoder_layers: of the queries.
        embed_dim: width of both.
        num_heads: of the decoder's attentions and of all deformable ones.
        num_points: places that a head looks at on each level (mmcv's default).
        ffn_dim: of the image's layers and the decoder's.
        text_heads: of the text's own layers.
        text_ffn_dim: likewise.
        fusion_dim: of the attention between image and text.
        fusion_heads: likewise.
        fusion_dropout: of its weights (mmdet's default).
        factors: sides of the pyramid's maps over that of the encoder's map (ours: a ViT has no stages). With one extra map and
            patches of 16 pixels the strides are 8, 16, 32 and 64, which the four levels of [pretrain] have.
        num_extra: coarser maps behind them.
        dn_queries: denoised boxes of a training step.
        label_noise: share of them, halved, whose label is wrong.
        box_noise: how far they are moved, as a share of half a box.
        cls_weight: of the focal loss.
        l1_weight: of the boxes' L1 loss.
        giou_weight: of their GIoU loss (mmdet's default of the head).
        cls_cost: of the focal cost in the matching.
        l1_cost: of the boxes' L1 distance there.
        giou_cost: of their GIoU there.
        max_per_img: boxes of an answer; of a sentence 30 change nothing ([refcoco]'s zero-shot config).
        chunk_size: most names of a prompt where classes are detected; they take turns [lvis].
        checkpointing: the encoder's layers are computed again in the backward pass instead of being remembered. [pretrain] has
            it through fairscale, which is not installed; here it is torch's.
        language: the text encoder.
    """

    num_queries: int = 900
    encoder_layers: int = 6
    decoder_layers: int = 6
    embed_dim: int = 256
    num_heads: int = 8
    num_points: int = 4
    ffn_dim: int = 2048
    text_heads: int = 4
    text_ffn_dim: int = 1024
    fusion_dim: int = 1024
    fusion_heads: int = 4
    fusion_dropout: float = 0.1
    factors: tuple[float, ...] = (2.0, 1.0, 0.5)
    num_extra: int = 1
    dn_queries: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0
    cls_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    cls_cost: float = 2.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0
    max_per_img: int = 300
    chunk_size: int = 40
    checkpointing: bool = False
    language: LanguageConfig = field(default_factory=LanguageConfig)

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        counts = (
            "num_queries",
            "encoder_layers",
            "decoder_layers",
            "num_points",
            "ffn_dim",
            "text_ffn_dim",
            "dn_queries",
        )
        for name in (*counts, "num_heads", "text_heads", "fusion_heads", "max_per_img", "chunk_size"):
            if getattr(self, name) < 1:
                raise UserError(f"dino.{name}={getattr(self, name)} must be at least 1")
        for width, heads in (("embed_dim", "num_heads"), ("embed_dim", "text_heads"), ("fusion_dim", "fusion_heads")):
            if getattr(self, width) < 1 or getattr(self, width) % getattr(self, heads):
                raise UserError(
                    f"dino.{width}={getattr(self, width)} must be a multiple of dino.{heads}={getattr(self, heads)}"
                )
        if self.embed_dim % 4:
            raise UserError(
                f"dino.embed_dim={self.embed_dim} must be a multiple of 4: positions are sines and cosines of x and y"
            )
        if not 10 <= self.max_per_img <= self.num_queries:
            raise UserError(
                f"dino.max_per_img={self.max_per_img} must be at least 10, for precision@10, and at most "
                f"dino.num_queries={self.num_queries}"
            )
        if not self.factors or self.num_extra < 0:
            raise UserError(
                f"dino.factors={list(self.factors)} must be some of {list(FACTORS)}, dino.num_extra={self.num_extra} 0 or more"
            )
        if not 0 <= self.fusion_dropout < 1:
            raise UserError(f"dino.fusion_dropout={self.fusion_dropout} must be at least 0 and below 1")


@dataclass(frozen=True)
class DinoTraining:
    """How it is trained; defaults are [refcoco]'s, which starts from a pre-trained detector.

    Attributes:
        lr: peak rate of AdamW.
        backbone_factor: of the rate, for the encoder.
        language_factor: of the rate, for the text encoder. [pretrain] has 0.1, [refcoco] has no factor.
        weight_decay: of all weights but positions.
        clip: bound of the gradient's norm over everything.
        epochs: passes over the training set.
        batch_size: pictures (sentences) that are computed at once: 4 on each of 8 GPUs.
        accumulate: so many of these batches make an optimiser step.
        schedule: "steps" multiplies the rate by `gamma` behind each of `milestones`; "cosine" ends at 0.
        milestones: in epochs.
        gamma: see `schedule`.
        warmup_steps: of a rate that rises in a line; [pretrain] has 1000, [refcoco] none.
        warmup_start: of the first step, as a share of the peak [pretrain].
        num_negatives: most names of absent classes in a prompt, where classes are detected [pretrain].
        full_share: of pictures whose prompt has all of them; the others have a random number (mmdet's RandomSamplingNegPos).
    """

    lr: float = 2e-4
    backbone_factor: float = 0.1
    language_factor: float = 0.1
    weight_decay: float = 1e-4
    clip: float = 0.1
    epochs: int = 5
    batch_size: int = 4
    accumulate: int = 8
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[float, ...] = (3,)
    gamma: float = 0.1
    warmup_steps: int = 0
    warmup_start: float = 0.1
    num_negatives: int = 85
    full_share: float = 0.5

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        for name in ("lr", "clip", "epochs", "batch_size", "gamma"):
            if getattr(self, name) <= 0:
                raise UserError(f"training.{name}={getattr(self, name)} must be above 0")
        for name in ("backbone_factor", "language_factor", "weight_decay", "warmup_steps", "num_negatives"):
            if getattr(self, name) < 0:
                raise UserError(f"training.{name}={getattr(self, name)} must not be negative")
        for name in ("warmup_start", "full_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"training.{name}={getattr(self, name)} must be at least 0 and at most 1")


@dataclass(frozen=True)
class DinoRecipe:
    """Everything that a run of Grounding DINO is made of; configs/evals/grounding/*.yaml.

    Attributes:
        img_size: side of the canvas in pixels; None takes the encoder's own picture size.
        backbone: how the encoder serves.
        dino: the detector.
        training: how it is trained.
    """

    img_size: int | None = 1024
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    dino: GroundingDinoConfig = field(default_factory=GroundingDinoConfig)
    training: DinoTraining = field(default_factory=DinoTraining)

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        if self.img_size is not None and self.img_size < 1:
            raise UserError(f"img_size={self.img_size} must be a side in pixels")
        self.backbone.check()
        self.dino.check()
        self.training.check()


def load_recipe(name_or_file: str | Path) -> DinoRecipe:
    """A recipe by its name in configs/evals/grounding, or from a .yaml.

    Raises:
        UserError: no such file, an unknown field, or a value that cannot be meant.
    """
    name = str(name_or_file)
    file = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise UserError(f"grounding recipe {name!r} is not there; give a .yaml or one of {known}")
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(DinoRecipe, "recipe")
    try:
        text = "recipe:\n" + "".join(f"  {line}\n" for line in file.read_text().splitlines())
        recipe = parser.instantiate_classes(parser.parse_string(text)).recipe
        recipe.check()
    except (ArgumentError, UserError) as error:
        raise UserError(f"grounding recipe {file.name}: {shorten(str(error))}") from error
    return recipe
