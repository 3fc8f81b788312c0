"""Intervals of a law: against exact ones where those are known, and how often they hold the truth."""

import tracemalloc

import numpy as np
import pytest
from interval_coverage import simulate
from scipy import stats

from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.law.intervals import gain_interval, loss_interval, param_intervals, parameter_draws
from hf_ppl_select.law.posterior.draws import draw_posterior
from hf_ppl_select.law.posterior.run_noise import RunCoordinates

NUM_TOKENS = (8192, 16384, 32768)


def make_rows(num_runs=10, noise=0.005, run_noise=0.005, seed=0, num_tokens=NUM_TOKENS):
    rng = np.random.default_rng(seed)
    rows = []
    for run in range(num_runs):
        m, s, shift = rng.uniform(2.2, 3.8), rng.uniform(0.1, 0.6), run_noise * rng.normal()
        for d in num_tokens:
            loss = 1.2 + np.exp(2 - 0.2 * np.log(d) - 0.1 * m + 0.05 * np.log(s)) + shift + noise * rng.normal()
            moments = {"mu": np.exp(m + s**2 / 2), "sigma": np.exp(m) * s, "log_mu": m, "log_sigma": s}
            rows.append({"run": f"r{run}", **moments, "num_tokens": d, "loss": loss})
    return rows


@pytest.fixture(scope="module")
def law():
    return fit_scaling_law(make_rows(), form="no_interaction", space="log")


# The posterior


def test_shared_noise_gives_students_t_with_the_runs_to_spare():
    """Runs that differ by shifts alone, no features: the mean's interval is c ± t(G - 1) * std / sqrt(G)."""
    D, runs = np.array(NUM_TOKENS), np.repeat(np.arange(8), 3)
    X = np.stack([np.ones(24), -np.tile(np.log(D), 8)], axis=1)
    for seed in range(3):
        shift = 0.01 * np.random.default_rng(seed).standard_normal((8, 1))
        loss = 1.2 + (D / 16384) ** -0.2 + shift
        draws = draw_posterior(X, loss.ravel(), runs, 4000, np.random.default_rng(seed))
        mean = draws.predict(np.array([1, -np.log(16384)]))
        exact = 2.2 + shift.mean() + stats.t.ppf([0.025, 0.975], 7) * shift.std(ddof=1) / np.sqrt(8)
        assert np.quantile(mean, [0.025, 0.975]) == pytest.approx(exact, abs=0.08 * np.ptp(exact) / 2)
        assert np.median(draws.noise.between) * 2.2 == pytest.approx(shift.std(ddof=1) * 1.05, rel=0.1)


def test_both_kinds_of_noise_are_found():
    for run_noise, noise in ((0.02, 0.005), (0.001, 0.02)):
        rows = make_rows(120, noise, run_noise)
        draws = parameter_draws(fit_scaling_law(rows, form="no_interaction", space="log"), 500)
        loss = np.mean([row["loss"] for row in rows])
        assert np.median(draws.noise.within) * loss == pytest.approx(noise, rel=0.12)
        total = np.hypot(run_noise, noise)
        assert np.median(draws.noise.total) * loss == pytest.approx(total, rel=0.12)
        assert (np.median(draws.noise.between) * loss < 0.3 * noise) == (run_noise < noise)


def test_noiseless_points_leave_no_doubt():
    law = fit_scaling_law(make_rows(noise=0, run_noise=0), form="no_interaction", space="log")
    low, high = law.interval(3.0, 0.3, 20_000)
    assert high - low < 1e-5 and low <= law.predict(3.0, 0.3, 20_000) <= high
    low, high = param_intervals(law)["E"]
    assert low <= 1.2 + 1e-6 and high >= 1.2 - 1e-6 and high - low < 1e-3


