import math
from pathlib import Path

import numpy as np
import pytest

from hf_ppl_select.fitting import fit_scaling_law
from hf_ppl_select.landscape import PerplexityLandscape
from hf_ppl_select.optimum import find_optimum, trusted_region
from hf_ppl_select.scaling_law import LAW_FORMS

pytestmark = pytest.mark.filterwarnings("ignore:.*heavy-tailed")  # wide grids of (mu, sigma) on purpose
MEASURED = Path(__file__).resolve().parents[2] / "shared" / "data" / "law_points" / "smollm2_medquad.jsonl"


@pytest.fixture(scope="module")
def landscape():
    """20,000 chunks of 100 tokens; perplexities from 2 to several hundred, so that wide and narrow subsets exist."""
    x = np.exp(np.clip(np.random.default_rng(0).normal(2.8, 0.9, 20_000), 0.7, 6))
    return PerplexityLandscape.from_values(x, np.full(len(x), 100), model="m")


def law_of(form, space, theta, mus, sigmas, *, noise=0.0, seed=0, model=None, E=1.0):
    """A law with these landscape parameters, fitted to probes on a grid of its own exact losses (plus noise)."""
    rng = np.random.default_rng(seed)
    rows = []
    for mu in mus:
        for sigma in sigmas:
            for num_tokens in (1e4, 2e4, 4e4):
                X = LAW_FORMS[form].design_matrix(space, mu, sigma, num_tokens)
                loss = E + math.exp(X @ np.r_[5.0, 0.2, theta]) + noise * rng.normal()
                linear = {"mu": mu, "sigma": sigma} if space == "linear" else {"mu": math.exp(mu), "sigma": sigma}
                log = {"log_mu": mu, "log_sigma": sigma} if space == "log" else {}
                run = f"mu {mu:g} sigma {sigma:g}"
                rows.append({"run": run, "num_tokens": num_tokens, "loss": loss, **linear, **log})
    return fit_scaling_law(rows, form=form, space=space, model=model)


def paper_theta(mu, sigma, a1, b1):
    """The paper's parameters with a stationary point at (mu, sigma)."""
    return [-a1 * sigma - b1 * mu * math.log(sigma), a1, -b1 * mu - a1 * sigma * math.log(mu), b1]


# Kinds


def test_interior_where_ln_mu_ln_sigma_is_above_4(landscape):
    assert math.log(20) * math.log(20) > 4
    law = law_of("paper", "linear", paper_theta(20, 20, -0.01, -0.01), [12, 20, 32], [10, 20, 32])
    optimum = law.optimum(landscape, 200_000)
    assert optimum.kind == "interior"
    assert (optimum.mu, optimum.sigma) == pytest.approx((20, 20), rel=1e-3)
    assert optimum.space == "linear" and optimum.num_tokens == 200_000
    assert optimum.loss == pytest.approx(law.predict(20, 20, 200_000))


def test_saddle_where_it_is_below_4(landscape):
    assert math.log(20) * math.log(3) < 4
    law = law_of("paper", "linear", paper_theta(20, 3, -0.01, -0.01), [12, 20, 32], [2, 3, 8])
    optimum = law.optimum(landscape, 200_000)
    assert optimum.kind == "saddle"
    assert optimum.loss < law.predict(20, 3, 200_000)
    assert optimum.mu == pytest.approx(12 * 0.97)  # on the edge of what the probes vouch for


def test_boundary_without_a_stationary_point(landscape):
    for form, theta in (("no_interaction", [0.3, -0.2]), ("log_parabola", [0.3, -0.02, 0.1])):
        optimum = law_of(form, "linear", theta, [12, 20, 32], [4, 8, 16]).optimum(landscape, 200_000)
        assert optimum.kind == "boundary"
    optimum = law_of("no_interaction", "linear", [0.3, -0.2], [12, 20, 32], [4, 8, 16]).optimum(landscape, 200_000)
    assert optimum.mu == pytest.approx(32 * 1.03, rel=1e-3) and optimum.sigma == pytest.approx(4 * 0.97, rel=1e-3)


