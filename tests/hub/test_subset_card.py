"""The card of a subset: every number is there, as what it is, and its code does what it says."""

import re

import pytest
from datasets import Dataset
from hub.subset_cards import assert_card_is_clean, section
from huggingface_hub import DatasetCard

from hf_ppl_select.hub.push_subset import save_subset
from hf_ppl_select.hub.subset_card import subset_card
from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.law.intervals import check_intervals
from hf_ppl_select.selection.select import plan_selection

TOKEN = "hf_ThisIsTheRightOne"
MODEL = "HuggingFaceTB/SmolLM2-135M"


def test_card_states_every_number_as_what_it_is(selection, law, landscape):
    report = selection.report()
    text = subset_card(report, law=law, landscape=landscape, license="cc-by-4.0", source="me/corpus", name="me/sub")
    assert_card_is_clean(text)
    data = DatasetCard(text).data.to_dict()
    assert data["license"] == "cc-by-4.0" and data["source_datasets"] == ["me/corpus"]
    assert data["size_categories"] == ["n<1K"] and data["pretty_name"] == "sub"

    moments = section(text, "The subset").splitlines()
    this = next(line for line in moments if "**this subset**" in line)
    achieved = [f"{report['achieved'][name]:.4g}" for name in ("mu", "sigma", "log_mu", "log_sigma")]
    assert [cell.strip() for cell in this.split("|")[2:-1]] == ["200", "20,000", *achieved]
    target = next(line for line in moments if line.startswith("| target"))
    assert f"| - | - | {selection.target[0]:.4g} | {selection.target[1]:.4g} |" in target  # a target in log space
    assert "3 without perplexity (empty text)" in text and "seed 3" in text

    table = section(text, "The perplexity landscape of the corpus")
    assert f"| mean of perplexity (mu) | {landscape.mu:.4g} |" in table
    assert f"| median of perplexity | {landscape.quantile(0.5):.4g} |" in table
    assert f"| mean of nll, nats per token | {landscape.log_mu:.4g} |" in table
    assert f"| standard deviation of perplexity (sigma) | {landscape.sigma:.4g} |" in table
    assert landscape.mu != pytest.approx(landscape.quantile(0.5), rel=1e-3)  # so that the two could be told apart

    prediction = section(text, "What the law predicts")
    assert f"{selection.predicted_loss:.4f}" in prediction and f"{selection.random_loss:.4f}" in prediction
    low, high = selection.optimum.gain_interval
    assert f"{low:.4f} to {high:.4f}" in prediction
    assert ("within the noise" in prediction) == selection.optimum.within_noise

    for name, value in law.params.items():
        assert f"| `{name}` | {value:.6g} |" in section(text, "The scaling law")
    assert "arxiv.org/abs/2512.21515" in text and "Perplexity cannot see redundancy" in text
    assert report["indices_sha256"] in text


def test_card_of_a_law_without_intervals_says_so(selection, law):
    points = [row for row in law.points.to_rows() if row["run"] in law.runs[:4]]
    few = fit_scaling_law(points, form="no_interaction", space="linear")
    assert check_intervals(few) is None
    few = fit_scaling_law([row for row in points if row["run"] != law.runs[0]], form="no_interaction", space="linear")
    text = subset_card(selection.report(), law=few)
    assert_card_is_clean(text)
    prediction = section(text, "What the law predicts")
    assert "There are no intervals: intervals of form 'no_interaction' need 4 or more runs" in prediction
    assert "for a new measurement" not in prediction and f"{selection.predicted_loss:.4f} |" in prediction


def test_card_says_when_the_gain_is_noise(selection, law):
    report = selection.report()
    report["optimum"]["within_noise"] = True
    assert "**This gain is within the noise**" in subset_card(report, law=law)
    assert "within the noise of the probe runs" in section(subset_card(report, law=law), "Limitations")
    report["optimum"]["within_noise"] = False
    assert "within the noise" not in subset_card(report, law=law)


