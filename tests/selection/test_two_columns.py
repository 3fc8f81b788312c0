"""Subsets and selectors of two score columns together: moments, budgets, reproducibility, and what is refused."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset
from two_columns import BOTH, RATIO, corpus, law_points, slope, spread_moments, valley

from hf_ppl_select import PerplexityLandscape, PerplexitySelector, fit_scaling_law, select_subset
from hf_ppl_select.hub.law_card import law_card
from hf_ppl_select.hub.subset_card import subset_card
from hf_ppl_select.selection.select import plan_selection, reproduce_selection

NUM_TOKENS = 200_000


def logs(columns):
    return np.log(np.stack([columns[name] for name in BOTH], axis=1))


def errors(x, mu, sigma):
    """Of the moments of rows, relative to sigma."""
    return np.abs(np.concatenate([(x.mean(0) - mu) / sigma, x.std(0) / sigma - 1]))


@pytest.fixture(scope="module")
def columns():
    return corpus()


@pytest.fixture(scope="module")
def landscape(columns):
    return PerplexityLandscape.from_dataset(columns, column=BOTH, model="tiny")


@pytest.fixture(scope="module")
def laws(landscape):
    return {
        loss: fit_scaling_law(law_points(landscape, loss, NUM_TOKENS), form, "log", column=BOTH, model="tiny")
        for loss, form in ((valley, "log_parabola"), (slope, "no_interaction"))
    }


@pytest.fixture(scope="module")
def selector(laws, landscape):
    return PerplexitySelector.from_law(laws[valley], landscape, NUM_TOKENS, seed=3)


# Rows in memory


@pytest.mark.slow
@pytest.mark.parametrize("group_by", [None, "source"])
@pytest.mark.parametrize(("num_chunks", "num_rows"), [(250, 3000), (3000, 30_000), (20_000, 120_000)])
def test_moments_are_met_on_corpora_with_junk(num_chunks, num_rows, group_by):
    columns = corpus(num_rows)
    landscape = PerplexityLandscape.from_dataset(columns, column=BOTH)
    budget = int(num_chunks * landscape.tokens_per_chunk)
    for mu, sigma in zip(*spread_moments(landscape, budget, 6)):
        target = tuple(mu.tolist()), tuple(sigma.tolist())
        plan = plan_selection(columns, num_tokens=budget, target=target, column=BOTH, group_by=group_by)
        chosen = logs(columns)[plan.indices]
        assert errors(chosen, mu, sigma).max() < max(0.01, 1 / np.sqrt(num_chunks))
        tokens = columns["num_tokens"][plan.indices]
        assert 0 <= budget - tokens.sum() < columns["num_tokens"].max() and len(set(plan.indices)) == plan.num_chunks
        assert plan.space == "log" and plan.achieved["log_mu"] == pytest.approx(chosen.mean(0))
        if group_by:
            assert [group["num_tokens"] for group in plan.groups] == pytest.approx([budget / 3] * 3, rel=0.1)
            of = [i for i in plan.indices if columns["source"][i] == "source 1"]
            assert plan.groups[1]["mu"] == pytest.approx([columns[name][of].mean() for name in BOTH])


@pytest.mark.slow
@pytest.mark.parametrize("loss", [valley, slope])
def test_a_law_s_optimum_is_met_without_junk(loss, laws, columns):
    law = laws[loss]
    dataset = Dataset.from_dict(columns)
    plan = plan_selection(dataset, law=law, num_tokens=NUM_TOKENS)
    mu, sigma = plan.optimum.mu, plan.optimum.sigma
    x = logs(columns)[plan.indices]
    assert errors(x, np.array(mu), np.array(sigma)).max() < max(0.02, 1 / np.sqrt(plan.num_chunks))
    assert columns["is_junk"][plan.indices].mean() < 0.01
    assert plan.predicted_loss == pytest.approx(law.predict(x.mean(0), x.std(0), plan.num_tokens))
    assert plan.predicted_trusted and not plan.random_trusted
    assert plan.column == BOTH and plan.options["column"] == BOTH
    subset = select_subset(dataset, law=law, num_tokens=NUM_TOKENS)
    assert subset["text"] == [columns["text"][i] for i in plan.indices]
    random = plan_selection(dataset, law=law, num_tokens=NUM_TOKENS, strategy="random")
    own = PerplexityLandscape.from_dataset(columns, column=BOTH).moments()
    assert errors(logs(columns)[random.indices], *map(np.array, own)).max() < 0.2


def test_a_report_selects_the_same_rows_again(laws, columns, tmp_path):
    law = laws[valley]
    plan = plan_selection(columns, law=law, num_tokens=NUM_TOKENS, order="shuffled", seed=4)
    plan.save(tmp_path / "selection.json")
    for options in ({"law": law}, {}):
        again = reproduce_selection(tmp_path / "selection.json", columns, **options)
        assert np.array_equal(again.indices, plan.indices) and again.target == plan.target
    changed = dict(columns, **{RATIO: columns[RATIO] * 1.001})
    with pytest.raises(ValueError, match="not the data that was selected from"):
        reproduce_selection(tmp_path / "selection.json", changed, law=law)
    random = plan_selection(columns, column=BOTH, num_tokens=NUM_TOKENS, strategy="random", seed=1)
    assert np.array_equal(reproduce_selection(random.report(), columns).indices, random.indices)


def test_rows_that_lack_a_score_are_left_out_and_counted():
    columns = corpus(2000)
    columns["perplexity"][:10], columns[RATIO][5:20], columns[RATIO][20:23] = np.nan, np.nan, np.inf
    plan = plan_selection(columns, column=BOTH, num_tokens=20_000, strategy="random")
    assert plan.indices.min() >= 23
    assert (plan.dropped["no_score"], plan.dropped["infinite_score"]) == (20, 3)


# The selector


def test_a_selector_keeps_the_moments_it_says(selector, columns, landscape):
    x, tokens = logs(columns), columns["num_tokens"]
    w = selector.inclusion_probability(np.exp(x))
    mean = w @ x / w.sum()
    assert mean == pytest.approx(selector.expected_mu, abs=1e-3)
    assert np.sqrt(w @ (x - mean) ** 2 / w.sum()) == pytest.approx(selector.expected_sigma, rel=2e-3)
    assert w @ tokens == pytest.approx(NUM_TOKENS, rel=1e-3)
    assert selector.expected_num_tokens == pytest.approx(NUM_TOKENS, rel=1e-4)
    kept = [dataclasses.replace(selector, seed=seed).keep(np.exp(x), columns["text"]) for seed in range(30)]
    means = np.array([x[rows].mean(0) for rows in kept])
    assert np.all(np.abs(means.mean(0) - selector.expected_mu) < 4 * np.array(selector.mu_std) / np.sqrt(30))
    assert means.std(0) == pytest.approx(selector.mu_std, rel=0.45)
    assert np.mean([tokens[rows].sum() for rows in kept]) == pytest.approx(NUM_TOKENS, rel=0.02)


def test_a_selector_by_hand(selector):
    """w = sigmoid(l + sum over columns of lambda_1 z + lambda_2 (z^2 - 1)), in the order of the columns."""
    level, first, second, first_2, second_2 = selector.lambdas
    scores = {"perplexity": 21.0, RATIO: 1.3}
    z, z_2 = ((np.log(scores[name]) - selector.centre[c]) / selector.scale[c] for c, name in enumerate(BOTH))
    w = 1 / (1 + np.exp(-(level + first * z + second * z_2 + first_2 * (z**2 - 1) + second_2 * (z_2**2 - 1))))
    assert selector.inclusion_probability([21.0, 1.3]) == pytest.approx(w)
    assert selector.inclusion_probability([[21.0, np.nan], [np.inf, 1.3], [-1.0, 1.3]]).tolist() == [0, 0, 0]


def test_the_same_rows_in_another_process_row_by_row_and_in_batches(selector, columns, tmp_path):
    selector.save(tmp_path / "selector.json")
    loaded = PerplexitySelector.load(tmp_path / "selector.json")
    assert loaded == selector and loaded.column == BOTH
    dataset = Dataset.from_dict(columns)
    kept = dataset.filter(selector, batched=True)["text"]
    assert [row["text"] for row in dataset.to_iterable_dataset().filter(loaded)] == list(kept)
    rows = {name: columns[name][::-1].tolist() for name in BOTH} | {"text": columns["text"][::-1]}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    code = (
        "import json, sys; from hf_ppl_select import PerplexitySelector; folder = sys.argv[1];"
        "rows = json.load(open(folder + '/rows.json'));"
        "kept = PerplexitySelector.load(folder + '/selector.json')(rows);"
        "print(json.dumps([text for text, keep in zip(rows['text'], kept) if keep]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == list(kept)[::-1]
    with pytest.raises(KeyError, match=f"no column '{RATIO}'"):
        selector({"perplexity": [3.0], "text": ["a"]})
    assert selector({"perplexity": None, RATIO: 1.0, "text": "a"}) is False


def test_a_selector_s_parts_belong_together(selector, landscape):
    with pytest.raises(ValueError, match=f"five finite lambdas, .* two scales for perplexity and {RATIO}"):
        dataclasses.replace(selector, lambdas=selector.lambdas[:3])
    with pytest.raises(ValueError, match="three finite lambdas"):
        dataclasses.replace(selector, column="perplexity")
    with pytest.raises(ValueError, match="log space only"):
        dataclasses.replace(selector, space="linear")
    with pytest.raises(ValueError, match=r"must be \(..., 2\)"):
        selector.inclusion_probability([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="No subset of 200,000 tokens has nll and ln.* near to that are means 3"):
        PerplexitySelector.from_target((5.0, 0.2), (0.1, 0.1), landscape=landscape, num_tokens=NUM_TOKENS)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "greedy_dos"}, "strategy='greedy_dos' takes one score column"),
        ({"strategy": "regime"}, "strategy='regime' takes one score column"),
        ({"strategy": "low", "target": None}, "strategy='low' takes one score column"),
        ({"order": "easy_to_hard"}, "order='easy_to_hard' takes one score column"),
        ({"min_score": 2.0}, "a guard .* takes one score column"),
        ({"space": "linear"}, "two score columns together have log space only"),
        ({"target": (3.0, 0.5)}, f"of perplexity and {RATIO} is not .*as many as columns"),
        ({"column": "perplexity"}, "is not a pair of numbers"),
        ({"target": ((3.0, 0.3), (0.001, 0.2))}, "No subset of 200,000 tokens has nll and ln"),
        ({"target": ((9.5, 0.3), (0.5, 0.2)), "group_by": "source"}, "No subset of 200,000 tokens has nll and ln"),
        ({"column": ("perplexity", "absent")}, "no column 'absent'"),
    ],
)
def test_options_that_do_not_go_with_two_columns(options, message, columns):
    target = ((3.2, 0.3), (0.5, 0.2))
    with pytest.raises((KeyError, ValueError), match=message):
        plan_selection(columns, **({"num_tokens": NUM_TOKENS, "target": target, "column": BOTH} | options))


def test_columns_in_another_order_are_refused(laws, columns):
    with pytest.raises(ValueError, match="but the law is about"):
        plan_selection(columns, law=laws[valley], column=BOTH[::-1], num_tokens=NUM_TOKENS)
    with pytest.raises(ValueError, match="do not mix"):
        swapped = PerplexityLandscape.from_dataset(columns, column=BOTH[::-1])
        PerplexitySelector.from_law(laws[valley], swapped, NUM_TOKENS)


def test_what_takes_one_column_says_so(laws, columns, landscape, selector, tmp_path):
    from hf_ppl_select.plots.plots import plot_landscape, plot_loss_against_tokens, plot_predicted_against_measured
    from hf_ppl_select.plots.surface import plot_law_surface
    from hf_ppl_select.probes.design import design_probes
    from hf_ppl_select.probes.plan import plan_probes
    from hf_ppl_select.streaming.parquet_files import ParquetFiles, selector_mask
    from hf_ppl_select.streaming.select import select_stream

    law, path = laws[valley], tmp_path / "plot.png"
    Dataset.from_dict(columns).to_parquet(tmp_path / "in" / "train-00000.parquet")
    single = PerplexityLandscape.from_dataset(columns)
    files, found = ParquetFiles.find(str(tmp_path / "in")), law.optimum(landscape, NUM_TOKENS, intervals=False)
    for refused in (
        lambda: plot_landscape(landscape, path=path),
        lambda: plot_predicted_against_measured(law, path=path),
        lambda: plot_loss_against_tokens(law, landscape, num_tokens_range=(1e5, 2e5), path=path),
        lambda: plot_law_surface(law, landscape, found, path=path),
        lambda: design_probes(landscape, num_runs=8, tokens_per_run=50_000),
        lambda: plan_probes(landscape, total_tokens=800_000),
        lambda: plan_probes(single, total_tokens=800_000, law=law, num_tokens=NUM_TOKENS),
        lambda: ParquetFiles.find(str(tmp_path / "in"), column=BOTH),
        lambda: select_stream(files, tmp_path / "out", num_tokens=NUM_TOKENS, law=law),
        lambda: selector_mask(selector, Dataset.from_dict(columns).with_format("arrow")[:10]),
    ):
        with pytest.raises(ValueError, match=f"takes one score column, this is about perplexity and {RATIO} together"):
            refused()
    assert not path.exists() and not (tmp_path / "out").exists()


# What is told


def test_texts_and_cards_name_both_columns(laws, columns, landscape):
    law = laws[valley]
    plan = plan_selection(Dataset.from_dict(columns), law=law, num_tokens=NUM_TOKENS, group_by="source")
    lines = str(plan).splitlines()
    assert sum(line.endswith("mean      standard deviation") for line in lines) == 2
    assert f"ln({RATIO}) (nats): mean" in str(plan) and "nll (nats):   mean" in str(plan)
    x = logs(columns)[plan.indices]
    assert f"  subset      {x[:, 1].mean():<10.4g}{x[:, 1].std():.4g}" in lines
    card = subset_card(json.loads(json.dumps(plan.report())), law=law, landscape=landscape, license="mit")
    for part in (
        f"selected by their perplexity and {RATIO} under `tiny`",
        f"the columns `perplexity` and `{RATIO}`",
        f"mean nll, nats per token | standard deviation of nll, nats | mean ln({RATIO}), nats | standard deviation of",
        f"by {RATIO}:",
        f"## The perplexity and {RATIO} landscape",
        f"| geometric mean of {RATIO} | {np.exp(landscape.log_mu[1]):.4g} |",
        f"| standard deviation of ln({RATIO}), nats | {landscape.log_sigma[1]:.4g} |",
        f"The subset's {RATIO} lies between",
        f"column={BOTH!r}",
    ):
        assert part in card, part
    code = card.split("```python\n")[1].split("```")[0].replace("...", "corpus", 1)
    compile(code, "card", "exec")
    text = law_card(law)
    for part in (
        f"scores `perplexity` and `{RATIO}` have logarithms of means m",
        f"m (mean ln({RATIO}), nats)",
        f"`a1_{RATIO}`",
    ):
        assert part in text, part
    call = next(line for line in text.splitlines() if line.startswith("law.predict("))
    assert isinstance(eval(call.split("#")[0], {"law": law}), float)
