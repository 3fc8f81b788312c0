"""recipes/select_subset.py as a user runs it: a process with a command line, and a Hub on the loopback address."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from functools import partial
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, load_dataset
from loopback_hub import LoopbackHub

import select_subset
from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.selection.select import plan_selection
from hf_ppl_select.selection.selector import PerplexitySelector

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "select_subset.py"
TOKEN = "hf_LoopbackToken"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a scored corpus in three forms, its landscape, and a law."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    perplexity = np.exp(rng.normal(3.0, 0.4, 1200))
    corpus = Dataset.from_dict(
        {"text": [f"chunk {i}" for i in range(1200)], "perplexity": perplexity, "num_tokens": [50] * 1200}
    )
    corpus.to_parquet(folder / "scored.parquet")
    corpus.to_json(folder / "scored.jsonl")
    corpus.save_to_disk(folder / "scored")
    corpus.remove_columns("perplexity").to_parquet(folder / "unscored.parquet")
    corpus.select([]).to_parquet(folder / "empty.parquet")
    PerplexityLandscape.from_dataset(corpus, model="tiny").save(folder / "scored" / "landscape.json")
    points = []
    for run, mu in enumerate((8, 12, 18, 26, 40)):
        m = np.log(mu)
        for num_tokens in (8_000, 16_000, 32_000):
            loss = 1.5 + np.exp(2.0 - 0.15 * np.log(num_tokens) - 1.2 * m + 0.18 * m**2) + rng.normal(0, 1e-3)
            moments = {"mu": mu, "sigma": 0.3 * mu, "log_mu": m, "log_sigma": 0.3}
            points.append({"run": f"r{run}", **moments, "num_tokens": num_tokens, "loss": loss})
    for model in ("tiny", "other"):
        law = fit_scaling_law(points, form="log_parabola", space="log", model=model)
        law.save(folder / f"law-{model}.json")
    (folder / "old.json").write_text('{"kind": "hf_ppl_select/scaling_law", "schema_version": 0}')
    return folder


def run(folder, *options, endpoint=None, token=None, **environment):
    """The finished process; Hub variables only as given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf-home"), "HF_HUB_DISABLE_XET": "1"}
    kept |= {"HF_ENDPOINT": endpoint or "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1", **environment}
    if token:
        kept["HF_TOKEN"] = token
    command = [sys.executable, str(RECIPE), *map(str, options)]
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=120)


@pytest.fixture
def in_work(work, monkeypatch, run_recipe):
    """Runs the recipe inside this process, in the folder `work`."""
    monkeypatch.chdir(work)
    return partial(run_recipe, "select_subset")


def test_from_yaml_to_the_hub_and_back(work):
    options = {
        "dataset_name": "scored",
        "law": "law-tiny.json",
        "num_tokens": 10_000,
        "output_dir": "from-yaml",
        "source": "me/corpus",
        "license": "cc-by-4.0",
        "seed": 1,
    }
    (work / "select.yaml").write_text(yaml.safe_dump(options))
    with LoopbackHub(token=TOKEN) as hub:
        push = ("--push_to_hub", "me/sweet-spot", "--private", "--seed", 7)
        done = run(work, "--config", "select.yaml", *push, endpoint=hub.endpoint, token=TOKEN)
        assert done.returncode == 0, done.stderr
        assert "Selected 200 of 1,200 chunks, 10,000 of 10,000 tokens asked for" in done.stdout
        assert "seed 7" in done.stdout  # the command line wins over the YAML file
        assert re.search(r"Predicted loss \d\.\d{4} nats per token; random subset \d\.\d{4}: gain", done.stdout)
        assert re.search(
            r"95 % interval: -?\d\.\d{4} to -?\d\.\d{4}, (within the noise|beyond the noise|not established)",
            done.stdout,
        )
        assert f"Pushed to {hub.endpoint}/datasets/me/sweet-spot." in done.stdout
        assert TOKEN not in done.stdout + done.stderr and "Traceback" not in done.stderr

        # Another process reads the dataset back from the Hub, with load_dataset.
        code = (
            "from datasets import load_dataset; import json\n"
            "print(json.dumps(load_dataset('me/sweet-spot', split='train')[:]))"
        )
        reader = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(work / "reader")}
        reader |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
        answer = subprocess.run([sys.executable, "-c", code], env=reader, capture_output=True, text=True, timeout=120)
        assert answer.returncode == 0, answer.stderr
        from_hub = json.loads(answer.stdout)
        assert hub.repos["me/sweet-spot"].private
        card = hub.file("me/sweet-spot", "README.md").decode()

    local = load_dataset(str(work / "from-yaml"), split="train", cache_dir=str(work / "cache"))
    assert len(local) == 200 and from_hub == local[:]
    assert local["text"] != sorted(local["text"])[:200]
    assert "seed=7" in card and "dataset_info" in card and "`tiny`" in card
    report = json.loads((work / "from-yaml" / "selection.json").read_text())
    assert report["seed"] == 7 and report["num_tokens"] == 10_000 and report["optimum"]["space"] == "log"


