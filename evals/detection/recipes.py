"""Which detector stands on an encoder: Mask R-CNN, or Grounding DINO that is asked for classes by name. All a job knows of it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

from torch import nn

from evals.detection.backbone import checked_backbone
from evals.detection.coco_set import CocoSet
from evals.detection.config import DetectionConfig
from evals.detection.feeding import FaultCount
from evals.detection.module import DetectionModule, Scorer
from evals.detection.open_vocabulary import OpenVocabularyModule
from evals.detection.samples import Detections
from evals.detection.scoring import Curve, most_detections
from evals.encoder import TokenEncoder
from evals.grounding.dino_config import DinoRecipe, load_recipe
from evals.grounding.dino_model import build_grounding_dino
from evals.grounding.text_features import load_text_encoder, model_fingerprint
from pretrain.types import UserError

MODELS = ("mask_rcnn", "grounding_dino")
#: Of `--train`, what Grounding DINO has too: it goes on top of its recipe.
_OF_RECIPE = ("img_size", "backbone")
_OF_TRAINING = ("lr", "weight_decay", "warmup_steps", "epochs", "batch_size")
_OF_FEEDING = ("jitter", "flip", "check_every_epochs", "num_held_out")


class TrainedDetector(Protocol):
    """A LightningModule that a job trains and asks.

    Attributes:
        detector: mmdet's.
        curve: as far as it has come; kept in checkpoints.
        found: detections of the last pass through the test set.
        faults: what could not be read, by part.
    """

    detector: nn.Module
    curve: Curve
    faults: dict[str, FaultCount]

    @property
    def found(self) -> list[Detections]: ...


@dataclass(frozen=True)
class Feeding:
    """How pictures come to a detector, whichever it is.

    Attributes:
        img_size: side of the square canvas in pixels; None takes the encoder's own picture size.
        jitter: smallest and largest factor of large-scale jitter, or None.
        flip: mirror half of the training pictures.
        epochs: passes over the training set.
        batch_size: pictures that are computed at once.
        accumulate: so many of these batches make an optimiser step.
        check_every_epochs: how often held-out pictures are scored while training; 0 never.
        num_held_out: training pictures that are only looked at.
    """

    img_size: int | None
    jitter: tuple[float, float] | None
    flip: bool
    epochs: int
    batch_size: int
    accumulate: int
    check_every_epochs: int
    num_held_out: int


class Recipe(Protocol):
    """A detector and its training.

    Attributes:
        task: as rows of results have it: rows of one detector are never taken for another's.
        title: for tables.
        masks: whether masks are learned and scored.
    """

    task: str
    title: str

    @property
    def masks(self) -> bool: ...

    def check(self) -> None:
        """Raise UserError for what cannot be meant."""

    def feeding(self) -> Feeding:
        """How pictures come to it."""

    def settings(self) -> dict[str, Any]:
        """Plain data that decides, with the data and the encoder, what comes out."""

    def build(
        self,
        encoder: TokenEncoder,
        train: CocoSet,
        *,
        steps_per_epoch: int,
        seed: int,
        score_held_out: Scorer | None,
        fingerprint: str,
    ) -> TrainedDetector:
        """The module that trains it, with new heads on an encoder (used in place), for the classes of a data set."""


@dataclass(frozen=True)
class MaskRCNNRecipe:
    """Mask R-CNN, or Faster R-CNN without masks.

    Attributes:
        config: of the detector and its training.
    """

    config: DetectionConfig = field(default_factory=DetectionConfig)
    task = "detection"
    title = "Detection"

    @property
    def masks(self) -> bool:
        return self.config.masks

    def check(self) -> None:
        self.config.check()

    def feeding(self) -> Feeding:
        return Feeding(**{one.name: getattr(self.config, one.name) for one in fields(Feeding)})

    def settings(self) -> dict[str, Any]:
        return asdict(self.config)

    def build(
        self,
        encoder: TokenEncoder,
        train: CocoSet,
        *,
        steps_per_epoch: int,
        seed: int,
        score_held_out: Scorer | None,
        fingerprint: str,
    ) -> DetectionModule:
        return DetectionModule(
            encoder,
            self.config,
            num_classes=len(train.classes),
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            score_held_out=score_held_out,
            max_per_img=most_detections(train),
            fingerprint=fingerprint,
        )


@dataclass(frozen=True)
class GroundingDinoRecipe:
    """Grounding DINO with the names of the classes as its prompt; boxes only.

    Attributes:
        recipe: the detector and its training.
        jitter: as of DetectionConfig, and so are the others.
    """

    recipe: DinoRecipe
    jitter: tuple[float, float] | None = None
    flip: bool = True
    check_every_epochs: int = 1
    num_held_out: int = 200
    task = "detection_open"
    title = "Detection by class names (Grounding DINO)"
    masks = False

    def check(self) -> None:
        self.recipe.check()
        # the same bounds, and the same words
        DetectionConfig(**{name: getattr(self, name) for name in _OF_FEEDING}).check()

    def feeding(self) -> Feeding:
        training = self.recipe.training
        return Feeding(
            img_size=self.recipe.img_size,
            epochs=training.epochs,
            batch_size=training.batch_size,
            accumulate=training.accumulate,
            **{name: getattr(self, name) for name in _OF_FEEDING},
        )

    def settings(self) -> dict[str, Any]:
        # a text encoder's name is a folder's, or means "the packaged one": what lies there decides
        _, text_encoder = load_text_encoder(self.recipe.dino.language.model)
        return asdict(self) | {"text_encoder": model_fingerprint(text_encoder)}

    def build(
        self,
        encoder: TokenEncoder,
        train: CocoSet,
        *,
        steps_per_epoch: int,
        seed: int,
        score_held_out: Scorer | None,
        fingerprint: str,
    ) -> OpenVocabularyModule:
        backbone = checked_backbone(encoder, self.recipe.backbone, fingerprint=fingerprint)
        # as many as the data set's evaluation counts, whatever the recipe has for a sentence
        dino = replace(self.recipe.dino, max_per_img=min(self.recipe.dino.num_queries, most_detections(train)))
        return OpenVocabularyModule(
            build_grounding_dino(backbone, dino, seed=seed),
            self.recipe.training,
            config=dino,
            classes=train.classes,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            name=train.name,
            score=None if score_held_out is None else _named(score_held_out),
        )


def _named(score: Scorer) -> Callable[[list[Detections]], dict[str, float]]:
    return lambda found: dict(zip(("box_ap", "box_ap50"), score(found), strict=True))


def choose_recipe(model: str, train: DetectionConfig, *, dino: str | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe that a command asks for.

    Args:
        model: of MODELS.
        train: of `--train`.
        dino: name or file of Grounding DINO's recipe; None is no wish.
        given: what of `--train` was given, by a name and for "backbone" by a name in it.

    Raises:
        UserError: an unknown model or recipe, or settings that the model does not have.
    """
    if model not in MODELS:
        raise UserError(f"--model={model!r} is unknown; it must be one of {', '.join(MODELS)}")
    if model == "mask_rcnn":
        if dino is not None:
            raise UserError(
                f"--dino={dino!r} is not used by --model=mask_rcnn; give --model=grounding_dino, or leave it out"
            )
        return MaskRCNNRecipe(train)
    known = (*_OF_RECIPE, *_OF_TRAINING, *_OF_FEEDING)
    for name, value in given.items():
        if name not in known:
            hint = (
                "it has boxes only"
                if name == "masks"
                else f"its recipe (--dino) and --train.{{{','.join(known)}}} set it"
            )
            raise UserError(
                f"--train.{name}={value!r:.40} is Mask R-CNN's and not used by --model=grounding_dino: {hint}"
            )
    recipe = load_recipe(dino or "grounding_dino_small")
    training = replace(recipe.training, **{name: getattr(train, name) for name in _OF_TRAINING if name in given})
    parts = {"img_size": train.img_size} if "img_size" in given else {}
    if "backbone" in given:
        parts["backbone"] = replace(
            recipe.backbone, **{name: getattr(train.backbone, name) for name in given["backbone"]}
        )
    own = {name: getattr(train, name) for name in _OF_FEEDING}
    return GroundingDinoRecipe(replace(recipe, training=training, **parts), **own)
