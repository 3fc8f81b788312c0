import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.law.forms import LAW_FORMS
from hf_ppl_select.law.optimum import find_optimum, general_points, trusted_region
from hf_ppl_select.law.trust import hull_of_probes
from hf_ppl_select.selection.select import plan_selection

pytestmark = pytest.mark.filterwarnings("ignore:.*heavy-tailed")  # wide grids of (mu, sigma) on purpose
MEASURED = Path(__file__).resolve().parents[3] / "shared" / "data" / "law_points" / "smollm2_medquad.jsonl"


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
        kind = find_optimum(law, landscape, 200_000, intervals=False).kind
        product = math.log(mu) * math.log(sigma)
        is_minimum = a1 * b1 * product / (mu * sigma) > (a1 / mu + b1 / sigma) ** 2
        assert not is_minimum or product > 4  # the condition is necessary
        kinds.append(kind)
        if not is_minimum:
            assert kind == "saddle"
        if kind == "interior":
            assert is_minimum
    assert {"interior", "saddle"} <= set(kinds)


def test_log_parabola_in_log_space_takes_the_sigma_of_a_plain_subset(landscape):
    """ln(L - E) = ... - a0*m - a1*m², least at m = -a0 / (2*a1); nothing depends on s."""
    theta = [0.64, -0.1]
    law = law_of("log_parabola", "log", theta, [2.0, 3.0, 4.0], [0.1, 0.5, 2.0])
    optimum = law.optimum(landscape, 200_000)
    assert optimum.kind == "interior" and optimum.mu == pytest.approx(3.2, abs=1e-4)
    # nll is normal here: a subset that only leans to higher perplexities has nearly the corpus's own
    assert 0.94 * landscape.log_sigma < optimum.sigma < landscape.log_sigma
    fewer = law.optimum(landscape, 20_000)
    assert optimum.sigma < fewer.sigma < landscape.log_sigma
    junk = PerplexityLandscape.from_values(np.full(4_000, 3_000.0), np.full(4_000, 100))
    dirty = landscape.merge(junk)
    assert dirty.log_sigma > 2 * landscape.log_sigma
    bulk = np.log(np.divide(*dirty.quantile([0.75, 0.25]))) / 1.34898
    assert law.optimum(dirty, 200_000).sigma <= bulk * 1.00001 and bulk < 1.5 * landscape.log_sigma
    assert law.optimum(dirty, 200_000).sigma > 0.9 * landscape.log_sigma
    rising = law_of("log_parabola", "log", [0.9, -0.1], [2.0, 3.0, 4.0], [0.1, 0.5, 1.0])  # best at 4.5, not trusted
    assert rising.optimum(landscape, 200_000).kind == "boundary"


def test_data_only_has_nothing_to_choose(landscape):
    law = law_of("data_only", "linear", [], [12, 20, 32], [4, 8, 16], noise=0.01)
    optimum = law.optimum(landscape, 200_000)
    assert (optimum.mu, optimum.sigma) == landscape.moments("linear")
    assert optimum.gain == 0 and optimum.gain_interval == (0, 0) and optimum.within_noise
    assert optimum.loss == optimum.random_loss
    assert optimum.gain_probability == 0 and optimum.mu_interval is None


# The search


@pytest.mark.parametrize("num_tokens", [20_000, 200_000, 1_000_000])
def test_nothing_attainable_and_trusted_is_better(landscape, num_tokens):
    for form, theta in (
        ("paper", [0.2, -0.004, -0.1, 0.003]),
        ("no_interaction", [-0.2, 0.2]),
        ("log_parabola", [1.9, -0.3, 0.02]),
    ):
        law = law_of(form, "linear", theta, [10, 20, 32], [3, 9, 27])
        optimum = find_optimum(law, landscape, num_tokens, intervals=False)
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
    with pytest.raises(ValueError, match="fitted to scores of other, the landscape is of m"):
        law.optimum(landscape, 200_000)
    law = law_of("no_interaction", "linear", [0.3, -0.2], [12, 20, 32], [4, 8, 16], model="m")
    with pytest.raises(ValueError, match="num_tokens=3,000,000 is more than the 2,000,000 tokens"):
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
    low, high = optimum.mu_interval
    assert optimum.random_mu < low < optimum.mu < high  # but away from the low end it is


# What goes with a gain


