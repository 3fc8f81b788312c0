"""Laws of two score columns together: recovered, trusted, and their optimum among what subsets can be."""

import numpy as np
import pytest
from two_columns import BOTH, RATIO, corpus, law_points, slope, valley

from hf_ppl_select import PerplexityLandscape, ScalingLaw, compare_scaling_laws, fit_scaling_law
from hf_ppl_select.landscape.maxent import solve, tilted
from hf_ppl_select.law.budgets import gain_by_budget
from hf_ppl_select.law.optimum import general_points
from hf_ppl_select.law.optimum_search import search_tilts
from hf_ppl_select.law.trust import trusted_region

NUM_TOKENS = 200_000


@pytest.fixture(scope="module")
def landscape():
    return PerplexityLandscape.from_dataset(corpus(), column=BOTH, model="tiny")


@pytest.fixture(scope="module")
def rows(landscape):
    return law_points(landscape, valley, NUM_TOKENS)


@pytest.fixture(scope="module")
def law(rows):
    return fit_scaling_law(rows, "log_parabola", column=BOTH, model="tiny")


# The law


def test_a_loss_that_depends_on_both_columns_is_recovered(landscape):
    rows = law_points(landscape, slope, NUM_TOKENS, noise=0.0)
    law = fit_scaling_law(rows, "no_interaction", "log", column=BOTH)
    assert law.params == pytest.approx(
        {
            **{"E": 1.5, "Dc": 4.0, "aD": 0.2, "a0_perplexity": -0.15, "b0_perplexity": 0.1},
            **{f"a0_{RATIO}": 0.5, f"b0_{RATIO}": -0.2},
        },
        abs=1e-5,
    )
    assert set(law.units) == set(law.params)


def test_prediction_shapes_intervals_and_words(law, tmp_path):
    mu, sigma = np.array([[[3.0, 0.2]], [[3.2, 0.3]]]), (0.5, 0.2)
    predicted = law.predict(mu, sigma, [1e5, 2e5, 4e5])
    assert predicted.shape == (2, 3)
    assert predicted == pytest.approx(valley(mu, None, np.array([1e5, 2e5, 4e5])), abs=0.005)
    assert isinstance(law.predict((3.0, 0.2), sigma, 1e5), float)
    low, high = law.interval((3.0, 0.2), sigma, 1e5)
    assert low <= valley(np.array([3.0, 0.2]), None, 1e5) <= high
    low, high, probability = law.gain_interval(((3.2, 0.3), sigma), ((2.5, 0.1), sigma), 1e5)
    gain = valley(np.array([2.5, 0.1]), None, 1e5) - valley(np.array([3.2, 0.3]), None, 1e5)
    assert low <= gain <= high and probability > 0.99
    assert set(law.param_intervals()) == set(law.params)
    assert law.tokens_for(law.predict((3.0, 0.2), sigma, 1e5), (3.0, 0.2), sigma) == pytest.approx(1e5)
    for part in (f"m[{RATIO}]^2", "m[perplexity]", f"of nll and of ln({RATIO}), in nats"):
        assert part in str(law)
    law.save(tmp_path / "law.json")
    loaded = ScalingLaw.load(tmp_path / "law.json")
    assert (loaded.column, loaded.params, str(loaded)) == (BOTH, law.params, str(law))
    assert loaded.predict(mu, sigma, 1e5) == pytest.approx(law.predict(mu, sigma, 1e5), rel=1e-15)


def test_held_out_errors_show_what_both_columns_tell(rows, law):
    single = compare_scaling_laws(rows)
    assert {row["column"] for row in single} == set(BOTH)
    together = compare_scaling_laws(rows, column=BOTH)
    assert {(row["column"], row["space"]) for row in together} == {(BOTH, "log")}
    assert together[0]["form"] == "log_parabola" and together[0]["chosen"]
    assert together[0]["loo_mae"] < 0.2 * single[0]["loo_mae"]
    assert law.held_out_errors()["loo_mae"] == together[0]["loo_mae"]
    assert fit_scaling_law(rows, column=list(BOTH)).params == law.params


def test_columns_go_by_name(rows, law):
    """Of (b, a) the same law, its moments the other way round."""
    other = fit_scaling_law(rows, "log_parabola", column=BOTH[::-1])
    assert other.params == pytest.approx(law.params, rel=1e-5)
    assert other.predict((0.2, 3.0), (0.2, 0.5), 1e5) == pytest.approx(law.predict((3.0, 0.2), (0.5, 0.2), 1e5))


