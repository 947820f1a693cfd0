import itertools

import numpy as np
import pytest

from benchmarks.probe_grid import Case, summarise, time_case


def test_ratios_by_hand():
    """All: 30 and 50 ms; one: 10 and 20 ms. Best 3.0 times one, 3/14 of fourteen; at the median 40 / 15."""
    found = summarise(Case("x", "", 1, 2, False), {"all": [0.03, 0.05], "one": [0.01, 0.02]}, num_settings=14)
    assert found["best_over_one"] == pytest.approx(3.0)
    assert found["best_over_14_single"] == pytest.approx(3 / 14)
    assert found["median_over_one"] == pytest.approx(40 / 15)
    assert found["median_all_ms"] == pytest.approx(40)
    assert found["rounds"] == 2


@pytest.mark.parametrize("augmented", [False, True])
def test_steps_are_timed_in_turns(augmented):
    """A clock that ticks a second a call: each timed step takes one, whatever it does; the first round is left out."""
    ticks = itertools.count()
    case = Case("x", "random:timm:aimv2_nano_patch4_32[depth=1]", 4, 3, augmented)
    found = time_case(case, rounds=2, clock=lambda: float(next(ticks)))
    assert np.isclose([found["best_all_ms"], found["median_one_ms"]], 1000).all()
    assert found["rounds"] == 2
