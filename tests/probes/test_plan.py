import math

import numpy as np
import pytest

from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.probes.design import ProbeTarget, design_probes
from hf_ppl_select.probes.plan import expected_precision, plan_probes, precision_by_runs
from hf_ppl_select.selection.select import plan_selection

CHUNK, BUDGET = 128, 200_000


@pytest.fixture(scope="module")
def perplexity():
    return np.exp(np.random.default_rng(0).normal(3.0, 0.45, 8000))


@pytest.fixture(scope="module")
def landscape(perplexity):
    return PerplexityLandscape.from_values(perplexity, np.full(len(perplexity), CHUNK))


def measured(probes, ladder, noise, seed=0, between=1.0):
    """Law points of a log-parabola law, with noise of ln(loss): a share `between` of its size is the run's own."""
    rng, rows = np.random.default_rng(seed), []
    for probe in probes:
        run = between * rng.normal()
        for num_tokens in ladder:
            loss = 0.9 + 1.8 * (num_tokens / 8192) ** -0.25 * math.exp(0.2 * (probe.mu - 3.3) ** 2)
            loss *= math.exp(noise * (run + rng.normal()))
            row = {"run": probe.run, "mu": math.exp(probe.mu), "sigma": 5.0, "num_tokens": num_tokens, "loss": loss}
            rows.append(row | {"log_mu": probe.mu, "log_sigma": probe.sigma})
    return rows


@pytest.fixture(scope="module")
def law(perplexity):
    landscape = PerplexityLandscape.from_values(perplexity, np.full(len(perplexity), CHUNK))
    probes = design_probes(landscape, num_runs=10, tokens_per_run=40_000)
    return fit_scaling_law(measured(probes, (10_000, 20_000, 40_000), 0.004), "log_parabola", "log")


def test_a_plan_keeps_to_its_cost_and_its_probes_can_be_selected(perplexity, landscape):
    columns = {"perplexity": perplexity, "num_tokens": np.full(len(perplexity), CHUNK)}
    for total in (120_000, 300_000, 1_000_000):
        plan = plan_probes(landscape, total)
        assert 0.98 * total < plan.total_tokens <= total and 6 <= len(plan.probes) <= 12
        assert plan.ladder[-1] == plan.tokens_per_run and 3 <= len(plan.ladder) <= 5
        assert np.allclose(np.array(plan.ladder[1:]) / plan.ladder[:-1], 2, rtol=1e-3)
        assert plan.ladder[0] >= 32 * CHUNK - 1 and plan.expected is None
        for probe in plan.probes[1:]:
            made = plan_selection(columns, target=(probe.mu, probe.sigma), space="log", num_tokens=plan.tokens_per_run)
            assert made.achieved["log_mu"] == pytest.approx(
                probe.mu, abs=max(0.01, made.num_chunks**-0.5) * probe.sigma
            )
    assert len(plan_probes(landscape, 1_000_000, num_runs=7).probes) == 7
    assert len(plan_probes(landscape, 120_000).probes) < len(plan_probes(landscape, 1_000_000).probes)


def test_no_run_is_most_of_the_corpus(landscape):
    plan = plan_probes(landscape, 10**9)
    assert plan.tokens_per_run <= 0.3 * landscape.num_tokens


def test_what_is_expected_is_what_happens(law, landscape):
    """Fit laws to many simulated tables of one design: their gains spread as was foretold, their optima too."""
    plan = plan_probes(landscape, 400_000, num_runs=8, law=law, num_tokens=BUDGET)
    truth = fit_scaling_law(measured(plan.probes, plan.ladder, 0.0), "log_parabola", "log", huber_delta=None)
    noise, gains, mus, widths = law_noise(law), [], [], []
    best = law.optimum(landscape, BUDGET, intervals=False)
    for seed in range(40):
        rows = measured(plan.probes, plan.ladder, noise[1], seed, between=noise[0] / noise[1])
        refitted = fit_scaling_law(rows, "log_parabola", "log", huber_delta=None)
        random = refitted.predict(best.random_mu, best.random_sigma, BUDGET)
        gains.append(random - refitted.predict(best.mu, best.sigma, BUDGET))
        if seed < 8:
            widths.append(np.ptp(refitted.optimum(landscape, BUDGET).gain_interval))
        mus.append(refitted.optimum(landscape, BUDGET, intervals=False).mu)
    expected = plan.expected
    assert expected.gain_width == pytest.approx(2 * 2.57 * np.std(gains), rel=0.35)  # Student's t with 5 runs to spare
    assert expected.gain_width == pytest.approx(np.median(widths), rel=0.5)
    assert expected.mu_width == pytest.approx(4 * np.std(mus), rel=0.5)
    assert expected.gain == pytest.approx(truth.optimum(landscape, BUDGET, intervals=False).gain, rel=0.3)


