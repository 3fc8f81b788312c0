"""A command of every recipe on tiny inputs, and what of its output undisturbed runs and disturbed ones have alike."""

import copy
import fnmatch
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from faults.kinds import KINDS
from recipe_runs import ANSWERS, CHAT_TEMPLATE, QUESTIONS, TEXTS, TRAINING, write_jsonl
from transformers import LlamaConfig, LlamaForCausalLM

from hf_ppl_select import PerplexityLandscape, PerplexityScorer
from tests.recipes.test_report import make_run
from training.checkpoints import problem_of

# Of JSON files, fields that tell of the clock, or of how often a run was started; and hashes of such files
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_tokens_per_second",
         "resumed_from", "checksum", "reference_revision")  # fmt: skip
NEVER = ("*/training_args.bin", "*/checkpoint-*", "*.lock")  # a pickle with the clock in it; the way, not the end


@dataclass(frozen=True)
class Command:
    """`script` with options made of the folder of inputs; the output is the folder `out`, and those beside it.

    Attributes:
        ignored: patterns of files that say how long a step took.
        resumes: with `--resume_from_checkpoint true`, where a whole checkpoint is there.
    """

    script: str
    options: Callable
    ignored: tuple[str, ...] = ()
    resumes: bool = False

    def words(self, inputs, place):
        options = self.options(inputs)
        if self.resumes and any(not problem_of(path) for path in (place / "here" / "out").glob("checkpoint-*")):
            options |= {"resume_from_checkpoint": "true"}
        words = []
        for name, value in options.items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return words

    def results(self, place):
        """By path: bytes; of JSON the document without times; of report.md what is above the costs."""
        found, here = {}, place / "here"
        for path in sorted(here.rglob("*")):
            name = str(path.relative_to(here))
            if not path.is_file() or any(fnmatch.fnmatch(name, pattern) for pattern in (*NEVER, *self.ignored)):
                continue
            content = path.read_bytes()
            if path.suffix == ".json":
                content = without_times(json.loads(content))
            elif path.name == "report.md":
                content = content.partition(b"## What it cost")[0]
            found[name] = content
        return found


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(inside) for name, inside in value.items() if name not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def make_inputs(folder, tokenizer):
    """What the commands read."""
    rng = np.random.default_rng(0)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
        pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = ["fever", "cough", "tea", "rest", "tablets", "treated", "daily", "dose", "of", "fluids", "well"]
    sentences = [" ".join(rng.permutation(words)) + f", case {i}." for i in range(400)]
    write_jsonl(folder / "documents.jsonl", [{"text": " ".join(sentences[i : i + 2])} for i in range(0, 120, 2)])
    write_jsonl(folder / "repeating.jsonl", [{"text": sentences[i % 90] + " Share this page."} for i in range(150)])
    write_jsonl(folder / "trusted.jsonl", [{"text": text} for text in sentences[200:224]])
    write_jsonl(folder / "held_out.jsonl", [{"text": text} for text in sentences[300:306]])
    texts = Dataset.from_dict({"text": sentences[:240]})
    texts.map(PerplexityScorer(str(folder / "model")), batched=True).to_parquet(folder / "probed.parquet")
    for k in range(4):
        data = {"text": [f"chunk {i}" for i in range(300 * k, 300 * (k + 1))], "num_tokens": [50] * 300}
        data["perplexity"] = np.exp(rng.normal(3.0, 0.4, 300))
        (folder / "scored" / "data").mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(data).to_parquet(folder / "scored" / "data" / f"train-{k:05d}-of-00004.parquet")
    PerplexityLandscape.from_dataset(data, model="tiny").save(folder / "scored" / "landscape.json")
    KINDS["law.json"][0](folder / "law.json")
    write_jsonl(folder / "corpus.jsonl", [{"text": text} for text in TEXTS])
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in zip(QUESTIONS, ANSWERS)
    ]
    write_jsonl(folder / "chats.jsonl", rows)
    exam = [{"question": f"What is {i}?", "choices": ["tea", "rest", f"{i}"], "answer": i % 3} for i in range(12)]
    write_jsonl(folder / "exam.jsonl", exam)
    for name, gain in (("random", 0.0), ("selected", 0.3)):
        make_run(folder / name, 0, gain)
    notes = [f"Note {n}: the {words[n % 8]} of patient {n * 37 % 991} showed {n * n % 613}." for n in range(400)]
    write_jsonl(folder / "notes.jsonl", [{"body": " ".join(notes[n : n + 1 + n % 3])} for n in range(0, 400, 3)])
    return folder


