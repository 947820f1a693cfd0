"""Metrics by the name that a task's config gives: what is right and what was said -> `Scores`."""

from collections.abc import Callable, Mapping, Sequence

from evals.multimodal.examples import Example, Scores
from evals.multimodal.metrics.anls import anls_scores
from evals.multimodal.metrics.choices import choice_scores, circular_scores
from evals.multimodal.metrics.exact import gqa_scores
from evals.multimodal.metrics.relaxed import relaxed_scores
from evals.multimodal.metrics.vqa import textvqa_scores, vqa_scores
from evals.multimodal.metrics.yes_no import mme_scores, yes_no_scores
from pretrain.types import UserError

Metric = Callable[[Sequence[Example], Sequence[str]], Scores]


def _captions(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    # imported when it is used: answers need none of what captions are scored with
    from evals.multimodal.metrics.captions import caption_scores

    return caption_scores(examples, texts)


METRICS: Mapping[str, Metric] = {
    "vqa": vqa_scores,
    "textvqa": textvqa_scores,
    "gqa": gqa_scores,
    "anls": anls_scores,
    "relaxed": relaxed_scores,
    "choice": choice_scores,
    "circular": circular_scores,
    "yes_no": yes_no_scores,
    "mme": mme_scores,
    "captions": _captions,
}


def metric(name: str) -> Metric:
    """The metric of a name; UserError that lists the names for another."""
    if name not in METRICS:
        raise UserError(f"metric={name!r} is not known; known are {', '.join(METRICS)}")
    return METRICS[name]
