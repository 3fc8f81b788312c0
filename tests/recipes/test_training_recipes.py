import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from recipe_runs import (
    ANSWERS,
    DOMAIN,
    GENERAL,
    LORA,
    NO_PEFT,
    QUESTIONS,
    TEXTS,
    TRAINING,
    start_recipe,
    write_jsonl,
)
from transformers import AutoModelForCausalLM, AutoTokenizer
from warm_processes import ROOT, finish

from hf_ppl_select.data.saving import load_json
from hf_ppl_select.scoring.perplexity import evaluate_perplexity

pytest_plugins = ["recipe_fixtures"]


def metrics_of(folder):
    metrics = load_json(Path(folder) / "metrics.json", kind="training_metrics", version=1)
    held_out = {row["step"]: row for row in metrics["log_history"] if "domain_loss" in row}
    losses = [row["loss"] for row in metrics["log_history"] if "loss" in row]
    assert math.isfinite(metrics["train"]["train_loss"]) and losses[-1] < losses[0]
    assert min(held_out) == 0 and held_out[0]["domain_forgetting"] == 0.0
    return metrics, held_out


def assert_logged_loss(model, folder, texts, logged):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert evaluate_perplexity(model, tokenizer, texts).nll_per_token == pytest.approx(logged, rel=1e-5)


@pytest.mark.slow
def test_cpt_full_and_lora(model_dir, tmp_path):
    corpus, general = tmp_path / "corpus.parquet", tmp_path / "general.txt"
    Dataset.from_dict({"body": [*TEXTS, None, "  "], "prompt": ["x"] * 26}).to_parquet(corpus)
    Dataset.from_dict({"body": TEXTS}).save_to_disk(tmp_path / "subset")
    general.write_text("\n\n".join(GENERAL))
    common = TRAINING | {
        "model_name_or_path": model_dir,
        "dataset_text_field": "body",
        "eval_file": write_jsonl(tmp_path / "domain.jsonl", [{"body": text} for text in DOMAIN]),
        "general_eval_file": str(general),
        "perplexity_steps": 5,
    }
    (tmp_path / "no_peft").mkdir()
    (tmp_path / "no_peft" / "sitecustomize.py").write_text(NO_PEFT)
    full_dir, lora_dir = str(tmp_path / "full"), str(tmp_path / "lora")
    (tmp_path / "full.yaml").write_text(json.dumps(common | {"dataset_name": str(corpus), "output_dir": full_dir}))
    full = subprocess.Popen(
        [sys.executable, str(ROOT / "recipes" / "cpt.py"), "--config", str(tmp_path / "full.yaml")],
        env=os.environ | {"PYTHONPATH": f"{tmp_path / 'no_peft'}:{ROOT}", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    lora = start_recipe("cpt", common | LORA | {"dataset_name": str(tmp_path / "subset"), "output_dir": lora_dir})
    _, errors = full.communicate(timeout=300)
    assert full.returncode == 0, errors[-3000:]
    done = finish(lora)
    assert done.returncode == 0, done.stderr[-3000:]

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    num_tokens = sum(len(tokenizer(text + tokenizer.eos_token)["input_ids"]) for text in TEXTS)
    for folder in (full_dir, lora_dir):
        metrics, held_out = metrics_of(folder)
        assert metrics["num_tokens"] == 2 * num_tokens  # two epochs; packing has dropped nothing
        assert metrics["num_rows"] == len(TEXTS)
        last = max(held_out)
        assert sorted(held_out) == sorted({0, *range(5, last, 5), last})
        assert held_out[last]["general_forgetting"] == held_out[last]["general_loss"] - held_out[0]["general_loss"]
        assert_logged_loss(AutoModelForCausalLM.from_pretrained(model_dir), folder, DOMAIN, held_out[0]["domain_loss"])
    assert metrics_of(full_dir)[0]["num_empty_rows"] == 2

    model = AutoModelForCausalLM.from_pretrained(full_dir)
    _, held_out = metrics_of(full_dir)
    assert_logged_loss(model, full_dir, DOMAIN, held_out[max(held_out)]["domain_loss"])
    assert_logged_loss(model, full_dir, GENERAL, held_out[max(held_out)]["general_loss"])

    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), lora_dir)
    _, held_out = metrics_of(lora_dir)
    assert_logged_loss(model, lora_dir, DOMAIN, held_out[max(held_out)]["domain_loss"])
    assert not (Path(lora_dir) / "model.safetensors").exists()


