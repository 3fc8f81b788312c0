import subprocess
import sys

import numpy as np
import pytest

from hf_ppl_select.landscape.attainable import attainable_region, largest_whole_sigma
from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.selection.baselines import (
    choose_greedy_dos,
    choose_high,
    choose_low,
    choose_maxent,
    choose_middle,
    choose_random,
)


def perplexities(num_chunks, junk=0.0, seed=0):
    """A log-normal mixture, with a far tail of junk."""
    rng = np.random.default_rng(seed)
    nll = np.where(rng.random(num_chunks) < 0.7, rng.normal(3.0, 0.4, num_chunks), rng.normal(2.5, 0.3, num_chunks))
    return np.exp(np.where(rng.random(num_chunks) < junk, rng.normal(8.1, 0.9, num_chunks), nll))


def subset_moments(values, nll, number, rng):
    """Targets that are attainable for sure: the moments of subsets that lean low, high, middle or to both ends."""
    t = (nll - np.median(nll)) / 0.5
    for _ in range(number):
        budget = int(len(nll) * 10 ** rng.uniform(-2.3, -0.2))
        centre = rng.uniform(t.min(), np.quantile(t, rng.uniform(0.5, 1)))
        lean = [-((t - centre) ** 2), (t - centre) ** 2, t * rng.choice([-1, 1])][rng.integers(3)]
        score = lean * 10 ** rng.uniform(-2, 1.5) + rng.gumbel(size=len(nll))
        subset = values[np.argpartition(-score, budget)[:budget]]
        yield budget, subset.mean(), subset.std()


# ---------------------------------------------------------------------------------------------- maximum entropy


@pytest.mark.parametrize("space", ["linear", "log"])
@pytest.mark.parametrize("junk", [0.0, 0.02, 0.15])
def test_maxent_meets_the_moments_of_any_subset_to_a_tenth_of_a_percent(space, junk):
    perplexity = perplexities(30_000, junk)
    values = perplexity if space == "linear" else np.log(perplexity)
    targets = subset_moments(values, np.log(perplexity), 12, np.random.default_rng(1))
    for seed, (budget, mu, sigma) in enumerate(targets):
        chosen, solution = choose_maxent(values, np.ones(len(values)), budget, mu, sigma, seed)
        assert solution.converged, solution
        assert len(chosen) == budget and np.all(np.diff(chosen) > 0)
        assert values[chosen].mean() == pytest.approx(mu, rel=1e-3)
        assert values[chosen].std() == pytest.approx(sigma, rel=1e-3)
        turns = np.sign(np.diff(solution.inclusion_probability(np.linspace(mu - 3 * sigma, mu + 3 * sigma, 500))))
        assert np.count_nonzero(np.diff(turns[turns != 0])) <= 1  # a bump, a bowl, or a slope


@pytest.mark.parametrize("junk", [0.0, 0.15])
def test_maxent_with_unequal_chunks(junk):
    perplexity = perplexities(20_000, junk)
    rng = np.random.default_rng(2)
    tokens = rng.integers(20, 513, len(perplexity)).astype(float)
    for budget, mu, sigma in subset_moments(perplexity, np.log(perplexity), 6, rng):
        budget_tokens = budget * tokens.mean()
        chosen, solution = choose_maxent(perplexity, tokens, budget_tokens, mu, sigma, 0)
        assert 0 <= budget_tokens - tokens[chosen].sum() < 512
        if solution.converged:  # fewer, longer chunks may be out of reach of moments that this many short ones have
            assert perplexity[chosen].mean() == pytest.approx(mu, rel=2e-3)
            assert perplexity[chosen].std() == pytest.approx(sigma, rel=2e-3)


