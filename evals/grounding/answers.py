"""What a model answered on a split, as a file that pictures, differences and checks are made from.

Shape letters: N expressions, K boxes.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evals.grounding.expressions import Located
from evals.grounding.ref_set import RefSet
from pretrain.files import write_atomically
from pretrain.types import UserError

_COLUMNS = ("sent_id", "image_id", "score", "x0", "y0", "x1", "y1")


def has_answers(folder: Path, parts: Sequence[RefSet]) -> bool:
    """Whether the answers of all splits lie in a folder still; pictures and differences are made from them."""
    return all((folder / f"answers_{part.split}.csv").is_file() for part in parts)


def write_answers(path: Path, dataset: RefSet, located: Sequence[Located]) -> None:
    """One line for each box, those of a sentence by falling score; in pixels of the file's picture."""
    image_ids = {expression.sent_id: expression.image_id for expression in dataset.expressions}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for answer in located:
        for number in np.argsort(-answer.score_K, kind="stable"):
            box = [f"{value:.3f}" for value in answer.box_K4[number].tolist()]
            writer.writerow([answer.sent_id, image_ids[answer.sent_id], f"{answer.score_K[number]:.5f}", *box])
    write_atomically(path, text.getvalue().encode())


def read_answers(path: Path) -> list[Located]:
    """What :func:`write_answers` wrote, in the order of the file.

    Raises:
        UserError: no such file, or one of another kind.
    """
    found: dict[int, list[list[float]]] = defaultdict(list)
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != _COLUMNS:
                raise ValueError(f"its columns are {reader.fieldnames}")
            for row in reader:
                found[int(row["sent_id"])].append([float(row[name]) for name in _COLUMNS[2:]])
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} holds no answers of a grounding evaluation: {error}") from error
    answers = []
    for sent_id, rows in found.items():
        values = np.array(rows, dtype=np.float32)
        answers.append(Located(sent_id, values[:, 1:], values[:, 0]))
    return answers
