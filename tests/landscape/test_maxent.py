import numpy as np
import pytest

from hf_ppl_select.landscape.attainable import attainable_region
from hf_ppl_select.landscape.maxent import inclusion_probability, solve_maxent


def corpus(num_chunks=4000, seed=0, junk=0.15):
    """Perplexities of a log-normal mixture with a far tail of junk."""
    rng = np.random.default_rng(seed)
    nll = np.where(rng.random(num_chunks) < 0.7, rng.normal(3.0, 0.4, num_chunks), rng.normal(2.5, 0.3, num_chunks))
    return np.exp(np.where(rng.random(num_chunks) < junk, rng.normal(8.1, 0.9, num_chunks), nll))


def random_targets(values, budget, space, number, rng):
    """Points of the attainable region, 2 % off its edge in sigma."""
    region = attainable_region(values, budget, space=space)
    low_mu, high_mu = region.mu[0], region.mu[-1]
    if space == "linear":
        mus = np.exp(rng.uniform(np.log(low_mu * 1.01), np.log(high_mu * 0.99), number))
    else:
        mus = rng.uniform(low_mu + 0.01 * (high_mu - low_mu), high_mu - 0.01 * (high_mu - low_mu), number)
    for mu in mus:
        low, high = region.sigma_bounds(mu)
        yield mu, low + rng.uniform(0.02, 0.98) * (high - low)


@pytest.mark.parametrize("space", ["linear", "log"])
@pytest.mark.parametrize("junk", [0.0, 0.15])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_any_attainable_target_is_met(space, junk, share):
    perplexity = corpus(junk=junk)
    values = perplexity if space == "linear" else np.log(perplexity)
    budget = share * len(values)
    for mu, sigma in random_targets(values, budget, space, 15, np.random.default_rng(1)):
        solution = solve_maxent(values, mu, sigma, budget)
        w = solution.inclusion_probability(values)
        mean = (w @ values) / w.sum()
        assert solution.converged, solution
        assert w.sum() == pytest.approx(budget, rel=1e-8)
        assert abs(mean - mu) < 1e-7 * sigma
        assert np.sqrt(w @ (values - mean) ** 2 / w.sum()) == pytest.approx(sigma, rel=1e-7)


def test_recovers_known_lambdas_with_ragged_chunks():
    rng = np.random.default_rng(2)
    values = np.log(corpus())
    tokens = np.clip(rng.lognormal(4.5, 0.7, len(values)) * (1 + 0.2 * (values - 3)), 5, 512)  # longer where harder
    for _ in range(20):
        lambdas = rng.normal(-1, 1), rng.normal(0, 1), rng.normal(-0.5, 0.4)
        w = inclusion_probability(values, lambdas, 3.0, 0.5)
        mu = (w @ values) / w.sum()
        sigma = np.sqrt(w @ (values - mu) ** 2 / w.sum())
        solution = solve_maxent(values, mu, sigma, w @ tokens, num_tokens=tokens)
        assert solution.converged
        assert solution.inclusion_probability(values) == pytest.approx(w, abs=1e-6)


def test_no_other_probabilities_with_these_moments_have_more_entropy():
    values = np.log(corpus(300))
    w = solve_maxent(values, 3.1, 0.5, 60).inclusion_probability(values)
    constraints = np.stack([np.ones_like(values), values, values**2])
    entropy = -np.sum(w * np.log(w) + (1 - w) * np.log1p(-w))
    rng = np.random.default_rng(0)
    for _ in range(50):
        change = rng.normal(size=len(values)) * w * (1 - w)
        change -= constraints.T @ np.linalg.solve(constraints @ constraints.T, constraints @ change)  # moments stay
        inside = np.min(np.where(change < 0, -w / np.minimum(change, -1e-300), (1 - w) / np.maximum(change, 1e-300)))
        other = w + 0.3 * min(inside, 1.0) * change
        assert np.abs(constraints @ (other - w)).max() < 1e-8
        assert -np.sum(other * np.log(other) + (1 - other) * np.log1p(-other)) < entropy


def test_inclusion_is_a_bump_below_the_natural_spread_and_a_bowl_above():
    values = np.log(corpus(junk=0))
    natural = values.std()
    bump = solve_maxent(values, values.mean(), 0.5 * natural, 500)
    bowl = solve_maxent(values, values.mean(), 1.5 * natural, 500)
    assert bump.lambdas[2] < 0 < bowl.lambdas[2]


def test_a_histogram_gives_the_same_answer_as_rows():
    values = np.round(np.log(corpus()), 2)
    distinct, counts = np.unique(values, return_counts=True)
    rows = solve_maxent(values, 3.0, 0.4, 500 * 128, num_tokens=128)
    bins = solve_maxent(distinct, 3.0, 0.4, 500 * 128, num_tokens=128, counts=counts)
    assert bins.lambdas == pytest.approx(rows.lambdas, rel=1e-6)
    assert bins.num_chunks == pytest.approx(500)


def test_many_rows_start_from_a_sketch_and_end_at_the_same_answer():
    values = np.log(corpus(60_000))
    solution = solve_maxent(values, 3.0, 0.4, 6000)
    assert solution.converged and solution.num_steps <= 5
    assert solution.inclusion_probability(values).sum() == pytest.approx(6000)


def test_tokens_can_vote():
    values = np.log(corpus())
    tokens = np.random.default_rng(0).integers(10, 500, len(values))
    solution = solve_maxent(values, 3.0, 0.4, 50_000, num_tokens=tokens, weights="tokens")
    w = tokens * solution.inclusion_probability(values)
    assert w.sum() == pytest.approx(50_000)
    assert (w @ values) / w.sum() == pytest.approx(3.0)
    assert np.sqrt(w @ (values - 3.0) ** 2 / w.sum()) == pytest.approx(0.4)


def test_one_part_in_ten_thousand_from_the_edge_still_converges():
    values = np.log(corpus())
    region = attainable_region(values, 400, space="log")
    low, high = region.sigma_bounds(3.0)
    for share in (1e-4, 1 - 1e-4):
        assert solve_maxent(values, 3.0, low + share * (high - low), 400).error < 1e-3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("target", [(40.0, 0.1), (1e4, 1.0), (2.0, 1.0), (20.0, 1e6)])
def test_out_of_reach_is_reported_without_noise(target):
    solution = solve_maxent(corpus(junk=0), *target, 2000)
    assert not solution.converged and solution.error > 0.01
    assert np.isfinite(solution.lambdas).all() and np.isfinite(solution.mu)


def test_the_whole_corpus_with_its_own_moments():
    values = np.log(corpus())
    w = solve_maxent(values, values.mean(), values.std(), len(values)).inclusion_probability(values)
    assert w.min() > 0.999


def test_infinite_probability_arguments_do_not_overflow():
    w = inclusion_probability(np.array([1.0, 1e308, np.nan]), (0.0, 1.0, -1.0), 1.0, 1e-3)
    assert w[0] == 0.5 and w[1] == 0.0 and np.isnan(w[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 1, 1, 1), "non-empty"),
        (([1.0, np.nan], 1, 1, 1), "NaN"),
        (([1.0, 2.0], 1, 0, 1), "sigma above 0"),
        (([1.0, 2.0], np.nan, 1, 1), "finite mu"),
        (([1.0, 2.0], 1, 1, 0), "above 0"),
        (([1.0, 2.0], 1, 1, 3), "more than the 2 tokens"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        solve_maxent(*arguments)


def test_unknown_weights():
    with pytest.raises(ValueError, match="weights='votes'"):
        solve_maxent([1.0, 2.0, 3.0], 2, 0.5, 1, weights="votes")