def noisy_law(**options):
    return law_of("no_interaction", "linear", [0.3, -0.2], [12, 24, 40], [4, 16, 40], noise=0.005, **options)


def test_intervals_hold_their_estimates_and_serialise(landscape):
    optimum = noisy_law().optimum(landscape, 200_000)
    for interval, value in (
        (optimum.mu_interval, optimum.mu),
        (optimum.sigma_interval, optimum.sigma),
        (optimum.loss_interval, optimum.loss),
        (optimum.gain_interval, optimum.gain),
        (optimum.random_tokens_interval, optimum.random_tokens),
        (optimum.measured_gain_interval, optimum.gain),
    ):
        assert interval[0] <= value <= interval[1]
    outer, inner = optimum.measured_gain_interval, optimum.gain_interval
    assert outer[0] < inner[0] and inner[1] < outer[1]
    assert optimum.gain_probability > 0.99
    json.dumps(asdict(optimum), allow_nan=False)
    quick = noisy_law().optimum(landscape, 200_000, intervals=False)
    assert quick.gain_interval is None and (quick.mu, quick.loss) == (optimum.mu, optimum.loss)


def test_a_flat_law_puts_its_optimum_anywhere(landscape):
    flat = law_of("no_interaction", "linear", [0.0, 0.0], [12, 24, 40], [4, 16, 40], noise=0.05)
    steep = noisy_law()
    assert np.ptp(flat.optimum(landscape, 40_000).sigma_interval) > 10
    assert np.ptp(steep.optimum(landscape, 40_000).sigma_interval) < 2


def test_random_tokens_bring_a_random_subset_to_the_same_loss(landscape):
    law = noisy_law()
    optimum = law.optimum(landscape, 200_000)
    reached = law.predict(optimum.random_mu, optimum.random_sigma, optimum.random_tokens)
    assert reached == pytest.approx(optimum.loss, rel=1e-9) and optimum.random_tokens > 200_000
    assert f"{optimum.random_tokens:,.0f} tokens for this loss" in str(optimum)


def test_random_never_gets_there_where_the_loss_does_not_fall(landscape):
    rows = [p | {"num_tokens": 4e8 / p["num_tokens"]} for p in noisy_law().points.to_rows()]
    law = fit_scaling_law(rows, "no_interaction", "linear")
    assert law.params["aD"] < 0
    optimum = law.optimum(landscape, 40_000)
    assert optimum.random_tokens is None and "does not fall with training tokens" in optimum.random_never
    assert "never gets to this loss" in str(optimum)
    json.dumps(asdict(optimum), allow_nan=False)


def test_a_gain_over_an_extrapolated_random_loss_is_never_called_established(landscape):
    junk = PerplexityLandscape.from_values(np.full(3_000, 5_000.0), np.full(3_000, 100), model="m")
    dirty = landscape.merge(junk)
    law = noisy_law()
    optimum = law.optimum(dirty, 200_000)
    assert not optimum.random_trusted and optimum.random_mu > 600
    assert "not established: a random subset lies beyond the probes" in str(optimum)
    assert "beyond the noise" not in str(optimum)
    clean = law.optimum(landscape, 200_000)
    assert clean.random_trusted and "beyond the noise" in clean.verdict


def test_as_few_runs_as_the_form_needs_have_no_intervals(landscape):
    rows = [
        p for p in noisy_law().points.to_rows() if p["run"] in ("mu 12 sigma 4", "mu 24 sigma 16", "mu 40 sigma 4")
    ]
    optimum = fit_scaling_law(rows, "no_interaction", "linear").optimum(landscape, 40_000)
    assert optimum.gain_interval is None and optimum.within_noise and "(None" not in str(optimum)


# Forgetting


def forgetting_law(theta, E=3.0, **options):
    """A general loss that rises with D (aD = -0.2) and depends on the landscape."""
    rows = []
    for mu in (12, 24, 40):
        for sigma in (4, 16, 40):
            for num_tokens in (1e4, 2e4, 4e4):
                X = LAW_FORMS["no_interaction"].design_matrix("linear", mu, sigma, num_tokens)
                loss = E + math.exp(X @ np.r_[-5.0, -0.2, theta])
                row = {"run": f"{mu} {sigma}", "mu": mu, "sigma": sigma, "num_tokens": num_tokens, "loss": 1.0}
                rows.append(row | {"general_loss": loss})
    return fit_scaling_law(general_points(rows), "no_interaction", "linear", **options)


