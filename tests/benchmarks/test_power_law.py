import math

import numpy as np
import pytest
from scipy.optimize import least_squares

from benchmarks.least_squares import PowerSum
from benchmarks.power_law import fit_joint, fit_power_law, pareto
from benchmarks.resampling import counts, percentiles
from pretrain.types import UserError

X = np.geomspace(1e6, 1e9, 8)
SIZES, SAMPLES = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(1e6, 1e9, 5)))
#: Hoffmann et al. 2022, section D.2: L = 1.69 + 406.4 N^-0.34 + 410.7 D^-0.28.
JOINT = 1.69 + 406.4 * SIZES**-0.34 + 410.7 * SAMPLES**-0.28


def noisy(y, *, noise=0.01, seed=0):
    return y * np.exp(noise * np.random.default_rng(seed).standard_normal(np.shape(y)))


@pytest.mark.parametrize(("E", "A", "alpha"), [(1.7, 400, 0.34), (0.2, 30, 0.1), (3, 1e5, 1.2), (0, 5, 0.05)])
def test_exact_points_give_their_law(E, A, alpha):
    law = fit_power_law(X, E + A * X**-alpha, num_bootstrap=50)
    assert (law.E, law.A, law.alpha) == pytest.approx((E, A, alpha), rel=1e-4, abs=1e-6)
    assert law.r2 == pytest.approx(1)
    assert law.interval_alpha == pytest.approx((alpha, alpha), rel=1e-3)
    assert law.predict(1e12).value == pytest.approx(E + A * 1e12**-alpha, rel=1e-5)
    assert law.n == 8


def test_without_offset_the_fit_is_a_straight_line_of_logarithms():
    y = noisy(3 * X**-0.1)
    law = fit_power_law(X, y, offset=False, num_bootstrap=200)
    slope, start = np.polyfit(np.log(X), np.log(y), 1)
    assert (law.alpha, math.log(law.A)) == pytest.approx((-slope, start), rel=1e-6)
    assert law.E == 0
    assert law.interval_E is None
    assert law.r2 == pytest.approx(np.corrcoef(np.log(X), np.log(y))[0, 1] ** 2, rel=1e-6)
    assert np.array(law.residuals) == pytest.approx(np.log(y) - start - slope * np.log(X), abs=1e-7)
    # draws are least squares of the resampled points
    weights_R8 = counts(8, None, num_bootstrap=200, seed=0)
    slopes = [
        np.polyfit(np.log(X), np.log(y), 1, w=np.sqrt(weights))[0]
        for weights in weights_R8
        if np.count_nonzero(weights) > 1
    ]
    assert law.draws_R3[:, 2] == pytest.approx(-np.array(slopes), abs=1e-6)


def test_growing_values_have_an_exponent_below_0():
    assert fit_power_law([1, 2, 4], [3, 12, 48], offset=False).alpha == pytest.approx(-2)


@pytest.mark.parametrize("huber", [None, 0.01])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_solver_finds_scipys_minimum(huber, seed):
    y = noisy(1.7 + 400 * X**-0.34, noise=0.02, seed=seed)
    law = fit_power_law(X, y, huber=huber, num_bootstrap=0)
    log_x = np.log(X / 3e7)

    def residual(p):
        return np.log(p[0] + np.exp(p[1] - p[2] * log_x)) - np.log(y)

    loss = {"loss": "linear"} if huber is None else {"loss": "huber", "f_scale": huber}
    fits = [
        least_squares(
            residual, [E, 0, alpha], bounds=([0, -20, -2], [9, 9, 2]), xtol=1e-12, ftol=1e-12, gtol=1e-12, **loss
        )
        for E, alpha in ((0.1, 0.1), (1.8, 0.5))
    ]
    best = min(fits, key=lambda fit: fit.cost)
    assert (law.E, law.alpha) == pytest.approx((best.x[0], best.x[2]), rel=2e-3, abs=1e-4)


def test_the_slopes_are_those_of_finite_differences():
    problem = PowerSum([SIZES, SAMPLES], JOINT, offset=True, huber=None)
    point = np.array([[0.4, -1.2, 0.3, -0.7, 0.2]])
    _, slope = problem._model(point)
    for p in range(5):
        step = np.zeros((1, 5))
        step[0, p] = 1e-6
        numeric = (problem.residuals(point + step) - problem.residuals(point - step)) / 2e-6
        assert slope[0, :, p] == pytest.approx(numeric[0], abs=1e-8)


def test_huber_forgives_one_run_that_went_wrong():
    y = noisy(1.7 + 400 * np.repeat(X, 2) ** -0.34, noise=1e-3)
    y[5] *= 1.3
    plain, robust = (fit_power_law(np.repeat(X, 2), y, huber=huber, num_bootstrap=0) for huber in (None, 1e-3))
    assert robust.alpha == pytest.approx(0.34, abs=0.01)
    assert abs(plain.alpha - 0.34) > 3 * abs(robust.alpha - 0.34)
    assert "Huber's loss (0.001)" in robust.method


