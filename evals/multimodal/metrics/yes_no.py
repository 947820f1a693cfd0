"""Questions that are answered by yes or no: POPE's accuracy, precision, recall and F1, and MME's points.

Their evaluators read a text differently, and both ways are kept: POPE (Li et al. 2023; evaluate.py of its release) takes anything
that does not deny for yes, MME (Fu et al. 2023; calculation.py of its release) takes only what begins with yes or no.

Shape letters: N examples, U units.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from evals.multimodal.examples import Example, Scores
from evals.multimodal.metrics.answer_text import check_answers, mean_scores
from pretrain.types import UserError

#: MME's other four categories (Fu et al. 2023, 2.2), which are no part of its perception score.
COGNITION = frozenset({"commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"})
_QUESTIONS_A_PICTURE = 2


def pope_answer(text: str) -> str:
    """ "no" where the first sentence, without commas, has the word "No", "no" or "not"; "" for an empty text; else "yes"."""
    if not text.strip():
        return ""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def mme_answer(text: str) -> str:
    """What the first four characters contain, "yes" before "no", in any case; "" where they contain neither."""
    start = text.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "")


def yes_no_scores(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """POPE's numbers, percent: accuracy, precision, recall, F1 of "yes", and the share of texts that say yes.

    An empty text is wrong: neither yes nor no (POPE's evaluator takes it for yes). Without any yes, precision and F1 are 0.

    Details: "empty", how many texts are, and for each kind (POPE's random, popular, adversarial) its "accuracy" and "f1".

    Raises:
        UserError: for an answer other than yes or no.
    """
    check_answers(examples, texts)
    pairs = [(_wanted(example), pope_answer(text)) for example, text in zip(examples, texts)]
    by_kind = defaultdict(list)
    for example, pair in zip(examples, pairs):
        by_kind[example.kind].append(pair)
    details = {
        "empty": sum(not found for _, found in pairs),
        "by_kind": {
            kind: {key: _pope(of_kind)[key] for key in ("accuracy", "f1")} for kind, of_kind in by_kind.items()
        },
    }
    found = mean_scores("accuracy", [float(wanted == said) for wanted, said in pairs], details)
    return Scores({**found.values, **_pope(pairs)}, found.score_N, found.unit_U, found.score_U, details)


def mme_scores(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """MME's perception score in points: accuracy + accuracy+ of each category (`kind`), summed; 200 a category at most.

    Accuracy+ is the share of pictures (`group`) both of whose questions are right. Categories of cognition are summed apart
    ("cognition_points", where there are any). A sum is no mean: there are no units.

    Details: "categories", each with "accuracy", "accuracy_plus" (percent) and "points"; "other", texts that are neither.

    Raises:
        UserError: for an answer other than yes or no, an example without kind or group, a picture without exactly two questions
            in a category, or no category of perception.
    """
    check_answers(examples, texts)
    said = [mme_answer(text) for text in texts]
    score_N = np.array([float(_wanted(example) == word) for example, word in zip(examples, said)])
    pictures = defaultdict(list)
    for example, score in zip(examples, score_N):
        if not example.kind or not example.group:
            raise UserError(
                f"example {example.example_id!r} has kind {example.kind!r} and group {example.group!r}; metric 'mme' needs"
                " its category and its picture there"
            )
        pictures[example.kind, example.group].append(score)
    rights = defaultdict(list)
    for (kind, group), scores in pictures.items():
        if len(scores) != _QUESTIONS_A_PICTURE:
            raise UserError(
                f"group {group!r} of kind {kind!r} has {len(scores)} questions; metric 'mme' needs 2 a picture"
            )
        rights[kind].append(scores)
    categories = {kind: _mme_category(np.array(scores)) for kind, scores in rights.items()}
    values = {"score_points": _points(categories[kind] for kind in categories if kind not in COGNITION)}
    if not set(categories) - COGNITION:
        raise UserError(f"kinds {sorted(categories)} are all of cognition; metric 'mme' scores perception")
    if set(categories) & COGNITION:
        values["cognition_points"] = _points(categories[kind] for kind in categories if kind in COGNITION)
    details = {"categories": categories, "other": said.count("")}
    return Scores(values, score_N, np.empty(0, dtype=np.int64), np.empty(0), details)


def _wanted(example: Example) -> str:
    wanted = {answer.strip().lower() for answer in example.answers}
    if wanted not in ({"yes"}, {"no"}):
        raise UserError(f"example {example.example_id!r} has answers {list(example.answers)}; yes or no is needed")
    return wanted.pop()


def _pope(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """From pairs of what is right and what was said."""
    right = sum(wanted == said for wanted, said in pairs)
    hits = pairs.count(("yes", "yes"))
    is_yes, says_yes = (sum(pair[side] == "yes" for pair in pairs) for side in (0, 1))
    return {
        "accuracy": 100 * right / len(pairs),
        "precision": 100 * hits / max(1, says_yes),
        "recall": 100 * hits / max(1, is_yes),
        "f1": 100 * 2 * hits / max(1, is_yes + says_yes),
        "yes_share": 100 * says_yes / len(pairs),
    }


def _mme_category(right_U2: np.ndarray) -> dict[str, float]:
    accuracy, plus = 100 * float(right_U2.mean()), 100 * float(right_U2.all(axis=1).mean())
    return {"accuracy": accuracy, "accuracy_plus": plus, "points": accuracy + plus}


def _points(categories: Iterable[dict[str, float]]) -> float:
    return float(sum(category["points"] for category in categories))
