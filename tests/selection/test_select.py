"""Subsets in memory: every strategy against brute force, budgets, targets, reports, errors."""

import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_ppl_select.data.saving import load_json
from hf_ppl_select.selection import baselines as strategies
from hf_ppl_select.selection.report import load_report
from hf_ppl_select.selection.select import (
    STRATEGIES,
    STRATEGIES_WITH_TARGET,
    plan_selection,
    select_subset,
)
from tests.law.test_optimum import law_of
from tests.selection.junk_corpus import CHUNK, corpus, make_law


@pytest.fixture(scope="module")
def dataset():
    return Dataset.from_dict(corpus())


@pytest.fixture(scope="module")
def law():
    return make_law()


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("budget", [777, 50_000, 300_000])
def test_every_strategy_fills_the_budget_to_one_chunk(strategy, ragged, budget):
    columns = corpus(ragged=ragged)
    target = {"target": (22.0, 10.0)} if strategy in STRATEGIES_WITH_TARGET else {}
    plan = plan_selection(columns, num_tokens=budget, strategy=strategy, **target)
    tokens = columns["num_tokens"][plan.indices]
    assert 0 <= budget - tokens.sum() < columns["num_tokens"].max()
    assert plan.num_tokens == tokens.sum() and plan.num_chunks == len(plan.indices)
    assert np.all(np.diff(plan.indices) > 0)  # rising: no row twice


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("num_tokens", [40_000, 200_000])
def test_maxent_meets_22_10_within_one_percent(ragged, num_tokens):
    columns = corpus(ragged=ragged)
    plan = plan_selection(columns, target=(22.0, 10.0), space="linear", num_tokens=num_tokens)
    subset = columns["perplexity"][plan.indices]
    assert subset.mean() == pytest.approx(22.0, rel=0.01)
    assert subset.std() == pytest.approx(10.0, rel=0.01)
    assert plan.achieved["mu"] == subset.mean() and plan.achieved["log_sigma"] == np.log(subset).std()


def test_maxent_is_more_diverse_than_greedy_dos_at_the_same_target():
    columns = corpus()
    entropy = {}
    for strategy in ("maxent", "greedy_dos"):
        plan = plan_selection(columns, target=(22.0, 10.0), num_tokens=64_000, strategy=strategy)
        assert plan.achieved["mu"] == pytest.approx(22.0, rel=0.01)
        assert plan.achieved["sigma"] == pytest.approx(10.0, rel=0.01)
        share = np.histogram(columns["perplexity"][plan.indices], bins=np.arange(0, 101, 2))[0] / plan.num_chunks
        entropy[strategy] = -np.sum(share[share > 0] * np.log(share[share > 0]))
    assert entropy["maxent"] > entropy["greedy_dos"] + 0.5


def test_seed_decides_and_the_order_of_rows_does_not_matter_to_the_landscape():
    columns = corpus()
    first, again, other = (
        plan_selection(columns, target=(22.0, 10.0), num_tokens=64_000, seed=seed) for seed in (0, 0, 1)
    )
    assert np.array_equal(first.indices, again.indices)
    assert not np.array_equal(first.indices, other.indices)
    overlap = len(np.intersect1d(first.indices, other.indices)) / first.num_chunks
    assert overlap < 0.9


def test_greedy_dos_steps_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    for case in range(120):
        num_chunks = int(rng.integers(2, 40))
        values = rng.choice([rng.normal(20, 8, num_chunks), rng.integers(0, 12, num_chunks)], axis=0).astype(float)
        mu, sigma = rng.uniform(0, 25), rng.uniform(0.5, 12)
        weights = {"mu_weight": rng.choice([0.0, 0.3, 1.0, 5.0]), "sigma_weight": rng.choice([0.2, 1.0, 4.0])}
        if case % 10 == 0:
            weights = {"mu_weight": 1.0, "sigma_weight": 0.0}
        picked = strategies.choose_greedy_dos(
            values, np.ones(num_chunks), num_chunks // 2 + 1, mu, sigma, **weights
        ).tolist()
        assert len(set(picked)) == len(picked) == num_chunks // 2 + 1

        def j(rows, values=values, mu=mu, sigma=sigma, weights=weights):
            x = values[rows]
            return (
                weights["mu_weight"] * ((x.mean() - mu) / sigma) ** 2
                + weights["sigma_weight"] * (x.var() / sigma**2 - 1) ** 2
            )

        for step, chunk in enumerate(picked):
            free = [k for k in range(num_chunks) if k not in picked[:step]]
            costs = {k: j(picked[:step] + [k]) for k in free}
            best = min(costs.values())
            assert costs[chunk] <= best + 1e-9 * (1 + best)
            same = [k for k in free if values[k] == values[chunk]]
            assert chunk == same[0]  # equal values: original order