def test_the_code_in_the_card_selects_the_same_rows(corpus, selection, law, landscape, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    law.save("law.json")
    by_target = plan_selection(corpus, target=(22.0, 7.0), num_tokens=20_000, seed=5)
    low = plan_selection(corpus, num_tokens=9_000, strategy="low")
    for plan, used_law in ((selection, law), (selection, None), (by_target, None), (low, None)):
        card = subset_card(plan.report(), law=used_law, landscape=landscape, source="words about the source")
        code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
        assert f'corpus.map(PerplexityScorer("{MODEL}"), batched=True)' in code
        code = re.sub(r"^corpus = .*\n", "", code, flags=re.MULTILINE)  # it is scored already
        names = {"corpus": corpus}
        exec(code, names)
        assert names["subset"]["text"] == corpus.select(plan.indices)["text"]
    hub_code = section(subset_card(selection.report(), source="me/corpus"), "How to reproduce")
    assert 'load_dataset("me/corpus", split="train")' in hub_code


def test_a_composed_subset_says_what_it_is_composed_of(corpus, law, tmp_path):
    sites = ["a|b" if i % 5 else None for i in range(len(corpus))]
    dataset = corpus.add_column("site", sites)
    dataset = dataset.map(lambda row, i: {"text": row["text"] if i % 3 else f"same {i % 30}"}, with_indices=True)
    general = Dataset.from_dict(
        {"text": ["wiki"] * 50, "perplexity": [9.0] * 50, "num_tokens": [100] * 50, "site": ["w"] * 50}
    )
    options = {"group_by": "site", "min_group_tokens": {None: 5_000}, "deduplicate": "exact", "max_score": 60.0}
    options |= {"replay": 0.1, "order": "easy_to_hard", "seed": 2}
    plan = plan_selection(dataset, law=law, num_tokens=20_000, replay_dataset=general, **options)
    subset = plan.apply(dataset, general)
    card = (
        save_subset(subset, tmp_path / "sub", law=law, selection=plan, source="me/corpus") / "README.md"
    ).read_text()
    assert_card_is_clean(card.replace("None: 5000", ""))
    composition = section(card, "Composition")
    none, site = plan.groups
    assert f"| (none) | {none['corpus_tokens']:,} | {none['budget']:,} | {none['num_chunks']:,} |" in composition
    assert f"| a\\|b | {site['corpus_tokens']:,} |" in composition
    assert composition.count(" to ") >= 10 and "from the lowest perplexity to the highest" in composition
    assert "2,000 tokens in 20 rows of general text, 10 % of the budget" in composition
    assert f"{plan.dropped['duplicate']:,} with the text of an earlier one" in card and plan.dropped["duplicate"] > 400
    assert "Duplicates were removed first" in card and "and 20 rows of general text (2,000 tokens)" in card

    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    code = re.sub(r"^(corpus|general) = .*\n", "", code, flags=re.MULTILINE).replace('"law.json"', "law_file")
    names = {"corpus": dataset, "general": general, "law_file": tmp_path / "sub" / "law.json"}
    exec(code, names)
    assert names["subset"][:] == subset[:]
    with pytest.raises(ValueError, match="200 rows and the subset 180"):
        save_subset(dataset.select(plan.indices), tmp_path / "other", selection=plan)


@pytest.mark.parametrize("with_landscape", [False, True])
@pytest.mark.parametrize("with_law", [False, True])
def test_what_is_not_known_has_no_section(law, landscape, with_law, with_landscape):
    parts = {"law": law if with_law else None, "landscape": landscape if with_landscape else None}
    text = subset_card({"num_chunks": 12_345}, **parts)
    assert_card_is_clean(text)
    assert DatasetCard(text).data.to_dict()["size_categories"] == ["10K<n<100K"]
    assert ("## The scaling law" in text) == with_law
    assert ("## The perplexity landscape" in text) == with_landscape
    for title in ("The subset", "What the law predicts", "How to reproduce", "Method"):
        assert f"## {title}" not in text
    assert "licence of the source is not recorded" in text and "license" not in DatasetCard(text).data.to_dict()


@pytest.mark.parametrize("strategy", ["random", "low", "high", "middle", "regime", "greedy_dos"])
def test_cards_of_all_strategies(corpus, law, strategy):
    report = plan_selection(corpus, law=law, num_tokens=5_000, strategy=strategy).report()
    for used_law in (law, None):
        text = subset_card(report, law=used_law)
        assert_card_is_clean(text)
        assert f"`{strategy}`" in text and "## What the law predicts" in text
    assert ("no interval for this gain" in text) == (strategy in ("random", "low", "high", "middle"))


def test_a_card_of_n_grams_counts_words_and_names_no_model(corpus, tmp_path):
    columns = {"perplexity": "ngram_ratio", "num_tokens": "num_words"}
    scored = corpus.rename_columns(columns)
    counting = {"column": "ngram_ratio", "num_tokens_column": "num_words"}
    landscape = PerplexityLandscape.from_dataset(scored, **counting)
    grouped = scored.add_column("source", ["a", "b", "c"] * 500)
    plan = plan_selection(grouped, num_tokens=20_000, strategy="high", group_by="source", **counting)
    text = subset_card(plan.report(), landscape=landscape)
    assert_card_is_clean(text)
    assert "200 chunks of text (20,000 words) out of 1,497, selected by their ngram_ratio." in text
    assert "model" not in section(text, "Limitations") and "| words | 149,700 |" in text
    assert "20,000 of 20,000 words asked for" in str(plan) and "tokens" not in str(plan)
    counted = text.partition("How to reproduce")[0].replace("continual-pre-training", "")
    assert "tokens" not in counted
    found = {"corpus": grouped}
    code = re.search(r"```python\n(.*?)```", section(text, "How to reproduce"), re.DOTALL)[1]
    exec("\n".join(line for line in code.splitlines() if not line.startswith("corpus =")), found)
    assert found["subset"]["text"][:] == grouped.select(plan.indices)["text"][:]


def test_cards_attribute_to_a_model_what_a_model_scored(corpus, law_points):
    columns = {"ngram_ratio": "NgramScorer.fit(trusted, corpus)", "perplexity_ratio": "reference=...)"}
    columns |= {"ifd": "ifd=True)", "my_score": "corpus = ...  # with its column my_score"}
    for column, code in columns.items():
        points = [
            {
                name.replace("mu", f"mu_{column}").replace("sigma", f"sigma_{column}"): value
                for name, value in row.items()
            }
            for row in law_points()
        ]
        law = fit_scaling_law(points, column=column, form="log_parabola", space="log", model=MODEL)
        scored = corpus.rename_column("perplexity", column)
        landscape = PerplexityLandscape.from_dataset(scored, column=column, model=MODEL)
        text = subset_card(plan_selection(scored, law=law, num_tokens=20_000).report(), law=law, landscape=landscape)
        assert_card_is_clean(text)
        of_a_model = column in ("perplexity_ratio", "ifd")
        assert (f"under `{MODEL}`" in text) == ("model that scored it" in text) == of_a_model
        assert (f"It predicts the loss of `{MODEL}`" in text) != of_a_model
        assert ("A high ifd also marks dirt" in section(text, "Limitations")) == (column == "ifd")
        assert code in section(text, "How to reproduce")
        assert ("PerplexityScorer" in section(text, "How to reproduce")) == of_a_model


def test_a_card_says_which_part_of_the_source_was_read(selection):
    text = subset_card(selection.report(), source="me/corpus (configuration de, split train[1000:])")
    assert "datasets/me/corpus) (configuration de, split train[1000:])" in section(text, "Source and licence")
    code = section(text, "How to reproduce")
    assert "corpus = ...  # rows of me/corpus (configuration de, split train[1000:]), cut" in code
    assert "load_dataset" not in code and DatasetCard(text).data.to_dict()["source_datasets"] == ["me/corpus"]


def test_a_card_says_where_its_losses_are_extrapolated(selection, law):
    report = selection.report() | {"predicted_trusted": True, "random_trusted": True, "extrapolation": 0.6}
    assert "extrapolated" not in subset_card(report, law=law)
    for changes, words in (
        ({"predicted_trusted": False}, "no probe covers this subset's moments"),
        ({"random_trusted": False}, "no probe covers a random subset's moments"),
        ({"extrapolation": 12.0}, "the subset's tokens are 12 times those of the longest probe"),
    ):
        for without in ({}, {"optimum": None}):
            text = subset_card({**report, **changes, **without}, law=law)
            assert f"But {words}: losses, and so this gain, are extrapolated." in section(
                text, "What the law predicts"
            )
            assert f"are extrapolated: {words}." in section(text, "Limitations")
    text = subset_card({**report, "random_loss": None})
    assert (
        "(a spread of 0, or moments too far from its probes), so it predicts no gain" in text
        and "No scaling law predicts" not in text
    )


def test_a_model_folder_is_named_without_its_path(corpus):
    landscape = PerplexityLandscape.from_dataset(corpus, model="/home/someone/models/tiny-llama")
    text = subset_card({"num_chunks": 1}, landscape=landscape)
    assert "`tiny-llama`" in text and "someone" not in text
