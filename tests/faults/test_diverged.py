"""Training that diverges ends at once, says which run it was and why, and leaves all others as they are."""

import json
import math

import pytest
import torch
from recipe_runs import TEXTS, write_jsonl

from hf_ppl_select import ScalingLaw
from hf_ppl_select.data.saving import load_json
from hf_ppl_select.law.points import read_law_points

pytest_plugins = ["recipe_fixtures"]


@pytest.mark.parametrize("recipe", ["cpt", "sft"])
def test_a_run_that_diverges_ends_at_once(recipe, common, tmp_path, run_recipe, monkeypatch):
    from training.trainer import RecipeTrainer

    steps, real = [], RecipeTrainer.training_step

    def training_step(self, model, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 4:  # what a learning rate of 10 does to larger models
            next(model.parameters()).data.fill_(math.nan)
        return real(self, model, *args, **kwargs)

    monkeypatch.setattr(RecipeTrainer, "training_step", training_step)
    rows = [{"text": text} if recipe == "cpt" else {"prompt": "What?", "completion": text} for text in TEXTS]
    config = common | {"dataset_name": write_jsonl(tmp_path / "rows.jsonl", rows), "learning_rate": 10.0}
    config |= {"eval_file": config["dataset_name"], "max_steps": 20}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    code, _, stderr = run_recipe(recipe, "--config", tmp_path / "config.yaml")
    assert code == 2 and len(steps) == 4, stderr
    assert "the loss is not finite at step 3, after a training loss of" in stderr and "Traceback" not in stderr
    assert "likely cause is the learning rate, 10; lower --learning_rate" in stderr and "dtype" not in stderr
    metrics = load_json(tmp_path / "run" / "metrics.json", kind="training_metrics", version=1)
    assert metrics["train"] == {"diverged_at_step": 3} and sum("loss" in row for row in metrics["log_history"]) == 3
    assert not (tmp_path / "run" / "model.safetensors").exists()
    code, _, stderr = run_recipe("report", "--runs", f"a={tmp_path / 'run'}")
    assert code == 2 and "diverged at step 3; leave it out" in stderr


def test_weights_that_the_last_step_ruins_are_found_by_the_measurement(common, tmp_path, run_recipe, monkeypatch):
    from training.trainer import RecipeTrainer

    real = RecipeTrainer.training_step

    def training_step(self, model, *args, **kwargs):
        loss = real(self, model, *args, **kwargs)
        if self.state.global_step == 2:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, math.nan)
        return loss

    monkeypatch.setattr(RecipeTrainer, "training_step", training_step)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    config = common | {"dataset_name": rows, "max_steps": 3, "max_grad_norm": 0}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    code, _, stderr = run_recipe("cpt", "--config", tmp_path / "config.yaml")
    assert code == 2 and "the model gives NaN at step 3" in stderr and "training diverged" in stderr
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.fixture
def options(tiny_model_dir, tmp_path):
    import numpy as np
    from datasets import Dataset

    rng = np.random.default_rng(0)
    columns = {"text": TEXTS * 10, "perplexity": np.exp(rng.normal(3, 0.5, 240)), "num_tokens": [40] * 240}
    Dataset.from_dict(columns).to_parquet(tmp_path / "scored.parquet")
    write_jsonl(tmp_path / "eval.jsonl", [{"text": text} for text in TEXTS[:3]])
    given = {
        "dataset_name": tmp_path / "scored.parquet", "eval_file": tmp_path / "eval.jsonl", "num_tokens": 1600,
        "model_name_or_path": tiny_model_dir, "num_probes": 5, "max_length": 64, "bf16": "false",
        "per_device_train_batch_size": 4, "gradient_checkpointing": "false", "output_dir": tmp_path / "law",
        "disable_tqdm": "true", "form": "data_only", "budget": 1600,
    }  # fmt: skip
    return ["--use_cpu", *(part for name, value in given.items() for part in (f"--{name}", value))]


@pytest.mark.slow
def test_a_probe_that_diverges_is_named_and_the_others_make_a_law(options, tmp_path, run_recipe, monkeypatch):
    from training.cpu_trainer import StoppingSFTTrainer

    real, ruined = StoppingSFTTrainer.training_step, ["probe-01"]

    def training_step(self, model, *args, **kwargs):
        if self.args.run_name in ruined and self.state.global_step == 5:
            next(model.parameters()).data.fill_(math.nan)
        return real(self, model, *args, **kwargs)

    monkeypatch.setattr(StoppingSFTTrainer, "training_step", training_step)
    code, stdout, stderr = run_recipe("fit_law", *options)
    assert code == 2 and "Traceback" not in stderr
    assert "Probe probe-01: the loss is not finite at step 5" in stderr and "lower --learning_rate" in stderr
    assert "The law below is of the other probes" in stdout and stdout.count("Probe ") >= 5
    points = read_law_points(tmp_path / "law" / "points.jsonl")
    assert sum(points.run == "probe-01") == 2 and all(
        sum(points.run == run) == 3 for run in {*points.runs} - {"probe-01"}
    )
    assert ScalingLaw.load(tmp_path / "law" / "law.json").report.num_runs == 4

    ruined.clear()  # the same command trains that probe alone
    code, stdout, stderr = run_recipe("fit_law", *options)
    assert code == 0 and stdout.count("train_runtime") == 1, stderr
    assert len(read_law_points(tmp_path / "law" / "points.jsonl")) == 15


@pytest.mark.slow
def test_where_all_probes_diverge_there_is_no_law(options, tmp_path, run_recipe, monkeypatch):
    from training.cpu_trainer import StoppingSFTTrainer

    def training_step(self, model, *args, **kwargs):
        next(model.parameters()).data.fill_(math.nan)
        return real(self, model, *args, **kwargs)

    real = StoppingSFTTrainer.training_step
    monkeypatch.setattr(StoppingSFTTrainer, "training_step", training_step)
    code, _, stderr = run_recipe("fit_law", *options)
    assert code == 2 and "Probe random: the loss is not finite at step 0" in stderr
    assert "So did probe-00, probe-01" in stderr and not (tmp_path / "law" / "law.json").exists()