def test_greedy_dos_of_distinct_integers_equals_brute_force_exactly():
    values = np.array([1.0, 4.0, 5.0, 7.0, 8.0, 9.0, 13.0, 14.0, 20.0, 21.0])
    picked, mu, sigma = [], 9.0, 4.0
    for _ in range(6):
        free = [k for k in range(10) if k not in picked]
        x = [values[[*picked, k]] for k in free]
        picked.append(free[int(np.argmin([((v.mean() - mu) / 4) ** 2 + (v.var() / 16 - 1) ** 2 for v in x]))])
    assert strategies.choose_greedy_dos(values, np.ones(10), 6, mu, sigma).tolist() == picked


def test_regime_is_the_best_of_all_intervals():
    rng = np.random.default_rng(0)
    for _ in range(30):
        values, tokens = rng.normal(10, 3, 40), rng.integers(1, 9, 40)
        budget, order = 60, np.argsort(values)

        def cost(mu, sigma):
            return np.hypot(mu - 11, sigma - 1)

        best = np.inf
        for start in range(40):
            room = np.cumsum(tokens[order[start:]])
            stop = start + int(np.searchsorted(room, budget, side="right"))
            gap = budget - tokens[order[start:stop]].sum()
            if gap < tokens.max():
                x = values[order[start:stop]]
                best = min(best, cost(x.mean(), x.std()))
        chosen = strategies.choose_regime(values, tokens, budget, cost)
        assert cost(values[chosen].mean(), values[chosen].std()) == pytest.approx(best)


def test_low_and_high_and_random():
    columns = corpus()
    ranked = np.argsort(columns["perplexity"])
    low = plan_selection(columns, strategy="low", num_tokens=100 * CHUNK)
    high = plan_selection(columns, strategy="high", num_tokens=100 * CHUNK)
    drawn = plan_selection(columns, strategy="random", num_tokens=2500 * CHUNK)
    assert set(low.indices) == set(ranked[:100]) and set(high.indices) == set(ranked[-100:])
    assert np.log(columns["perplexity"][drawn.indices]).mean() == pytest.approx(drawn.corpus["log_mu"], abs=0.1)


def test_a_law_sets_the_target_and_predicts(law):
    columns = corpus()
    plans = {s: plan_selection(columns, law=law, num_tokens=100_000, strategy=s) for s in STRATEGIES}
    best = plans["maxent"]
    assert best.space == "linear" and best.optimum.mu == pytest.approx(best.target[0])
    assert best.achieved["mu"] == pytest.approx(best.target[0], rel=0.01)
    assert best.predicted_loss < best.random_loss and best.predicted_trusted and best.random_trusted
    assert best.predicted_loss == pytest.approx(
        law.predict(best.achieved["mu"], best.achieved["sigma"], best.num_tokens)
    )
    assert best.predicted_loss < min(plans[s].predicted_loss for s in ("low", "high", "random"))
    assert plans["regime"].predicted_loss < plans["random"].predicted_loss
    assert plans["low"].target is None and plans["low"].optimum is None


def test_losses_beyond_the_probes_are_called_extrapolated(law):
    columns = corpus()
    near = plan_selection(columns, law=law, num_tokens=100_000)
    assert "Extrapolated" not in str(near)
    far = plan_selection(columns, law=law, num_tokens=20 * CHUNK, strategy="low")
    assert not far.predicted_trusted and "Extrapolated: no probe covers this subset's moments." in str(far)
    longest = law.num_tokens_range[1]
    plan = plan_selection({**columns, "num_tokens": columns["num_tokens"] * 1000}, law=law, num_tokens=8 * longest)
    assert plan.extrapolation == pytest.approx(8, rel=0.05)
    assert "tokens are 8 times those of the longest probe" in str(plan)


def test_a_form_that_gives_no_loss_so_far_out_says_so(tmp_path):
    wild = law_of("paper", "linear", [0.2, -0.004, -0.1, 0.003], [12, 20, 32], [4, 8, 16])
    plan = plan_selection(corpus(), law=wild, num_tokens=100_000, strategy="random")
    assert plan.random_loss is None and plan.random_trusted is False
    assert "The law gives no loss to compare" in str(plan)
    plan.save(tmp_path / "selection.json")
    assert load_report(tmp_path / "selection.json") == plan.report()


def test_report_is_json_and_enough_to_reproduce(law, tmp_path):
    columns = corpus()
    plan = plan_selection(columns, law=law, num_tokens=100_000, seed=5)
    plan.save(tmp_path / "selection.json")
    saved = load_json(tmp_path / "selection.json", kind="selection", version=3)
    assert saved == plan.report() == json.loads(json.dumps(plan.report()))
    again = plan_selection(
        columns,
        target=saved["target"],
        space=saved["space"],
        num_tokens=saved["budget"],
        strategy=saved["strategy"],
        seed=saved["seed"],
    )
    assert again.report()["indices_sha256"] == saved["indices_sha256"]
    assert saved["optimum"]["gain_interval"] and saved["maxent"]["lambdas"] and saved["random_loss"]


