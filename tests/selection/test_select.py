import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.fingerprint import Hasher

from hf_ppl_select.data.saving import load_json
from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.selection import baselines as strategies
from hf_ppl_select.selection.row_hash import uniform_numbers
from hf_ppl_select.selection.select import (
    STRATEGIES,
    STRATEGIES_WITH_TARGET,
    PerplexitySelector,
    plan_selection,
    select_subset,
)

CHUNK = 128


def perplexities(num_chunks=5000, seed=0, junk=0.15):
    """A log-normal mixture with a far tail of junk."""
    rng = np.random.default_rng(seed)
    nll = np.where(rng.random(num_chunks) < 0.7, rng.normal(3.0, 0.4, num_chunks), rng.normal(2.5, 0.3, num_chunks))
    return np.exp(np.where(rng.random(num_chunks) < junk, rng.normal(8.1, 0.9, num_chunks), nll))


def lengths(num_chunks, ragged, seed=3):
    if not ragged:
        return np.full(num_chunks, CHUNK)
    return np.clip(np.random.default_rng(seed).lognormal(4.5, 0.7, num_chunks), 5, 512).astype(int)


def corpus(num_chunks=5000, *, junk=0.15, ragged=False):
    perplexity = perplexities(num_chunks, junk=junk)
    text = [f"chunk {i}" for i in range(num_chunks)]
    return {"perplexity": perplexity, "num_tokens": lengths(num_chunks, ragged), "text": text}


@pytest.fixture(scope="module")
def dataset():
    return Dataset.from_dict(corpus())


@pytest.fixture(scope="module")
def law():
    """A law whose best mean perplexity is 20, fitted to probes around the corpus and to the corpus itself."""
    own = PerplexityLandscape.from_values(perplexities())
    moments = [(mu, sigma) for mu in (9.0, 14.0, 20.0, 27.0, 34.0) for sigma in (4.0, 9.0)] + [own.moments("linear")]
    points = []
    for i, (mu, sigma) in enumerate(moments):
        for num_tokens in (8_000, 32_000, 128_000):
            height = 0.3 * (np.log(mu) - np.log(20)) ** 2 - 0.02 * np.log(sigma)
            loss = 1.5 + 4.0 * num_tokens**-0.15 * np.exp(height)
            points.append({"run": f"run-{i}", "mu": mu, "sigma": sigma, "num_tokens": num_tokens, "loss": loss})
    with pytest.warns(UserWarning, match="heavy-tailed"):  # the corpus itself, which is junk in part
        return fit_scaling_law(points, form="log_parabola", space="linear")


# ---------------------------------------------------------------------------------------------- subsets in memory


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
    with pytest.raises(TypeError, match="splits"):
        select_subset(DatasetDict(train=good), strategy="low", num_tokens=500)
    with pytest.raises(TypeError, match="PerplexitySelector"):
        select_subset(good.to_iterable_dataset(), strategy="low", num_tokens=500)
    with pytest.raises(ValueError, match="no rows"):
        select_subset(good.select([]), strategy="low", num_tokens=500)
    with pytest.raises(ValueError, match="no chunk has a finite perplexity"):
        select_subset(Dataset.from_dict({"perplexity": [None], "num_tokens": [0]}), strategy="low", num_tokens=5)


# ---------------------------------------------------------------------------------------------- the stateless selector


@pytest.fixture(scope="module")
def selector(dataset):
    landscape = PerplexityLandscape.from_dataset(dataset)
    return PerplexitySelector.from_target(22.0, 10.0, landscape=landscape, num_tokens=200_000, space="linear", seed=7)


def test_selector_keeps_what_it_promises(dataset, selector):
    subset = dataset.filter(selector, batched=True)
    perplexity = np.array(subset["perplexity"])
    std = selector.num_tokens_std
    assert selector.expected_num_tokens == pytest.approx(200_000)
    assert 0 < std < 200_000 * 0.03
    assert abs(sum(subset["num_tokens"]) - 200_000) < 4 * std
    assert abs(perplexity.mean() - 22) < 4 * 10 / np.sqrt(len(perplexity))
    assert abs(perplexity.std() - 10) < 1


