"""Groups, duplicates, guards, replay and order in `plan_selection`, and choosing again from the report."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Features, Value
from scipy.special import expit

from hf_ppl_select.landscape.cells import Cells
from hf_ppl_select.landscape.maxent import solve
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.selection.groups import Groups, split_budget
from hf_ppl_select.selection.select import (
    STRATEGIES,
    STRATEGIES_WITH_TARGET,
    plan_selection,
    reproduce_selection,
    select_subset,
)

CHUNK = 100
SOURCES = ("gard", "ghr", "nih", "web")


def corpus(num_chunks=4000, *, ragged=False, seed=0):
    """Four sources of unlike size and perplexity."""
    rng = np.random.default_rng(seed)
    source = rng.choice(4, num_chunks, p=[0.1, 0.2, 0.3, 0.4])
    perplexity = np.exp(rng.normal(2.7 + 0.15 * source, 0.4))
    tokens = rng.integers(20, 180, num_chunks) if ragged else np.full(num_chunks, CHUNK)
    text = [f"chunk {i}" for i in range(num_chunks)]
    return {
        "text": text,
        "perplexity": perplexity,
        "num_tokens": tokens,
        "source": [SOURCES[s] for s in source],
    }


def general(num_rows=500, num_tokens=50):
    return Dataset.from_dict(
        {
            "source": ["wiki"] * num_rows,
            "text": [f"general {i}" for i in range(num_rows)],
            "perplexity": np.linspace(5, 50, num_rows),
            "num_tokens": [num_tokens] * num_rows,
            "extra": [0] * num_rows,
        }
    )


@pytest.fixture(scope="module")
def law():
    """A law whose loss falls with a lower mean nll down to 2, in log space."""
    rng = np.random.default_rng(0)
    points = []
    for run, mu in enumerate((8, 12, 18, 26, 40)):
        m = np.log(mu)
        for num_tokens in (8_000, 16_000, 32_000):
            loss = 1.5 + np.exp(2.0 - 0.15 * np.log(num_tokens) - 1.2 * m + 0.18 * m**2) + rng.normal(0, 1e-3)
            moments = {"mu": mu, "sigma": 0.3 * mu, "log_mu": m, "log_sigma": 0.3}
            points.append({"run": f"r{run}", **moments, "num_tokens": num_tokens, "loss": loss})
    return fit_scaling_law(points, form="log_parabola", space="log", model="tiny")


def tokens_by_source(columns, plan):
    source, tokens = np.array(columns["source"])[plan.indices], np.array(columns["num_tokens"])[plan.indices]
    return {name: int(tokens[source == name].sum()) for name in SOURCES}


# ------------------------------------------------------------------------------------------------------------ groups


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ragged", [False, True])
def test_groups_get_their_share_and_the_whole_meets_budget_and_target(strategy, ragged):
    columns = corpus(ragged=ragged)
    target = {"target": (20.0, 7.0)} if strategy in STRATEGIES_WITH_TARGET else {}
    plan = plan_selection(columns, num_tokens=90_000, strategy=strategy, group_by="source", seed=3, **target)
    longest = max(columns["num_tokens"])
    assert 0 <= 90_000 - plan.num_tokens < longest
    found, total = tokens_by_source(columns, plan), sum(columns["num_tokens"])
    everything = tokens_by_source(columns, plan_selection(columns, num_tokens=total, strategy="random"))
    for row in plan.groups:
        assert row["budget"] == pytest.approx(90_000 * everything[row["group"]] / total, abs=1)
        assert abs(found[row["group"]] - row["budget"]) <= longest and row["num_tokens"] == found[row["group"]]
    assert np.all(np.diff(plan.indices) > 0)
    if strategy == "maxent":
        subset = columns["perplexity"][plan.indices]
        assert subset.mean() == pytest.approx(20.0, rel=0.01) and subset.std() == pytest.approx(7.0, rel=0.01)


def test_explicit_budgets_are_filled_to_one_chunk_and_the_rest_is_shared():
    columns = corpus()
    budgets = {"web": 12_345, "gard": 5_000, "nih": 0}
    plan = plan_selection(columns, num_tokens=40_000, target=(20.0, 7.0), group_by="source", group_num_tokens=budgets)
    assert tokens_by_source(columns, plan) == {"web": 12_300, "gard": 5_000, "nih": 0, "ghr": 22_600}
    all_named = budgets | {"ghr": 40_000 - 17_345}
    again = plan_selection(
        columns, num_tokens=40_000, target=(20.0, 7.0), group_by="source", group_num_tokens=all_named
    )
    assert tokens_by_source(columns, again)["ghr"] == 22_600
    assert again.achieved["mu"] == pytest.approx(20.0, rel=5e-3)


def test_floors_hold_in_whole_chunks():
    columns = corpus()
    plain = tokens_by_source(columns, plan_selection(columns, num_tokens=40_000, strategy="random", group_by="source"))
    assert plain["gard"] < 8_050
    floored = plan_selection(columns, num_tokens=40_000, target=(20.0, 7.0), group_by="source", min_group_tokens=8_050)
    found = tokens_by_source(columns, floored)
    assert found["gard"] == 8_100 and sum(found.values()) == 40_000 and min(found.values()) >= 8_050
    assert found["web"] > found["nih"]  # those above the floor still share in proportion
    named = plan_selection(
        columns, num_tokens=40_000, strategy="random", group_by="source", min_group_tokens={"gard": 20_000}
    )
    assert 20_000 <= tokens_by_source(columns, named)["gard"] <= 20_000 + CHUNK
    all_of_it = plan_selection(
        columns, num_tokens=40_000, strategy="random", group_by="source", min_group_tokens=10_000
    )
    assert set(tokens_by_source(columns, all_of_it).values()) == {10_000}


def test_a_group_with_less_than_its_floor_gives_all_it_has():
    columns = corpus()
    source = np.array(columns["source"], dtype=object)
    source[:7] = "rare"
    columns["source"] = source.tolist()
    with pytest.warns(UserWarning, match="1 groups have fewer tokens.*'rare'"):
        plan = plan_selection(
            columns, num_tokens=40_000, target=(20.0, 7.0), group_by="source", min_group_tokens=5_000
        )
    assert set(range(7)) <= set(plan.indices.tolist()) and plan.num_tokens == 40_000


def test_rows_without_a_group_are_a_group():
    columns = corpus(1000)
    columns["source"] = [None if i % 2 else name for i, name in enumerate(columns["source"])]
    plan = plan_selection(columns, num_tokens=20_000, strategy="random", group_by="source")
    assert plan.groups[0]["group"] is None and plan.groups[0]["num_tokens"] == pytest.approx(10_000, abs=CHUNK)
    budgets = {None: 3_000}
    plan = plan_selection(columns, num_tokens=20_000, strategy="low", group_by="source", group_num_tokens=budgets)
    assert plan.groups[0]["num_tokens"] == 3_000
    again = reproduce_selection(json.loads(json.dumps(plan.report())), columns)
    assert np.array_equal(again.indices, plan.indices)
    nothing = plan_selection(columns | {"source": [None] * 1000}, num_tokens=20_000, strategy="low", group_by="source")
    assert len(nothing.groups) == 1 and nothing.num_tokens == 20_000


def test_many_tiny_groups_still_meet_budget_and_mean():
    columns = corpus(3000)
    columns["source"] = [f"page {i % 700}" for i in range(3000)]
    plan = plan_selection(columns, num_tokens=60_000, target=(20.0, 7.0), group_by="source")
    assert plan.num_tokens == 60_000 and len(plan.groups) == 700
    assert plan.achieved["mu"] == pytest.approx(20.0, rel=0.02)
    one_each = plan_selection(columns, num_tokens=100 * 700, strategy="random", group_by="source", min_group_tokens=1)
    assert all(row["num_tokens"] == 100 for row in one_each.groups)


def test_joint_targets_meet_the_target_exactly_and_say_when_they_cannot():
    rng = np.random.default_rng(1)
    for num_groups, ragged in ((1, False), (3, True), (40, True)):
        codes = rng.integers(0, num_groups, 4000).astype(np.int32)
        groups = Groups(tuple(range(num_groups)), codes)
        values = np.exp(rng.normal(3 + 0.3 * (codes % 3), 0.5))
        tokens = rng.integers(10, 200, 4000).astype(float) if ragged else np.full(4000, 128.0)
        budgets = groups.sum(tokens) * rng.uniform(0.05, 0.3, num_groups)
        cells = Cells.of_rows(values[:, None], tokens, codes)
        tilt = solve(cells, (25.0,), (9.0,), budgets)
        w = expit(tilt.logit(values[:, None], codes))
        mean = w @ values / w.sum()
        assert tilt.reached and mean == pytest.approx(25.0, rel=1e-5)
        assert np.sqrt(w @ (values - mean) ** 2 / w.sum()) == pytest.approx(9.0, rel=1e-5)
        assert groups.sum(w * tokens) == pytest.approx(budgets, rel=1e-5)
        for mu, sigma in ((2500.0, 9.0), (25.0, 1e-4), (25.0, 1000.0)):
            assert not solve(cells, (mu,), (sigma,), budgets).reached


def test_a_target_that_groups_put_out_of_reach():
    columns = corpus()
    columns["perplexity"] = np.where(np.array(columns["source"]) == "web", 200.0, columns["perplexity"])
    options = {"num_tokens": 40_000, "group_by": "source", "group_num_tokens": {"web": 20_000}}
    with pytest.raises(ValueError, match="With these budgets of the groups"):
        plan_selection(columns, target=(20.0, 7.0), **options)


def test_a_law_with_groups_moves_its_optimum_into_reach(law):
    columns = corpus()
    columns["perplexity"] = np.where(np.array(columns["source"]) == "web", 60.0, columns["perplexity"])
    free = plan_selection(columns, law=law, num_tokens=40_000)
    options = {"num_tokens": 40_000, "group_by": "source", "group_num_tokens": {"web": 20_000}}
    plan = plan_selection(columns, law=law, **options)
    assert plan.projected and plan.target != free.target
    assert plan.achieved["log_mu"] == pytest.approx(plan.target[0], rel=0.01)
    assert plan.num_tokens > 39_800 and free.predicted_loss < plan.predicted_loss


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"group_by": "site"}, KeyError, "no column 'site' to group by"),
        ({"group_by": "perplexity"}, TypeError, "group by texts, integers or bools"),
        ({"group_num_tokens": {"web": 1}, "group_by": None}, ValueError, "needs group_by"),
        ({"group_num_tokens": {"wbe": 1}}, KeyError, "names group 'wbe'; the groups are 'gard', 'ghr'"),
        ({"group_num_tokens": {"web": -1}}, ValueError, "0 or more"),
        ({"group_num_tokens": {"web": float("nan")}}, ValueError, "0 or more"),
        ({"group_num_tokens": {"gard": 90_000}}, ValueError, "of group 'gard', which has"),
        ({"group_num_tokens": {"web": 30_000, "nih": 30_000}}, ValueError, "add up to 60,000"),
        ({"group_num_tokens": dict.fromkeys(SOURCES, 10)}, ValueError, "add up to 40 tokens"),
        ({"group_num_tokens": {"web": 0, "nih": 0, "ghr": 0}}, ValueError, "are left for the other groups"),
        ({"min_group_tokens": 20_000}, ValueError, "floors of min_group_tokens take 80,000"),
        ({"min_group_tokens": 1, "group_num_tokens": {"web": 1}}, ValueError, "not both"),
    ],
)
def test_group_errors(options, error, message):
    with pytest.raises(error, match=message):
        plan_selection(corpus(), **{"num_tokens": 50_000, "strategy": "low", "group_by": "source"} | options)


def test_split_budget_adds_up():
    rng = np.random.default_rng(0)
    for _ in range(200):
        num_groups = int(rng.integers(1, 30))
        groups = Groups(tuple(range(num_groups)), rng.integers(0, num_groups, 300).astype(np.int32))
        tokens = rng.integers(1, 100, 300).astype(float)
        has = groups.sum(tokens)
        num_tokens = rng.uniform(0.3, 1.0) * tokens.sum()
        floor = rng.uniform(0, 0.3) * num_tokens / num_groups
        if np.minimum(has, floor + 99).sum() < num_tokens:
            split = split_budget(groups, tokens, num_tokens, min_group_tokens=floor)
            assert np.all(split.budgets >= np.minimum(floor, has) - 1e-6) and np.all(split.budgets <= has + 1e-6)
            assert split.budgets.sum() == pytest.approx(num_tokens)


# -------------------------------------------------------------------------------------------- guards and duplicates


def test_guards_drop_and_count():
    columns = corpus()
    columns["perplexity"][:3] = [None, np.inf, 1e9]
    plan = plan_selection(columns, num_tokens=40_000, strategy="high", min_score=10.0, max_score=30.0)
    assert plan.achieved["lowest_score"] >= 10 and plan.achieved["highest_score"] <= 30
    finite = columns["perplexity"][3:]
    assert plan.dropped == {
        "no_score": 1,
        "infinite_score": 1,
        "below_min_score": int((finite < 10).sum()),
        "above_max_score": int((finite > 30).sum()) + 1,
        "longer_than_budget": 0,
    }
    assert plan.corpus["num_chunks"] == int(((finite >= 10) & (finite <= 30)).sum())


def test_duplicates_are_dropped_after_the_guards_and_the_first_stays():
    columns = corpus(1000)
    columns["text"] = [f"text {i % 400}" for i in range(1000)]
    columns["perplexity"][:5] = 1e6  # their repetitions are the first that can be chosen
    options = {"num_tokens": 40_000, "strategy": "random", "max_score": 1e5}
    plan = plan_selection(columns, deduplicate="exact", **options)
    assert plan.dropped["duplicate"] == 1000 - 5 - 400
    assert sorted(plan.indices) == [*range(5, 405)]
    with pytest.raises(ValueError, match=r"40,001 is more than the 40,000 tokens.*595 duplicate"):
        plan_selection(columns, deduplicate="exact", **options | {"num_tokens": 40_001})


def test_all_rows_duplicates():
    columns = corpus(50) | {"text": ["same"] * 50}
    plan = plan_selection(columns, num_tokens=CHUNK, strategy="high", deduplicate="exact")
    assert plan.indices.tolist() == [0] and plan.dropped["duplicate"] == 49
    with pytest.raises(ValueError, match="200 is more than the 100 tokens"):
        plan_selection(columns, num_tokens=2 * CHUNK, strategy="high", deduplicate="exact")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"deduplicate": "exact", "text_column": "body"}, KeyError, "no column 'body' to look for duplicates in"),
        ({"deduplicate": "fuzzy"}, ValueError, "one of exact, normalized, near"),
        ({"min_score": 30, "max_score": 20}, ValueError, "leave nothing between"),
        ({"min_score": float("nan")}, ValueError, "leave nothing between"),
        ({"min_score": 1e6}, ValueError, "No chunk has a perplexity between"),
        ({"max_score": "20"}, TypeError, "max_score='20' must be a number"),
        ({"seed": -1}, ValueError, "seed=-1 must be"),
        ({"seed": 1.5}, TypeError, "seed=1.5 must be a whole number, not float"),
        ({"seed": "one"}, TypeError, "seed='one' must be a whole number, not str"),
        ({"num_tokens": "3000"}, TypeError, "num_tokens='3000' must be a number, not str"),
        ({"num_tokens": None}, TypeError, "num_tokens=None must be a number"),
        ({"num_tokens": True}, TypeError, "num_tokens=True must be a number"),
        ({"near_threshold": "0.9"}, TypeError, "near_threshold='0.9' must be a number"),
        ({"strategy": "maxent", "target": ("20", "8")}, TypeError, r"target=\('20', '8'\) must be two numbers"),
        ({"order": "sorted"}, ValueError, "the orders are dataset, easy_to_hard"),
        ({"replay": 0.1}, ValueError, "pass replay_dataset="),
        ({"replay": 1.0}, ValueError, "below 1"),
        ({"replay": -0.1}, ValueError, "at least 0"),
        ({"replay_dataset": general()}, ValueError, "no share of it"),
        (
            {"replay": 0.9, "replay_dataset": general()},
            ValueError,
            "takes 36,000 tokens, .* has 25,000",
        ),
        ({"replay": 0.001, "replay_dataset": general()}, ValueError, "takes 40 tokens, and replay_dataset has 0"),
        (
            {"replay": 0.1, "replay_dataset": general().remove_columns("num_tokens")},
            KeyError,
            "replay_dataset: The dataset has no column 'num_tokens'",
        ),
        ({"replay": 0.1, "replay_dataset": general().select([])}, ValueError, "replay_dataset: .*no rows"),
    ],
)
def test_other_errors(options, error, message):
    with pytest.raises(error, match=message):
        plan_selection(corpus(), **{"num_tokens": 40_000, "strategy": "low"} | options)


def test_columns_of_other_kinds():
    columns = corpus(1000)
    columns["text"][3] = columns["text"][4] = "lone \ud800 surrogate"
    options = {"num_tokens": np.int64(20_000), "strategy": "low", "group_by": "source", "deduplicate": "exact"}
    plan = plan_selection(columns, **options, group_num_tokens={"web": np.int64(5_000)}, seed=np.int64(1))
    assert plan.dropped["duplicate"] == 1 and json.dumps(plan.report())
    frame = pd.DataFrame(corpus(2000))
    part = frame.iloc[1000:]  # whose labels are not positions
    rows = plan_selection(part, **options).indices
    same = plan_selection({name: part[name].tolist() for name in frame}, **options).indices
    assert np.array_equal(rows, same)
    labels = Dataset.from_dict(corpus(1000)).class_encode_column("source")
    assert len(plan_selection(labels, **options).groups) == 4
    with pytest.raises(TypeError, match="holds invalid text"):
        plan_selection(columns | {"source": ["\ud800"] * 1000}, **options)
    with pytest.raises(TypeError, match="mixes types"):
        plan_selection(columns | {"source": [1, "a"] * 500}, **options)


def test_a_law_of_another_model_is_refused_with_every_strategy(law):
    for strategy in ("maxent", "random"):
        with pytest.raises(ValueError, match="scores of tiny, but big scored the dataset"):
            plan_selection(corpus(), law=law, num_tokens=40_000, strategy=strategy, model="big")
    assert plan_selection(corpus(), law=law, num_tokens=40_000, model="tiny").law["model"] == "tiny"


# ------------------------------------------------------------------------------------------------- replay and order


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


# ------------------------------------------------------------------------------------------------ report, and again


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
