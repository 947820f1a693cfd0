"""Metrics by name, and that all of them keep what `Scores` promises."""

import sys
from types import ModuleType

import numpy as np
import pytest

from evals.multimodal.examples import Example, Scores
from evals.multimodal.metrics.choices import rotations
from evals.multimodal.metrics.registry import METRICS, metric
from pretrain.types import UserError

ANSWERS = {
    "vqa": ("yes",) * 10,
    "textvqa": ("yes",) * 10,
    "gqa": ("yes",),
    "anls": ("yes",),
    "relaxed": ("yes",),
    "choice": ("A",),
    "yes_no": ("yes",),
    "mme": ("yes",),
}


def examples(name):
    """Four examples that "yes" answers (or not, for a circular one)."""
    if name == "circular":
        made = [Example(str(k), k, "?", ("A",), kind="k", choices=("yes", "no")) for k in range(2)]
        return [rotated for one in made for rotated in rotations(one, question="?")]
    return [
        Example(str(k), k, "?", ANSWERS[name], kind="existence", choices=("yes", "no"), group=str(k // 2))
        for k in range(4)
    ]


@pytest.mark.parametrize("name", [*ANSWERS, "circular"])
@pytest.mark.parametrize(("texts", "share"), [(["yes"] * 4, 1.0), ([""] * 4, 0.0), (["yes", "yes", "", ""], 0.5)])
def test_right_and_empty_texts(name, texts, share):
    found = metric(name)(examples(name), texts)
    first = next(iter(found.values.values()))
    assert first == pytest.approx((200 if name == "mme" else 100) * share)
    assert found.score_N.tolist() == [float(text == "yes") for text in texts]
    assert found.unit_U.dtype == np.int64
    assert len(found.unit_U) == len(found.score_U)
    if name == "mme":
        assert not len(found.unit_U)
    else:
        assert first == pytest.approx(100 * found.score_U.mean())


def test_captions_are_imported_when_they_are_used(monkeypatch):
    """The registry hands both arguments on, to whatever `captions` has."""
    wanted = Scores({"cider": 1.0}, np.zeros(1), np.empty(0, dtype=np.int64), np.empty(0))
    seen = []
    module = ModuleType("captions")
    module.caption_scores = lambda examples, texts: seen.append((examples, texts)) or wanted
    monkeypatch.setitem(sys.modules, "evals.multimodal.metrics.captions", module)
    assert metric("captions")(["example"], ["text"]) is wanted
    assert seen == [(["example"], ["text"])]


def test_names():
    assert set(METRICS) == {*ANSWERS, "circular", "captions"}
    with pytest.raises(UserError, match=r"^metric='bleu' is not known; known are vqa, textvqa, gqa, .*captions$"):
        metric("bleu")
