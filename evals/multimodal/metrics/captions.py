"""What captions are scored by: CIDEr-D, BLEU and ROUGE-L against the references, and how varied they are.

METEOR and SPICE are not computed: both are Java programs.
"""

from collections.abc import Sequence

import numpy as np

from evals.multimodal.examples import Example, Scores
from evals.multimodal.metrics.bleu import corpus_bleu
from evals.multimodal.metrics.cider import cider_d
from evals.multimodal.metrics.ptb import ptb_tokens
from evals.multimodal.metrics.rouge import rouge_l
from evals.multimodal.metrics.variety import distinct_share, repetition_rate
from pretrain.types import UserError

#: CIDEr-D of a perfect caption, in the metric's own unit.
MAX_CIDER = 10.0


def caption_scores(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """Score one caption of each example against the example's answers.

    Args:
        examples: one a picture, since CIDEr-D weighs words by how many examples have them in a reference.
        texts: the captions, in the same order.

    Returns:
        "cider_d" as papers print it (100 times the mean of 0 to 10: the paper's 94.9 is a mean of 0.949, and 1000 is most), then
        "bleu_4", "bleu_1", "bleu_2", "bleu_3", "rouge_l", "distinct" and "repetition" in percent, and "length_words", the mean
        number of tokens. `score_U` is CIDEr-D in its own unit, 0 to 10 (not 0 to 1), `score_N` is a tenth of it. `details` has
        "blank", the number of captions without a token.

    Raises:
        UserError: an example without a reference that has a word in it.
        ValueError: no examples, or another number of captions.
    """
    if not examples or len(examples) != len(texts):
        raise ValueError(f"{len(texts)} captions to {len(examples)} examples; one for each of at least one is needed")
    references = [[ptb_tokens(answer) for answer in example.answers] for example in examples]
    for example, captions in zip(examples, references):
        if not any(captions):
            raise UserError(
                f"example {example.example_id!r} has no reference caption; at least one with words is needed"
            )
    candidates = [ptb_tokens(text) for text in texts]
    score_U = cider_d(candidates, references)
    bleu = corpus_bleu(candidates, references)
    values = {
        "cider_d": 100 * float(score_U.mean()),
        **{f"bleu_{n}": 100 * bleu[n - 1] for n in (4, 1, 2, 3)},
        "rouge_l": 100 * float(rouge_l(candidates, references).mean()),
        "distinct": distinct_share(texts),
        "repetition": repetition_rate(candidates),
        "length_words": float(np.mean([len(tokens) for tokens in candidates])),
    }
    return Scores(
        values=values,
        score_N=score_U / MAX_CIDER,
        unit_U=np.arange(len(examples), dtype=np.int64),
        score_U=score_U,
        details={"blank": sum(not tokens for tokens in candidates)},
    )
