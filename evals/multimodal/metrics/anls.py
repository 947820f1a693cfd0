"""Average Normalised Levenshtein Similarity, of DocVQA and InfoVQA (Biten et al. 2019, equation 1).

NL is the edit distance of text and answer (lower case, white space collapsed) over the longer one's length. A text scores 1 - NL
for its best answer, or 0 where it is too far off.

Where exactly half of it is right, paper and evaluator differ: equation 1 gives 0 for NL >= 0.5, the competition's evaluator
(rrc.cvc.uab.es, challenge 17), mmf's and pix2struct's give 0 below 0.5 only and leave 0.5 as it is. Published numbers come from
these, so that they are followed; `details` counts the texts at exactly 0.5, and gives what equation 1 would.
As there, lengths are those of the strings before white space is collapsed.
"""

from collections.abc import Sequence

from evals.multimodal.examples import Example, Scores
from evals.multimodal.metrics.answer_text import check_answers, mean_scores

#: Similarity below which a text counts as another answer, not as a misread one.
MIN_SIMILARITY = 0.5


def edit_distance(first: str, second: str) -> int:
    """Least number of characters inserted, deleted or replaced that make one text of the other (Levenshtein)."""
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for i, char in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            replaced = diagonal + (char != other)
            diagonal = row[j]
            row[j] = min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def similarity(text: str, answer: str) -> float:
    """1 - NL, from 0 to 1, before the threshold. An empty text has 0 with anything."""
    if not text.strip():
        return 0.0
    plain_text, plain_answer = (" ".join(words.lower().split()) for words in (text, answer))
    return 1 - edit_distance(plain_text, plain_answer) / max(len(text.upper()), len(answer.upper()))


def anls_scores(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """ANLS, best over an example's answers.

    Details: "at_threshold", how many texts have a similarity of exactly 0.5, and "anls_by_equation_1", percent, with 0 for these.
    """
    check_answers(examples, texts)
    best_N = [max(similarity(text, answer) for answer in example.answers) for example, text in zip(examples, texts)]
    details = {
        "at_threshold": sum(best == MIN_SIMILARITY for best in best_N),
        "anls_by_equation_1": 100 * sum(best for best in best_N if best > MIN_SIMILARITY) / len(best_N),
    }
    return mean_scores("anls", [best if best >= MIN_SIMILARITY else 0.0 for best in best_N], details)
