"""Groups: each gets its share, and the whole meets budget and target."""

import json

import numpy as np
import pytest
from scipy.special import expit

from hf_ppl_select.landscape.cells import Cells
from hf_ppl_select.landscape.maxent import solve
from hf_ppl_select.selection.groups import Groups, split_budget
from hf_ppl_select.selection.select import (
    STRATEGIES,
    STRATEGIES_WITH_TARGET,
    plan_selection,
    reproduce_selection,
)
from tests.selection.sources_corpus import CHUNK, SOURCES, corpus, make_law


@pytest.fixture(scope="module")
def law():
    return make_law()


def tokens_by_source(columns, plan):
    source, tokens = np.array(columns["source"])[plan.indices], np.array(columns["num_tokens"])[plan.indices]
    return {name: int(tokens[source == name].sum()) for name in SOURCES}


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