def test_far_chunks_that_carry_the_variance():
    """Two or three chunks make nearly all of the variance: they are chosen first, and the rest makes up for them."""
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(20, 4, 20_000), rng.uniform(2_000, 9_000, 400)])
    for budget, mu, sigma in ((500, 30.0, 200.0), (500, 25.0, 130.0), (2000, 22.0, 100.0), (2000, 40.0, 330.0)):
        assert sigma < largest_whole_sigma(values, budget, mu)
        chosen, _ = choose_maxent(values, 1.0, budget, mu, sigma, 0)
        assert len(chosen) == budget
        assert values[chosen].mean() == pytest.approx(mu, rel=1e-3)
        assert values[chosen].std() == pytest.approx(sigma, rel=1e-3)


def test_maxent_in_blocks_is_systematic():
    """More rows than a block: every stretch of the values gets its expected share."""
    values = np.log(perplexities(1_500_000))
    chosen, solution = choose_maxent(values, 100.0, 150_000 * 100, 3.0, 0.3, 0)
    assert len(chosen) == 150_000
    assert (values[chosen].mean(), values[chosen].std()) == pytest.approx((3.0, 0.3), rel=2e-5)
    edges = np.quantile(values, np.linspace(0, 1, 201))
    w = solution.inclusion_probability(values)
    expected = np.histogram(values, edges, weights=w)[0]
    assert np.abs(np.histogram(values[chosen], edges)[0] - expected).max() < 12 < 3 * np.sqrt(expected.max())


