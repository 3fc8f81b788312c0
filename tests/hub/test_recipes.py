"""The recipes' pushes: select_subset.py, fit_law.py and the training recipes, also where the Hub fails."""

import json
import os
import shlex

import huggingface_hub
import pytest
from datasets import Dataset, load_dataset
from faults.kinds import law_points, scored
from recipe_runs import TEXTS, write_jsonl

from hf_ppl_select import ScalingLaw

pytest_plugins = ["recipe_fixtures"]
TOKEN = "hf_ThisIsTheRightOne"


@pytest.fixture
def corpus_file(tmp_path):
    Dataset.from_dict(scored(300)).to_parquet(tmp_path / "scored.parquet")
    return tmp_path / "scored.parquet"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_subset(faulty_hub, corpus_file, tmp_path, run_recipe, streaming):
    options = ["--dataset_name", corpus_file, "--num_tokens", 3000, "--target_mu", 20, "--target_sigma", 6]
    options += ["--license", "other", "--source", "somewhere", "--output_dir", tmp_path / "subset"]
    options += [
        "--push_to_hub",
        "me/sub",
        "--hub_revision",
        "v2",
        "--private",
        *(["--streaming"] if streaming else []),
    ]
    code, stdout, stderr = run_recipe("select_subset", *options, "--dry_run")
    assert code == 0, stderr
    assert "Would push to the private dataset me/sub (new), revision v2, in one commit of " in stdout
    assert "new      data/train-00000-of-00001.parquet, " in stdout and not faulty_hub.repos
    faulty_hub.fail = {"POST .*/commit/": 503}
    code, stdout, stderr = run_recipe("select_subset", *options)
    assert code == 2 and "The push to me/sub stopped" in stderr and "Traceback" not in stderr and TOKEN not in stderr
    faulty_hub.fail = {}
    for _ in range(2):  # the same command again, and again
        code, stdout, stderr = run_recipe("select_subset", *options)
        assert code == 0 and f"Pushed to {faulty_hub.endpoint}/datasets/me/sub/tree/v2." in stdout, stderr
        assert len(faulty_hub.repos["me/sub"].branches["v2"]) == 2 and len(faulty_hub.repos["me/sub"].commits) == 1
    assert faulty_hub.repos["me/sub"].private
    there = load_dataset("me/sub", split="train", revision="v2", cache_dir=str(tmp_path / "there"))
    here = load_dataset("parquet", data_files=str(tmp_path / "subset/data/*.parquet"), split="train")
    assert there.features == here.features and there[:] == here[:] and len(there) > 20


def test_options_about_a_push_need_one(corpus_file, tmp_path, run_recipe):
    options = [
        "--dataset_name",
        corpus_file,
        "--num_tokens",
        900,
        "--strategy",
        "low",
        "--output_dir",
        tmp_path / "no",
    ]
    for option in (["--dry_run"], ["--private"], ["--hub_revision", "v2"]):
        code, _, stderr = run_recipe("select_subset", *options, *option)
        assert code == 2 and f"{option[0]} is about a push: add --push_to_hub" in stderr
    code, _, stderr = run_recipe(
        "fit_law", *["--use_cpu", "--bf16", "false", "--dry_run", "--output_dir"], tmp_path / "no"
    )
    assert code == 2 and "--license and --dry_run are about a push" in stderr
    assert not (tmp_path / "no").exists()


def test_a_law(faulty_hub, tmp_path, run_recipe):
    points = write_jsonl(tmp_path / "points.jsonl", law_points())
    options = ["--points", points, "--num_probes", 0, "--form", "no_interaction", "--space", "linear"]
    options += ["--output_dir", tmp_path / "law", "--model_name_or_path", "tiny", "--use_cpu", "--bf16", "false"]
    options += ["--push_to_hub", "--hub_model_id", "me/law", "--hub_private_repo", "true", "--license", "mit"]
    code, stdout, stderr = run_recipe("fit_law", *options, "--dry_run")
    assert (
        code == 0 and "Would push to the private model me/law (new), revision main" in stdout and not faulty_hub.repos
    ), stderr
    faulty_hub.fail = {"POST .*/commit/": 500}
    code, stdout, stderr = run_recipe("fit_law", *options)
    assert code == 2 and "The push to me/law stopped" in stderr and (tmp_path / "law" / "law.json").is_file()
    faulty_hub.fail = {}
    code, stdout, stderr = run_recipe("fit_law", *options)
    assert code == 0 and f"Pushed to {faulty_hub.endpoint}/me/law." in stdout, stderr
    assert list(faulty_hub.repos) == ["me/law"] and faulty_hub.repos["me/law"].private
    assert ScalingLaw.from_pretrained("me/law").params == ScalingLaw.load(tmp_path / "law" / "law.json").params


