"""What the tests of training recipes share: a tiny corpus, options for seconds of training, and ways to start them."""

import json
import os
import time
from pathlib import Path

from warm_processes import start

TEXTS = [f"Fever and cough number {i} are treated with rest, tea and {i % 7} tablets. " * 3 for i in range(24)]
DOMAIN = ["Hypertension is treated with diuretics.", "The patient had a cough."]
GENERAL = ["The capital of France is Paris.", "Letters and numbers 1 2 3."]
QUESTIONS = [f"What is treated with {i} tablets?" for i in range(24)]
ANSWERS = [f"Fever number {i}." for i in range(24)]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
NO_PEFT = """
import importlib.util, sys
class NoPeft:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError("peft is not installed in this test")
sys.meta_path.insert(0, NoPeft())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "peft" else find_spec(name, package)
"""
TRAINING = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": 64,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
}
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"]}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def start_recipe(recipe, config, before=""):
    """Run a recipe from a YAML file (JSON is YAML) in a process of its own."""
    file = Path(config["output_dir"]).with_suffix(".yaml")
    file.write_text(json.dumps(config))
    return start(f"recipes/{recipe}.py", "--config", file, before=before)


def train_here(recipe, config):
    """Run a recipe in this process; returns its metrics.json."""
    import importlib

    from command_line import parse_options
    from hf_ppl_select.data.saving import load_json

    file = Path(config["output_dir"]).with_suffix(".yaml")
    file.write_text(json.dumps(config))
    module = importlib.import_module(recipe)
    module.main(*parse_options(module.make_parser(), ["--config", str(file)]))
    return load_json(Path(config["output_dir"]) / "metrics.json", kind="training_metrics", version=1)


def losses_of(metrics):
    return [row["loss"] for row in metrics["log_history"] if "loss" in row]


def held_out_losses(metrics):
    return [row["domain_loss"] for row in metrics["log_history"] if "domain_loss" in row]


def write_or_fail(path, fails):
    if fails:
        raise ValueError("this one fails")
    Path(path).write_text(f"{os.getpid()}")


def write_and_sleep(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)