@pytest.mark.slow
def test_sft_full_and_lora(model_dir, tmp_path):
    pairs = [{"q": q, "a": a, "id": i} for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]
    chats = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    common = TRAINING | {"model_name_or_path": model_dir, "dataset_train_split": "train[4:]"}
    common |= {"dataset_test_split": "train[:4]"}
    full_dir, lora_dir = str(tmp_path / "full"), str(tmp_path / "lora")
    template = "Question: {prompt}\nAnswer:\n"
    full = start_recipe(
        "sft",
        common
        | {
            "dataset_name": write_jsonl(tmp_path / "pairs.jsonl", [*pairs, {"q": "No answer?", "a": None, "id": 24}]),
            "prompt_column": "q",
            "completion_column": "a",
            "prompt_template": template,
            "output_dir": full_dir,
        },
    )
    lora = start_recipe(
        "sft",
        common
        | LORA
        | {
            "dataset_name": write_jsonl(tmp_path / "chats.jsonl", chats),
            "assistant_only_loss": True,
            "output_dir": lora_dir,
        },
    )
    for process in (full, lora):
        done = finish(process)
        assert done.returncode == 0, done.stderr[-3000:]

    metrics, held_out = metrics_of(full_dir)
    assert (metrics["num_rows"], metrics["num_empty_rows"]) == (20, 1)
    tokenizer = AutoTokenizer.from_pretrained(full_dir)
    for folder, step in ((model_dir, 0), (full_dir, max(held_out))):
        loss = loss_of_answers(AutoModelForCausalLM.from_pretrained(folder), tokenizer, template)
        assert loss == pytest.approx(held_out[step]["domain_loss"], rel=1e-5)
    _, held_out = metrics_of(lora_dir)
    assert held_out[max(held_out)]["domain_forgetting"] < 0
    assert (Path(lora_dir) / "adapter_model.safetensors").exists()


def loss_of_answers(model, tokenizer, template):
    """Nats per token of the answers' tokens alone, one row at a time."""
    nll, num_tokens = 0.0, 0
    for question, answer in zip(QUESTIONS[:4], ANSWERS[:4], strict=True):
        prompt = [tokenizer.bos_token_id, *tokenizer(template.replace("{prompt}", question))["input_ids"]]
        ids = prompt + tokenizer(answer)["input_ids"]
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nll -= sum(log_probs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids)))
        num_tokens += len(ids) - len(prompt)
    return nll / num_tokens


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("cpt", {"dataset_text_field": "body"}, "no column 'body'; its columns are text, n."),
        ("cpt", {"dataset_text_field": "n"}, "column 'n' of corpus.jsonl holds int64, not text."),
        (
            "cpt",
            {"dataset_name": "blank.jsonl"},
            "blank.jsonl has no text: column 'text' is empty in all of its 2 rows.",
        ),
        ("cpt", {"dataset_name": "missing.jsonl"}, "missing.jsonl does not exist"),
        ("cpt", {"dataset_name": "notes.md"}, "notes.md is not a dataset"),
        ("cpt", {"dataset_name": "empty.jsonl"}, "empty.jsonl cannot be read as json"),
        ("cpt", {"dataset_name": "notes.parquet"}, "notes.parquet cannot be read as parquet"),
        ("cpt", {"dataset_train_split": "train[:0]"}, "corpus.jsonl cannot be read as json, split 'train[:0]'"),
        ("cpt", {"eval_file": "missing.txt"}, "missing.txt does not exist"),
        ("cpt", {"use_peft": True}, "needs the peft library"),
        ("cpt", {"model_name_or_path": None}, "there is no model"),
        ("sft", {}, "has neither 'prompt' and 'completion' nor 'messages'; its columns: text, n."),
        ("sft", {"prompt_template": "Question:"}, "has no {prompt} in it"),
        ("sft", {"prompt_column": "text", "completion_column": "none"}, "has neither 'text' and 'none'"),
        ("sft", {"dataset_name": "unanswered.jsonl"}, "has no answer to train on in any of its 2 rows"),
    ],
)
def test_bad_input_is_one_clear_error(recipe, options, message, tmp_path, monkeypatch, run_recipe):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": text, "n": 1} for text in TEXTS])
    write_jsonl(tmp_path / "blank.jsonl", [{"text": ""}, {"text": " "}])
    write_jsonl(tmp_path / "unanswered.jsonl", [{"prompt": "Why?", "completion": ""}] * 2)
    for name in ("notes.md", "notes.parquet", "empty.jsonl"):
        (tmp_path / name).write_text("" if name == "empty.jsonl" else "not a table")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find_spec(name, *rest)
    )
    options = (
        {"model_name_or_path": "no-model", "dataset_name": "corpus.jsonl", "output_dir": "out"} | TRAINING | options
    )
    (tmp_path / "config.yaml").write_text(json.dumps(options))
    code, _, error = run_recipe(recipe, "--config", "config.yaml")
    assert code == 2 and message in error.splitlines()[-1] and "Traceback" not in error
    assert not (tmp_path / "out").exists()