@pytest.fixture
def training(common, tmp_path):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in TEXTS[:8]])
    config = common | {"dataset_name": corpus, "max_steps": 2, "push_to_hub": True, "hub_model_id": "me/run"}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return tmp_path / "config.yaml"


def test_a_trained_model_is_one_commit(faulty_hub, training, tmp_path, run_recipe):
    code, stdout, stderr = run_recipe("cpt", "--config", training, "--hub_revision", "v2")
    assert code == 0 and f"Pushed to {faulty_hub.endpoint}/me/run/tree/v2." in stdout, stderr
    repo = faulty_hub.repos["me/run"]
    files = repo.files("v2")
    assert len(repo.branches["v2"]) == 2 and repo.files() == {}
    assert {"model.safetensors", "config.json", "tokenizer.json", "metrics.json", "README.md"} <= set(files)
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert files["model.safetensors"] == weights and b"name: run" in files["README.md"]
    assert not any(TOKEN.encode() in content for content in files.values())


def test_a_push_that_fails_after_training_loses_nothing(faulty_hub, training, tmp_path, run_recipe):
    def write_readme():
        commits = faulty_hub.repos["me/run"].commits
        if "README.md" not in commits[-1][1]:
            commits.append(("theirs", {"README.md": b"Written while it trained.\n"}))

    faulty_hub.fail = {"POST .*/commit/": 500}
    code, stdout, stderr = run_recipe("cpt", "--config", training)
    assert code == 2 and "Saved the model and metrics.json" in stdout
    said = stderr.rpartition("error: ")[2]
    assert (
        "The push to me/run stopped" in said and f"The model is whole in {tmp_path / 'run'}; `hf upload me/run" in said
    )
    assert "Traceback" not in said and TOKEN not in stderr and faulty_hub.repos["me/run"].files() == {}
    left_out = "--exclude '_*' --exclude '.*' --exclude 'checkpoint-*' --exclude 'merged*'"
    if huggingface_hub.__version__.startswith("0."):
        left_out = "--exclude '_*' '.*' 'checkpoint-*' 'merged*'"
    assert f"`hf upload me/run {tmp_path / 'run'} . {left_out}` pushes it without training" in said
    faulty_hub.fail = {}
    faulty_hub.requests.clear()
    faulty_hub.meanwhile = write_readme
    faulty_hub.break_at(8, "meanwhile", 10**6)  # once training has begun
    code, stdout, stderr = run_recipe("cpt", "--config", training)
    assert code == 0, stderr
    card = faulty_hub.file("me/run", "README.md").decode()
    assert "Written while it trained." in card and "hf_ppl_select writes from here" in card
    assert len(faulty_hub.repos["me/run"].commits) == 3  # the first, theirs, ours


def test_what_pushes_a_trained_model_again_pushes_it_to_the_same_place(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from training import publishing

    def fails(error):
        def push(*args, **options):
            raise error

        monkeypatch.setattr(publishing, "push_in_one_commit", push)
        with pytest.raises(type(error)) as found:
            publishing.push_model(args)
        return str(found.value)

    folder = tmp_path / "my run"
    for name in ("model.safetensors", "README.md", "checkpoint-2/model.safetensors", "merged/a", "_old", ".x/a"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("-")
    args = SimpleNamespace(output_dir=str(folder), hub_model_id="me/run", hub_token=None)
    args.hub_private_repo, args.hub_revision = True, "v2"
    command = fails(ConnectionError("The push stopped.")).split("`")[1]
    words = shlex.split(command)
    assert words[:8] == ["hf", "upload", "me/run", str(folder), ".", "--private", "--revision", "v2"]
    paths = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    patterns = [word for word in words[8:] if word != "--exclude"]
    pushed = huggingface_hub.utils.filter_repo_objects(paths, ignore_patterns=patterns)
    assert sorted(pushed) == ["README.md", *publishing.files_to_push(folder)] == ["README.md", "model.safetensors"]
    said = fails(ValueError("Somebody pushed config.json to me/run meanwhile."))
    assert said == f"Somebody pushed config.json to me/run meanwhile. The model is whole in {folder}."


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"repos/create": 500}, "Cannot make the repository me/run: the Hub answered 500"),
        ({"repos/create": 403}, "Cannot make the repository me/run: the token may not do this"),
        ({"whoami": 0}, "Cannot push to me/run: http://.* cannot be reached"),
    ],
)
def test_training_does_not_begin_where_it_could_not_be_pushed(faulty_hub, training, run_recipe, fault, said):
    import re

    faulty_hub.fail = fault
    code, stdout, stderr = run_recipe("cpt", "--config", training)
    assert code == 2 and re.search(said, stderr.rpartition("error: ")[2]) and "Saved the model" not in stdout
    assert os.environ["HF_TOKEN"] not in stderr