def test_a_bound_on_forgetting_moves_the_optimum_to_its_edge(landscape):
    law, general = noisy_law(), forgetting_law([-1.0, 0.0])  # high mu forgets, and is what the law wants
    free = law.optimum(landscape, 200_000, general_law=general)
    assert free.general_loss == pytest.approx(general.predict(free.mu, free.sigma, 200_000))
    assert free.max_general_loss is None and "predicted general loss" in str(free)
    allowed = general.predict(25.0, 10.0, 200_000)  # depends on mu alone
    bounded = law.optimum(landscape, 200_000, general_law=general, max_general_loss=allowed)
    assert bounded.mu == pytest.approx(25.0, rel=1e-3) and free.mu > 26 and bounded.kind == "boundary"
    assert bounded.general_loss <= allowed and bounded.loss > free.loss
    assert bounded.mu_interval[1] <= 25.0 * 1.001 and f"at most {allowed:.4f} was allowed" in str(bounded)
    mu, sigma = (g.ravel() for g in np.meshgrid(np.linspace(10, 45, 300), np.linspace(2, 45, 300)))
    inside = landscape.attainable_region(200_000).contains(mu, sigma) & trusted_region(law).contains(mu, sigma)
    inside &= general.predict(mu, sigma, 200_000) <= allowed
    assert bounded.loss <= law.predict(mu[inside], sigma[inside], 200_000).min() + 1e-9
    loose = law.optimum(landscape, 200_000, general_law=general, max_general_loss=9.0)
    assert (loose.mu, loose.sigma, loose.kind) == (free.mu, free.sigma, free.kind)


def test_a_bound_that_nothing_keeps_says_what_can_be_had(landscape):
    law, general = noisy_law(), forgetting_law([-1.0, 0.0])
    least = general.predict(12 * 0.97, 4, 200_000)
    with pytest.raises(
        ValueError, match=rf"keeps the general loss at 3\.01.*the least that is predicted is {least:.4f}"
    ):
        law.optimum(landscape, 200_000, general_law=general, max_general_loss=3.01)
    flat = law_of("data_only", "linear", [], [12, 20, 32], [4, 8, 16], noise=0.01)
    with pytest.raises(ValueError, match="has nothing to choose, and a random subset's general loss"):
        flat.optimum(landscape, 200_000, general_law=general, max_general_loss=3.01)


def test_a_bound_that_nothing_keeps_says_the_least_also_where_sigma_is_free(landscape):
    law = law_of("log_parabola", "log", [0.64, -0.1], [2.0, 3.0, 4.0], [0.1, 0.5, 1.0])
    rows = [
        p | {"general_loss": 3 + 0.2 * p["log_sigma"] + 0.1 * math.log(p["num_tokens"])} for p in law.points.to_rows()
    ]
    general = fit_scaling_law(general_points(rows), "no_interaction", "log")
    with pytest.raises(ValueError, match="the least that is predicted is") as told:
        law.optimum(landscape, 200_000, general_law=general, max_general_loss=3.0)
    least = float(re.search(r"is predicted is (\d\.\d+)", str(told.value))[1])
    mu, sigma = (g.ravel() for g in np.meshgrid(np.linspace(1.5, 4.5, 600), np.linspace(0.05, 1.1, 600)))
    inside = landscape.attainable_region(200_000, "log").contains(mu, sigma) & trusted_region(law).contains(mu, sigma)
    assert least == pytest.approx(general.predict(mu[inside], sigma[inside], 200_000).min(), abs=2e-3)


def test_a_tiny_allowed_corner_is_found(landscape):
    law, general = noisy_law(), forgetting_law([-1.0, -0.5])  # least forgetting at low mu and low sigma
    least = min(general.predict(m, s, 200_000) for m in np.linspace(11.64, 12, 50) for s in np.linspace(3.88, 4, 50))
    optimum = law.optimum(landscape, 200_000, general_law=general, max_general_loss=least * 1.0005)
    assert optimum.general_loss <= least * 1.0005 and optimum.mu < 13