def test_select_subset_is_a_plain_dataset_in_the_original_order(dataset):
    subset = select_subset(dataset, target=(22.0, 10.0), space="linear", num_tokens=64_000)
    assert isinstance(subset, Dataset) and subset.column_names == dataset.column_names
    assert len(subset) == 500
    rows = [int(text.split()[1]) for text in subset["text"]]
    assert rows == sorted(rows)
    of_shuffled = select_subset(dataset.shuffle(seed=0), target=(22.0, 10.0), num_tokens=64_000)
    assert np.mean(of_shuffled["perplexity"]) == pytest.approx(22.0, rel=0.01)


def test_unusable_rows_are_dropped_and_counted():
    perplexity = [None, float("nan"), float("inf"), 10.0, 12.0, 20.0, 30.0, 9.0]
    tokens = [10, 10, 10, 10, 10, 10, 900, 0]
    dataset = Dataset.from_dict({"perplexity": perplexity, "num_tokens": tokens})
    plan = plan_selection(dataset, strategy="random", num_tokens=20)
    assert plan.dropped == {"no_score": 3, "infinite_score": 1, "longer_than_budget": 1}
    assert set(plan.indices) <= {3, 4, 5} and plan.num_chunks == 2
    assert plan.corpus["num_chunks"] == 3 and plan.corpus["num_tokens"] == 30


def test_one_chunk_and_everything():
    columns = corpus(500, junk=0)
    one = plan_selection(columns, strategy="low", num_tokens=CHUNK)
    assert one.num_chunks == 1 and one.achieved["sigma"] == 0 and json.dumps(one.report())
    with pytest.warns(UserWarning, match="1 chunks has mu"):
        plan = plan_selection(columns, target=(20.0, 2.0), num_tokens=CHUNK)
    assert plan.num_chunks == 1 and plan.achieved["mu"] == pytest.approx(20.0, abs=2.0)
    own = columns["perplexity"].mean(), columns["perplexity"].std()
    everything = plan_selection(columns, target=own, num_tokens=500 * CHUNK)
    assert np.array_equal(everything.indices, np.arange(500))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "above 0"),
        ({"num_tokens": -5}, "above 0"),
        ({"num_tokens": float("nan")}, "above 0"),
        ({"num_tokens": 64_001}, "64,001 is more than the 64,000 tokens"),
        ({"num_tokens": 100}, "shortest chunk has .128"),
        ({"strategy": "best"}, "strategies are maxent"),
        ({"target": None}, "needs a law or a target"),
        ({"strategy": "low"}, "has no target"),
        ({"target": 22.0}, "not a pair"),
        ({"target": (22.0, 0.0)}, "sigma above 0"),
        ({"space": "cubic"}, "space must be"),
        ({"target": (1000.0, 5.0)}, r"mu reaches from [\d.]+ to [\d.]+, so that mu is out of reach"),
        ({"target": (20.0, 500.0)}, r"sigma from [\d.]+ to [\d.]+ at mu 20"),
        ({"target": (20.0, 1e-4)}, r"sigma from [\d.]+ to [\d.]+ at mu 20"),
    ],
)
def test_clear_errors(options, message):
    arguments = {"target": (20.0, 8.0), "num_tokens": 12_800, **options}
    with pytest.raises(ValueError, match=message):
        plan_selection(corpus(500, junk=0), **arguments)


def test_law_and_target_exclude_each_other_and_spaces_must_agree(law):
    with pytest.raises(ValueError, match="one of the two"):
        plan_selection(corpus(500), law=law, target=(20.0, 8.0), num_tokens=12_800)
    with pytest.raises(ValueError, match="law lives in 'linear'"):
        plan_selection(corpus(500), law=law, space="log", num_tokens=12_800)


def test_datasets_that_cannot_be_selected_from():
    good = Dataset.from_dict(corpus(100))
    with pytest.raises(KeyError, match="no column 'perplexity', it has num_tokens, text"):
        select_subset(good.remove_columns("perplexity"), strategy="low", num_tokens=500)
    words = good.rename_column("num_tokens", "num_words")
    with pytest.raises(KeyError, match='num_tokens_column="num_words" .*--num_tokens_column num_words.* in words'):
        select_subset(words, strategy="low", num_tokens=500)
    with pytest.raises(KeyError, match="no column 'words'.*--num_tokens_column"):
        select_subset(words, strategy="low", num_tokens=500, num_tokens_column="words")
    with pytest.raises(TypeError, match="splits"):
        select_subset(DatasetDict(train=good), strategy="low", num_tokens=500)
    with pytest.raises(TypeError, match="PerplexitySelector"):
        select_subset(good.to_iterable_dataset(), strategy="low", num_tokens=500)
    with pytest.raises(ValueError, match="no rows"):
        select_subset(good.select([]), strategy="low", num_tokens=500)
    with pytest.raises(ValueError, match="no chunk has a finite perplexity"):
        select_subset(Dataset.from_dict({"perplexity": [None], "num_tokens": [0]}), strategy="low", num_tokens=5)