def law_noise(law):
    from hf_ppl_select.law.intervals import parameter_draws

    noise = parameter_draws(law).noise
    return np.median(noise.between), np.median(noise.within)


def test_more_runs_of_a_length_know_more(law, landscape):
    few = plan_probes(landscape, 6 * 40_000, num_runs=6, law=law, num_tokens=BUDGET).expected
    many = plan_probes(landscape, 24 * 40_000, num_runs=24, law=law, num_tokens=BUDGET).expected
    assert many.gain_width < 0.6 * few.gain_width and many.mu_width < few.mu_width
    assert many.regret < few.regret and many.detection >= few.detection
    assert 0 <= few.detection <= 1 and few.gain == pytest.approx(many.gain, rel=0.05)


def test_planning_with_a_law_takes_the_narrowest_or_nearly(law, landscape):
    rows = precision_by_runs(law, landscape, 300_000, BUDGET)
    assert [row["num_runs"] for row in rows] == [6, 8, 10, 12, 16, 20, 24]
    fitted = [row for row in rows if row["problem"] is None]
    plan = plan_probes(landscape, 300_000, law=law, num_tokens=BUDGET)
    narrowest = min(row["gain_width"] for row in fitted)
    assert plan.expected.gain_width <= 1.05 * narrowest
    for row in fitted:
        assert row["tokens_per_run"] == 300_000 // row["num_runs"] and row["num_tokens"] == BUDGET
        if row["num_runs"] < len(plan.probes):
            assert row["gain_width"] > 1.05 * narrowest
    assert plan == plan_probes(landscape, 300_000, law=law, num_tokens=BUDGET)  # seeded


def test_a_number_of_runs_that_cannot_be_says_why(law, landscape):
    rows = precision_by_runs(law, landscape, 120_000, BUDGET, runs=(3, 6, 24))
    assert "needs 4 runs" in rows[0]["problem"] and rows[0]["gain_width"] is None
    assert rows[1]["problem"] is None
    assert "24 runs of 128 chunks, 16,384 tokens each" in rows[2]["problem"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_tokens": 1000}, "6 runs of 128 chunks"),
        ({"total_tokens": -5}, "must be positive"),
        ({"total_tokens": math.nan}, "must be positive"),
        ({"total_tokens": math.inf}, "must be positive"),
        ({"num_runs": 0}, "must be positive"),
        ({"num_runs": -1}, "must be positive"),
        ({"space": "cubic"}, "space must be"),
    ],
)
def test_bad_plans(landscape, options, message):
    with pytest.raises(ValueError, match=message):
        plan_probes(landscape, **({"total_tokens": 300_000} | options))


def test_bad_simulations(law, landscape):
    with pytest.raises(ValueError, match="needs num_tokens"):
        plan_probes(landscape, 300_000, law=law)
    plan = plan_probes(landscape, 300_000, num_runs=8)
    flat = fit_scaling_law(law.points, "data_only", "log")
    with pytest.raises(ValueError, match="has no optimum"):
        expected_precision(flat, landscape, plan.probes, plan.ladder, BUDGET)
    linear = [ProbeTarget(p.run, 20.0, 5.0, "linear") for p in plan.probes]
    with pytest.raises(ValueError, match="the law lives in log space"):
        expected_precision(law, landscape, linear, plan.ladder, BUDGET)
    with pytest.raises(ValueError, match="measured at 2 num_tokens"):
        expected_precision(law, landscape, plan.probes, [40_000], BUDGET)
    tiny = PerplexityLandscape.from_values(np.linspace(10, 30, 50), np.full(50, CHUNK))
    with pytest.raises(ValueError, match="Spend more tokens, or run fewer probes"):
        plan_probes(tiny, 300_000)