def test_odd_ladders():
    """Two D only, one D per run, and runs of unequal length all have intervals; fewer points give wider ones."""
    rows = make_rows(12, num_tokens=(8192, 16384, 32768, 65536))
    shapes = {
        "all": rows,
        "two": [r for r in rows if r["num_tokens"] in (8192, 65536)],
        "one": [r for i, r in enumerate(rows) if i % 4 == (i // 4) % 4],
        "ragged": [r for i, r in enumerate(rows) if i % 4 <= (i // 4) % 4],
    }
    widths = {}
    for name, some in shapes.items():
        low, high = fit_scaling_law(some, form="no_interaction", space="log").interval(3.0, 0.3, 20_000)
        assert 0 < high - low < 0.1
        widths[name] = high - low
    assert widths["all"] < widths["one"]


# Noise of one kind only, or none: where a ratio of variances has no end


def run_effects(curve, num_runs=8, effect=0.01, noise=0.0, digits=16):
    rng = np.random.default_rng(0)
    where, scale = {"mu": 22.0, "sigma": 10.0}, 1 + effect * rng.standard_normal(num_runs)
    return [
        {
            "run": f"r{i}",
            **where,
            "num_tokens": d,
            "loss": round(loss * s * (1 + noise * rng.standard_normal()), digits),
        }
        for i, s in enumerate(scale)
        for d, loss in curve.items()
    ]


CURVES = {
    "no law bends like this": {128: 7.0006, 256: 6.8855, 384: 6.7834, 512: 6.7028},
    "a floor": {128: 7.0307, 256: 6.95, 384: 6.9, 512: 6.88},
    "a law": {d: 5.0 + 3.0 * d**-0.25 for d in (128, 256, 384, 512)},
}


@pytest.mark.parametrize("num_runs", [3, 8])
@pytest.mark.parametrize("name", CURVES)
def test_runs_that_differ_by_a_factor_and_nothing_else(name, num_runs):
    law = fit_scaling_law(run_effects(CURVES[name], num_runs), form="data_only", space="linear")
    loss, tokens = law.points.loss.reshape(num_runs, -1), np.array(list(CURVES[name]))
    predicted = law.predict(22.0, 10.0, tokens)
    for noise, per_run in ((False, 1 / num_runs), (True, 1 + 1 / num_runs)):
        low, high = loss_interval(law, 22.0, 10.0, tokens, noise=noise)
        assert (low <= predicted).all() and (predicted <= high).all()
        assert (low < loss.mean(0)).all() and (loss.mean(0) < high).all()
        students = 2 * stats.t.ppf(0.975, num_runs - 1) * loss.std(0, ddof=1) * np.sqrt(per_run)  # at each D
        assert (high - low) / students == pytest.approx(1, abs=0.25 if num_runs == 3 else 0.12)


@pytest.mark.parametrize("num_runs", [3, 8])
def test_no_noise_at_all(num_runs):
    law = fit_scaling_law(run_effects(CURVES["a law"], num_runs, effect=0), form="data_only", space="linear")
    for d in (128, 300, 512, 1024):
        low, high = law.predict_interval(22.0, 10.0, d)
        assert low <= law.predict(22.0, 10.0, d) <= high and high - low < 1e-4
        assert low - 1e-5 <= 5.0 + 3.0 * d**-0.25 <= high + 1e-5


@pytest.mark.parametrize("digits", [4, 16])
def test_noise_within_runs_only(digits):
    law = fit_scaling_law(run_effects(CURVES["a law"], effect=0, noise=1e-3, digits=digits), "data_only", "linear")
    for d in (128, 256, 512):
        low, high = law.interval(22.0, 10.0, d)
        assert low <= law.predict(22.0, 10.0, d) <= high and 1e-3 < high - low < 2e-2
        new = law.predict_interval(22.0, 10.0, d)
        assert 2.5 * 6e-3 < new[1] - new[0] < 8 * 6e-3


def test_a_floor_just_below_the_smallest_loss_does_not_run_away():
    """At such floors the excess vanishes at most points, and what is linear in theta says nothing about the law."""
    rng = np.random.default_rng(0)
    curve = {128: 2.67, 512: 2.23, 1024: 2.16, 4096: 2.02, 16384: 1.88}
    rows = [
        {"run": f"r{i}", "mu": 20.0, "sigma": 6.0, "num_tokens": d, "loss": round(loss + shift, 2)}
        for i, shift in enumerate(0.03 * rng.standard_normal(9))
        for d, loss in curve.items()
    ]
    law = fit_scaling_law(rows, form="data_only", space="linear")
    low, high = law.predict_interval(20.0, 6.0, np.array(list(curve)))
    assert np.isfinite([low, high]).all() and (high - low < 0.4).all()
    assert np.isfinite(parameter_draws(law).theta).all() and np.abs(parameter_draws(law).theta).max() < 1e3


def test_one_run_to_spare_gives_wide_intervals_with_ends():
    rows = [row for row in make_rows(4, noise=0.0, run_noise=0.02) if row["run"] != "r1" or row["num_tokens"] > 1e4]
    law = fit_scaling_law(rows, form="no_interaction", space="log")
    low, high = law.interval(*law.points.moments("log"), law.points.num_tokens)
    assert np.isfinite([low, high]).all() and (low > 0.5).all() and (high < 20).all()


# The coordinates in which noise of runs is independent


def test_run_coordinates_diagonalise_the_noise_of_runs():
    rng = np.random.default_rng(0)
    size = [1, 2, 3, 5, 4, 3]
    run_of = np.repeat(np.arange(6), size)
    log_tokens = rng.uniform(8, 11, len(run_of))
    log_tokens[run_of == 5] = 9.0  # a run at one D has no slope
    runs, y = RunCoordinates(log_tokens, run_of), rng.standard_normal((2, len(run_of)))
    assert runs.num_slopes == 4 and runs.num_remaining == sum(size) - 6 - 4
    Z = (run_of[:, None] == np.arange(6)).astype(float)
    x = (log_tokens - runs.average(log_tokens))[:, None] * Z
    for log_shift, log_drift in ((2.0, 3.0), (-1.0, 0.5), (0.0, -2.0)):
        g, h = np.expm1(log_shift) / max(size), np.expm1(log_drift) / (x**2).sum(0).max()
        V = np.eye(len(run_of)) + g * Z @ Z.T + h * x @ x.T
        a, b = (v[0] for v in runs.variances(np.array([log_shift]), np.array([log_drift])))
        means, slopes, rest = runs.split(y)
        squares = (means**2 / a).sum(1) + (slopes**2 / b).sum(1) + (rest**2).sum(1)
        assert squares == pytest.approx(np.einsum("kn,nm,km->k", y, np.linalg.inv(V), y))
        assert np.log(a).sum() + np.log(b).sum() == pytest.approx(np.linalg.slogdet(V)[1])


# Coverage: the full simulation is `python tests/interval_coverage.py`


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "space", "run_share"),
    [("paper", "linear", 0.5), ("no_interaction", "log", 1.0), ("log_parabola", "log", 0)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(form, space, run_share):
    coverage, half_width = simulate(form, space, run_share, 60)
    for column in ("mean", "gain", "new run"):
        assert 0.89 <= coverage[column] <= 0.99, (column, coverage)
    assert min(coverage["params"].values()) >= 0.8 and half_width < 0.015


# What the intervals are


def test_intervals_hold_the_law_and_order_themselves(law):
    m, s, d = np.array([[2.6], [3.0]]), 0.3, np.array([1e4, 2e4, 4e4])
    predicted = law.predict(m, s, d)
    low, high = loss_interval(law, m, s, d)
    assert low.shape == (2, 3) and (low <= predicted).all() and (predicted <= high).all()
    narrow, wide = loss_interval(law, m, s, d, level=0.5), loss_interval(law, m, s, d, noise=True)
    assert (high - low > narrow[1] - narrow[0]).all() and (wide[1] - wide[0] > high - low).all()
    far = law.interval(3.0, s, 1e7)
    assert far[1] - far[0] > 3 * (high - low).max()  # extrapolated, so unsure
    assert law.interval(3.0, s, 2e4) == pytest.approx((low[1, 1], high[1, 1]))
    assert all(isinstance(v, float) for v in law.interval(3.0, s, 2e4))
    assert law.interval(3.0, s, 2e4, noise=True) == law.predict_interval(3.0, s, 2e4)


def test_gains(law):
    best, other = (3.6, 0.15), (2.4, 0.5)
    low, high, probability = gain_interval(law, best, other, 2e4)
    gain = law.predict(*other, 2e4) - law.predict(*best, 2e4)
    assert 0 < low < gain < high and 0.99 < probability < 1
    back = law.gain_interval(other, best, 2e4)
    assert back[:2] == pytest.approx((-high, -low)) and back[2] == pytest.approx(1 - probability)
    low, high, probability = law.gain_interval(best, best, 2e4)
    assert low == high == 0 and probability == 0.5
    many = gain_interval(law, (np.array([3.0, 3.6]), 0.15), other, np.array([[1e4], [2e4]]))
    assert [v.shape for v in many] == [(2, 2)] * 3 and many[0][1, 1] == pytest.approx(
        law.gain_interval(best, other, 2e4)[0]
    )
    # Two landscapes share the law's level, so their gain is surer than either loss.
    loss = law.interval(3.1, 0.3, 2e4)
    near = law.gain_interval((3.1, 0.3), (3.0, 0.3), 2e4)
    assert near[1] - near[0] < 0.5 * (loss[1] - loss[0])


def test_param_intervals(law):
    intervals = param_intervals(law)
    assert list(intervals) == list(law.params)
    assert all(low <= law.params[name] <= high for name, (low, high) in intervals.items())
    truth = {"E": 1.2, "Dc": np.exp(2), "aD": 0.2, "a0": 0.1, "b0": -0.05}
    assert all(low <= truth[name] <= high for name, (low, high) in intervals.items())
    assert intervals["E"][0] >= 0
    wider = law.param_intervals(level=0.999)
    assert all(wider[name][0] <= low and high <= wider[name][1] for name, (low, high) in intervals.items())


def test_points_of_one_run_count_as_correlated():
    rows = make_rows(run_noise=0.02, noise=0.001)
    together = fit_scaling_law(rows, form="no_interaction", space="log")
    apart = fit_scaling_law([r | {"run": f"p{i}"} for i, r in enumerate(rows)], form="no_interaction", space="log")
    width = [np.ptp(each.interval(3.0, 0.3, 16_384)) for each in (together, apart)]
    assert width[0] > 1.4 * width[1]


def test_an_outlier_widens_and_still_holds_the_prediction():
    rows = make_rows()
    before = fit_scaling_law(rows, form="no_interaction", space="log").interval(3.0, 0.3, 2e4)
    rows[4]["loss"] += 0.5
    law = fit_scaling_law(rows, form="no_interaction", space="log")
    low, high = law.interval(3.0, 0.3, 2e4)
    assert low <= law.predict(3.0, 0.3, 2e4) <= high and high - low > 3 * (before[1] - before[0])


def test_draws_are_seeded_and_kept(law):
    a, b = parameter_draws(law, 100, 1), parameter_draws(law, 100, 2)
    assert a is parameter_draws(law, 100, 1) and not np.array_equal(a.theta, b.theta)
    again = fit_scaling_law(law.points, form=law.form, space=law.space)
    assert np.array_equal(parameter_draws(again, 100, 1).theta, a.theta)
    assert len(a) == 100 and a.theta.shape == (100, 4) and (a.E >= 0).all() and a.E.max() < law.points.loss.min()
    X = law.design_matrix(3.0, 0.3, [1e4, 2e4])
    assert a.predict(X)[7, 1] == pytest.approx(a.E[7] + np.exp(X[1] @ a.theta[7]))


def test_what_cannot_be_told_is_an_error(law):
    few = fit_scaling_law(make_rows(3), form="no_interaction", space="log")
    for ask in (lambda: few.interval(3, 0.3, 1e4), few.param_intervals, lambda: parameter_draws(few)):
        with pytest.raises(ValueError, match="need 4 or more runs, to tell the noise between them, got 3: add"):
            ask()
    for level in (0, 1, 95, float("nan")):
        with pytest.raises(ValueError, match="level must lie between 0 and 1"):
            law.interval(3, 0.3, 1e4, level=level)
        with pytest.raises(ValueError, match="level must lie between 0 and 1"):
            law.param_intervals(level=level)
    with pytest.raises(ValueError, match="num_tokens must be positive"):
        law.interval(3, 0.3, 0)


def test_no_rows_and_many(law):
    low, high = loss_interval(law, np.empty(0), 0.3, 1e4)
    assert low.shape == high.shape == (0,)
    tracemalloc.start()
    low, high = loss_interval(law, np.linspace(2.5, 3.5, 20_000), 0.3, 1e4, num_draws=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low.shape == (20_000,) and peak < 150e6  # all at once they would take 80 MB many times over
    assert low[0] == pytest.approx(loss_interval(law, 2.5, 0.3, 1e4, num_draws=500)[0])