def test_kind_agrees_with_the_closed_form(landscape):
    """Random stationary points: an interior optimum has the closed-form Hessian of a minimum, and a saddle is told."""
    rng = np.random.default_rng(0)
    kinds = []
    for _ in range(40):
        mu, sigma = rng.uniform(14, 28), rng.uniform(5, 28)
        a1, b1 = -0.01 * rng.uniform(0.3, 3, 2)
        law = law_of("paper", "linear", paper_theta(mu, sigma, a1, b1), [12, 20, 32], [4, 16, 32])
        kind = find_optimum(law, landscape, 200_000, num_bootstrap=1).kind
        product = math.log(mu) * math.log(sigma)
        is_minimum = a1 * b1 * product / (mu * sigma) > (a1 / mu + b1 / sigma) ** 2
        assert not is_minimum or product > 4  # the condition is necessary
        kinds.append(kind)
        if not is_minimum:
            assert kind == "saddle"
        if kind == "interior":
            assert is_minimum
    assert {"interior", "saddle"} <= set(kinds)


def test_log_parabola_in_log_space_takes_sigma_from_the_corpus_s_bulk(landscape):
    """ln(L - E) = ... - a0*m - a1*m², least at m = -a0 / (2*a1); nothing depends on s."""
    theta = [0.64, -0.1]
    law = law_of("log_parabola", "log", theta, [2.0, 3.0, 4.0], [0.1, 0.5, 2.0])
    optimum = law.optimum(landscape, 200_000)
    assert optimum.kind == "interior" and optimum.mu == pytest.approx(3.2, abs=1e-4)
    assert optimum.sigma == pytest.approx(landscape.log_sigma, rel=0.02)  # nll is normal here: the corpus's own
    junk = PerplexityLandscape.from_values(np.full(4_000, 3_000.0), np.full(4_000, 100))
    dirty = landscape.merge(junk)
    assert dirty.log_sigma > 2 * landscape.log_sigma
    bulk = np.log(np.divide(*dirty.quantile([0.75, 0.25]))) / 1.34898
    assert law.optimum(dirty, 200_000).sigma == pytest.approx(bulk, rel=1e-5) and bulk < 1.5 * landscape.log_sigma
    rising = law_of("log_parabola", "log", [0.9, -0.1], [2.0, 3.0, 4.0], [0.1, 0.5, 1.0])  # best at 4.5, not trusted
    assert rising.optimum(landscape, 200_000).kind == "boundary"


def test_data_only_has_nothing_to_choose(landscape):
    law = law_of("data_only", "linear", [], [12, 20, 32], [4, 8, 16], noise=0.01)
    optimum = law.optimum(landscape, 200_000)
    assert (optimum.mu, optimum.sigma) == landscape.moments("linear")
    assert optimum.gain == 0 and optimum.gain_interval == (0, 0) and optimum.within_noise
    assert optimum.loss == optimum.random_loss


# The search


@pytest.mark.parametrize("num_tokens", [20_000, 200_000, 1_000_000])
def test_nothing_attainable_and_trusted_is_better(landscape, num_tokens):
    for form, theta in (
        ("paper", [0.2, -0.004, -0.1, 0.003]),
        ("no_interaction", [-0.2, 0.2]),
        ("log_parabola", [1.9, -0.3, 0.02]),
    ):
        law = law_of(form, "linear", theta, [10, 20, 32], [3, 9, 27])
        optimum = find_optimum(law, landscape, num_tokens, num_bootstrap=1)
        region = landscape.attainable_region(num_tokens)
        assert region.contains(optimum.mu, optimum.sigma, tolerance=1e-4)
        low, high = trusted_region(law).sigma_bounds(np.clip(optimum.mu, 10 * 0.9701, 32 * 1.0299))
        assert low - 1e-2 <= optimum.sigma <= high + 1e-2
        mu, sigma = (g.ravel() for g in np.meshgrid(np.linspace(9, 34, 300), np.linspace(2, 29, 300)))
        inside = region.contains(mu, sigma) & trusted_region(law).contains(mu, sigma)
        assert inside.any()
        assert optimum.loss <= law.predict(mu[inside], sigma[inside], num_tokens).min() + 1e-9


