"""The card, the folder, and pushing with the real client to a Hub on the loopback address."""

import io
import json
import re
import traceback
from inspect import signature

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard, HfApi, constants
from loopback_hub import Repo

from hf_ppl_select.hub.push_subset import check_hub_access, push_subset_to_hub, save_subset
from hf_ppl_select.hub.subset_card import subset_card
from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.law.intervals import check_intervals
from hf_ppl_select.selection.select import plan_selection

TOKEN = "hf_ThisIsTheRightOne"
MODEL = "HuggingFaceTB/SmolLM2-135M"


@pytest.fixture(scope="module")
def corpus():
    """1,500 scored chunks of 100 tokens; the first three are empty texts."""
    perplexity = np.exp(np.random.default_rng(1).normal(3.0, 0.4, 1500)).tolist()
    texts = [f'chunk {i} | says “ünïcode”, 中文, "quotes"\nand lines' for i in range(1500)]
    rows = {"text": ["", "", "", *texts[3:]], "perplexity": [None, None, None, *perplexity[3:]]}
    return Dataset.from_dict({**rows, "num_tokens": [0, 0, 0, *[100] * 1497]})


@pytest.fixture(scope="module")
def landscape(corpus):
    return PerplexityLandscape.from_dataset(corpus, model=MODEL)


@pytest.fixture(scope="module")
def selection(corpus, law):
    return plan_selection(corpus, law=law, num_tokens=20_000, seed=3)


@pytest.fixture(scope="module")
def subset(corpus, selection):
    return corpus.select(selection.indices)


def assert_card_is_clean(text):
    for trace in (r"\bNone\b", r"\bnan\b", r"\binf\b", r"\{\{", r"\{%", r"np\.float", r"\|\s*\|\s*\|"):
        found = re.search(trace, text.replace("|  | chunks", ""))
        assert not found, text[max(0, found.start() - 80) : found.end() + 80]


def section(card, title):
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


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


def test_saved_folder_loads_back_equal(subset, selection, law, landscape, tmp_path):
    folder = save_subset(subset, tmp_path / "sub", law=law, landscape=landscape, selection=selection, license="mit")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "data",
        "landscape.json",
        "law.json",
        "selection.json",
    ]
    back = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert back.features == subset.features and back[:] == subset[:]
    assert (
        json.loads((folder / "selection.json").read_text())["indices_sha256"] == selection.report()["indices_sha256"]
    )
    assert type(law).load(folder / "law.json").params == law.params
    assert PerplexityLandscape.load(folder / "landscape.json").mu == landscape.mu
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "sub"]  # nothing left beside it


def test_saving_without_selection_describes_the_rows(subset, tmp_path):
    text = (save_subset(subset, tmp_path / "sub") / "README.md").read_text()
    assert_card_is_clean(text)
    own = PerplexityLandscape.from_dataset(subset)
    assert f"| **this subset** | 200 | 20,000 | {own.mu:.4g} | {own.sigma:.4g} |" in text
    plain = Dataset.from_dict({"text": ["a", "b"]})
    assert "2 chunks of text, selected" in (save_subset(plain, tmp_path / "plain") / "README.md").read_text()


def test_only_a_subset_is_ever_overwritten(subset, tmp_path):
    save_subset(subset, tmp_path / "sub")
    with pytest.raises(FileExistsError, match="already holds a subset"):
        save_subset(subset, tmp_path / "sub")
    save_subset(subset.select(range(5)), tmp_path / "sub", overwrite=True)
    assert len(load_dataset(str(tmp_path / "sub"), split="train", cache_dir=str(tmp_path / "cache"))) == 5

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="thesis.tex"):
        save_subset(subset, mine, overwrite=True)
    assert (mine / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        save_subset(subset, tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    save_subset(subset, tmp_path / "empty")


def test_a_failed_save_leaves_what_was_there(subset, law, tmp_path, monkeypatch):
    save_subset(subset, tmp_path / "sub")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "sub").rglob("*")}

    def full_disk(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(law), "save", full_disk)
    for folder in ("sub", "new"):
        with pytest.raises(OSError, match="No space left"):
            save_subset(subset, tmp_path / folder, law=law, overwrite=True)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "sub").rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["sub"]


