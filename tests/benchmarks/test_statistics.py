import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.statistics import (
    ClaimRule,
    detectable_effect,
    holm,
    judge,
    mean_interval,
    p_value,
    paired_difference,
    summarise,
)
from pretrain.types import UserError

OWN = {0: 61.2, 1: 63.9, 2: 62.5, 3: 64.4, 4: 61.8}
BASE = {0: 60.1, 1: 61.0, 2: 61.9, 3: 62.2, 4: 61.1}
RULES = [
    ClaimRule("higher"),
    ClaimRule("higher", 1),
    ClaimRule("higher", 4),
    ClaimRule("lower"),
    ClaimRule("lower", 1),
    ClaimRule("equal", 1),
    ClaimRule("equal", 5),
]


def pairs(differences, *, base=50.0):
    """The difference of two sides that differ by `differences`; steps of 1/8 are exact."""
    own = {seed: base + difference for seed, difference in enumerate(differences)}
    return paired_difference(own, dict.fromkeys(own, base))


def spread(mean, half, *, n=5):
    """A difference of n pairs whose mean and 95% interval, mean -+ half, are those given."""
    unit = np.array([-2, -1, 0, 1, 2]) if n == 5 else np.arange(n) - (n - 1) / 2
    std = half * math.sqrt(n) / stats.t.ppf(0.975, n - 1)
    return pairs(mean + unit * std / unit.std(ddof=1))


def test_three_pairs_by_hand():
    # differences 1, 2, 3: mean 2; deviation sqrt((1 + 0 + 1) / 2) = 1; standard error 1 / sqrt 3 = 0.57735
    # t(0.975, 2 degrees) = 4.30265 (tables), so the interval is 2 -+ 4.30265 x 0.57735 = 2 -+ 2.48414
    difference = paired_difference({4: 11.0, 7: 13.0, 9: 12.0}, {4: 10.0, 7: 10.0, 9: 10.0})
    assert (difference.mean, difference.std, difference.n, difference.seeds) == (2, 1, 3, (4, 7, 9))
    assert difference.interval == pytest.approx((-0.48414, 4.48414), abs=1e-5)
    # with 2 degrees the t distribution has a closed form: P(T > t) = (1 - t / sqrt(2 + t^2)) / 2; here t = 2 / 0.57735 = sqrt 12
    # so the two-sided p is 1 - sqrt(12 / 14) = 0.07418
    assert p_value(difference, ClaimRule("higher")) == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-12)
    assert judge(difference, ClaimRule("higher"))[0] == "not resolved"
    # the 90% interval: t(0.95, 2 degrees) = 2.91999, 2 -+ 1.68586; inside -+3.7 and not inside -+3.6
    assert judge(difference, ClaimRule("equal", 3.7))[0] == "supported"
    assert judge(difference, ClaimRule("equal", 3.6))[0] == "not resolved"


