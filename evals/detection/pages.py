"""Pages of pictures of scored detectors: examples, precision and recall, learning curves, worst misses."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from evals.data.labelled import BadSample
from evals.detection.coco_eval import CocoScores
from evals.detection.coco_records import Json
from evals.detection.coco_set import CocoSet
from evals.detection.curves import draw_learning_curves, draw_precision_recall
from evals.detection.draw import Example, draw_examples, draw_misses
from evals.detection.misses import OVERLAP, WorstMisses, nothing_found, overlaps, worst_misses
from evals.detection.samples import Detections
from evals.detection.scoring import Outcome

#: Pictures on the page of examples, and on that of the worst misses.
NUM_EXAMPLES, NUM_MISSES = 9, 8


def draw_pages(
    test: CocoSet, truth: Json, outcomes: Mapping[str, Outcome], chance: Outcome, folder: Path
) -> list[Path]:
    """Draw what there is to show.

    Args:
        test: the test set.
        truth: its ground truth.
        outcomes: by label, the first one's misses are shown.
        chance: the picture-blind baseline.
        folder: for the PNG files.

    Returns:
        The files.
    """
    found = {label: {one.image_id: one for one in outcome.found} for label, outcome in outcomes.items()}
    title = f"{test.name}{' (synthetic)' if test.synthetic else ''}"
    examples = list(islice(_examples(test, found), NUM_EXAMPLES))
    paths = []
    if examples:
        page = folder / "examples.png"
        paths.append(draw_examples(page, examples, classes=test.classes, title="Detections", subtitle=title))
    for kind in chance.scores:
        scores = {label: outcome.scores[kind] for label, outcome in outcomes.items()}
        # LVIS's evaluation has no curve at one overlap, and 1,203 of them would show nothing
        if all(isinstance(one, CocoScores) for one in scores.values()):
            page = folder / f"precision_recall_{kind}.png"
            paths.append(draw_precision_recall(page, scores, title=f"{title}: {kind}"))
    curves = {label: outcome.curve for label, outcome in outcomes.items() if outcome.curve}
    if curves:
        level = (chance.scores["box"].ap or 0.0, chance.scores["box"].ap50 or 0.0)
        heading = f"{title}: boxes on held-out training pictures"
        paths.append(draw_learning_curves(folder / "learning_curves.png", curves, chance=level, title=heading))
    label, first = next(iter(outcomes.items()))
    return paths + _misses(test, truth, first.found, folder, label=label, subtitle=title)


def _examples(test: CocoSet, found: Mapping[str, Mapping[int, Detections]]) -> Iterator[Example]:
    """The test set's first pictures; those that cannot be read were counted when they were scored."""
    for index in range(len(test)):
        try:
            image, objects = test.load(index)
        except BadSample:
            continue
        image_id = int(test.image_ids[index])
        answers = {label: own.get(image_id, nothing_found(image_id)) for label, own in found.items()}
        yield Example(image, objects, answers)


def _misses(
    test: CocoSet, truth: Json, found: Sequence[Detections], folder: Path, *, label: str, subtitle: str
) -> list[Path]:
    counted = judged(truth, found, category_ids=test.category_ids) if test.lvis else found
    misses = worst_misses(truth, counted, category_ids=test.category_ids, num=NUM_MISSES)
    place = {int(image_id): index for index, image_id in enumerate(test.image_ids)}
    images = {}
    for image_id in {miss.image_id for miss in (*misses.wrong, *misses.missed)}:
        with suppress(BadSample):
            images[image_id] = test.load(place[image_id])
    seen = [[miss for miss in part if miss.image_id in images] for part in (misses.wrong, misses.missed)]
    misses = WorstMisses(*seen)
    if not images:
        return []
    page, heading = folder / "worst_misses.png", f"Worst misses: {label}"
    return [draw_misses(page, misses, images=images, classes=test.classes, title=heading, subtitle=subtitle)]


def judged(truth: Json, found: Sequence[Detections], *, category_ids: Sequence[int]) -> list[Detections]:
    """Detections that LVIS's annotations can tell to be right or wrong; the others are left out, as its evaluation does.

    These are of categories that the picture has or was searched for in vain; of those that are not annotated to the end, which
    overlap an object of theirs.

    Args:
        truth: in LVIS's layout.
        found: detections of its pictures.
        category_ids: LVIS's number of each class.
    """
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    images = {image["id"]: image for image in truth["images"]}
    boxes: dict[tuple[int, int], list[list[float]]] = {}
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        key = annotation["image_id"], label_of[annotation["category_id"]]
        boxes.setdefault(key, []).append([x, y, x + width, y + height])
    kept = []
    for one in found:
        image = images[one.image_id]
        absent = {label_of[category_id] for category_id in image["neg_category_ids"]}
        partial = {label_of[category_id] for category_id in image["not_exhaustive_category_ids"]}
        kept_K = np.zeros(len(one), dtype=bool)
        for place, label in enumerate(one.label_K.tolist()):
            own = boxes.get((one.image_id, label), [])
            near = bool(own) and overlaps(one.box_K4[place : place + 1], np.array(own)).max() >= OVERLAP
            kept_K[place] = near if label in partial else bool(own) or label in absent
        kept.append(replace(one, **_chosen(one, kept_K)))
    return kept


def _chosen(found: Detections, kept_K: np.ndarray) -> dict[str, object]:
    masks = None if found.masks is None else [found.masks[place] for place in np.flatnonzero(kept_K)]
    arrays = {name: getattr(found, name)[kept_K] for name in ("box_K4", "score_K", "label_K")}
    return {**arrays, "masks": masks}