def test_units_do_not_matter():
    y = noisy(1.7 + 400 * X**-0.34)
    law = fit_power_law(X, y, num_bootstrap=200)
    other = fit_power_law(X / 1e9, 60 * y, num_bootstrap=200)
    assert other.alpha == pytest.approx(law.alpha, rel=1e-5)
    assert other.interval_alpha == pytest.approx(law.interval_alpha, rel=1e-3)
    assert pytest.approx((60 * law.E, 60 * law.A * 1e9**-law.alpha), rel=1e-4) == (other.E, other.A)
    assert other.predict(5.0).value == pytest.approx(60 * law.predict(5e9).value, rel=1e-6)


def _covers(interval, truth):
    return interval[0] <= truth <= interval[1]


@pytest.mark.parametrize("offset", [True, False])
def test_intervals_cover_the_truth_in_about_95_of_100_studies(offset):
    # binomial: at a true 95% fewer than 52 of 60 have a chance of 1 in 140; intervals of half the width cover about 67%
    x, E = np.repeat(np.geomspace(1e6, 1e9, 6), 2), 1.0 if offset else 0.0
    truth = E + 0.3 * (x / x.max()) ** -0.3
    laws = [
        fit_power_law(x, noisy(truth, noise=0.005, seed=seed), offset=offset, num_bootstrap=200, seed=seed)
        for seed in range(60)
    ]
    ahead = [law.predict(4 * x.max()) for law in laws]
    found = [
        sum(_covers(law.interval_alpha, 0.3) for law in laws),
        sum(_covers((at.low, at.high), E + 0.3 * 4**-0.3) for at in ahead),
    ]
    if offset:
        found.append(sum(_covers(law.interval_E, E) for law in laws))
    assert min(found) >= 52
    assert np.median([law.interval_alpha[1] - law.interval_alpha[0] for law in laws]) < 0.06


def test_same_seed_same_interval():
    y = noisy(1.7 + 400 * X**-0.34)
    first, again, other = (fit_power_law(X, y, num_bootstrap=100, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.interval_alpha != other.interval_alpha
    assert "100 bootstrap resamples of runs, seed 3" in first.method


def test_resamples_draw_groups_as_a_whole():
    drawn = counts(6, ["a", "a", "b", "b", "b", "c"], num_bootstrap=500, seed=0)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 2] == drawn[:, 4]).all()
    assert (drawn[:, [0, 2, 5]].sum(1) == 3).all()
    assert drawn.mean(0) == pytest.approx(np.ones(6), abs=0.1)


def test_failed_resamples_are_counted():
    # 3 values of x, 2 parameters, 3 runs: a resample of a single one of them, 3 of 27, has no slope
    law = fit_power_law([1, 2, 4], [3.0, 2.1, 1.4], offset=False, num_bootstrap=4000)
    assert law.failed_share == pytest.approx(1 / 9, abs=0.015)
    assert len(law.draws_R3) == round(4000 * (1 - law.failed_share))
    assert f"{law.failed_share:.1%} failed" in law.method


def test_no_interval_where_most_resamples_fail():
    # groups by x, three of them and 3 parameters: only the 6 of 27 resamples that hold all three can be fitted
    x, y = [1, 1, 2, 2, 4, 4], [3.0, 3.1, 2.2, 2.25, 1.8, 1.81]
    law = fit_power_law(x, y, groups=x, num_bootstrap=400)
    assert law.failed_share == pytest.approx(7 / 9, abs=0.07)
    assert (law.interval_alpha, law.interval_E, law.draws_R3, law.predict(8).low) == (None, None, None, None)
    assert law.num_drawn == 3


def test_no_resamples_no_interval():
    law = fit_power_law([1, 2, 4, 8], [3.0, 2.2, 1.8, 1.6], num_bootstrap=0)
    assert (law.interval_alpha, law.failed_share, law.predict(16).low) == (None, 0, None)


def test_predictions_of_arrays():
    law = fit_power_law(X, noisy(1.7 + 400 * X**-0.34), num_bootstrap=200)
    at = law.predict(np.array([[1e6, 1e9], [1e10, 1e12]]))
    assert at.value == pytest.approx(law.E + law.A * np.array([[1e6, 1e9], [1e10, 1e12]]) ** -law.alpha)
    assert at.low.shape == at.high.shape == (2, 2)
    assert (at.low <= at.value).all()
    assert (at.value <= at.high).all()
    width = at.high - at.low
    assert width[1, 1] > width[1, 0] > width[0, 1]  # wider the further from the points


def test_joint_law_of_the_paper_and_its_split():
    law = fit_joint(SIZES, SAMPLES, JOINT, num_bootstrap=20)
    assert (law.E, law.alpha, law.beta) == pytest.approx((1.69, 0.34, 0.28), rel=1e-5)
    assert pytest.approx((406.4, 410.7), rel=1e-4) == (law.A, law.B)
    # beta / (alpha + beta) = 0.28 / 0.62
    assert law.optimal_exponent == pytest.approx(0.28 / 0.62, rel=1e-5)
    num_params, num_samples = law.optimal(1e18, flops_per_param_and_sample=6)
    assert 6 * num_params * num_samples == pytest.approx(1e18)
    sizes = num_params * np.linspace(0.5, 2, 301)
    best = sizes[law.predict(sizes, 1e18 / 6 / sizes).value.argmin()]
    assert best == pytest.approx(num_params, rel=0.006)
    # 16 times the budget: 16^0.4516 = 3.498 times the parameters
    assert law.optimal(16e18, flops_per_param_and_sample=6)[0] / num_params == pytest.approx(3.498, abs=2e-3)


