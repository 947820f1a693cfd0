"""ChartQA's relaxed accuracy (Masry et al. 2022, section 5.1; after Methani et al. 2020): numbers may be 5% off.

As in the implementation that is widely used (google-research/pix2struct, metrics.py): "5%" is the number 0.05; two numbers agree
where |text - answer| / |answer| <= 0.05; where either is no number, or the answer is 0, the strings must be equal but for
capitals ("2,000" is a string, and "0.0" is wrong against "0"). The only difference: what Python reads as infinite or as not a
number ("nan") is a string here, where there it matches nothing, itself included.
"""

import math
from collections.abc import Sequence

from evals.multimodal.examples import Example, Scores
from evals.multimodal.metrics.answer_text import check_answers, mean_scores

MAX_RELATIVE_ERROR = 0.05


def relaxed_match(text: str, answer: str) -> bool:
    """Whether a text agrees with an answer. An empty text agrees with none."""
    text, answer = text.strip(), answer.strip()
    if not text:
        return False
    found, wanted = _number(text), _number(answer)
    if found is not None and wanted:
        return abs(found - wanted) / abs(wanted) <= MAX_RELATIVE_ERROR
    return text.lower() == answer.lower()


def relaxed_scores(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """Share of texts that agree with an answer."""
    check_answers(examples, texts)
    score_N = [
        float(any(relaxed_match(text, answer) for answer in example.answers)) for example, text in zip(examples, texts)
    ]
    return mean_scores("relaxed_accuracy", score_N)


def _number(text: str) -> float | None:
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