def test_bad_subsets(subset, selection, tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        save_subset(subset.select([]), tmp_path / "sub")
    with pytest.raises(TypeError, match="not dict"):
        save_subset({"text": ["a"]}, tmp_path / "sub")
    with pytest.raises(ValueError, match="200 rows and the subset 7"):
        save_subset(subset.select(range(7)), tmp_path / "sub", selection=selection)
    assert not list(tmp_path.iterdir())


def test_data_and_card_arrive_in_one_commit(hub, subset, selection, law, landscape, tmp_path):
    parts = {"law": law, "landscape": landscape, "selection": selection}
    url = push_subset_to_hub(subset, "me/sub", **parts, license="cc-by-4.0", source="me/corpus")
    assert url == f"{hub.endpoint}/datasets/me/sub"
    repo = hub.repos["me/sub"]
    assert not repo.private
    ((_, files),) = repo.commits[1:]
    shard = "data/train-00000-of-00001.parquet"
    assert sorted(files) == ["README.md", shard, "landscape.json", "law.json", "selection.json"]
    back = load_dataset("me/sub", split="train", cache_dir=str(tmp_path / "cache"))
    assert back.features == subset.features and back[:] == subset[:]

    readme = hub.file("me/sub", "README.md").decode()
    assert_card_is_clean(readme)
    data = DatasetCard(readme).data.to_dict()
    assert data["dataset_info"]["splits"][0]["num_examples"] == 200
    assert data["configs"][0]["data_files"][0]["path"] == "data/train-*"
    assert data["license"] == "cc-by-4.0" and "perplexity" in data["tags"]
    assert "## What the law predicts" in readme and "## How to reproduce" in readme
    assert pq.read_table(io.BytesIO(files[shard])).to_pydict() == subset[:]
    assert json.loads(hub.file("me/sub", "law.json"))["params"] == law.params

    everything = b"".join(content for _, files in repo.commits for content in files.values())
    assert TOKEN.encode() not in everything


def test_push_again_and_under_other_names(hub, subset, law):
    push_subset_to_hub(subset, "sub", law=law, license="mit", private=True)
    assert list(hub.repos) == ["me/sub"] and hub.repos["me/sub"].private
    push_subset_to_hub(subset.select(range(9)), "me/sub", license="unknown", private=True)
    data = DatasetCard(hub.file("me/sub", "README.md").decode()).data.to_dict()
    assert data["dataset_info"]["splits"][0]["num_examples"] == 9 and data["license"] == "unknown"
    assert sorted(hub.repos["me/sub"].files()) == ["README.md", "data/train-00000-of-00001.parquet"]  # no stale law

    push_subset_to_hub(subset, "my-org/sub", license="other")
    with pytest.raises(ValueError, match="exists and is public"):
        push_subset_to_hub(subset, "my-org/sub", license="other", private=True)


@pytest.mark.parametrize(
    "license, said", [(None, "license is missing.*licence of its source"), ("CC BY 4.0", "not an identifier")]
)
def test_licence_is_asked_for_before_any_request(hub, subset, license, said):
    with pytest.raises(ValueError, match=said):
        push_subset_to_hub(subset, "me/sub", license=license)
    assert not hub.requests


def test_access_is_checked_before_any_work(hub, use_hub, monkeypatch, subset):
    assert check_hub_access("sub") == "me/sub"
    assert check_hub_access("My-Org/sub") == "My-Org/sub"
    assert not hub.repos

    with pytest.raises(PermissionError, match="me, whose token this is, may push to me, my-org"):
        check_hub_access("someone-else/sub")
    hub.role = "read"
    with pytest.raises(PermissionError, match="may only read"):
        check_hub_access("me/sub")
    hub.role = "fineGrained"  # what such a token may do, only the Hub knows
    assert check_hub_access("someone-else/sub") == "someone-else/sub"
    hub.repos["someone-else/theirs"] = Repo(read_only=True)
    said = "may not do this .403: You don't have write access to someone-else"
    with pytest.raises(PermissionError, match=said):
        push_subset_to_hub(subset, "someone-else/theirs", license="mit")
    for repo_type in ("dataset", "model") if "write" in signature(HfApi.auth_check).parameters else ():
        with pytest.raises(PermissionError, match=said):
            check_hub_access("someone-else/theirs", repo_type=repo_type)
    hub.repos["someone-else/theirs"].read_only = False
    assert check_hub_access("someone-else/theirs") == "someone-else/theirs"
    with pytest.raises(ValueError, match="Repo id must"):
        check_hub_access("a/b/c")
    hub.fail = {"whoami": 503}
    with pytest.raises(ConnectionError, match="the Hub answered 503"):
        check_hub_access("me/sub")

    use_hub(hub.endpoint, token=None)
    with pytest.raises(PermissionError, match="there is no Hugging Face token.*hf auth login.*HF_TOKEN"):
        check_hub_access("me/sub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="offline mode is on"):
        check_hub_access("me/sub")


@pytest.mark.parametrize("wrong", ["hf_ThisOneIsWrong", "hf_This\nIsTwoLines", "hf_Thïs", "hf This"])
def test_a_wrong_token_is_refused_and_never_shown(hub, subset, caplog, wrong):
    with pytest.raises(PermissionError, match="token") as refused:
        push_subset_to_hub(subset, "me/sub", license="mit", token=wrong)
    told = "".join(traceback.format_exception(refused.value)) + caplog.text
    assert wrong not in told and wrong[3:] not in told
    assert not hub.repos


def test_a_hub_that_repeats_the_token_is_not_repeated(hub, monkeypatch, subset):
    monkeypatch.setattr(hub, "fail", {"repos/create": 403})
    dumps = json.dumps  # also the client's
    monkeypatch.setattr("loopback_hub.json.dumps", lambda *args, **kw: dumps(*args, **kw).replace("me/", TOKEN))
    with pytest.raises(PermissionError) as refused:
        push_subset_to_hub(subset, "me/sub", license="mit")
    assert TOKEN not in str(refused.value)


def test_no_hub_there(hub, waits, subset):
    hub.stop()
    with pytest.raises(ConnectionError, match=f"{hub.endpoint} cannot be reached.*HF_ENDPOINT"):
        push_subset_to_hub(subset, "me/sub", license="mit")
    assert sum(waits) < 5  # seconds: nobody waits long to hear that there is no network


@pytest.mark.parametrize(
    "fail, said",
    [
        ({"repos/create": 500}, "the Hub answered 500"),
        ({"POST .*/commit/": 500}, "the Hub answered 500"),
        ({"PUT /lfs": 500}, "the Hub answered 500"),
        ({"PUT /lfs": 403}, "may not do this"),
        ({"PUT /lfs": 0}, "cannot be reached"),
        ({"info/lfs/objects/batch": 502}, "the Hub answered 502"),
        ({"GET .*/revision/": 0}, "cannot be reached"),
        ({"POST .*/commit/": 401}, "refuses the token"),
    ],
)
def test_a_push_that_stops_says_so_and_can_be_repeated(hub, subset, law, fail, said):
    hub.fail = fail
    said = f"The push to me/sub stopped, which is as it was, or has all of it: .*{said}"
    with pytest.raises((ConnectionError, PermissionError), match=said) as stopped:
        push_subset_to_hub(subset, "me/sub", law=law, license="mit")
    assert "\n" not in str(stopped.value) and TOKEN not in str(stopped.value)
    assert hub.repos.get("me/sub") is None or hub.repos["me/sub"].files() == {}
    hub.fail = {}
    push_subset_to_hub(subset, "me/sub", law=law, license="mit")
    assert sorted(hub.repos["me/sub"].files()) == ["README.md", "data/train-00000-of-00001.parquet", "law.json"]