def _scoring(inputs):
    return {
        "dataset_name": inputs / "documents.jsonl", "model_name_or_path": inputs / "model", "chunk_length": 32,
        "shard_size": 16, "output_dir": "out",
    }  # fmt: skip


def _training(inputs):
    return TRAINING | {
        "model_name_or_path": inputs / "model", "max_steps": 6, "save_strategy": "steps", "save_steps": 2,
        "output_dir": "out",
    }  # fmt: skip


def _probing(inputs):
    return {
        "dataset_name": inputs / "probed.parquet", "eval_file": inputs / "held_out.jsonl", "num_probes": 5,
        "model_name_or_path": inputs / "model", "num_tokens": 900, "max_length": 128, "budget": 900,
        "per_device_train_batch_size": 4, "learning_rate": 1e-3, "bf16": False, "use_cpu": True, "form": "data_only",
        "gradient_checkpointing": False, "disable_tqdm": True, "output_dir": "out",
    }  # fmt: skip


def _selecting(inputs):
    return {"law": inputs / "law.json", "num_tokens": 9000, "output_dir": "out", "dataset_name": inputs / "scored"}


COMMANDS = {
    "score": Command("score", _scoring),
    "score --trusted": Command(
        "score",
        lambda inputs: _scoring(inputs)
        | {"trusted": inputs / "trusted.jsonl", "eval_file": inputs / "held_out.jsonl"},
        ignored=("out/reference/checkpoint.json",),  # hashes of those files
    ),
    "score_ngrams": Command(
        "score_ngrams",
        lambda inputs: {
            "dataset_name": inputs / "documents.jsonl", "trusted": inputs / "trusted.jsonl", "shard_size": 16,
            "num_buckets": 4096, "output_dir": "out",
        },
    ),
    "deduplicate": Command(
        "deduplicate",
        lambda inputs: {
            "dataset_name": inputs / "repeating.jsonl", "max_sentence_documents": 20, "shard_size": 40,
            "write_dropped": True, "output_dir": "out",
        },
    ),
    "fit_law": Command("fit_law", _probing),
    "fit_law --num_workers 2": Command("fit_law", lambda inputs: _probing(inputs) | {"num_workers": 2}),
    "select_subset": Command("select_subset", lambda inputs: _selecting(inputs) | {"overwrite": True}),
    "select_subset --streaming": Command("select_subset", lambda inputs: _selecting(inputs) | {"streaming": True}),
    "cpt": Command(
        "cpt",
        lambda inputs: _training(inputs)
        | {"dataset_name": inputs / "corpus.jsonl", "eval_file": inputs / "held_out.jsonl"},
        resumes=True,
    ),
    "sft": Command(
        "sft",
        lambda inputs: _training(inputs)
        | {"dataset_name": inputs / "chats.jsonl", "eval_file": inputs / "chats.jsonl", "assistant_only_loss": True},
        resumes=True,
    ),
    "run_benchmarks": Command(
        "run_benchmarks",
        lambda inputs: {
            "model": inputs / "model", "benchmarks": [inputs / "exam.jsonl", "general_questions"], "limit": 10,
            "output": "out/benchmarks.json", "eval_results_dir": "out",
        },
    ),
    "report": Command(
        "report",
        lambda inputs: {
            "runs": [f"random={inputs / 'random'}", f"selected={inputs / 'selected'}"], "output_dir": "out",
        },
    ),
    "quickstart": Command(
        "quickstart",
        lambda inputs: {
            "model": inputs / "model", "dataset_name": inputs / "notes.jsonl", "text_column": "body",
            "num_documents": 110, "chunk_length": 32, "num_probes": 5, "probe_tokens": 700, "num_tokens": 900,
            "num_seeds": 1, "num_workers": 1, "learning_rate": 1e-3, "output_dir": "out",
        },
        ignored=("out/costs.json", "out/steps/*"),  # which have hashes of those files
    ),
}  # fmt: skip
