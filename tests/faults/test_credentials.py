"""A token that is planted in the environment, an option, a file or a URL is found in nothing that we write or say."""

import json
import os
import sys

import pytest
from datasets import Dataset
from faults.kinds import scored
from recipe_runs import TEXTS, write_jsonl

from hf_ppl_select import ScalingLaw
from hf_ppl_select.data.credentials import HIDDEN, hide_credentials
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.streaming.sharded_output import ShardedOutput

pytest_plugins = ["recipe_fixtures"]
TOKEN = "hf_" + "PlantedByThisTest" * 2
PASSWORD = "correct-horse-battery"
SECRETS = {
    "token": TOKEN,
    "short token": "hf_abCD1234xyz",
    "token in a URL": f"https://huggingface.co/datasets/me/mine?token={TOKEN}",
    "password in a URL": f"https://me:{PASSWORD}@example.com/corpus",
    "signed URL": "https://bucket.s3.amazonaws.com/corpus?X-Amz-Signature=0123456789abcdef0123456789abcdef",
    "header": f"Authorization: Bearer {TOKEN}",
    "AWS": "AKIAABCDEFGHIJKLMNOP",
    "GitHub": "ghp_0123456789abcdefghijABCDEFGHIJ",
}
BARE = [TOKEN, "hf_abCD1234xyz", PASSWORD, "0123456789abcdef", "AKIAABCDEFGHIJKLMNOP", "ghp_0123456789"]


def assert_found_nowhere(folder, *said):
    for text in said:
        assert not any(secret in text for secret in BARE), text
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert paths
    for path in paths:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in BARE), path


@pytest.mark.parametrize("kind", SECRETS)
def test_credentials_are_hidden_and_words_are_not(kind):
    hidden = hide_credentials(f"before {SECRETS[kind]} after")
    assert not any(secret in hidden for secret in BARE)
    assert HIDDEN in hidden and hidden.startswith("before ") and hidden.endswith(" after")


@pytest.mark.parametrize(
    "text",
    [
        "hf_ppl_select/scaling_law, made by hf_ppl_select 0.1.0 of hf_internal_testing", "me/medical-sweet-spot",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "https://huggingface.co/me/mine",
        "hf://datasets/me/mine@main/data", "someone@example.com", "sk-learn and risk-averse", "num_tokens=3000",
        "https://example.com/?q=1&max_tokens=5", "the token before a text",
    ],
)  # fmt: skip
def test_what_is_no_credential_stays(text):
    assert hide_credentials(text) == text


def test_values_of_the_environment_are_hidden(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_API_KEY", "no-pattern-knows-this")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert hide_credentials("a no-pattern-knows-this b") == f"a {HIDDEN} b"


@pytest.mark.parametrize("kind", SECRETS)
def test_a_subset_its_card_and_its_errors(kind, tmp_path, run_recipe):
    Dataset.from_dict(scored(300)).to_parquet(tmp_path / "scored.parquet")
    options = ["--num_tokens", 3000, "--strategy", "random", "--model", SECRETS[kind], "--source", SECRETS[kind]]
    options += ["--license", "other", "--output_dir", tmp_path / "subset"]
    code, stdout, stderr = run_recipe("select_subset", "--dataset_name", tmp_path / "scored.parquet", *options)
    assert code == 0, stderr
    assert HIDDEN in (tmp_path / "subset" / "README.md").read_text()
    assert_found_nowhere(tmp_path / "subset", stdout, stderr)
    for wrong in (
        ["--dataset_name", f"/no/{SECRETS[kind]}"],
        ["--dataset_name", tmp_path / "scored.parquet", "--law", SECRETS[kind]],
        ["--dataset_name", tmp_path / "scored.parquet", "--seed", SECRETS[kind]],
        ["--dataset_name", tmp_path / "scored.parquet", "--no_such_option", SECRETS[kind]],
        ["--dataset_name", tmp_path / "scored.parquet", "--config", SECRETS[kind]],
    ):
        code, stdout, stderr = run_recipe("select_subset", *options[:2], *wrong)
        assert code not in (0, None) and stderr
        assert not any(secret in stdout + stderr for secret in BARE), stderr


def test_settings_with_a_token_are_the_same_settings_again(tmp_path):
    settings = {"dataset_name": SECRETS["token in a URL"], "seed": 0}
    ShardedOutput.open(tmp_path / "out", 1, settings).write(0, Dataset.from_dict({"text": ["a"]}))
    ShardedOutput.open(tmp_path / "out", 1, settings).publish()
    with pytest.raises(ValueError, match="seed was 0, is 1") as error:
        ShardedOutput.open(tmp_path / "out", 1, settings | {"seed": 1})
    assert_found_nowhere(tmp_path / "out", str(error.value))


def test_a_law(tmp_path):
    from faults.kinds import law_points

    law = fit_scaling_law(law_points(), "no_interaction", "linear", model=SECRETS["token in a URL"], corpus=TOKEN)
    law.save_pretrained(tmp_path / "law")
    assert_found_nowhere(tmp_path / "law")
    assert HIDDEN in ScalingLaw.load(tmp_path / "law" / "law.json").model


@pytest.mark.parametrize("way", ["option", "model_init_kwargs", "configuration", "environment"])
def test_a_training_run_and_its_checkpoints(way, common, tmp_path, run_recipe, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN if way == "environment" else "")
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in TEXTS[:8]])
    config = common | {"dataset_name": corpus, "num_train_epochs": 1, "save_strategy": "steps", "save_steps": 1}
    config |= {"max_steps": 2}
    config |= {"configuration": {"hub_token": TOKEN}}.get(way, {})
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    options = {
        "option": ["--hub_token", TOKEN],
        "model_init_kwargs": ["--model_init_kwargs", json.dumps({"token": TOKEN})],
    }
    code, stdout, stderr = run_recipe("cpt", "--config", tmp_path / "config.yaml", *options.get(way, []))
    assert code == 0, stderr
    assert len(list((tmp_path / "run").rglob("training_args.bin"))) >= 3
    assert_found_nowhere(tmp_path / "run", stdout, stderr)
    assert os.environ["HF_TOKEN"] == TOKEN and TOKEN not in sys.argv  # where every client of the Hub finds it