def test_maxent_draws_others_with_another_seed_and_the_same_with_the_same():
    values = np.log(perplexities(5000))
    first, again, other = (choose_maxent(values, 1.0, 500, 3.0, 0.3, seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and len(np.intersect1d(first, other)) < 450


def test_a_few_chunks():
    for values, budget in (([1.0, 2.0, 3.0], 2), ([5.0, 5.0, 5.0, 5.0], 2), ([1.0, 9.0], 1), ([4.0], 1)):
        chosen, _ = choose_maxent(np.array(values), np.ones(len(values)), budget, 2.0, 0.5, 0)
        assert len(chosen) == budget


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 1, 1, 1.0, 1.0), "at least one"),
        (([1.0, np.nan], 1, 1, 1.0, 1.0), "finite"),
        (([1.0, np.inf], 1, 1, 1.0, 1.0), "finite"),
        (([1.0, 2.0], 1, 3, 1.5, 0.5), "more than the 2 tokens"),
        (([1.0, 2.0], 1, 0, 1.5, 0.5), "above 0"),
        (([1.0, 2.0], 1, 1, 1.5, 0.0), "sigma above 0"),
        (([1.0, 2.0], 1, 1, np.nan, 0.5), "finite mu"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_maxent(*arguments, seed=0)


def test_ten_million_rows_fit_in_little_memory():
    """In a process of its own: far below the 1.5 GiB allowed."""
    script = """
import resource, numpy as np
from hf_ppl_select.selection.baselines import choose_maxent
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
x = np.random.default_rng(0).normal(3, 0.45, 10_000_000)
choose_maxent(x[:1000], 1.0, 100, 3.0, 0.3, 0)
before = peak()
chosen, _ = choose_maxent(x, 1.0, 1_000_000, 2.9, 0.3, 0)
print(len(chosen), x[chosen].mean(), x[chosen].std(), peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    number, mean, std, memory = map(float, done.stdout.split())
    assert number == 1_000_000 and (mean, std) == pytest.approx((2.9, 0.3), rel=1e-4)
    assert memory < 0.5 * 2**30


# ---------------------------------------------------------------------------------------------- whole chunks


def test_no_whole_subset_spreads_more_than_the_bound():
    rng = np.random.default_rng(0)
    for _ in range(100):
        n = int(rng.integers(2, 60))
        number = int(rng.integers(1, n + 1))
        x = np.exp(rng.normal(3, 1.5, n))
        subsets = x[np.argsort(rng.random((300, n)), axis=1)[:, :number]]
        assert np.all(subsets.std(1) <= largest_whole_sigma(x, number, subsets.mean(1)) * (1 + 1e-9) + 1e-9)
        x = np.sort(x)
        for high in range(number + 1):  # tails reach it
            tails = np.concatenate([x[: number - high], x[n - high :]])
            assert largest_whole_sigma(x, number, tails.mean()) == pytest.approx(tails.std(), abs=1e-6 * x[-1])
    assert np.isnan(largest_whole_sigma(x, number, x[-1] + 1))
    with pytest.raises(ValueError, match="between 1 and"):
        largest_whole_sigma(x, 0, 1.0)


def test_far_tails_promise_more_in_part_than_in_whole():
    x = np.concatenate([np.linspace(10, 30, 1000), [50_000.0]])
    _, in_part = attainable_region(x, 100).sigma_bounds(20.0)
    assert in_part > 600 and largest_whole_sigma(x, 100, 20.0) < 100


# ---------------------------------------------------------------------------------------------- baselines


def test_middle_is_the_same_in_either_space_and_sits_around_the_median():
    perplexity = perplexities(1001)
    tokens = np.full(1001, 10)
    chosen = choose_middle(perplexity, tokens, 205)
    assert np.array_equal(chosen, choose_middle(np.log(perplexity), tokens, 205))
    ranks = np.sort(np.argsort(np.argsort(perplexity))[chosen])
    assert ranks.tolist() == list(range(490, 510))  # 20 of 1001: 10 below the median, itself, 9 above
    for number in (1, 2, 3, 4, 7):
        whole = choose_middle(np.arange(number)[::-1], np.ones(number), number)
        assert sorted(whole.tolist()) == list(range(number))
        assert choose_middle(np.arange(number), np.ones(number), 1).tolist() == [number // 2]


def test_baselines_share_the_budget_rule():
    perplexity = perplexities(2000)
    tokens = np.random.default_rng(0).integers(5, 300, 2000)
    for chosen in (
        choose_low(perplexity, tokens, 30_000),
        choose_middle(perplexity, tokens, 30_000),
        choose_high(perplexity, tokens, 30_000),
        choose_random(tokens, 30_000, seed=1),
    ):
        assert len(set(chosen.tolist())) == len(chosen)
        assert 0 <= 30_000 - tokens[chosen].sum() < 300


def test_greedy_dos_of_many_rows_keeps_no_python_object_per_row():
    values = np.log(perplexities(300_000))
    chosen = choose_greedy_dos(values, np.ones(len(values)), 3000, 2.9, 0.3)
    assert len(np.unique(chosen)) == 3000
    assert (values[chosen].mean(), values[chosen].std()) == pytest.approx((2.9, 0.3), rel=1e-3)
    assert choose_greedy_dos(values[:10], np.full(10, 5.0), 4.0, 2.9, 0.3).tolist() == []  # none fits


# ---------------------------------------------------------------------------------------------- the sketch, in blocks


def test_a_landscape_of_many_blocks_is_exact_and_errors_name_the_row():
    perplexity = perplexities(700_000, junk=0.02)
    perplexity[[5, 600_000]] = np.nan, np.inf
    tokens = np.random.default_rng(0).integers(1, 300, len(perplexity)).astype(np.int32)
    landscape = PerplexityLandscape.from_values(perplexity, tokens)
    fits = np.isfinite(perplexity)
    assert (landscape.num_skipped, landscape.num_infinite, landscape.num_chunks) == (1, 1, 699_998)
    assert landscape.num_tokens == tokens[fits].sum()
    assert landscape.mu == pytest.approx(perplexity[fits].mean(), rel=1e-12)
    assert landscape.log_sigma == pytest.approx(np.log(perplexity[fits]).std(), rel=1e-12)
    perplexity[650_001] = 0.3
    with pytest.raises(ValueError, match="row 650001 has perplexity 0.3"):
        PerplexityLandscape.from_values(perplexity, tokens)
