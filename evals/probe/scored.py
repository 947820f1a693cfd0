"""What modules that classify share: batches of labelled pictures, bounded faults, and scores of a test set.

Shape letters: B batch, C classes or channels, H/W pixels, T tokens, D width, S pictures that were scored.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import lightning
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from evals.data.loading import MAX_FAULT_SHARE, MIN_COUNTED
from pretrain.types import Fault, UserError

#: While a part is gone through, the share of unreadable pictures is taken of at least so many.
_MIN_SEEN = 1000


@dataclass
class ProbeBatch:
    """Labelled pictures, as pixels or as features.

    Attributes:
        features: tokens [B, T, D] or summaries [B, D], float; None where pictures are given.
        image_BCHW: uint8; None where features are given.
        label_B: int64.
        index_B: int64, the pictures' numbers in their set.
        faults: what could not be read, and is not in the batch.
    """

    features: Tensor | None
    image_BCHW: Tensor | None
    label_B: Tensor
    index_B: Tensor
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.label_B)

    def _map_tensors(self, function: Callable[[Tensor], Tensor]) -> "ProbeBatch":
        changed = {f.name: function(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ProbeBatch":
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ProbeBatch":
        return self._map_tensors(Tensor.pin_memory)


@dataclass(frozen=True)
class TestScores:
    """Scores on the test set, in percent.

    Attributes:
        top1: accuracy.
        top5: share of pictures whose class is among the five likeliest (all, where there are fewer classes).
        per_class: accuracy by class.
        best_on_test: of all settings of a probe the best top1 on the test set, where that was asked for: an optimistic figure.
        tested: int64 [S, 2 + 5]: a picture's number, its label, the likeliest classes.
    """

    top1: float
    top5: float
    per_class: list[float]
    best_on_test: float | None
    tested: Tensor


class ScoredModule(lightning.LightningModule):
    """A module that classifies pictures: counts what cannot be read, and scores the test set.

    Attributes:
        num_read: pictures of this pass through a part of the data.
        faults: what could not be read in this pass.
        scores: of the test set, once it has been gone through.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_read, self.faults = 0, []
        self._earlier_faults: set[str] = set()
        self.test_metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(num_classes, average="micro"),
                "top5": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes)),
                "per_class": MulticlassAccuracy(num_classes, average="none"),
            },
            compute_groups=False,
        )
        self._tested: list[Tensor] = []
        self.scores: TestScores | None = None

    @property
    def unreadable(self) -> set[str]:
        """Names of all pictures that could not be read, those before an interruption included."""
        return self._earlier_faults | {fault.key for fault in self.faults}

    def _begin_part(self) -> None:
        """Every pass is bounded for itself: a bad test set must not hide behind many epochs of good training pictures."""
        self._earlier_faults = self.unreadable
        self.num_read, self.faults = 0, []

    def on_train_epoch_start(self) -> None:
        self._begin_part()

    def on_validation_epoch_start(self) -> None:
        self._begin_part()

    def check_faults(self, *, at_least: int = MIN_COUNTED) -> None:
        """Raise UserError where too many pictures of this pass could not be read; `at_least` counts as many as were seen."""
        total = self.num_read + len(self.faults)
        if len(self.faults) > MAX_FAULT_SHARE * max(total, at_least):
            raise UserError(
                f"{len(self.faults):,} of {total:,} pictures could not be read, more than {MAX_FAULT_SHARE:.0%}; the last: "
                f"{self.faults[-1].kind}: {self.faults[-1].key}"
            )

    def usable(self, batch: ProbeBatch) -> bool:
        """Count what could not be read; False where nothing is left of the batch.

        Raises:
            UserError: too much could not be read.
        """
        self.num_read += len(batch)
        self.faults += batch.faults
        self.check_faults(at_least=_MIN_SEEN)
        return len(batch) > 0

    def on_test_epoch_start(self) -> None:
        self._begin_part()
        self._tested = []

    def record(self, batch: ProbeBatch, logits_BC: Tensor) -> None:
        """Count a batch of the test set."""
        self.test_metrics.update(logits_BC, batch.label_B)
        top_BK = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices
        self._tested.append(torch.cat([batch.index_B[:, None], batch.label_B[:, None], top_BK], dim=1).cpu())

    def collect(self, *, best_on_test: float | None = None) -> TestScores:
        """What was recorded, as scores."""
        self.check_faults()
        scores = self.test_metrics.compute()
        self.test_metrics.reset()
        tested = torch.cat(self._tested)
        per_class_C = (100 * scores["per_class"]).tolist()
        top1, top5 = 100 * float(scores["top1"]), 100 * float(scores["top5"])
        return TestScores(top1, top5, per_class_C, best_on_test, tested[tested[:, 0].argsort()])
