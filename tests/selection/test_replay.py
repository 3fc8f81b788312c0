"""Replay and order of a subset; its report, and the same rows from it again."""

import numpy as np
import pytest
from datasets import Dataset, Features, Value

from hf_ppl_select.selection.select import (
    plan_selection,
    reproduce_selection,
    select_subset,
)
from tests.selection.sources_corpus import corpus, general, make_law


@pytest.fixture(scope="module")
def law():
    return make_law()


def test_replay_takes_its_share_of_the_budget_evenly_mixed():
    dataset, wiki = Dataset.from_dict(corpus()), general()
    plan = plan_selection(dataset, num_tokens=40_020, target=(20.0, 7.0), replay=0.05, replay_dataset=wiki, seed=1)
    assert plan.replay == {"share": 0.05, "num_chunks": 40, "num_tokens": 2_000}
    assert plan.num_tokens == 38_000 and plan.num_rows == 420
    assert plan.achieved["mu"] == pytest.approx(20.0, rel=0.01)  # of the other rows
    subset = plan.apply(dataset, wiki)
    assert subset.features == dataset.features and len(subset) == 420
    is_general = np.array([text.startswith("general") for text in subset["text"]])
    assert np.array_equal(is_general, plan.is_replay)
    gaps = np.diff(np.flatnonzero(is_general))
    assert gaps.min() >= 10 and gaps.max() <= 11
    kept = [text for text in subset["text"] if not text.startswith("general")]
    assert kept == dataset.select(plan.indices)["text"] and kept == sorted(kept, key=lambda t: int(t.split()[1]))
    assert len(set(subset["text"])) == 420
    other = plan_selection(dataset, num_tokens=40_020, target=(20.0, 7.0), replay=0.05, replay_dataset=wiki, seed=2)
    assert set(other.replay_indices) != set(plan.replay_indices)
    with pytest.raises(ValueError, match="pass replay_dataset="):
        plan.apply(dataset)


def test_select_subset_takes_every_option():
    dataset, wiki = Dataset.from_dict(corpus()), general()
    options = {"num_tokens": 30_000, "target": (20.0, 7.0), "group_by": "source", "deduplicate": "exact"}
    options |= {"replay": 0.1, "order": "hard_to_easy", "max_score": 60.0, "seed": 4}
    subset = select_subset(dataset, replay_dataset=wiki, **options)
    assert subset["text"] == plan_selection(dataset, replay_dataset=wiki, **options).apply(dataset, wiki)["text"]
    with pytest.raises(TypeError, match="near_treshold"):
        select_subset(dataset, num_tokens=30_000, strategy="low", near_treshold=0.9)


def test_replay_columns_are_aligned():
    dataset = Dataset.from_dict(corpus())
    narrow = general().cast(
        Features(general().features | {"num_tokens": Value("int32"), "perplexity": Value("float32")})
    )
    options = {"num_tokens": 40_000, "strategy": "random", "replay": 0.1}
    plan = plan_selection(dataset, replay_dataset=narrow, **options)
    assert plan.apply(dataset, narrow).features == dataset.features
    without = general().remove_columns("source")
    plan = plan_selection(dataset, replay_dataset=without, **options)
    with pytest.raises(ValueError, match="replay_dataset has no column 'source'"):
        plan.apply(dataset, without)
    wrong = general().remove_columns("source").add_column("source", [[1, 2]] * 500)
    plan = plan_selection(dataset, replay_dataset=wrong, **options)
    with pytest.raises(ValueError, match="replay_dataset's column 'source' is"):
        plan.apply(dataset, wrong)


