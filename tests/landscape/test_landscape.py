import itertools

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from scipy.optimize import linprog

from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.landscape.reach import attainable_region


def lognormal(n, seed=0, mean=3.0, sd=0.45):
    return np.exp(np.random.default_rng(seed).normal(mean, sd, n))


def scored(perplexity, num_tokens=None):
    return Dataset.from_dict({"perplexity": perplexity, "num_tokens": num_tokens or [100] * len(perplexity)})


# Moments


def test_moments_are_exact():
    x = lognormal(5000)
    landscape = PerplexityLandscape.from_values(x)
    assert landscape.mu == pytest.approx(x.mean(), rel=1e-13)
    assert landscape.sigma == pytest.approx(x.std(), rel=1e-13)
    assert landscape.log_mu == pytest.approx(np.log(x).mean(), rel=1e-13)
    assert landscape.log_sigma == pytest.approx(np.log(x).std(), rel=1e-13)
    assert landscape.moments("log") == (landscape.log_mu, landscape.log_sigma)
    assert landscape.num_chunks == landscape.num_tokens == 5000


def test_small_spread_about_a_large_mean_does_not_cancel():
    x = 1e6 + np.random.default_rng(0).normal(0, 1.0, 1000)
    landscape = PerplexityLandscape.from_values(x)
    assert landscape.sigma == pytest.approx((x - 1e6).std(), rel=1e-8)
    assert PerplexityLandscape.from_values([21.3] * 50).sigma == 0.0


def test_heavy_tails_up_to_infinity():
    x = np.array([2.0, 20.0, 1e12, 1e300, np.inf, np.inf])
    landscape = PerplexityLandscape.from_values(x)
    assert landscape.num_infinite == 2 and landscape.num_chunks == 4
    assert landscape.mu == pytest.approx(x[:4].mean())
    assert landscape.sigma == pytest.approx(1e300 * np.std([0, 0, 0, 1]))
    region = landscape.attainable_region(2)
    assert np.isfinite(region.sigma_max).all() and region.mu[-1] == pytest.approx(5e299)


def test_tokens_as_weights():
    x, n = np.array([10.0, 40.0]), [300, 100]
    assert PerplexityLandscape.from_values(x, n).mu == pytest.approx(25.0)
    by_tokens = PerplexityLandscape.from_values(x, n, weights="tokens")
    assert by_tokens.mu == pytest.approx(17.5) and by_tokens.sigma == pytest.approx(np.sqrt(0.75 * 0.25) * 30)
    assert by_tokens.num_tokens == 400 and by_tokens.tokens_per_chunk == 200


def test_empty_texts_are_counted_and_left_out():
    landscape = PerplexityLandscape.from_dataset(scored([10.0, None, 20.0, 30.0], [5, 0, 5, 0]))
    assert (landscape.num_skipped, landscape.num_chunks, landscape.num_tokens) == (2, 2, 10)
    assert landscape.mu == pytest.approx(15.0, rel=1e-12)


@pytest.mark.parametrize("kind", ["dataset", "stream", "indexed", "torch", "pandas", "dict"])
def test_from_dataset_takes_any_columns(kind):
    dataset = scored([10.0, 20.0, 60.0])
    source = {
        "dataset": lambda: dataset,
        "stream": lambda: dataset.to_iterable_dataset().map(lambda r: {**r, "extra": 1}),
        "indexed": lambda: dataset.select([2, 0, 1]),
        "torch": lambda: dataset.with_format("torch"),
        "pandas": dataset.to_pandas,
        "dict": dataset.to_dict,
    }[kind]()
    landscape = PerplexityLandscape.from_dataset(source, model="m")
    assert landscape.mu == pytest.approx(30.0, rel=1e-7) and landscape.num_tokens == 300
    assert landscape.model == "m"


