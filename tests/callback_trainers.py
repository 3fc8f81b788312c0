"""Small trainers for the tests of callbacks: plain, TRL's, with LoRA; and what to look up in what they log."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

TRAIN = [f"Fever and cough number {i} are treated with rest, tea and {i % 7} tablets." for i in range(48)]
DOMAIN = ["Hypertension is treated with diuretics.", "The patient had a cough.", "No fever."]
GENERAL = ["The capital of France is Paris.", "Letters and numbers 1 2 3."]
HELD_OUT = {"domain": DOMAIN, "general": GENERAL}
MOMENTS = {"mu": 22.0, "sigma": 10.0, "log_mu": 3.0, "log_sigma": 0.4}


def make_trainer(kind, model, tokenizer, folder, **options):
    options = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    } | options
    if kind == "plain":
        ids = [tokenizer(text)["input_ids"][:24] for text in TRAIN]
        rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
        trainer = Trainer(model, TrainingArguments(**options), train_dataset=rows, processing_class=tokenizer)
        return trainer
    peft_config = None
    if kind == "lora":
        torch.manual_seed(0)  # of the adapter's first weights
        peft_config = pytest.importorskip("peft").LoraConfig(
            task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]
        )
    return SFTTrainer(
        model,
        SFTConfig(max_length=32, **options),
        train_dataset=Dataset.from_dict({"text": TRAIN}),
        eval_dataset=Dataset.from_dict({"text": DOMAIN}) if "eval_strategy" in options else None,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def law_trainer(model, tokenizer, folder, **options):
    """Steps of 4 packed rows of 32 tokens: 128 tokens a step."""
    options = {"packing": True, "packing_strategy": "wrapped", "include_num_input_tokens_seen": "all"} | options
    return make_trainer("sft", model, tokenizer, folder, **options)


def rows_with(trainer, key):
    return {row["step"]: row for row in trainer.state.log_history if key in row}


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def teach(model, tokenizer, texts, steps=40):
    """Train the model on the texts until it knows them, so that training on others makes it forget."""
    ids = [torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]]) for text in texts]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = sum(model(input_ids=row, labels=row).loss for row in ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.clone() for name, value in model.state_dict().items()}


def comparable(log_history):
    """What a run logged, without its summary, its speed, and TRL's token count, which begins anew after a resume."""
    clocks = ("train_runtime", "train_tokens_per_second", "num_tokens")
    rows = [row for row in log_history if "train_loss" not in row]
    return [{name: row[name] for name in row if name not in clocks} for row in rows]


def same_history(found, expected):
    """The same rows with the same numbers, up to float32 rounding."""
    found, expected = comparable(found), comparable(expected)
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
    return True