def test_orders():
    columns = corpus()
    plans = {
        order: plan_selection(columns, num_tokens=40_000, target=(20.0, 7.0), order=order)
        for order in ("dataset", "easy_to_hard", "hard_to_easy", "shuffled")
    }
    rows = plans["dataset"].indices
    assert all(np.array_equal(np.sort(plan.indices), rows) for plan in plans.values())
    easy = columns["perplexity"][plans["easy_to_hard"].indices]
    assert np.all(np.diff(easy) >= 0)
    assert np.array_equal(plans["hard_to_easy"].indices, plans["easy_to_hard"].indices[::-1])
    shuffled = plans["shuffled"].indices
    assert abs(np.corrcoef(shuffled, np.arange(400))[0, 1]) < 0.2
    seeds = [
        plan_selection(columns, num_tokens=40_000, strategy="low", order="shuffled", seed=seed).indices
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(seeds[0], seeds[1]) and not np.array_equal(seeds[0], seeds[2])


def test_shuffled_replay_is_anywhere():
    dataset, wiki = Dataset.from_dict(corpus()), general()
    options = {"num_tokens": 40_000, "strategy": "low", "replay": 0.1, "replay_dataset": wiki, "order": "shuffled"}
    plan = plan_selection(dataset, **options)
    gaps = np.diff(np.flatnonzero(plan.is_replay))
    assert gaps.max() > 2 * gaps.mean() and plan.is_replay.sum() == 80
    texts = plan.apply(dataset, wiki)["text"]
    assert [text.startswith("general") for text in texts] == plan.is_replay.tolist()


def test_regimes_count_deciles():
    columns = corpus(ragged=True)
    plan = plan_selection(columns, num_tokens=50_000, strategy="low")
    edges = np.quantile(columns["perplexity"], np.linspace(0, 1, 11))
    assert [row["low"] for row in plan.regimes] == edges[:-1].tolist()
    assert sum(row["num_chunks"] for row in plan.regimes) == plan.num_chunks
    assert sum(row["num_tokens"] for row in plan.regimes) == plan.num_tokens == 50_000 - (50_000 - plan.num_tokens)
    first = plan.regimes[0]
    assert first["num_chunks"] == np.sum(columns["perplexity"] <= first["high"])  # low takes all of them
    assert plan.regimes[-1]["num_chunks"] == 0
    even = plan_selection(columns, num_tokens=sum(columns["num_tokens"]), strategy="random")
    assert all(row["num_chunks"] == 400 for row in even.regimes)


EVERYTHING = {
    "num_tokens": 30_000,
    "seed": 11,
    "group_by": "source",
    "min_group_tokens": {"gard": 6_000},
    "deduplicate": "normalized",
    "min_score": 5.0,
    "max_score": 70.0,
    "replay": 0.1,
    "order": "shuffled",
}


@pytest.mark.parametrize("strategy", ["maxent", "greedy_dos", "regime", "random"])
@pytest.mark.parametrize("aim", ["law", "target"])
def test_the_report_alone_gives_the_same_rows(strategy, aim, law, tmp_path):
    columns = corpus()
    columns["text"] = [f"Text  {i % 3000}" if i % 7 else f"text {i % 3000}" for i in range(4000)]
    dataset, wiki = Dataset.from_dict(columns), general()
    by = {"law": law} if aim == "law" else {"target": (19.0, 6.0), "space": "linear"}
    if strategy == "random":
        by.pop("target", None), by.pop("space", None)
    plan = plan_selection(dataset, strategy=strategy, replay_dataset=wiki, **by, **EVERYTHING)
    plan.save(tmp_path / "selection.json")
    for used_law in (by.get("law"), None):
        if used_law is None and aim == "law" and strategy == "regime":
            with pytest.raises(ValueError, match="pass law="):
                reproduce_selection(tmp_path / "selection.json", dataset, replay_dataset=wiki)
            continue
        again = reproduce_selection(tmp_path / "selection.json", dataset, law=used_law, replay_dataset=wiki)
        assert np.array_equal(again.indices, plan.indices)
        assert np.array_equal(again.replay_indices, plan.replay_indices)
        assert again.apply(dataset, wiki)["text"] == plan.apply(dataset, wiki)["text"]
        if used_law is not None or aim == "target":
            assert again.report() == plan.report()


def test_another_dataset_is_noticed(law):
    columns = corpus()
    report = plan_selection(columns, num_tokens=20_000, target=(20.0, 7.0)).report()
    changed = columns | {"perplexity": columns["perplexity"] * np.where(np.arange(4000) == 7, 1.001, 1.0)}
    for other in (changed, {name: values[:-1] for name, values in columns.items()}):
        with pytest.raises(ValueError, match="not the data that was selected from"):
            reproduce_selection(report, other)
    broken = report | {"indices_sha256": "0" * 64}
    with pytest.raises(ValueError, match="came out different"):
        reproduce_selection(broken, columns)
    by_law = plan_selection(columns, num_tokens=20_000, law=law).report()
    by_law["law"] = by_law["law"] | {"params": {"E": 1.0}}
    with pytest.raises(ValueError, match="another law"):
        reproduce_selection(by_law, columns, law=law)
