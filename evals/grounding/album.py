"""The pictures of a comparison: some sentences with every model's answer, the worst misses, learning curves."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from evals.data.labelled import BadSample
from evals.grounding.answers import read_answers
from evals.grounding.draw import Answered, draw_answers, draw_curves
from evals.grounding.expressions import Expression, Located
from evals.grounding.metrics import MIN_IOU, box_iou
from evals.grounding.ref_set import RefSet
from evals.results import EvalResult
from pretrain.data.storage import spread_order
from pretrain.types import UserError

_NUM_EXAMPLES, _NUM_MISSES = 12, 12


def best_box(answer: Located) -> np.ndarray:
    """The box of the highest score, whatever the order; an empty one where there is none."""
    return answer.box_K4[int(np.argmax(answer.score_K))] if len(answer.score_K) else np.zeros(4, dtype=np.float32)


def load_answers(folder: str | Path, dataset: RefSet) -> dict[int, tuple[np.ndarray, float]]:
    """A model's box and its IoU by sent_id, from the folder of its evaluation.

    Raises:
        UserError: no answers there.
    """
    truth = {expression.sent_id: expression.box for expression in dataset.expressions}
    path, found = Path(folder) / f"answers_{dataset.split}.csv", {}
    for located in read_answers(path):
        if located.sent_id not in truth:
            raise UserError(f"{path}: sentence {located.sent_id} is none of {dataset.name} {dataset.split}")
        box = best_box(located)
        found[located.sent_id] = box, float(box_iou(box, np.array(truth[located.sent_id]))[0, 0])
    return found


def draw_album(
    folder: Path, dataset: RefSet, answers: Mapping[str, Mapping[int, tuple[np.ndarray, float]]], *, about: str
) -> list[Path]:
    """Examples spread over the split, and where the first model is furthest off.

    Args:
        folder: for the PNGs.
        dataset: the split.
        answers: by model, of :func:`load_answers`; the first one is the one that is asked about.
        about: the data set in words, for the pages' headings.

    Returns:
        The files that were written; without misses there is no page of them.
    """
    first = next(iter(answers.values()))
    # sentences that all models answered
    known = [e for e in dataset.expressions if all(e.sent_id in found for found in answers.values())]
    spread = [known[number] for number in islice(spread_order(len(known)), _NUM_EXAMPLES)]
    worst = sorted((e for e in known if first[e.sent_id][1] < MIN_IOU), key=lambda e: (first[e.sent_id][1], e.sent_id))
    # those without any overlap are many: spread over them, one a picture
    misses: dict[int, Expression] = {}
    for number in spread_order(nothing) if (nothing := sum(first[e.sent_id][1] == 0 for e in worst)) else ():
        misses.setdefault(worst[number].image_id, worst[number])
    for expression in worst[nothing:]:
        misses.setdefault(expression.image_id, expression)
    name = next(iter(answers))
    pages = []
    for file, title, chosen in (
        ("examples.png", "Where sentences are placed", spread),
        ("misses.png", f"Worst misses of {name}", list(islice(misses.values(), _NUM_MISSES))),
    ):
        rows = _answered(dataset, answers, chosen)
        if rows:
            pages.append(draw_answers(folder / file, rows, title=title, subtitle=about))
    return pages


def _answered(
    dataset: RefSet, answers: Mapping[str, Mapping[int, tuple[np.ndarray, float]]], chosen: Sequence[Expression]
) -> list[Answered]:
    rows = []
    for expression in chosen:
        boxes = {name: found[expression.sent_id] for name, found in answers.items()}
        try:
            rows.append(Answered(dataset.load(expression.image_id), expression, boxes))
        except BadSample:  # deleted since it was scored; its evaluation has counted what could not be read
            continue
    return rows


def draw_learning(path: Path, labelled: Sequence[tuple[str, EvalResult]], *, title: str) -> Path:
    """The watched split's precision@1 by epoch of each model, over the chance levels of the scored one.

    Args:
        path: the PNG to write.
        labelled: a model's label and a row with `held_out_precision_at_1` and `chance` among its details.
        title: above all.
    """
    curves = {label: row.details["held_out_precision_at_1"] for label, row in labelled}
    chance = labelled[0][1].details["chance"]
    levels = {"any object of the picture": chance["random_object"], "best constant box": chance["constant"]}
    return draw_curves(path, curves, chances=levels, title=title, split=labelled[0][1].details["watched"])