def test_joint_intervals_hold_the_truth():
    law = fit_joint(SIZES, SAMPLES, noisy(JOINT, noise=0.003), num_bootstrap=200)
    assert _covers(law.interval_alpha, 0.34)
    assert _covers(law.interval_beta, 0.28)
    assert _covers(law.interval_E, 1.69)
    assert _covers(law.interval_optimal_exponent, 0.28 / 0.62)
    low, high = law.interval_optimal_exponent
    assert high - low < 0.1
    assert law.predict(SIZES, SAMPLES).value.shape == (25,)


def test_no_best_split_where_samples_do_no_good():
    law = fit_joint(SIZES, SAMPLES, 1 + 40 * SIZES**-0.3 + 1e-4 * SAMPLES**0.3, num_bootstrap=0)
    with pytest.raises(UserError, match="best split needs both above 0"):
        law.optimal(1e18, flops_per_param_and_sample=6)


def test_percentiles_are_students_for_a_mean():
    # of draws that are normal with the plug-in deviation s sqrt((n - 1) / n) of n values, the ends are mean -+ t s / sqrt n
    n, draws = 5, np.random.default_rng(0).normal(0, math.sqrt(4 / 5) / math.sqrt(5), size=400_000)
    low, high = percentiles(draws, num_drawn=n)
    assert (low, high) == pytest.approx((-2.776 / math.sqrt(5), 2.776 / math.sqrt(5)), rel=0.02)


def test_frontier_by_hand():
    # 0 beats 1 (dearer, worse); 2 is cheapest; 4 costs as 0 and loses less; 5 is as good as 4 and dearer; 6 equals 4
    cost, loss = [4, 5, 1, 9, 4, 8, 4], [3.0, 3.1, 4.0, 1.0, 2.0, 2.0, 2.0]
    assert pareto(cost, loss) == [2, 4, 3]
    assert pareto([3], [1.0]) == [0]
    assert pareto([], []) == []
    assert pareto([2, 1, 3], [5, 5, 5]) == [1]


BAD = [
    (lambda: fit_power_law([1, 2, 4], [3, 2, 1]), "x: 3 points; a fit of 3 parameters needs at least 4"),
    (lambda: fit_power_law([1, 2], [3, 2], offset=False), "x: 2 points; a fit of 2 parameters needs at least 3"),
    (lambda: fit_power_law([1, 1, 2, 2], [3, 3, 2, 2]), "x: 2 different values"),
    (lambda: fit_power_law([1, 1, 1], [3, 3, 2], offset=False), "x: 1 different values"),
    (lambda: fit_power_law([0, 1, 2, 4], [4, 3, 2, 1]), "x: 0.0 is among"),
    (lambda: fit_power_law([1, 2, 4, 8], [4, 3, math.nan, 1]), "loss: nan is among"),
    (lambda: fit_power_law([1, 2, 4, math.inf], [4, 3, 2, 1]), "x: inf is among"),
    (lambda: fit_power_law([1, 2, 4, 8], [4, 3, 2, -1]), "loss: -1.0 is among"),
    (lambda: fit_power_law([1, 2, 4, 8], [4, 3, 2]), "x: shape"),
    (lambda: fit_power_law([1, 2, 4, 8], [4, 3, 2, 1], num_bootstrap=-1), "num_bootstrap: -1"),
    (lambda: fit_power_law([1, 2, 4, 8], [4, 3, 2, 1], groups=[1, 2]), "groups: 2 for 4 points"),
    (lambda: fit_power_law([1, 2, 4, 8], [4, 3, 2, 1], groups=[1] * 4), "groups: all points are of 1"),
    (lambda: fit_power_law([1, 2, 4, 8], [4, 3, 2, 1], huber=0), "huber: 0"),
    (lambda: fit_power_law([1, 2, 4, 8, 16], [2, 1, 1, 1, 1]), "determine no exponent"),
    (lambda: fit_power_law([1, 2, 4, 8], [2, 2, 2, 2]), "loss: 2.0 at every point"),
    (lambda: fit_joint(SIZES[:5], SAMPLES[:5], JOINT[:5]), "5 points; a fit of 5 parameters needs at least 6"),
    (lambda: fit_joint([1] * 6, [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]), "num_params: 1 different values"),
    (lambda: fit_power_law(X, 9 * X**-0.1, offset=False, num_bootstrap=0).predict(0), "x: 0.0"),
    (lambda: pareto([1, 2], [1]), "cost: 2 values beside 1"),
    (lambda: pareto([1, math.nan], [1, 2]), "not finite"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_refusals(make, message):
    with pytest.raises(UserError, match=message):
        make()
