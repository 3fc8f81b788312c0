import math

import numpy as np
import pytest

from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.law.budgets import exhausted_at, gain_by_budget
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.law.forms import LAW_FORMS, why_never
from tests.law.test_optimum import law_of

pytestmark = pytest.mark.filterwarnings("ignore:.*heavy-tailed")


@pytest.fixture(scope="module")
def landscape():
    x = np.exp(np.clip(np.random.default_rng(0).normal(2.8, 0.5, 20_000), 0.7, 5))
    return PerplexityLandscape.from_values(x, np.full(len(x), 100))


@pytest.fixture(scope="module")
def law():
    return law_of("no_interaction", "linear", [0.3, -0.2], [8, 20, 40], [3, 10, 30], noise=0.003)


@pytest.mark.parametrize("form", LAW_FORMS)
@pytest.mark.parametrize("space", ["linear", "log"])
def test_tokens_for_inverts_predict(form, space):
    theta = {"data_only": [], "no_interaction": [0.3, -0.2], "paper": [0.2, -0.004, -0.1, 0.003]}
    theta = theta.get(form, [0.6, -0.1] if space == "log" else [0.6, -0.1, 0.05])
    grid = ([12, 20, 32], [4, 8, 16]) if space == "linear" else ([2.0, 2.7, 3.4], [0.1, 0.3, 0.7])
    law = law_of(form, space, theta, *grid)
    mu, sigma = grid[0][1], grid[1][1]
    for num_tokens in (500.0, 3e4, 7e9):
        assert law.tokens_for(law.predict(mu, sigma, num_tokens), mu, sigma) == pytest.approx(num_tokens, rel=1e-6)


def test_tokens_for_broadcasts_and_says_never(law):
    E = law.params["E"]
    tokens = law.tokens_for(np.array([E - 0.1, E, E + 0.5, E + 1.0]), 20.0, 8.0)
    assert np.isinf(tokens[:2]).all() and tokens[2] > tokens[3] > 0
    assert law.tokens_for(E + 1.0, np.array([10.0, 20.0]), 8.0).shape == (2,)
    assert type(law.tokens_for(E + 1.0, 20.0, 8.0)) is float
    assert law.tokens_for(E + 1e-300, 20.0, 8.0) == math.inf  # beyond any number
    assert "at or below the law's floor E" in why_never(law, E) and why_never(law, E + 1.0) is None
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="must be a finite number"):
            law.tokens_for(bad, 20.0, 8.0)
    with pytest.raises(ValueError, match="sigma must be positive"):
        law.tokens_for(E + 1.0, 20.0, 0.0)


def test_runs_too_few_for_intervals_leave_the_gain_without_one(landscape):
    points = law_of("no_interaction", "log", [0.6, -0.1], [2.0, 3.4], [0.3, 0.6]).points.to_rows()
    runs = sorted({row["run"] for row in points})[:3]
    few = fit_scaling_law([row for row in points if row["run"] in runs], form="no_interaction", space="log")
    assert few.why_no_intervals
    for options in ({}, {"intervals": False}):
        for row in gain_by_budget(few, landscape, [1e5], **options):
            assert row["gain"] is not None and row["gain_low"] is row["gain_high"] is None


def test_marginal_gain_is_the_slope(law):
    for num_tokens in (1e4, 1e6):
        step = 1e-4 * num_tokens
        slope = (law.predict(20, 8, num_tokens - step) - law.predict(20, 8, num_tokens + step)) / (2 * step)
        assert law.marginal_gain(20, 8, num_tokens) == pytest.approx(slope, rel=1e-6)
    assert law.marginal_gain(20, 8, np.array([1e4, 1e5])).shape == (2,)


def test_the_gain_shrinks_to_nothing_at_the_whole_corpus(law, landscape):
    rows = gain_by_budget(law, landscape)
    assert rows[0]["num_tokens"] == 10_000 and rows[-1]["num_tokens"] == landscape.num_tokens
    gains = [row["gain"] for row in rows]
    assert gains == sorted(gains, reverse=True) and gains[0] > 0.1 and gains[-1] == pytest.approx(0, abs=1e-9)
    for row in rows:
        assert row["gain_low"] <= row["gain"] <= row["gain_high"] and row["problem"] is None
        assert row["gain"] == pytest.approx(row["random_loss"] - row["loss"])
    assert rows[0]["random_tokens"] > 10_000


def test_a_budget_without_an_optimum_says_why(law, landscape):
    rows = gain_by_budget(law, landscape, [1e4, 1e9])
    assert rows[0]["problem"] is None
    assert "num_tokens=1,000,000,000" in rows[1]["problem"] and rows[1]["gain"] is None


def test_exhausted_where_the_gain_falls_below_the_threshold(law, landscape):
    for threshold in (0.2, 0.05, None):
        end = exhausted_at(law, landscape, threshold)
        assert end.known and 0 < end.num_tokens < landscape.num_tokens
        at = law.optimum(landscape, end.num_tokens, intervals=False).gain
        beyond = law.optimum(landscape, min(1.02 * end.num_tokens, 2e6), intervals=False).gain
        assert beyond < end.threshold <= at
        assert end.threshold == (threshold or law.residual_std)
        assert f"{end.num_tokens:,.0f} tokens" in str(end)
    assert exhausted_at(law, landscape, 0.2).num_tokens < exhausted_at(law, landscape, 0.05).num_tokens


def test_never_and_always_and_nobody_knows(law, landscape):
    never = exhausted_at(law, landscape, 100.0)
    assert never.num_tokens == 0 and never.known and "not there at any budget" in str(never)
    always = exhausted_at(law, landscape, 0.0)
    assert always.num_tokens == pytest.approx(landscape.num_tokens, rel=0.02)
    low_only = law_of("no_interaction", "linear", [0.3, -0.2], [6, 8, 10], [2, 3, 4], noise=0.003)  # corpus mean: 18
    unknown = exhausted_at(low_only, landscape, 0.001)
    assert not unknown.known and 0 < unknown.num_tokens < landscape.num_tokens
    assert "which no probe covers" in str(unknown)
    with pytest.raises(ValueError, match="no moments that the probes cover"):
        low_only.optimum(landscape, 1.1 * unknown.num_tokens)


def test_bad_thresholds(law, landscape):
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="must be a gain of 0 or more"):
            exhausted_at(law, landscape, bad)
    elsewhere = PerplexityLandscape.from_values(np.linspace(300, 400, 50), np.full(50, 100))
    with pytest.raises(ValueError, match="no moments that the probes cover"):
        exhausted_at(law, elsewhere)
