"""Laws, landscapes and selections of other score columns than perplexity: any positive number per chunk."""

import dataclasses

import numpy as np
import pytest
from datasets import Dataset

from hf_ppl_select import (
    PerplexityLandscape,
    PerplexitySelector,
    ScalingLaw,
    compare_scaling_laws,
    fit_scaling_law,
    select_subset,
)
from hf_ppl_select.law.points import append_law_points, read_law_points, score_moments
from hf_ppl_select.law.trust import trusted_region
from hf_ppl_select.probes.design import design_probes, prefix_points
from hf_ppl_select.selection.select import plan_selection

RATIO = "perplexity_ratio"
VALLEY = 0.2  # the mean log ratio of least loss


def corpus(num_chunks=4000, seed=0):
    """Perplexity, and a ratio whose logarithm has mean 0.02: half of the chunks lie below 1."""
    rng = np.random.default_rng(seed)
    nll = rng.normal(3.0, 0.4, num_chunks)
    log_ratio = 0.02 + 0.3 * (nll - 3) + rng.normal(0, 0.35, num_chunks)
    columns = {"perplexity": np.exp(nll), RATIO: np.exp(log_ratio), "num_tokens": np.full(num_chunks, 128)}
    return columns | {"text": [f"chunk {i}" for i in range(num_chunks)]}


def true_loss(log_ratio_mean, num_tokens):
    return 1.5 + 4.0 * np.exp(0.8 * (log_ratio_mean - VALLEY) ** 2) / num_tokens**0.2


@pytest.fixture(scope="module")
def rows():
    """Law points of probes that spread in the ratio; the loss depends on nothing else."""
    chunks, points = corpus(), []
    rng = np.random.default_rng(1)
    landscape = PerplexityLandscape.from_dataset(chunks, column=RATIO)
    for probe in design_probes(landscape, num_runs=10, tokens_per_run=128 * 400):
        assert probe.column == RATIO
        target = {} if probe.strategy == "random" else {"target": (probe.mu, probe.sigma), "space": "log"}
        subset = select_subset(
            Dataset.from_dict(chunks), column=RATIO, num_tokens=128 * 400, strategy=probe.strategy, **target
        )
        scores = {name: np.array(subset[name]) for name in ("perplexity", RATIO)}
        for point in prefix_points(scores, subset["num_tokens"], [128 * 100, 128 * 200, 128 * 400]):
            loss = true_loss(point[f"log_mu_{RATIO}"], point["num_tokens"]) + rng.normal(0, 0.001)
            points.append({"run": probe.run, "loss": loss, **point})
    return points


@pytest.fixture(scope="module")
def law(rows):
    return fit_scaling_law(rows, "log_parabola", "log", column=RATIO, model="tiny")


@pytest.fixture(scope="module")
def landscape():
    return PerplexityLandscape.from_dataset(corpus(), column=RATIO, model="tiny")


def test_points_of_several_columns_go_to_a_file_and_back(tmp_path, rows):
    points = read_law_points(rows)
    assert list(points.scores) == ["perplexity", RATIO]
    append_law_points(tmp_path / "points.jsonl", points.to_rows())
    again = read_law_points(tmp_path / "points.jsonl")
    for column in points.scores:
        for space in ("linear", "log"):
            assert np.array_equal(points.moments(space, column), again.moments(space, column))
    assert points.moments("log", RATIO)[0].min() < 0 < points.moments("log", RATIO)[0].max()
    only = [{k: v for k, v in row.items() if k not in ("mu", "sigma", "log_mu", "log_sigma")} for row in rows]
    assert list(read_law_points(only).scores) == [RATIO]
    with pytest.raises(ValueError, match=f"no moments of 'perplexity', they have {RATIO}"):
        fit_scaling_law(only)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"sigma_{RATIO}": None}, f"law point 3 .* has no 'sigma_{RATIO}'"),
        ({f"mu_{RATIO}": 0.0}, f"mu_{RATIO} 0; it must be more than 0"),
        ({f"log_sigma_{RATIO}": -1.0}, f"log_sigma_{RATIO} -1; it must be 0 or more"),
        ({f"log_mu_{RATIO}": float("nan")}, f"log_mu_{RATIO} nan"),
        ({"mu": None}, "has no 'mu'"),
    ],
)
def test_a_bad_moment_is_named(rows, change, message):
    with pytest.raises(ValueError, match=message):
        read_law_points([*rows[:3], rows[3] | change])


def test_a_column_that_some_points_lack_is_compared_with_a_reason(rows):
    lacking = [{k: v for k, v in rows[0].items() if not k.endswith(RATIO)}, *rows[1:]]
    for row in compare_scaling_laws(lacking):
        assert (row["problem"] is None) == (row["column"] == "perplexity")
        assert (
            row["problem"] is None or f"law point 0 (run 'random', 12800 tokens) has no 'mu_{RATIO}'" in row["problem"]
        )
    with pytest.raises(ValueError, match=f"has no 'mu_{RATIO}'"):
        fit_scaling_law(lacking, column=RATIO)


