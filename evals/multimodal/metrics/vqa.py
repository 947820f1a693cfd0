"""VQA soft accuracy: VQAv2's and OK-VQA's ("vqa"), and TextVQA's ("textvqa").

Of n answers each is left out once, and a text scores min(1, matches / 3) against the others; the mean over the n is its accuracy
(Antol et al. 2015; Goyal et al. 2017). With ten answers 0, 1, 2, 3, 4 matches are 0, 0.3, 0.6, 0.9, 1. With fewer than four even
a perfect text stays below 1; with one it would always be 0, so that this is an error.

The two evaluators differ in how they compare texts, and only in this:
- VQAv2's (GT-Vision-Lab/VQA, vqaEval.py) normalises text and answers only where the answers are not all the same. Where they are,
  the text must equal them as it stands, capitals included: "Yes" is wrong against ten times "yes", and "2" is against ten times
  "two". (An older version, which many projects carry, normalised every text, but of the answers the punctuation only.) Who
  reports numbers often normalises texts before they are submitted, as LLaVA's conversion script does; `details` has the
  accuracy that always normalising gives.
- TextVQA's (mmf's EvalAIAnswerProcessor) always normalises both; it removes commas and question marks before anything else, so
  that "red,blue" is "redblue" (VQAv2: "red blue") and "1,000-2" is "1000 2" (VQAv2: "10002"); and it splits "'s" off ("men's" is
  "men 's"). Tables of contractions, number words and articles are the same.

An empty text is wrong, whatever the answers.
"""

from collections.abc import Sequence

from evals.multimodal.examples import Example, Scores
from evals.multimodal.metrics.answer_text import (
    check_answers,
    mean_scores,
    one_line,
    textvqa_normalised,
    vqa_normalised,
)
from pretrain.types import UserError

#: So many people who agree make an answer right.
_AGREEING = 3


def soft_accuracy(text: str, answers: Sequence[str]) -> float:
    """Mean over the leave-one-out subsets of min(1, matches / 3), from 0 to 1; texts are compared as they are."""
    matches, others = answers.count(text), len(answers) - answers.count(text)
    left_in, left_out = (min(1.0, count / _AGREEING) for count in (matches, max(0, matches - 1)))
    return (others * left_in + matches * left_out) / len(answers)


def vqa_scores(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """VQAv2's accuracy.

    Details: "always_normalised", percent, and "lost_unnormalised", how many texts are only wrong because their answers are all
    the same, so that neither side was normalised.

    Raises:
        UserError: for an example with fewer than two answers.
    """
    _check(examples, texts, metric="vqa")
    official, normalised = [], []
    for example, text in zip(examples, texts):
        answers, found = [one_line(answer) for answer in example.answers], one_line(text)
        normal = [vqa_normalised(answer) for answer in answers]
        normalised.append(soft_accuracy(vqa_normalised(found), normal) if found else 0.0)
        if len(set(answers)) > 1:
            official.append(normalised[-1])
        else:
            official.append(soft_accuracy(found, answers) if found else 0.0)
    details = {
        "always_normalised": 100 * sum(normalised) / len(normalised),
        "lost_unnormalised": sum(a < b for a, b in zip(official, normalised)),
    }
    return mean_scores("vqa_accuracy", official, details)


def textvqa_scores(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """TextVQA's accuracy. UserError for an example with fewer than two answers."""
    _check(examples, texts, metric="textvqa")
    score_N = [
        soft_accuracy(textvqa_normalised(text), [textvqa_normalised(answer) for answer in example.answers])
        if text.strip()
        else 0.0
        for example, text in zip(examples, texts)
    ]
    return mean_scores("textvqa_accuracy", score_N)


def _check(examples: Sequence[Example], texts: Sequence[str], *, metric: str) -> None:
    check_answers(examples, texts)
    for example in examples:
        if len(example.answers) < 2:
            raise UserError(
                f"example {example.example_id!r} has 1 answer; metric {metric!r} leaves one out and needs 2 or more"
            )