def test_selector_has_unbiased_tokens_over_seeds(dataset, selector):
    columns = dataset[:]
    kept = [sum(dataclasses.replace(selector, seed=seed)(columns)) * CHUNK for seed in range(40)]
    assert abs(np.mean(kept) - selector.expected_num_tokens) < 4 * selector.num_tokens_std / np.sqrt(40)
    assert 0.6 < np.std(kept) / selector.num_tokens_std < 1.5


def test_rows_batches_streams_orders_and_copies_agree(dataset, selector, tmp_path):
    selector.save(tmp_path / "selector.json")
    loaded = PerplexitySelector.load(tmp_path / "selector.json")
    assert loaded == selector == pickle.loads(pickle.dumps(selector))
    wanted = [row["text"] for row in dataset if selector(row)]
    assert wanted == dataset.filter(loaded)["text"]
    assert wanted == dataset.filter(loaded, batched=True, batch_size=17)["text"]
    assert wanted == [row["text"] for row in dataset.to_iterable_dataset(num_shards=3).filter(loaded, batched=True)]
    assert sorted(wanted) == sorted(dataset.shuffle(seed=1).filter(loaded, batched=True)["text"])
    numpy_batch = dataset.with_format("numpy")[:]
    assert sum(loaded(numpy_batch)) == len(wanted)
    assert Hasher.hash(loaded) == Hasher.hash(selector) != Hasher.hash(dataclasses.replace(selector, seed=8))


def test_decisions_are_booleans_and_unusable_perplexities_are_never_kept():
    keep_all = PerplexitySelector((100.0, 0.0, 0.0), 20.0, 5.0)
    batch = {"perplexity": [None, float("nan"), float("inf"), 0.0, -3.0, 20.0], "text": list("abcdef")}
    assert keep_all(batch) == [False] * 5 + [True]
    assert keep_all({"perplexity": None, "text": "a"}) is False
    assert keep_all({"perplexity": 20, "text": "a"}) is True
    assert keep_all({"perplexity": [], "text": []}) == []
    log_space = dataclasses.replace(keep_all, space="log", centre=3.0, scale=0.5)
    assert log_space.inclusion_probability([20.0, np.inf, 0.0]).tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_hash_is_uniform_and_fixed():
    selector = PerplexitySelector((0.0, 0.0, 0.0), 20.0, 5.0, seed=3)
    uniform = uniform_numbers([f"text {i}" for i in range(20_000)], selector.seed)
    assert uniform.min() >= 0 and uniform.max() < 1
    counts = np.histogram(uniform, bins=20, range=(0, 1))[0]
    assert np.sum((counts - 1000) ** 2 / 1000) < 50  # chi-square with 19 degrees of freedom
    digest = hashlib.blake2b(b"text 0", digest_size=8, key=b"3", person=b"hf_ppl_select").digest()
    assert uniform[0] == (int.from_bytes(digest, "little") >> 11) / 2**53


def test_any_json_key_column_works():
    selector = PerplexitySelector((0.0, 0.0, 0.0), 20.0, 5.0, key_column="key")
    keys = [7, np.int64(7), "text \ud800", [{"role": "user", "content": "hi"}], None, 2.5]
    decisions = selector({"perplexity": [20.0] * len(keys), "key": keys})
    assert decisions[0] == decisions[1]
    with pytest.raises(TypeError, match="'key' holds object"):
        selector({"perplexity": 20.0, "key": object()})


def test_missing_columns_are_named(selector):
    with pytest.raises(KeyError, match=r"no column 'text', they have \['perplexity'\]"):
        selector({"perplexity": 20.0})
    with pytest.raises(KeyError, match=r"no column 'perplexity'.*score_ppl"):
        selector({"text": ["a"]})