def test_all_columns_are_compared_and_the_one_that_predicts_is_first(rows):
    comparison = compare_scaling_laws(rows)
    assert {row["column"] for row in comparison} == {"perplexity", RATIO}
    assert [row["form"] for row in comparison].count("data_only") == 1
    assert (comparison[0]["form"], comparison[0]["space"], comparison[0]["column"]) == ("log_parabola", "log", RATIO)
    chosen = {row["column"] for row in comparison if row["chosen"]}
    assert RATIO in chosen and len([row for row in comparison if row["chosen"]]) <= 2
    auto = fit_scaling_law(rows, column="auto")
    assert (auto.column, auto.space) == (RATIO, "log")
    assert fit_scaling_law(rows).column == "perplexity"
    alone = compare_scaling_laws(rows, column=RATIO)
    assert [row for row in alone if row["form"] != "data_only"] == [
        row for row in comparison if row["column"] == RATIO
    ]


def test_a_mean_logarithm_of_either_sign_is_predicted(law, tmp_path):
    m = np.linspace(-0.3, 0.4, 15)
    assert law.predict(m, 0.3, 51_200) == pytest.approx(true_loss(m, 51_200), abs=0.003)
    low, high = law.interval(0.0, 0.3, 51_200)
    assert low <= true_loss(0.0, 51_200) <= high
    with pytest.raises(ValueError, match="mu must be positive"):
        fit_scaling_law(law.points, "log_parabola", "linear", column=RATIO).predict(-0.1, 0.3, 51_200)
    law.save(tmp_path / "law.json")
    loaded = ScalingLaw.load(tmp_path / "law.json")
    assert (loaded.column, loaded.params, str(loaded)) == (RATIO, law.params, str(law))
    assert f"mean and standard deviation of ln({RATIO}), in nats" in str(law)


def test_probes_at_a_mean_logarithm_of_0_are_trusted_around_it():
    rows = [
        {"run": f"r{i}", f"mu_{RATIO}": 1.1, f"sigma_{RATIO}": 0.4, f"log_mu_{RATIO}": m, f"log_sigma_{RATIO}": 0.3}
        | {"num_tokens": D, "loss": true_loss(m, D)}
        for i, m in enumerate((-0.3, 0.0, 0.0 + 1e-3, 0.3))
        for D in (10_000, 20_000, 40_000)
    ]
    region = trusted_region(fit_scaling_law(rows, "log_parabola", "log", column=RATIO))
    assert region.contains(0.0, 0.3) and region.contains(-0.305, 0.3) and not region.contains(-0.4, 0.3)
    assert region.contains(0.0, 0.305) and not region.contains(0.0, 0.5)


def test_the_optimum_is_where_the_loss_is_least_and_the_subset_is_there(law, landscape):
    optimum = law.optimum(landscape, 128 * 400)
    assert optimum.column == RATIO and optimum.kind == "interior"
    assert optimum.mu == pytest.approx(VALLEY, abs=0.02)
    low, high = optimum.mu_interval
    assert low <= VALLEY <= high
    plan = plan_selection(Dataset.from_dict(corpus()), law=law, num_tokens=128 * 400)
    assert plan.column == RATIO and plan.options["column"] == RATIO
    assert plan.achieved["log_mu"] == pytest.approx(optimum.mu, abs=0.004)
    log_ratio = np.log(corpus()[RATIO])[plan.indices]
    assert plan.achieved["log_mu"] == pytest.approx(log_ratio.mean())
    assert f"ln({RATIO}) (nats):" in str(plan)


def test_a_selector_reads_its_own_column(law, landscape, tmp_path):
    selector = PerplexitySelector.from_law(law, landscape, 128 * 400, seed=3)
    selector.save(tmp_path / "selector.json")
    assert PerplexitySelector.load(tmp_path / "selector.json") == selector and selector.column == RATIO
    kept = Dataset.from_dict(corpus()).filter(selector, batched=True)
    assert np.log(kept[RATIO]).mean() == pytest.approx(selector.expected_mu, abs=5 * selector.mu_std)
    with pytest.raises(KeyError, match=f"no column '{RATIO}'"):
        selector({"perplexity": [3.0], "text": ["a"]})