def test_bad_datasets():
    with pytest.raises(KeyError, match=r"no column 'perplexity', it has text; run dataset.map\(score_ppl"):
        PerplexityLandscape.from_dataset(Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(ValueError, match="no rows"):
        PerplexityLandscape.from_dataset(scored([]))
    with pytest.raises(ValueError, match=r"no chunk has a finite perplexity \(1 are empty, 1 infinite\)"):
        PerplexityLandscape.from_dataset(scored([None, float("inf")]))
    with pytest.raises(TypeError, match="train"):
        PerplexityLandscape.from_dataset(DatasetDict(train=scored([1.0])))
    with pytest.raises(TypeError, match="got list"):
        PerplexityLandscape.from_dataset([1.0])
    with pytest.raises(ValueError, match="row 1 has perplexity 0.7"):
        PerplexityLandscape.from_dataset(scored([2.0, 0.7]))
    with pytest.raises(ValueError, match="weights must be"):
        PerplexityLandscape.from_values([2.0], weights="bytes")
    with pytest.raises(ValueError, match="2 values, num_tokens has 1"):
        PerplexityLandscape.from_values([2.0, 3.0], [1])


# Quantiles and histogram


def test_quantiles_are_true_to_the_bin_width():
    x, q = lognormal(5000), np.linspace(0, 1, 101)
    landscape = PerplexityLandscape.from_values(x)
    assert np.abs(landscape.quantile(q) / np.quantile(x, q) - 1).max() < 0.004
    assert isinstance(landscape.quantile(0.5), float)
    with pytest.raises(ValueError, match="q must lie"):
        landscape.quantile(1.5)


def test_quantiles_keep_plateaus():
    x = np.concatenate([[21.0] * 600, lognormal(400)])
    q = np.linspace(0.4, 0.7, 7)
    assert np.abs(PerplexityLandscape.from_values(x).quantile(q) / np.quantile(x, q) - 1).max() < 0.004


def test_histogram_counts_every_chunk():
    x = lognormal(1000)
    edges, counts = PerplexityLandscape.from_values(x).histogram()
    assert len(edges) == len(counts) + 1 and counts.sum() == 1000
    assert np.array_equal(np.histogram(x, edges)[0], counts)


# Merging and saving


def test_merge_is_the_landscape_of_all_in_any_order():
    parts = [lognormal(n, seed=n, mean=m) for n, m in ((10, 2.0), (500, 3.0), (3000, 5.0))]
    a, b, c = (PerplexityLandscape.from_values(p, [7] * len(p)) for p in parts)
    whole = PerplexityLandscape.from_values(np.concatenate(parts), [7] * 3510)
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b)):
        assert np.array_equal(merged.bins, whole.bins) and np.allclose(merged.sums, whole.sums, rtol=0, atol=1e-12)
        assert merged.moments("linear") == pytest.approx(whole.moments("linear"), rel=1e-13)
        assert merged.moments("log") == pytest.approx(whole.moments("log"), rel=1e-13)


def test_merge_refuses_other_models_and_weights():
    a = PerplexityLandscape.from_values([2.0], model="a")
    assert a.merge(PerplexityLandscape.from_values([3.0])).model == "a"
    with pytest.raises(ValueError, match=r"different models \(a and b\)"):
        a.merge(PerplexityLandscape.from_values([2.0], model="b"))
    with pytest.raises(ValueError, match="weighted by chunks with one by tokens"):
        a.merge(PerplexityLandscape.from_values([2.0], weights="tokens"))


def test_save_and_load(tmp_path):
    landscape = PerplexityLandscape.from_values([*lognormal(300), np.inf, np.nan], model="m", weights="tokens")
    landscape.save(tmp_path / "landscape.json")
    loaded = PerplexityLandscape.load(tmp_path / "landscape.json")
    assert np.array_equal(loaded.bins, landscape.bins) and np.array_equal(loaded.sums, landscape.sums)
    assert (loaded.model, loaded.weights, loaded.num_skipped, loaded.num_infinite) == ("m", "tokens", 1, 1)
    assert loaded.moments("linear") == landscape.moments("linear")
    (tmp_path / "other.json").write_text('{"kind": "hf_ppl_select/scaling_law", "schema_version": 1}')
    with pytest.raises(ValueError, match="not 'hf_ppl_select/landscape'"):
        PerplexityLandscape.load(tmp_path / "other.json")


# The attainable region


def subsets(x, k):
    chosen = np.array(list(itertools.combinations(range(len(x)), k)))
    return x[chosen].mean(1), x[chosen].std(1)


@pytest.mark.parametrize("space", ["linear", "log"])
def test_region_holds_every_subset_and_is_tight(space):
    rng = np.random.default_rng(0)
    for trial in range(200):
        n = int(rng.integers(2, 13))
        k = int(rng.integers(1, n + 1))
        x = np.exp(rng.normal(3, 1, n)) if trial % 3 else np.round(rng.uniform(5, 15, n))  # some with ties
        x = np.log(x) if space == "log" else x
        region = attainable_region(x, k, space=space)
        mu, sigma = subsets(x, k)
        assert region.contains(mu, sigma).all()
        low, high = region.sigma_bounds(np.clip(mu, region.mu[0], region.mu[-1]))
        atol = 1e-6 * np.ptp(x)
        assert region.mu[[0, -1]] == pytest.approx([mu.min(), mu.max()], abs=1e-9)
        # The tightest neighbours lie on the lower curve, the widest pairs of tails on the upper one.
        assert np.min(sigma - low) == pytest.approx(0, abs=atol)
        assert np.min(high - sigma) == pytest.approx(0, abs=atol)
        order = np.sort(x)
        neighbours = np.lib.stride_tricks.sliding_window_view(order, k)
        tight, _ = region.sigma_bounds(np.clip(neighbours.mean(1), region.mu[0], region.mu[-1]))
        assert tight == pytest.approx(neighbours.std(1), abs=atol)
        tails = np.array([np.concatenate([order[:j], order[n - k + j :]]) for j in range(k + 1)])
        _, wide = region.sigma_bounds(np.clip(tails.mean(1), region.mu[0], region.mu[-1]))
        assert wide == pytest.approx(tails.std(1), abs=atol)