def test_what_a_law_of_two_does_not_take(rows, law, landscape):
    with pytest.raises(ValueError, match="two score columns together have log space only"):
        fit_scaling_law(rows, "paper", "linear", column=BOTH)
    with pytest.raises(ValueError, match=f"no moments of 'absent', they have perplexity, {RATIO}"):
        fit_scaling_law(rows, "paper", "log", column=("perplexity", "absent"))
    with pytest.raises(ValueError, match=f"perplexity and {RATIO} are"):
        law.predict(3.0, 0.5, 1e5)
    with pytest.raises(ValueError, match="mu of perplexity must be positive"):
        law.predict((-0.1, 0.2), (0.5, 0.2), 1e5)
    assert law.predict((3.0, -0.2), (0.5, 0.2), 1e5) > 0  # a ratio's logarithm has either sign
    same = [row | {f"log_mu_{RATIO}": row["log_mu"]} for row in rows]
    with pytest.raises(ValueError, match=rf"m\[perplexity\].*m\[{RATIO}\].* move together"):
        fit_scaling_law(same, "log_parabola", column=BOTH)
    flat = [row | {f"log_sigma_{RATIO}": 0.0} for row in rows]
    with pytest.raises(ValueError, match=f"log_sigma_{RATIO} 0, and form 'paper' takes its logarithm"):
        fit_scaling_law(flat, "paper", "log", column=BOTH)
    swapped = PerplexityLandscape.from_dataset(corpus(), column=BOTH[::-1])
    one = PerplexityLandscape.from_dataset(corpus())
    for other in (swapped, one):
        with pytest.raises(ValueError, match=f"the law is about perplexity and {RATIO}, the landscape is of .* mix"):
            law.optimum(other, NUM_TOKENS)
    with pytest.raises(ValueError, match=f"the law is about perplexity, the landscape is of perplexity and {RATIO}"):
        fit_scaling_law(rows, "log_parabola", "log").optimum(landscape, NUM_TOKENS)


# Where it is trusted


def test_trust_is_each_hull_and_the_leverage_of_both(law):
    region = trusted_region(law)
    mu, sigma = law.points.moments("log", BOTH)
    assert region.contains(mu, sigma).all()
    X = np.column_stack([np.ones(len(mu)), mu, mu**2])
    hat = np.diag(X @ np.linalg.inv(X.T @ X) @ X.T)
    assert region.leverage(mu, sigma) == pytest.approx(hat / hat.max())
    hulls = [trusted_region(fit_scaling_law(law.points, "log_parabola", "log", column=name)) for name in BOTH]
    rng = np.random.default_rng(0)
    low, high = np.array([mu.min(0), sigma.min(0)]), np.array([mu.max(0), sigma.max(0)])
    m, s = np.moveaxis(rng.uniform(low, high, (5000, 2, 2)), 1, 0)
    x = np.column_stack([np.ones(len(m)), m, m**2])
    lever = np.einsum("ni,ij,nj->n", x, np.linalg.inv(X.T @ X), x) <= hat.max()
    each = hulls[0].contains(m[:, 0], s[:, 0]) & hulls[1].contains(m[:, 1], s[:, 1])
    assert np.array_equal(region.contains(m, s), lever & each)
    assert (lever & ~each).any() and (each & ~lever).any()


# The optimum


def test_an_optimum_inside_is_where_the_loss_is_least(law, landscape):
    optimum = law.optimum(landscape, NUM_TOKENS)
    assert (optimum.kind, optimum.column) == ("interior", BOTH)
    assert optimum.mu == pytest.approx((3.2, 0.3), abs=0.03)
    for (low, high), truth in zip(optimum.mu_interval, (3.2, 0.3)):
        assert low <= truth <= high < low + 0.3
    assert optimum.loss == pytest.approx(law.predict(optimum.mu, optimum.sigma, NUM_TOKENS), rel=1e-12)
    assert (optimum.random_mu, optimum.random_sigma) == landscape.moments()
    assert not optimum.random_trusted and optimum.gain_interval[0] > 0  # junk: no probe is like the corpus
    assert optimum.sigma_interval is None  # the law leaves sigma free: as even as can be, so without a second clump
    plain = landscape.cells(outliers=False)
    spread = np.sqrt(plain.counts @ (plain.mean - plain.counts @ plain.mean / plain.counts.sum()) ** 2)
    assert optimum.sigma == pytest.approx(spread / np.sqrt(plain.counts.sum()), rel=0.15)
    for part in (f"\n  {RATIO}: m 0.", "\n  perplexity: m 3."):
        assert part in str(optimum)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["no_interaction", "paper", "log_parabola"])