def test_cards_and_plots_name_the_column(law, landscape, tmp_path):
    from hf_ppl_select.hub.law_card import law_card
    from hf_ppl_select.hub.subset_card import subset_card
    from hf_ppl_select.plots.plots import plot_landscape
    from hf_ppl_select.plots.surface import plot_law_surface

    plan = plan_selection(Dataset.from_dict(corpus()), law=law, num_tokens=128 * 400)
    card = subset_card(plan.report(), law=law, landscape=landscape, license="mit")
    for part in (
        f"selected by their {RATIO} under",
        f"Every chunk has a score, the column `{RATIO}`.",
        f"| mean {RATIO} (mu) |",
        f"mean ln({RATIO}), nats |",
        f"| median of {RATIO} |",
        f"## The {RATIO} landscape",
    ):
        assert part in card, part
    assert "by its perplexity" not in card and "nll" not in card
    assert f"score `{RATIO}` has logarithms of the mean m and the standard deviation s" in law_card(law)
    assert f"m (mean ln({RATIO}), nats)" in law_card(law)
    plot_landscape(landscape, path=tmp_path / "landscape.png")
    plot_law_surface(
        law, landscape, num_tokens=51_200, optimum=law.optimum(landscape, 51_200), path=tmp_path / "surface.png"
    )


def test_files_larger_than_memory_have_any_column_too(law, landscape, tmp_path):
    from hf_ppl_select.streaming.parquet_files import ParquetFiles
    from hf_ppl_select.streaming.select import select_stream

    Dataset.from_dict(corpus()).to_parquet(tmp_path / "in" / "train-00000.parquet")
    files = ParquetFiles.find(str(tmp_path / "in"), column=RATIO)
    selection = select_stream(files, tmp_path / "out", num_tokens=128 * 400, law=law, model="tiny")
    assert selection.selector == PerplexitySelector.from_law(law, landscape, 128 * 400)
    assert selection.report()["column"] == RATIO and abs(selection.deviations["mu"]) < 5


def test_the_name_of_a_column_changes_no_number(rows):
    """The same numbers called perplexity and called something else: the same law, optimum and rows."""
    chunks = {"perplexity": corpus()["perplexity"], "num_tokens": corpus()["num_tokens"]}
    points = [{k: v for k, v in row.items() if not k.endswith(RATIO)} for row in rows]
    renamed = [
        {f"{k}_own" if k in ("mu", "sigma", "log_mu", "log_sigma") else k: v for k, v in row.items()} for row in points
    ]
    for space in ("linear", "log"):
        one = fit_scaling_law(points, "paper", space)
        other = fit_scaling_law(renamed, "paper", space, column="own")
        assert one.params == other.params
        landscapes = (
            PerplexityLandscape.from_dataset(chunks),
            PerplexityLandscape.from_values(*chunks.values(), column="own"),
        )
        optima = (one.optimum(landscapes[0], 51_200), other.optimum(landscapes[1], 51_200))
        assert dataclasses.replace(optima[1], column="perplexity") == optima[0]
        own = {"own": chunks["perplexity"], "num_tokens": chunks["num_tokens"]}
        plans = (plan_selection(chunks, law=one, num_tokens=51_200), plan_selection(own, law=other, num_tokens=51_200))
        assert np.array_equal(plans[0].indices, plans[1].indices)


def test_columns_are_not_mixed(law, landscape, rows):
    perplexity = PerplexityLandscape.from_dataset(corpus(), model="tiny")
    chunks = Dataset.from_dict(corpus())
    with pytest.raises(ValueError, match=f"the law is about {RATIO}, the landscape is of perplexity"):
        law.optimum(perplexity, 51_200)
    with pytest.raises(ValueError, match="do not mix"):
        PerplexitySelector.from_law(law, perplexity, 51_200)
    with pytest.raises(ValueError, match=f"column='perplexity', but the law is about '{RATIO}'"):
        plan_selection(chunks, law=law, column="perplexity", num_tokens=51_200)
    with pytest.raises(ValueError, match=f"cannot merge a landscape of {RATIO} with one of perplexity"):
        landscape.merge(perplexity)
    with pytest.raises(ValueError, match=f"the law is about perplexity, the landscape is of {RATIO}"):
        law.optimum(landscape, 51_200, general_law=fit_scaling_law(rows, "log_parabola", "log"))


def test_a_score_is_positive_and_only_perplexity_at_least_1():
    assert PerplexityLandscape.from_values([0.2, 0.5, 4.0], column=RATIO).log_mu == pytest.approx(np.log(0.4) / 3)
    with pytest.raises(ValueError, match=f"row 1 has {RATIO} -0.5 .*a score, more than 0.*a logarithm"):
        PerplexityLandscape.from_values([0.2, -0.5], column=RATIO)
    with pytest.raises(ValueError, match="row 0 has perplexity 0.2 .*1 or more.*nll"):
        PerplexityLandscape.from_values([0.2, 0.5])


def test_moments_by_hand():
    found = score_moments({"perplexity": np.array([1.0, 3.0]), "ifd": np.array([0.5, 2.0])})
    assert found == pytest.approx(
        {"mu": 2.0, "sigma": 1.0, "log_mu": np.log(3) / 2, "log_sigma": np.log(3) / 2}
        | {"mu_ifd": 1.25, "sigma_ifd": 0.75, "log_mu_ifd": 0.0, "log_sigma_ifd": np.log(2)}
    )
