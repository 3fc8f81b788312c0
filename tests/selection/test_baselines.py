import numpy as np
import pytest

from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.selection.baselines import choose_greedy_dos, choose_ranked


def perplexities(num_chunks, junk=0.0, seed=0):
    """A log-normal mixture, with a far tail of junk."""
    rng = np.random.default_rng(seed)
    nll = np.where(rng.random(num_chunks) < 0.7, rng.normal(3.0, 0.4, num_chunks), rng.normal(2.5, 0.3, num_chunks))
    return np.exp(np.where(rng.random(num_chunks) < junk, rng.normal(8.1, 0.9, num_chunks), nll))


def test_middle_is_the_same_in_either_space_and_sits_around_the_median():
    perplexity = perplexities(1001)
    tokens = np.full(1001, 10)
    chosen = choose_ranked("middle", perplexity, tokens, 205, 0)
    assert np.array_equal(chosen, choose_ranked("middle", np.log(perplexity), tokens, 205, 0))
    ranks = np.sort(np.argsort(np.argsort(perplexity))[chosen])
    assert ranks.tolist() == list(range(490, 510))  # 20 of 1001: 10 below the median, itself, 9 above
    for number in (1, 2, 3, 4, 7):
        whole = choose_ranked("middle", np.arange(number)[::-1], np.ones(number), number, 0)
        assert sorted(whole.tolist()) == list(range(number))
        assert choose_ranked("middle", np.arange(number), np.ones(number), 1, 0).tolist() == [number // 2]


def test_baselines_share_the_budget_rule():
    perplexity = perplexities(2000)
    tokens = np.random.default_rng(0).integers(5, 300, 2000)
    for strategy in ("low", "middle", "high", "random"):
        chosen = choose_ranked(strategy, perplexity, tokens, 30_000, seed=1)
        assert len(set(chosen.tolist())) == len(chosen)
        assert 0 <= 30_000 - tokens[chosen].sum() < 300


def test_greedy_dos_of_many_rows_keeps_no_python_object_per_row():
    values = np.log(perplexities(300_000))
    chosen = choose_greedy_dos(values, np.ones(len(values)), 3000, 2.9, 0.3)
    assert len(np.unique(chosen)) == 3000
    assert (values[chosen].mean(), values[chosen].std()) == pytest.approx((2.9, 0.3), rel=1e-3)
    assert choose_greedy_dos(values[:10], np.full(10, 5.0), 4.0, 2.9, 0.3).tolist() == []  # none fits


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