def test_summary_by_hand():
    # mean (2 + 4 + 9) / 3 = 5; squares 9 + 1 + 16 = 26; deviation sqrt(26 / 2)
    summary = summarise([2, 4, 9])
    assert (summary.mean, summary.n) == (5, 3)
    assert summary.std == pytest.approx(math.sqrt(13))
    assert summarise([3.5]).std is None
    assert mean_interval([3.5]) is None


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_interval_of_the_mean_is_scipys(level):
    values = list(OWN.values())
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert mean_interval(values, level=level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_paired_difference_is_scipys():
    difference = paired_difference(OWN, BASE)
    expected = stats.ttest_rel(list(OWN.values()), list(BASE.values()))
    assert difference.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-12)
    assert p_value(difference, ClaimRule("higher")) == pytest.approx(expected.pvalue, abs=1e-12)
    # pairing matters: the unpaired interval of the same values is another one
    assert difference.interval != pytest.approx(
        tuple(stats.ttest_ind(list(OWN.values()), list(BASE.values())).confidence_interval(0.95)), abs=0.1
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_verdicts_are_those_of_scipys_tests(rule, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(rng.uniform(-3, 3), rng.uniform(0.1, 2), size=rng.integers(2, 7))
    difference = pairs(values)
    n, m = len(values), rule.margin

    def p(alternative, point):
        return stats.ttest_1samp(values, point, alternative=alternative).pvalue

    if rule.expect == "equal":
        tost = max(p("greater", -m), p("less", m))
        supported, contradicted = tost < 0.05, p("greater", m) < 0.025 or p("less", -m) < 0.025
        assert p_value(difference, rule) == pytest.approx(tost, rel=1e-6)
    else:
        point = m if rule.expect == "higher" else -m
        ways = {"higher": ("greater", "less"), "lower": ("less", "greater")}[rule.expect]
        supported, contradicted = (p(way, point) < 0.025 for way in ways)
        assert p_value(difference, rule) == pytest.approx(p("two-sided", point), rel=1e-6)
    expected = "supported" if supported else "contradicted" if contradicted else "not resolved"
    outcome, evidence = judge(difference, rule)
    assert outcome == expected
    assert f"n = {n}" in evidence


@pytest.mark.parametrize(
    ("rule", "mean", "half", "outcome"),
    [
        (ClaimRule("higher"), 2, 1, "supported"),
        (ClaimRule("higher"), 1, 2, "not resolved"),
        (ClaimRule("higher"), -2, 1, "contradicted"),
        (ClaimRule("higher", 1), 3, 1, "supported"),
        (ClaimRule("higher", 1), 1.5, 1, "not resolved"),  # surely above 0, but the margin lies inside
        (ClaimRule("higher", 1), 0.5, 0.25, "contradicted"),  # surely above 0, surely below the margin
        (ClaimRule("lower"), -2, 1, "supported"),
        (ClaimRule("lower"), -1, 2, "not resolved"),
        (ClaimRule("lower"), 2, 1, "contradicted"),
        (ClaimRule("lower", 1), -3, 1, "supported"),
        (ClaimRule("lower", 1), -1.5, 1, "not resolved"),
        (ClaimRule("lower", 1), -0.5, 0.25, "contradicted"),
        (ClaimRule("equal", 1), 0.25, 0.5, "supported"),
        (ClaimRule("equal", 1), 0.5, 0.25, "supported"),  # surely not 0, surely smaller than the margin
        (ClaimRule("equal", 1), -0.25, 2, "not resolved"),
        (ClaimRule("equal", 1), 3, 1, "contradicted"),
        (ClaimRule("equal", 1), -3, 1, "contradicted"),
        # 90% half width is t(0.95) / t(0.975) = 2.132 / 2.776 = 0.768 of the 95% one at 4 degrees: 0.1 + 0.768 < 1 < 0.1 + 1
        (ClaimRule("equal", 1), 0.1, 1, "supported"),
        (ClaimRule("equal", 1), -0.1, 1, "supported"),
        (ClaimRule("equal", 1), 0.3, 1, "not resolved"),
    ],
    ids=str,
)
def test_table_of_outcomes(rule, mean, half, outcome):
    difference = spread(mean, half)
    assert difference.interval == pytest.approx((mean - half, mean + half), abs=1e-9)
    found, evidence = judge(difference, rule)
    assert found == outcome
    assert f"difference {mean:+.3g} (95% interval {mean - half:+.3g} to {mean + half:+.3g}); n = 5" in evidence


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_pair_and_one_pair(rule):
    assert paired_difference({1: 2.0}, {2: 2.0}) is None
    assert judge(None, rule) == ("not run", "no seed was run on both sides")
    one = paired_difference({1: 12.0}, {1: 2.0})
    assert (one.mean, one.std, one.n, one.interval, one.detectable) == (10, None, 1, None, None)
    outcome, evidence = judge(one, rule)
    assert outcome == "not resolved"
    assert "+10, n = 1" in evidence
    assert p_value(one, rule) is None


def test_swapping_sides_mirrors_everything():
    there, back = paired_difference(OWN, BASE), paired_difference(BASE, OWN)
    assert back.mean == pytest.approx(-there.mean)
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))
    for margin in (0.0, 0.5, 1.5, 2.0):
        assert judge(there, ClaimRule("higher", margin))[0] == judge(back, ClaimRule("lower", margin))[0]