@pytest.mark.parametrize("dataset", ["scored", "scored.parquet", "scored.jsonl"])
def test_a_target_without_a_law_from_any_file(work, dataset, in_work):
    output = f"target-{dataset}"
    target = ("--target_mu", 22, "--target_sigma", 7, "--num_tokens", "5_000", "--output_dir", output)
    code, stdout, stderr = in_work("--dataset", dataset, *target)
    assert code == 0, stderr
    assert "Predicted" not in stdout
    subset = load_dataset(str(work / output), split="train", cache_dir=str(work / "cache"))
    assert np.mean(subset["perplexity"]) == pytest.approx(22, rel=0.01)
    assert np.std(subset["perplexity"]) == pytest.approx(7, rel=0.01)
    assert sum(subset["num_tokens"]) == 5_000


def test_a_budget_in_words(work, in_work):
    corpus = Dataset.from_parquet(str(work / "scored.parquet"), cache_dir=str(work / "c"))
    corpus.rename_columns({"perplexity": "ngram_ratio", "num_tokens": "num_words"}).to_parquet(work / "words.parquet")
    aim = ("--dataset_name", "words.parquet", "--column", "ngram_ratio", "--num_tokens", 5_000)
    words = ("--num_tokens_column", "num_words")
    streamed = ("--streaming", "--target_mu", 22, "--target_sigma", 7)
    for way, name in ((("--strategy", "high"), "high"), (streamed, "streamed")):
        code, _, stderr = in_work(*aim, *way, "--output_dir", name)
        assert code == 2 and "no column 'num_tokens'" in stderr
        assert "--num_tokens_column num_words" in stderr and "budget is in words" in stderr
        assert not (work / name).exists()
        code, stdout, stderr = in_work(*aim, *way, *words, "--output_dir", name)
        assert code == 0, stderr
        assert "words asked for" in stdout and "tokens" not in stdout
        card = (work / name / "README.md").read_text().partition("How to reproduce")[0]
        assert " words)" in card and "tokens" not in card
        assert PerplexityLandscape.load(work / name / "landscape.json").num_tokens == 60_000
    high, streamed = (
        load_dataset(str(work / name), split="train", cache_dir=str(work / "cache")) for name in ("high", "streamed")
    )
    assert sorted(high["ngram_ratio"]) == sorted(corpus["perplexity"])[-100:] and sum(high["num_words"]) == 5_000
    assert sum(streamed["num_words"]) == pytest.approx(5_000, rel=0.2)

    again = ("--reproduce", "high/selection.json", "--dataset", "words.parquet", "--output_dir", "high-again")
    code, _, stderr = in_work(*again)  # what counts is in the report
    assert code == 0, stderr
    assert (work / "high-again" / "landscape.json").read_text() == (work / "high" / "landscape.json").read_text()