def test_a_law_without_sigma_gives_up_its_sigma_to_keep_the_bound(landscape):
    law = law_of("log_parabola", "log", [0.64, -0.1], [2.0, 3.0, 4.0], [0.1, 0.5, 1.0])
    rows = [
        p | {"general_loss": 3 + 0.2 * p["log_sigma"] + 0.1 * math.log(p["num_tokens"])} for p in law.points.to_rows()
    ]
    general = fit_scaling_law(general_points(rows), "no_interaction", "log")
    free = law.optimum(landscape, 200_000, general_law=general)
    bounded = law.optimum(landscape, 200_000, general_law=general, max_general_loss=free.general_loss - 0.05)
    assert bounded.sigma < free.sigma and bounded.mu == pytest.approx(free.mu, abs=1e-3)
    assert bounded.loss == pytest.approx(free.loss, abs=1e-6)


def test_bad_bounds(landscape):
    law, general = noisy_law(), forgetting_law([-1.0, 0.0])
    with pytest.raises(ValueError, match="needs general_law="):
        law.optimum(landscape, 200_000, max_general_loss=3.5)
    for bad in (math.nan, math.inf, 0.0, -1.0):
        with pytest.raises(ValueError, match="must be a loss above 0"):
            law.optimum(landscape, 200_000, general_law=general, max_general_loss=bad)
    with pytest.raises(ValueError, match="none of the 27 law points has a 'general_loss'"):
        general_points(law.points)
    log = law_of("log_parabola", "log", [0.64, -0.1], [2.0, 3.0, 4.0], [0.1, 0.5, 2.0])
    with pytest.raises(ValueError, match="lives in linear space, the law of the general loss in log"):
        law.optimum(landscape, 200_000, general_law=log)
    with pytest.raises(ValueError, match="fitted to scores of other"):
        law.optimum(landscape, 200_000, general_law=forgetting_law([-1.0, 0.0], model="other"))


def test_a_free_sigma_makes_no_second_clump(landscape):
    """Far from the corpus's mean its own spread is only reached with a clump of chunks at the other end."""
    law = law_of("log_parabola", "log", [0.82, -0.1], [2.0, 3.0, 4.2], [0.1, 0.5, 2.0])  # best at m = 4.1
    optimum = law.optimum(landscape, 200_000)
    widest = landscape.attainable_region(200_000, "log").sigma_bounds(optimum.mu)[1]
    assert optimum.kind == "interior" and optimum.mu == pytest.approx(4.1, abs=1e-3)
    assert widest > 0.7 and optimum.sigma < 0.75 * widest
    x = np.exp(np.clip(np.random.default_rng(0).normal(2.8, 0.9, 20_000), 0.7, 6))
    columns = {"perplexity": x, "num_tokens": np.full(len(x), 100)}
    chosen = x[plan_selection(columns, law=law, num_tokens=200_000).indices]
    assert np.mean(chosen < np.median(x)) < 0.01


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("top", [1e6, 1e200])
@pytest.mark.parametrize("form", ["paper", "no_interaction"])
def test_absurd_junk_gives_numbers_that_can_be_saved(landscape, top, form):
    theta = [0.2, -0.004, -0.1, 0.003] if form == "paper" else [-0.3, -0.2]
    law = law_of(form, "linear", theta, [12, 24, 32], [4, 9, 16], noise=0.005)
    dirty = landscape.merge(PerplexityLandscape.from_values(np.full(2_000, top), np.full(2_000, 100)))
    optimum = law.optimum(dirty, 200_000)
    assert not optimum.random_trusted and optimum.loss == pytest.approx(law.predict(optimum.mu, optimum.sigma, 2e5))
    json.dumps(asdict(optimum), allow_nan=False)
    assert "extrapolated gain" in str(optimum) and "tokens for this loss" not in str(optimum)


def test_a_point_on_the_edge_of_the_trusted_region_is_inside_it():
    region = hull_of_probes(np.array([10.0, 20.0, 30.0]), np.array([4.0, 8.0, 5.0]), "linear")
    first = region.vertices[:, 0].min()
    low, high = region.sigma_bounds(20.0)
    for share, inside in ((0.9995, True), (0.99, False)):
        assert region.contains(20.0, low * share, 1e-3) == region.contains(20.0, high / share, 1e-3) == inside
        assert region.contains(first * share, region.sigma_bounds(first)[0], 1e-3) == inside
    assert region.contains(np.array([20.0, 1.0]), np.array([(low + high) / 2, 1.0])).tolist() == [True, False]