def test_region_with_fractional_budget_is_what_weights_reach():
    """Random inclusion weights in [0, 1] never leave the region, and linear programming agrees with its edges."""
    rng = np.random.default_rng(1)
    x, budget = np.sort(np.exp(rng.normal(3, 0.8, 15))), 4.3
    region = attainable_region(x, budget)
    for mean in np.linspace(region.mu[0], region.mu[-1], 7)[1:-1]:
        for sign, bound in zip((1, -1), region.sigma_bounds(mean), strict=True):
            best = linprog(sign * x**2, A_eq=[np.ones(15), x], b_eq=[budget, budget * mean], bounds=(0, 1))
            assert np.sqrt(sign * best.fun / budget - mean**2) == pytest.approx(bound, rel=1e-6)


def test_region_from_bins_matches_region_from_values():
    x = lognormal(4000)
    landscape = PerplexityLandscape.from_values(x, [50] * 4000)
    for space, values in (("linear", x), ("log", np.log(x))):
        exact = attainable_region(values, 1000, space=space)
        binned = landscape.attainable_region(50_000, space)
        assert binned.budget == pytest.approx(50_000) and binned.space == space
        mu = np.linspace(exact.mu[0], exact.mu[-1], 50)[1:-1]
        for a, b in zip(exact.sigma_bounds(mu), binned.sigma_bounds(mu), strict=True):
            assert a == pytest.approx(b, rel=2e-3)
        assert binned.contains(*landscape.moments(space))


def test_region_of_counts_is_the_region_of_repeated_values():
    x, counts = np.array([3.0, 5.0, 11.0]), np.array([2.0, 4.0, 1.0])
    a, b = attainable_region(x, 3, counts, counts), attainable_region(np.repeat(x, [2, 4, 1]), 3)
    mu = np.linspace(a.mu[0], a.mu[-1], 20)
    assert np.allclose(a.sigma_bounds(mu), b.sigma_bounds(mu))


def test_region_of_ragged_chunks_counts_the_budget_in_tokens():
    """Where hard chunks are short, a budget holds more of them: brute force over windows of neighbours."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(4, 2, 400))
    tokens = np.clip(130 - 20 * x + rng.normal(0, 5, 400), 5, None)
    region = attainable_region(x, 5000.0, tokens, space="log")
    ends = np.concatenate([[0.0], np.cumsum(tokens)])
    for start in range(0, 100, 7):
        w = np.clip(ends[start] + 5000.0 - ends[start:-1], 0.0, tokens[start:]) / tokens[start:]
        mean = w @ x[start:] / w.sum()
        spread = np.sqrt(w @ (x[start:] - mean) ** 2 / w.sum())
        assert region.sigma_bounds(np.maximum(mean, region.mu[0]))[0] == pytest.approx(spread, rel=1e-6)


def test_region_of_the_whole_corpus_is_one_point():
    x = lognormal(100)
    landscape = PerplexityLandscape.from_values(x)
    region = landscape.attainable_region(100)
    assert len(region.mu) == 1 and region.contains(x.mean(), x.std())
    assert not region.contains(x.mean() + 0.1, x.std())


def test_bad_budgets():
    landscape = PerplexityLandscape.from_values([10.0, 20.0], [30, 30])
    with pytest.raises(ValueError, match="num_tokens=61 is more than the 60 tokens there are"):
        landscape.attainable_region(61)
    with pytest.raises(ValueError, match="one chunk holds 30"):
        landscape.attainable_region(29)
    with pytest.raises(TypeError, match="num_tokens='30' must be a number, not str"):
        landscape.attainable_region("30")
    with pytest.raises(ValueError, match="'linear' or 'log'"):
        landscape.attainable_region(30, "cubic")
    for budget in (0.0, 3.0):
        with pytest.raises(ValueError, match="num_tokens="):
            attainable_region([1.0, 2.0], budget)