def test_trusted_region_is_the_hull_a_little_inflated():
    law = law_of("no_interaction", "linear", [0.3, -0.2], [10, 20], [4, 8])
    trusted = trusted_region(law)
    assert trusted.contains(np.array([10, 20, 15, 20.5]), np.array([4, 8, 6, 8.2])).all()
    assert not trusted.contains(np.array([9.5, 15, 15, 22]), np.array([4, 8.6, 3, 6])).any()
    # Probes in a row still make a region.
    rows = [p | {"sigma": 0.3 * p["mu"]} for p in law.points.to_rows()]
    row = fit_scaling_law(rows, form="data_only", space="linear")
    assert trusted_region(row).contains(15, 4.5) and not trusted_region(row).contains(15, 6)


def test_what_cannot_be_searched(landscape):
    law = law_of("no_interaction", "linear", [0.3, -0.2], [12, 20, 32], [4, 8, 16], model="other")
    with pytest.raises(ValueError, match="fitted to perplexities of other, the landscape is of m"):
        law.optimum(landscape, 200_000)
    law = law_of("no_interaction", "linear", [0.3, -0.2], [12, 20, 32], [4, 8, 16], model="m")
    with pytest.raises(ValueError, match="the corpus has 2000000 tokens, asked for 3000000"):
        law.optimum(landscape, 3_000_000)
    elsewhere = PerplexityLandscape.from_values(np.linspace(100, 120, 50))
    with pytest.raises(ValueError, match=r"no moments that the probes cover \(linear space\): subsets reach mu 10"):
        law.optimum(elsewhere, 25)
    with pytest.raises(ValueError, match="no moments that the probes cover"):
        law.optimum(landscape, 2_000_000)  # the whole corpus is one point, sigma 22, beyond the probes


# Gain and its noise


def test_gain_is_against_a_random_subset(landscape):
    law = law_of("no_interaction", "linear", [0.3, -0.2], [12, 24, 40], [4, 16, 40], noise=0.001)
    optimum = law.optimum(landscape, 200_000)
    assert (optimum.random_mu, optimum.random_sigma) == landscape.moments("linear")
    assert optimum.random_loss == pytest.approx(law.predict(*landscape.moments("linear"), 200_000))
    assert optimum.gain == optimum.random_loss - optimum.loss > 0.1
    low, high = optimum.gain_interval
    assert 0 < low < optimum.gain < high and not optimum.within_noise
    assert optimum == law.optimum(landscape, 200_000)  # seeded
    assert optimum.gain_interval != law.optimum(landscape, 200_000, seed=1).gain_interval
    assert optimum.extrapolation == 5
    assert "beyond the noise" in str(optimum) and "5 times the tokens of the longest probe" in str(optimum)


def test_a_gain_made_of_noise_is_called_noise(landscape):
    law = law_of("no_interaction", "linear", [0.0, 0.0], [12, 24, 40], [4, 16, 40], noise=0.05)
    optimum = law.optimum(landscape, 40_000)
    assert optimum.gain > 0 and optimum.within_noise and "within the noise" in str(optimum)


@pytest.mark.skipif(not MEASURED.exists(), reason="the measured law points are not at ../shared/data/law_points")
def test_measured_points_lead_away_from_what_the_model_knows():
    x = np.exp(np.random.default_rng(0).normal(3.03, 0.43, 5000))  # MedQuAD's log-space moments
    landscape = PerplexityLandscape.from_values(x, np.full(5000, 128))
    law = fit_scaling_law(MEASURED)
    optimum = law.optimum(landscape, 32768)
    assert optimum.kind == "interior" and optimum.random_mu < optimum.mu < 3.8
    assert law.predict(2.3, 0.2, 32768) - optimum.loss > 0.15  # the lowest decile is far worse
    assert optimum.within_noise  # and the middle is not established to beat random
