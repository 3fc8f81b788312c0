"""Guards, duplicates and what is wrong with rows or options."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from hf_ppl_select.selection.select import (
    plan_selection,
)
from tests.selection.sources_corpus import CHUNK, corpus, general, make_law


@pytest.fixture(scope="module")
def law():
    return make_law()


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
