"""What a model answered, as a file that is scored, drawn and compared without the model.

One object a line: what was asked and of which picture, what is right, the whole prompt, the answer and its score.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals.multimodal.examples import Answer, Example, ExampleSet, Scores
from evals.multimodal.metrics.registry import metric as find_metric
from evals.statistics import picture_interval
from pretrain.files import write_atomically
from pretrain.types import UserError

_FIELDS = ("id", "picture", "file", "question", "answers", "kind", "choices", "group", "prompt", "answer", "score")


@dataclass(frozen=True)
class Kept:
    """Answers as they are kept, in the order of the set; examples whose picture could not be read are not among them.

    Attributes:
        examples: what was asked.
        answers: what was said.
        files: names of the pictures.
        metric: that `scores` are of.
        scores: of these answers.
    """

    examples: Sequence[Example]
    answers: Sequence[Answer]
    files: Sequence[str]
    metric: str
    scores: Scores

    @property
    def picture_N(self) -> np.ndarray:
        return np.array([example.picture for example in self.examples], dtype=np.int64)

    def interval(self, *, seed: int = 0) -> tuple[float, float] | None:
        """95% over pictures, in percent, of the metric's own number; None where that is no mean."""
        scores = self.scores
        return (
            picture_interval(scores.score_U, self.picture_N[scores.unit_U], seed=seed) if len(scores.unit_U) else None
        )

    def by_kind(self, *, seed: int = 0) -> dict[str, dict[str, object]]:
        """Of each kind of question: the metric's own number over its units, how many there are, 95% over pictures."""
        scores, found = self.scores, {}
        kind_U = np.array([self.examples[number].kind for number in scores.unit_U.tolist()])
        picture_U = self.picture_N[scores.unit_U]
        for kind in sorted(set(kind_U.tolist())):
            own_U = kind_U == kind
            low, high = picture_interval(scores.score_U[own_U], picture_U[own_U], seed=seed)
            value = 100 * float(scores.score_U[own_U].mean())
            found[kind or "all"] = {"value": value, "n": int(own_U.sum()), "interval": [low, high]}
        return found


def score(dataset: ExampleSet, answers: Sequence[Answer], *, metric: str) -> Kept:
    """Score answers; an example without one (its picture could not be read) does not count, nor does the rest of its group.

    Raises:
        UserError: nothing was answered.
    """
    known = {answer.example_id: answer for answer in answers}
    lost = {example.group for example in dataset.examples if example.group and example.example_id not in known}
    examples = [e for e in dataset.examples if e.example_id in known and e.group not in lost]
    if not examples:
        raise UserError(f"{dataset.name} {dataset.split}: none of its pictures can be read")
    kept = [known[example.example_id] for example in examples]
    files = [dataset.pictures.key(example.picture) for example in examples]
    return Kept(examples, kept, files, metric, find_metric(metric)(examples, [answer.text for answer in kept]))


def write_kept(kept: Kept, path: Path) -> None:
    """One line for each example, in order."""
    lines = []
    for example, answer, file, value in zip(kept.examples, kept.answers, kept.files, kept.scores.score_N, strict=True):
        content = {
            "id": example.example_id,
            "picture": example.picture,
            "file": file,
            "question": example.question,
            "answers": list(example.answers),
            "kind": example.kind,
            "choices": list(example.choices),
            "group": example.group,
            "prompt": answer.prompt,
            "answer": answer.text,
            "score": round(float(value), 6),
        }
        lines.append(json.dumps(content))
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def read_kept(path: Path, *, metric: str) -> Kept:
    """Answers that were kept, scored anew.

    Args:
        path: of `write_kept`.
        metric: that they are to be scored by, which may be another one.

    Raises:
        UserError: no such file, or a line that is none of it.
    """
    scorer = find_metric(metric)
    examples, answers, files = [], [], []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} holds no answers: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            if missing := [name for name in _FIELDS if name not in content]:
                raise ValueError(f"{missing[0]!r} is missing")
            example = Example(
                str(content["id"]),
                int(content["picture"]),
                content["question"],
                tuple(content["answers"]),
                content["kind"],
                tuple(content["choices"]),
                content["group"],
            )
            answers.append(Answer(example.example_id, content["answer"], content["prompt"]))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line {number}: this is no answer of an evaluation: {error}") from error
        examples.append(example)
        files.append(content["file"])
    if not examples:
        raise UserError(f"{path} holds no answers: it is empty")
    return Kept(examples, answers, files, metric, scorer(examples, [answer.text for answer in answers]))


def paired(first: Kept, second: Kept, *, seed: int = 0) -> tuple[float, tuple[float, float], int] | None:
    """How far the first is above the second on the units that both have: percentage points, 95% over pictures, units.

    None where their number is no mean, or they have nothing in common.
    """
    tables: list[Mapping[str, float]] = []
    for kept in (first, second):
        ids = [kept.examples[number].example_id for number in kept.scores.unit_U.tolist()]
        tables.append(dict(zip(ids, kept.scores.score_U.tolist(), strict=True)))
    places = {example.example_id: example.picture for example in first.examples}
    shared = [example_id for example_id in tables[0] if example_id in tables[1]]
    if not shared:
        return None
    difference = np.array([tables[0][example_id] - tables[1][example_id] for example_id in shared])
    pictures = np.array([places[example_id] for example_id in shared])
    return 100 * float(difference.mean()), picture_interval(difference, pictures, seed=seed), len(shared)
