"""Files that others write and we read, how they go wrong, and their readers.

Each kind has a good content, ways to change it (`WAYS` by name), and a reader, which gives back what can be looked at:
texts of a corpus, questions, options.
"""

import csv
import importlib
import io
import json
import os
import re
import shutil
from contextlib import redirect_stderr
from dataclasses import asdict, fields
from functools import cache
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
from faults.hostile import changed_bytes, changed_document, changed_text
from recipe_runs import CHAT_TEMPLATE
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from command_line import parse_options
from hf_ppl_select.benchmarks import BENCHMARKS, own_benchmark
from hf_ppl_select.benchmarks.questions import load_questions
from hf_ppl_select.data.chunking import chunk_documents
from hf_ppl_select.data.load import load_answers, load_texts
from hf_ppl_select.hub.existing import _card, _default_split, join_cards, read_card
from hf_ppl_select.likelihood.model_identity import adapter_base
from hf_ppl_select.scoring.batches import read_batch
from hf_ppl_select.scoring.ngrams.counts import NgramCounts, whole_texts
from hf_ppl_select.scoring.rows import tokenize_rows
from training.checkpoints import checkpoint_to_resume

DOCUMENTS = [{"text": f"Fever number {i} is treated with tea.", "kind": "a", "id": i} for i in range(6)]
CHATS = [
    {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"{i} is tea."}]}
    for i in range(4)
]
PAIRS = [{"prompt": f"What is {i}?", "completion": f"{i} is tea."} for i in range(4)]
TOOLS = [
    {**chat, "tools": [{"type": "function", "function": {"name": "f"}}], "chat_template_kwargs": {"a": 1}}
    for chat in CHATS
]
OWN = [{"question": f"Which is {i}?", "choices": ["tea", "rest", "fever"], "answer": i % 3} for i in range(5)]
ROWS = {  # of the benchmarks whose rows are unlike
    "medqa_4options": {"sent1": "Which?", "ending0": "a", "ending1": "b", "ending2": "c", "ending3": "d", "label": 1},
    "medmcqa": {"question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 1},
    "pubmedqa": {"question": "Is it?", "context": {"contexts": ["It is.", "Or not."]}, "final_decision": "yes"},
    "mmlu": {"question": "Which?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 1},
    "hellaswag": {
        "activity_label": "A",
        "ctx_a": "He",
        "ctx_b": "runs",
        "endings": ["a", "b", "c", "d"],
        "label": "1",
    },
    "arc_easy": {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
}
CARD = "---\nlicense: other\ntags:\n- a\nconfigs:\n- config_name: default\n  data_files: x.csv\n---\n# Theirs\n"
OURS = "---\nlicense: cc-by-4.0\ntags:\n- hf_ppl_select\n---\n# Ours\n"
_DATA, _CPU = {"dataset_name": "d.jsonl", "output_dir": "o"}, {"use_cpu": True, "bf16": False}
RECIPES = {
    "score": _DATA | {"chunk_length": 64, "keep_columns": ["a"], "trusted": "t", "reference_epochs": 2.0},
    "score_ngrams": _DATA | {"trusted": "t.jsonl"},
    "score_ray": _DATA,
    "deduplicate": _DATA | {"near_threshold": 0.8, "max_line_documents": 3},
    "fit_law": _DATA | _CPU | {"eval_file": "h.jsonl", "num_probes": 6, "learning_rate": 0.1},
    "select_subset": _DATA | {"law": "law.json", "num_tokens": 1000, "strategy": "maxent", "seed": 0},
    "select_ray": _DATA | {"selector": "s.json", "num_cpus": 2, "batch_size": 10},
    "cpt": _DATA | _CPU | {"model_name_or_path": "m", "warmup_steps": 5, "max_steps": 3},
    "sft": _DATA | _CPU | {"model_name_or_path": "m", "lora_r": 8, "use_peft": True},
    "run_benchmarks": {"model": "m", "benchmarks": ["medical"], "limit": 5, "dtype": "float32"},
    "quickstart": {"num_documents": 60, "chunk_length": 64, "dirty": 0.5, "model": None},
    "report": {"runs": ["a=x", "b=y"], "baseline": "a", "output_dir": "o"},
}


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def in_csv(rows):
    file = io.StringIO()
    rows = [row if isinstance(row, dict) else {"": row} for row in rows]
    writer = csv.DictWriter(file, list(dict.fromkeys(str(name) for row in rows for name in row)))
    writer.writeheader()
    for row in rows:
        writer.writerow({str(name): json.dumps(v) if isinstance(v, (list, dict)) else v for name, v in row.items()})
    return file.getvalue().encode("utf-8", "surrogatepass")


def parquet(rows):
    file = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, AttributeError, TypeError, OverflowError, ValueError):  # no such table
        table = pa.table({"text": [json.dumps(rows)]})
    try:
        pq.write_table(table, file, write_page_checksum=True)
    except (pa.ArrowException, ValueError):
        pq.write_table(pa.table({"text": [json.dumps(rows)]}), file)
    return file.getvalue()


def whole(document):
    return json.dumps(document).encode()


WRITERS = {"jsonl": jsonl, "json": whole, "csv": in_csv, "parquet": parquet}


class Kind:
    """A good file of rows (or a text), which `change` makes a hostile one of; `read` reads it."""

    def __init__(self, read, good, suffix="", text=True):
        self.read, self.good, self.text = read, good, text
        self.write = WRITERS.get(suffix, lambda text: text.encode())

    def content(self):
        return self.write(self.good)

    def change(self, rng):
        way = rng.choice(["document", "document", "text", "bytes"])
        if way == "document" and not isinstance(self.good, str):
            changed = changed_document(self.good, rng)
            rows = changed if isinstance(changed, (list, dict)) else [changed]
            return self.write(rows)
        if way != "bytes" and self.text:
            return changed_text(self.content().decode(), rng).encode("utf-8", "surrogatepass")
        return changed_bytes(self.content(), rng)


def texts(path):
    """Of a corpus, leaving nothing in the cache."""
    try:
        found, _ = load_texts(str(path))
        return found["text"][:]
    finally:
        _empty_cache()


def answers(path):
    try:
        return load_answers(str(path))[0].to_list()
    finally:
        _empty_cache()


def _empty_cache():
    for kind in ("json", "csv", "parquet", "text", "generator"):
        shutil.rmtree(os.path.join(os.environ["HF_DATASETS_CACHE"], kind), ignore_errors=True)


def questions(name):
    def read(path):
        benchmark = own_benchmark(path) if name is None else BENCHMARKS[name]
        return [asdict(question) for question in load_questions(benchmark, path)]

    return read


def card(path):
    """Ours joined to theirs, twice, and what of theirs a push would take the place of."""
    text = read_card(path)
    joined = join_cards(text, OURS)
    assert "# Ours" in joined
    return [join_cards(joined, OURS), _default_split({"x.csv", "data/train-0.parquet"}, _card(text).data.to_dict())]


def options_of(recipe):
    def read(path):
        environment, said = dict(os.environ), io.StringIO()
        try:
            parser = importlib.import_module(recipe).make_parser()
            with redirect_stderr(said):
                parsed = parse_options(parser, ["--config", str(path)])
        except SystemExit as exit:
            message = said.getvalue().strip().rpartition("error: ")[2]
            options = {option.name for kind in parser.dataclass_types for option in fields(kind)}
            assert exit.code == 2 and (str(path) in message or any(name in message for name in options)), message
            raise ValueError(f"{path.name}: {message}") from None
        finally:
            os.environ.clear()
            os.environ.update(environment)
        return [{name: value for name, value in vars(one).items() if name in RECIPES[recipe]} for one in parsed]

    return read


def resumed(path):
    found = checkpoint_to_resume(SimpleNamespace(resume_from_checkpoint=str(path.parent), output_dir="o"))
    return found == str(path.parent)


def yaml_of(options):
    lines = []
    for name, value in options.items():
        plain = isinstance(value, str) and value.replace("_", "").replace(".", "").isalnum()
        lines.append(f"{name}: {value if plain else json.dumps(value)}\n")
    return "".join(lines)


@cache
def tokenizer():
    """One token a byte, and a chat template."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    model = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|end|>", chat_template=CHAT_TEMPLATE)


def scored_rows(path):
    """What a scorer makes of rows, however they came to be read: the tokens of each, and its text."""
    try:
        rows = json.loads(path.read_text())
        assert isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    except (ValueError, AssertionError):  # no table at all
        return []
    batch = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    try:
        found = whole_texts(read_batch(batch, "text")[0], "text")
        NgramCounts(64).update(found)
        if "text" in batch:
            chunk_documents(batch, tokenizer(), 8)
        return [found, [row.ids for row in tokenize_rows(batch, tokenizer())]]
    except (ValueError, KeyError, TypeError) as error:
        assert re.search(r"[Rr]ow \d|[Cc]olumn|messages|chat template|of the batch", str(error)), error
        raise type(error)(f"{path.name}: {' '.join(str(error).split())}") from error


STATE = {"global_step": 4, "epoch": 0.5, "log_history": [{"loss": 2.5, "step": 4}]}
ADAPTER = {"base_model_name_or_path": "me/base", "revision": None, "r": 8, "target_modules": ["q_proj"]}
QUESTIONS = {
    **{f"own.{suffix}": Kind(questions(None), OWN, suffix, suffix != "parquet") for suffix in WRITERS},
    **{f"{name}.jsonl": Kind(questions(name), [row] * 3, "jsonl") for name, row in ROWS.items()},
}
OPTIONS = {f"{recipe}.yaml": Kind(options_of(recipe), yaml_of(good)) for recipe, good in RECIPES.items()}
OTHERS = {
    "README.md": Kind(card, CARD),
    "adapter_config.json": Kind(lambda path: adapter_base(str(path.parent)), ADAPTER, "json"),
    "trainer_state.json": Kind(resumed, STATE, "json"),
    "text_rows.json": Kind(scored_rows, DOCUMENTS, "json", False),
    "pair_rows.json": Kind(scored_rows, PAIRS, "json", False),
    "chat_rows.json": Kind(scored_rows, TOOLS, "json", False),
}
CORPORA = {
    **{f"corpus.{suffix}": Kind(texts, DOCUMENTS, suffix, suffix != "parquet") for suffix in WRITERS},
    "corpus.txt": Kind(texts, "\n\n".join(row["text"] for row in DOCUMENTS)),
    "chats.jsonl": Kind(answers, CHATS, "jsonl"),
    "pairs.jsonl": Kind(answers, PAIRS, "jsonl"),
    "chats.parquet": Kind(answers, CHATS, "parquet", False),
}
FOREIGN = QUESTIONS | OPTIONS | OTHERS | CORPORA