def test_unpaired_seeds_are_named_and_left_out():
    whole = paired_difference(OWN, BASE)
    difference = paired_difference(OWN | {9: 0.0}, BASE | {7: 1e6, 12: -5.0})
    assert difference.unpaired == (7, 9, 12)
    assert (difference.mean, difference.interval, difference.seeds) == (whole.mean, whole.interval, whole.seeds)
    evidence = judge(difference, ClaimRule("higher"))[1]
    assert evidence.endswith("left out, on one side only: seeds 7, 9, 12")
    assert "left out" not in judge(whole, ClaimRule("higher"))[1]


def test_equal_differences():
    # 0.3 - 0.1 and 0.4 - 0.2 differ in the last bit: that is no deviation
    difference = paired_difference({0: 0.3, 1: 0.4, 2: 0.7}, {0: 0.1, 1: 0.2, 2: 0.5})
    assert difference.std == 0
    assert difference.interval == pytest.approx((0.2, 0.2))
    assert difference.interval[0] == difference.interval[1]
    assert difference.detectable == 0
    for rule in (ClaimRule("higher"), ClaimRule("lower"), ClaimRule("equal", 0.5), ClaimRule("equal", 0.1)):
        outcome, line = judge(difference, rule)
        assert outcome == "not resolved"
        assert "all differences are equal" in line
        assert p_value(difference, rule) is None


# as G*Power tabulates for pairs: a two-sided t test at 5% reaches 80% power at 199, 34, 15 pairs for d = 0.2, 0.5, 0.8, and not
# with one pair less
@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_detectable_effect_is_the_tabulated_one(effect, n):
    assert detectable_effect(n) <= effect < detectable_effect(n - 1)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_detectable_effect_is_found_in_80_of_100_simulated_studies(n):
    studies = np.random.default_rng(7).normal(detectable_effect(n), 1, size=(40_000, n))
    found = stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05
    # three deviations of the share: 3 sqrt(0.8 x 0.2 / 40,000)
    assert found.mean() == pytest.approx(0.8, abs=0.006)


def test_detectable_effect_falls_with_n_and_scales_with_the_deviation():
    effects = [detectable_effect(n) for n in range(2, 60)]
    assert effects == sorted(effects, reverse=True)
    assert pairs([0, 1, 2, 5]).detectable * 8 == pytest.approx(pairs([0, 8, 16, 40]).detectable)
    assert pairs([-1, 0, 1]).detectable == pytest.approx(detectable_effect(3))


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; none below the one before: 0.02, 0.03, 0.06, 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_keeps_the_order_of_equal_values():
    # 0.02 twice among three: 3 x 0.02, then 2 x 0.02 raised to it
    assert holm([0.02, 0.9, 0.02]) == pytest.approx([0.06, 0.9, 0.06])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: summarise([]), "summary: there are no values"),
        (lambda: summarise([1, math.nan]), "summary: nan is among"),
        (lambda: mean_interval([1, math.inf]), "summary: inf is among"),
        (lambda: paired_difference({0: math.nan}, {0: 1.0}), "difference: nan"),
        (lambda: paired_difference({0: 1.0}, {0: -math.inf}), "difference: -inf"),
        (lambda: ClaimRule("better"), "expect: 'better'"),
        (lambda: ClaimRule("equal"), "margin: 0.0 with expect: equal"),
        (lambda: ClaimRule("equal", math.inf), "margin: inf"),
        (lambda: ClaimRule("higher", -1), "margin: -1 with expect: higher"),
        (lambda: ClaimRule("lower", math.nan), "margin: nan"),
        (lambda: holm([0.1, 1.5]), "p value: 1.5"),
        (lambda: holm([math.nan]), "p value: nan"),
        (lambda: detectable_effect(1), "n: 1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_seed_without_a_pair_may_hold_anything():
    assert paired_difference({0: 1.0, 1: math.nan}, {0: 2.0}).mean == -1