@pytest.mark.parametrize("loss", [valley, slope])
def test_no_tilt_of_many_does_better(form, loss, landscape):
    law = fit_scaling_law(law_points(landscape, loss, NUM_TOKENS), form, "log", column=BOTH)
    optimum = law.optimum(landscape, NUM_TOKENS, intervals=False)
    assert trusted_region(law).contains(optimum.mu, optimum.sigma, tolerance=1e-5)
    other = law.optimum(landscape, NUM_TOKENS, intervals=False, seed=1)
    assert other.loss == pytest.approx(optimum.loss, abs=1e-4)
    rng, least = np.random.default_rng(7), np.inf
    for steepness in (1.0, 2.0, 3.0, 3.5, 4.0):
        lambdas = rng.standard_normal((3000, 4))
        lambdas *= np.sinh(steepness * rng.random((3000, 1))) / np.linalg.norm(lambdas, axis=1, keepdims=True)
        mu, sigma = tilted(landscape.at_most(500).cells(outliers=False), lambdas, NUM_TOKENS)
        mu, sigma = mu[(sigma > 0).all(1)], sigma[(sigma > 0).all(1)]
        inside = trusted_region(law).contains(mu, sigma)
        least = min(least, law.predict(mu[inside], sigma[inside], NUM_TOKENS).min())
    assert optimum.loss < least + 5e-4
    if loss is slope:
        assert optimum.kind == "boundary"


@pytest.mark.parametrize("junk", [0.0, 1 / 6])
@pytest.mark.parametrize("form", ["no_interaction", "log_parabola", "paper"])
@pytest.mark.parametrize("loss", [valley, slope])
def test_of_one_column_the_search_over_tilts_finds_what_the_grids_find(form, loss, junk):
    columns = corpus(junk=junk)
    both = PerplexityLandscape.from_dataset(columns, column=BOTH)
    rows = law_points(both, loss, NUM_TOKENS)
    for name in BOTH:
        landscape = PerplexityLandscape.from_dataset(columns, column=name)
        law = fit_scaling_law(rows, form, "log", column=name)
        on_grids = law.optimum(landscape, NUM_TOKENS, intervals=False)
        cells = landscape.cells("log", outliers=False)
        mu, sigma, _, _ = search_tilts(law, cells, NUM_TOKENS, [trusted_region(law)])
        loss_of_tilts = law.predict(mu, sigma, NUM_TOKENS)
        if solve(cells, (on_grids.mu,), (on_grids.sigma,), [NUM_TOKENS]).reached:
            assert loss_of_tilts == pytest.approx(on_grids.loss, abs=5e-4)
        else:  # a corner that takes outliers, which tilts leave out
            assert on_grids.kind != "interior"
            assert on_grids.loss - 1e-5 < loss_of_tilts < on_grids.loss + 3e-3


def test_forgetting_is_bounded_in_both_columns(rows, law, landscape):
    points = [
        row
        | {"general_loss": 3.0 + 0.1 * row["log_mu"] - 0.1 * row[f"log_mu_{RATIO}"] + 10 / row["num_tokens"] ** 0.5}
        for row in rows
    ]
    general = fit_scaling_law(general_points(points), "log_parabola", column=BOTH, model="tiny")
    free = law.optimum(landscape, NUM_TOKENS, general_law=general, intervals=False)
    most = free.general_loss - 0.03
    bounded = law.optimum(landscape, NUM_TOKENS, general_law=general, max_general_loss=most)
    assert bounded.general_loss <= most + 1e-5 and bounded.kind == "boundary"
    assert free.loss < bounded.loss < free.loss + 0.05 and bounded.mu[0] < free.mu[0]
    with pytest.raises(ValueError, match="keeps the general loss at 1.0000 .* or less .* the least that was found is"):
        law.optimum(landscape, NUM_TOKENS, general_law=general, max_general_loss=1.0)


def test_probes_of_another_corpus_are_told(law):
    columns = corpus()
    columns["perplexity"] = columns["perplexity"] ** 3
    elsewhere = PerplexityLandscape.from_dataset(columns, column=BOTH)
    with pytest.raises(ValueError, match=f"no moments of perplexity and {RATIO} that the probes cover"):
        law.optimum(elsewhere, NUM_TOKENS)
    with pytest.raises(ValueError, match="lower num_tokens"):
        law.optimum(elsewhere, 1e9)


def test_without_features_the_optimum_is_a_random_subset_and_budgets_have_rows(rows, law, landscape):
    nothing = fit_scaling_law(rows, "data_only", column=BOTH).optimum(landscape, NUM_TOKENS)
    assert ((nothing.mu, nothing.sigma), nothing.gain) == (landscape.moments(), 0.0)
    whole = landscape.num_tokens
    first, last = gain_by_budget(law, landscape, [NUM_TOKENS, whole])
    assert first["problem"] is None and first["gain_low"] > 0 and len(first["mu"]) == 2
    assert last["problem"] is not None or last["gain"] == pytest.approx(0, abs=1e-6)