@pytest.mark.parametrize("way", [(), ("--streaming",), ("--strategy", "random")])
def test_a_law_is_about_tokens_and_takes_no_budget_in_words(work, in_work, way):
    corpus = Dataset.from_parquet(str(work / "scored.parquet"), cache_dir=str(work / "c"))
    corpus.add_column("num_words", [40] * 1200).to_parquet(work / "both.parquet")
    words = ("--num_tokens_column", "num_words", "--num_tokens", 5_000, "--output_dir", "law-in-words")
    code, _, stderr = in_work("--dataset_name", "both.parquet", "--law", "law-tiny.json", *words, *way)
    assert code == 2 and "'num_words', but a law is about the tokens" in stderr, stderr
    assert not (work / "law-in-words").exists()


def test_on_ray_a_column_to_count_in_is_asked_for_before_the_work(work, run_recipe, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(work)
    corpus = Dataset.from_parquet(str(work / "scored.parquet"), cache_dir=str(work / "c"))
    corpus.rename_column("num_tokens", "num_words").to_parquet(work / "ray-words.parquet")
    landscape = PerplexityLandscape.from_dataset(corpus)
    PerplexitySelector.from_target(22, 7, landscape=landscape, num_tokens=5_000).save(work / "selector.json")
    options = ("--dataset_name", "ray-words.parquet", "--selector", "selector.json", "--output_dir", "on-ray")
    code, _, stderr = run_recipe("select_ray", *options)
    assert code == 2 and "no column 'num_tokens'" in stderr and "--num_tokens_column" in stderr, stderr
    (work / "full").mkdir()
    (work / "full" / "file").touch()
    code, _, stderr = run_recipe("select_ray", *options[:-1], "full", "--num_tokens_column", "num_words")
    assert code == 2 and "full is not empty" in stderr, stderr  # it got past the columns


def test_composition_and_the_same_rows_again(work, in_work):
    corpus = load_dataset("parquet", data_files=str(work / "scored.parquet"), split="train", cache_dir=str(work / "c"))
    texts = [f"chunk {i % 1100}" for i in range(1200)]
    corpus = corpus.remove_columns("text").add_column("text", texts)
    corpus = corpus.add_column("source", ["nih" if i % 4 else "web" for i in range(1200)])
    corpus.to_parquet(work / "composed.parquet")
    Dataset.from_dict(
        {"text": [f"wiki {i}" for i in range(40)], "source": ["wiki"] * 40, "perplexity": [9.0] * 40}
        | {"num_tokens": [50] * 40}
    ).to_parquet(work / "wiki.parquet")
    options = {
        "dataset_name": "composed.parquet",
        "law": "law-tiny.json",
        "num_tokens": 10_000,
        "group_by": "source",
        "group_num_tokens": {"web": 6_000},
        "deduplicate": "exact",
        "max_score": 50.0,
        "replay": 0.1,
        "replay_dataset": "wiki.parquet",
        "order": "easy_to_hard",
        "output_dir": "composed",
    }
    (work / "composed.yaml").write_text(yaml.safe_dump(options))
    code, stdout, stderr = in_work("--config", "composed.yaml")
    assert code == 0, stderr
    assert "Replay: 20 rows, 1,000 tokens" in stdout and "100 duplicate" in stdout
    assert re.search(r"web +6,000 of", stdout) and re.search(r"nih +3,000 of", stdout)
    subset = load_dataset(str(work / "composed"), split="train", cache_dir=str(work / "cache"))
    domain = subset.filter(lambda row: row["source"] != "wiki")
    assert len(subset) == 200 and len(domain) == 180 == len(set(domain["text"]))
    assert domain["perplexity"] == sorted(domain["perplexity"]) and max(domain["perplexity"]) <= 50
    assert "## Composition" in (work / "composed" / "README.md").read_text()

    again = ("--reproduce", "composed/selection.json", "--dataset", "composed.parquet", "--output_dir", "again")
    code, _, stderr = in_work(*again, "--law", "composed/law.json", "--replay_dataset", "wiki.parquet")
    assert code == 0, stderr
    same = load_dataset(str(work / "again"), split="train", cache_dir=str(work / "cache"))
    assert same[:] == subset[:]
    assert (work / "again" / "selection.json").read_text() == (work / "composed" / "selection.json").read_text()


LAW = ("--law", "law-tiny.json")
DATA = ("--dataset_name", "scored.parquet", "--num_tokens", 5_000)
BAD_INPUT = {
    "no such dataset": (
        ("--dataset_name", "missing.parquet", "--num_tokens", 5, *LAW),
        "missing.parquet does not exist",
    ),
    "not scored": (("--dataset_name", "unscored.parquet", "--num_tokens", 5, *LAW), "no column 'perplexity'"),
    "empty": (("--dataset_name", "empty.parquet", "--num_tokens", 5, *LAW), "empty"),
    "no such split": ((*DATA, *LAW, "--dataset_split", "nope[:"), "nope"),
    "no law, no target": (DATA, "needs a law or a target"),
    "both": ((*DATA, *LAW, "--target_mu", 22, "--target_sigma", 7), "one of the two"),
    "half a target": ((*DATA, "--target_mu", 22), "both --target_mu and --target_sigma"),
    "out of reach": ((*DATA, "--target_mu", 2200, "--target_sigma", 7), "mu reaches from"),
    "too many tokens": (
        ("--dataset_name", "scored.parquet", "--num_tokens", 10**9, *LAW),
        "more than the 60,000 tokens",
    ),
    "unknown strategy": ((*DATA, *LAW, "--strategy", "best"), "the strategies are maxent"),
    "no such law": ((*DATA, "--law", "nowhere.json"), "nowhere.json"),
    "law of another schema": ((*DATA, "--law", "old.json"), "schema version 0"),
    "law of another model": (("--dataset_name", "scored", "--num_tokens", 5_000, "--law", "law-other.json"), "other"),
    "no such group column": ((*DATA, *LAW, "--group_by", "source"), "no column 'source' to group by"),
    "bad JSON": ((*DATA, *LAW, "--group_by", "text", "--group_num_tokens", "{a: 1}"), "is not JSON"),
    "budgets without groups": ((*DATA, *LAW, "--min_group_tokens", "1_000"), "needs group_by"),
    "no such text column": ((*DATA, *LAW, "--deduplicate", "exact", "--text_column", "body"), "no column 'body'"),
    "replay of nothing": ((*DATA, *LAW, "--replay", 0.1), "pass replay_dataset="),
    "another order": ((*DATA, *LAW, "--order", "best_first"), "the orders are dataset"),
    "not to be streamed": ((*DATA, *LAW, "--streaming", "--deduplicate", "exact"), "cannot be streamed: it compares"),
    "streamed without aim": ((*DATA, "--streaming"), "a law or a target"),
    "streamed from jsonl": (
        ("--dataset_name", "scored.jsonl", "--num_tokens", 5_000, *LAW, "--streaming"),
        "no .parquet file",
    ),
    "reproduce from another file": (("--dataset", "scored.parquet", "--reproduce", "law-tiny.json"), "scaling_law"),
    "no licence": ((*DATA, *LAW, "--push_to_hub", "me/sub"), "license is missing"),
    "bad licence": ((*DATA, *LAW, "--license", "CC BY 4.0"), "not an identifier"),
    "full folder": ((*DATA, *LAW, "--output_dir", "."), "no part of a subset"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_error(work, case, in_work):
    options, said = BAD_INPUT[case]
    if "--output_dir" not in options:
        options = ("--output_dir", "never", *options)
    code, stdout, stderr = in_work(*options)
    assert code == 2, stderr
    message = stderr.split("select_subset.py: error: ")[1]
    assert said in message and len(message.strip().splitlines()) == 1, stderr
    assert not (work / "never").exists() and "Saved" not in stdout


@pytest.mark.parametrize(
    "text, said",
    [
        ("dataset_name: scored\nnum_tokens: many\n", "invalid int value: 'many'"),
        ("dataset_name: scored\n", "--num_tokens"),
    ],
)
def test_bad_yaml(work, in_work, text, said):
    (work / "bad.yaml").write_text(text)
    code, _, stderr = in_work("--config", "bad.yaml", "--output_dir", "never")
    assert code == 2 and said in stderr.split("error: ")[1]
    assert not (work / "never").exists()


def test_the_hub_is_asked_before_any_work(work):
    """No token, a wrong one, offline, no Hub: one line each, and nothing written."""
    push = (*DATA, *LAW, "--license", "mit", "--push_to_hub", "me/sub", "--output_dir", "never")
    with LoopbackHub(token=TOKEN) as hub:
        cases = {
            "there is no Hugging Face token": {"endpoint": hub.endpoint},
            "the Hub refuses the token (401: Invalid credentials": {
                "endpoint": hub.endpoint,
                "token": "hf_WrongToken",
            },
            "offline mode is on (HF_HUB_OFFLINE)": {"endpoint": hub.endpoint, "token": TOKEN, "HF_HUB_OFFLINE": "1"},
            "http://127.0.0.1:9 cannot be reached": {"token": TOKEN},
        }
        for said, where in cases.items():
            done = run(work, *push, **where)
            assert done.returncode == 2 and said in done.stderr, done.stderr
            assert "hf_WrongToken" not in done.stderr and "Traceback" not in done.stderr and not done.stdout
        assert not hub.repos and not (work / "never").exists()


@pytest.mark.slow
def test_a_failed_push_keeps_the_saved_subset(work):
    with LoopbackHub(token=TOKEN, fail={"POST .*/commit/": 500}) as hub:
        push = (*DATA, *LAW, "--license", "mit", "--push_to_hub", "me/sub", "--output_dir", "kept")
        done = run(work, *push, endpoint=hub.endpoint, token=TOKEN)
        assert done.returncode == 2 and "The push to me/sub stopped" in done.stderr and "Traceback" not in done.stderr
        assert f"Saved to {work / 'kept'}" in done.stdout
        assert len(load_dataset(str(work / "kept"), split="train", cache_dir=str(work / "cache"))) == 100
        assert hub.repos["me/sub"].files() == {}
        hub.fail.clear()
        done = run(work, *push, endpoint=hub.endpoint, token=TOKEN)  # the same command, without --overwrite
        assert done.returncode == 0 and f"Pushed to {hub.endpoint}/datasets/me/sub." in done.stdout, done.stderr
        assert len(hub.repos["me/sub"].commits) == 2
        done = run(work, *push, "--seed", 5, endpoint=hub.endpoint, token=TOKEN)
        assert done.returncode == 2 and "already holds another subset; name another folder" in done.stderr


def test_the_recipe_has_the_options_of_the_function():
    ours = {field.name: field.default for field in fields(select_subset.SelectArguments)}
    theirs = {name: option.default for name, option in signature(plan_selection).parameters.items()}
    only_in_python = {"dataset", "target"}  # --target_mu and --target_sigma are the target
    assert theirs.keys() - ours.keys() == only_in_python
    del theirs["num_tokens"]  # left out with --reproduce
    assert {name: ours[name] for name in theirs.keys() & ours.keys()} == {
        name: default for name, default in theirs.items() if name in ours
    }


def test_the_shipped_config_is_valid():
    config = ROOT / "recipes" / "configs" / "select_medical.yaml"
    (options,) = select_subset.make_parser().parse_args_and_config(["--config", str(config)])
    assert options.num_tokens == 10_000_000 and options.source == "MedRAG/textbooks"