@pytest.mark.parametrize(
    "bad",
    [{"scale": 0.0}, {"centre": np.nan}, {"lambdas": (1.0, 2.0)}, {"space": "square"}, {"lambdas": (np.inf, 0, 0)}],
)
def test_bad_selector_settings(selector, bad):
    with pytest.raises(ValueError):
        dataclasses.replace(selector, **bad)


def test_selector_from_a_law(dataset, law):
    landscape = PerplexityLandscape.from_dataset(dataset)
    selector = PerplexitySelector.from_law(law, landscape, num_tokens=100_000, seed=2, key_column="text")
    plan = plan_selection(dataset, law=law, num_tokens=100_000)
    assert (selector.centre, selector.scale) == pytest.approx(plan.target, rel=1e-3)
    assert selector.lambdas == (*plan.maxent.levels, *plan.maxent.lambdas)  # one rule
    assert selector.space == law.space and selector.seed == 2


def test_selector_on_a_landscape_whose_tokens_vote():
    columns = corpus(ragged=True)
    perplexity, tokens = columns["perplexity"], columns["num_tokens"]
    landscape = PerplexityLandscape.from_values(perplexity, tokens, weights="tokens")
    selector = PerplexitySelector.from_target(22.0, 10.0, landscape=landscape, num_tokens=100_000)
    kept = tokens * selector.inclusion_probability(perplexity)
    assert kept.sum() == pytest.approx(100_000, rel=2e-3)
    assert (kept @ perplexity) / kept.sum() == pytest.approx(22.0, rel=2e-3)


def test_selector_errors(dataset):
    landscape = PerplexityLandscape.from_dataset(dataset)
    for options, message in (
        ({"num_tokens": 10**9}, "more than the 640,000 tokens"),
        ({"num_tokens": 0}, "above 0"),
        ({"mu": 1e6}, "mu reaches from"),
        ({"space": "both"}, "space must be"),
    ):
        arguments = {"mu": 22.0, "sigma": 10.0, "num_tokens": 100_000, **options}
        with pytest.raises(ValueError, match=message):
            PerplexitySelector.from_target(
                arguments.pop("mu"), arguments.pop("sigma"), landscape=landscape, **arguments
            )


def test_a_selector_file_of_another_kind_is_refused(law, tmp_path):
    law.save(tmp_path / "law.json")
    with pytest.raises(ValueError, match="perplexity_selector"):
        PerplexitySelector.load(tmp_path / "law.json")


def test_another_process_selects_the_same_rows(selector, tmp_path):
    selector.save(tmp_path / "selector.json")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import hashlib, numpy as np
from datasets.fingerprint import Hasher
from hf_ppl_select.selection.select import PerplexitySelector, plan_selection
rng = np.random.default_rng(0)
columns = {{"perplexity": np.exp(rng.normal(3, 0.6, 3000)), "num_tokens": rng.integers(20, 200, 3000)}}
columns["text"] = [f"chunk {{i}}" for i in range(3000)]
selector = PerplexitySelector.load({str(tmp_path / "selector.json")!r})
rows = [plan_selection(columns, target=(22.0, 9.0), num_tokens=50_000, seed=4, strategy=s).indices.tolist()
        for s in ("maxent", "greedy_dos", "regime")]
rows.append(plan_selection(columns, num_tokens=50_000, seed=4, strategy="random").indices.tolist())
print(hashlib.sha256(repr([rows, selector(columns), Hasher.hash(selector)]).encode()).hexdigest())
"""
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout) == 65


def test_streams_are_filtered_lazily(selector):
    def rows():
        rng = np.random.default_rng(0)
        for i in range(100):
            yield {"perplexity": float(np.exp(rng.normal(3, 0.4))), "text": str(i)}

    kept = list(IterableDataset.from_generator(rows).filter(selector, batched=True, batch_size=8))
    assert [row["text"] for row in kept] == [row["text"] for row in rows() if selector(row)]
