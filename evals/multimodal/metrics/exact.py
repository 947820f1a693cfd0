"""GQA's accuracy: a text is right where it equals the answer (Hudson & Manning 2019; eval.py of its release).

The release compares texts as they are. A model's text is made comparable the way LLaVA does before it (convert_gqa_for_eval.py):
full stops at its end go, and it is lower-cased. So are the answers here, which changes none of GQA's.
"""

from collections.abc import Sequence

from evals.multimodal.examples import Example, Scores
from evals.multimodal.metrics.answer_text import check_answers, mean_scores


def plain(text: str) -> str:
    """Lower case, without white space at its ends and full stops behind it."""
    return text.strip().rstrip(".").strip().lower()


def gqa_scores(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """Share of texts that equal an answer; an empty text is wrong."""
    check_answers(examples, texts)
    score_N = [
        float(bool(plain(text)) and plain(text) in {plain(answer) for answer in example.answers})
        for example, text in zip(examples, texts)
    ]
    return mean_scores("accuracy", score_N)
