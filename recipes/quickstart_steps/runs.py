"""The quickstart's training runs, what they are trained on without any score, and what every step costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ppl_select import chunk_documents, run_benchmarks
from hf_ppl_select.data.load import load_rows
from hf_ppl_select.data.saving import load_json, save_json, write_atomically
from hf_ppl_select.data.schema import Names, Number, Text, checked
from hf_ppl_select.likelihood.models import load_tokenizer
from hf_ppl_select.likelihood.start_token import start_token
from hf_ppl_select.scoring.perplexity import evaluate_perplexity
from quickstart_steps.done import Step
from training.cpu_trainer import release_large_blocks
from training.precision import fast_bfloat16

if TYPE_CHECKING:
    from datasets import Dataset

PROBE_TEXTS = "probes"  # the texts that the law predicts the loss of
TEXT_SETS = {"domain": "held_out", "general": "general", PROBE_TEXTS: "probe_held_out"}  # each loss, and of which file
ARMS = ("selected", "random-deduplicated", "random-raw")  # and the oracle, where it is asked for
TRUSTED = "trusted texts"  # what is measured of the reference, which was trained on them alone
DRAWN = ("random-raw", "oracle")  # of all arms those without any score: chunks.jsonl
CLEAN = "clean"  # what is clean in the column `kind`
_COSTS = {"seconds": Names(Number(0, 1e9)), "interrupted?": [Text()]}


def command_line_of(options: Mapping[str, Any]) -> list[str]:
    """Options by name as words of a command line."""
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def draw_from_documents(
    documents: Path, folder: Path, model: str, *, num_tokens: int, chunk_length: int, seed: int
) -> None:
    """Chunks of documents as they are, drawn at random until `num_tokens` are full: chunks.jsonl in `folder`."""
    tokenizer = load_tokenizer(model)
    rows = load_rows(str(documents))
    options = {"tokenizer": tokenizer, "max_length": chunk_length, "keep_columns": ["kind"]}
    chunks = rows.map(chunk_documents, batched=True, remove_columns=rows.column_names, fn_kwargs=options, desc="Chunk")
    counts = [len(ids) for ids in tokenizer(chunks["text"][:], add_special_tokens=False)["input_ids"]]
    _draw(chunks.add_column("num_tokens", counts), folder, num_tokens, seed)


def check_tokens(documents: Path, model: str, num_tokens: int) -> None:
    """ValueError where documents have fewer tokens than a subset is to have: told before anything is scored."""
    ids = load_tokenizer(model)(load_rows(str(documents))["text"][:], add_special_tokens=False, verbose=False)
    if (tokens := sum(map(len, ids["input_ids"]))) < num_tokens:
        raise _too_few(tokens, "", num_tokens)


def _too_few(tokens: int, which: str, num_tokens: int) -> ValueError:
    return ValueError(
        f"the deduplicated documents have {tokens:,} {which}tokens, fewer than --num_tokens {num_tokens:,}; "
        "lower it, or raise --num_documents."
    )


def check_budget(scored: Path, num_tokens: int, *, oracle: bool) -> None:
    """ValueError where there are fewer tokens than a subset, or one of clean chunks, is to have."""
    chunks = load_rows(str(scored)).select_columns(["kind", "num_tokens"])
    there = {"": sum(chunks["num_tokens"][:])}
    if oracle:
        there["clean "] = sum(n for n, kind in zip(chunks["num_tokens"][:], chunks["kind"][:]) if kind == CLEAN)
    for which, tokens in there.items():
        if tokens < num_tokens:
            raise _too_few(tokens, which, num_tokens)


def draw_from_clean(scored: Path, folder: Path, *, num_tokens: int, seed: int) -> None:
    """Chunks that are known to be clean, of the deduplicated ones, drawn in the same way."""
    chunks = load_rows(str(scored)).select_columns(["text", "kind", "num_tokens"])
    _draw(chunks.filter(lambda row: row["kind"] == CLEAN), folder, num_tokens, seed)


def _draw(chunks: Dataset, folder: Path, num_tokens: int, seed: int) -> None:
    drawn = draw_rows(chunks, num_tokens, seed).to_list()
    write_atomically(folder / "chunks.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in drawn))


def draw_rows(rows: Dataset, num_tokens: float, seed: int) -> Dataset:
    """Rows in a random order until their `num_tokens` fill the budget."""
    order = np.random.default_rng(seed).permutation(len(rows))
    counts = np.array(rows["num_tokens"][:])[order]
    return rows.select(order[: np.searchsorted(np.cumsum(counts), num_tokens, side="right")])


def choose_start(model_name: str) -> int:
    """The token after which the base model reads texts best, and all that is trained from it is measured."""
    from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model

    model, tokenizer = load_model(model_name, dtype="float32")
    return start_token(LikelihoodEngine(model), tokenizer)


def evaluate_model(model_name: str | Path, texts: dict[str, Path], folder: Path, start: int) -> None:
    """Likelihoods of the held-out and general texts after the token `start`, and the benchmarks.

    float32 weights, bfloat16 autocast where it is fast: the same arithmetic for the base model and trained ones.
    """
    import torch

    from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model

    model, tokenizer = load_model(str(model_name), dtype="float32")
    engine = LikelihoodEngine(model, autocast_dtype=torch.bfloat16 if fast_bfloat16() else None)
    found = {}
    for name, file in TEXT_SETS.items():
        rows = load_rows(str(texts[file]))["text"][:]
        scored = evaluate_perplexity(model, tokenizer, rows, bos=start, engine=engine)
        found[name] = {"nll_sum": scored.nll_sum.tolist(), "num_tokens": scored.num_tokens.tolist()}
        print(f"{name} loss {scored.nll_per_token:.4f} nats per token", flush=True)
    benchmarks = [str(texts["ontology_questions"])] if "ontology_questions" in texts else []
    run_benchmarks(model, tokenizer, [*benchmarks, "general_questions"], engine=engine).save(
        folder / "benchmarks.json"
    )
    save_json(folder / "held_out.json", found, kind="text_likelihoods", version=1)


def train_and_evaluate(
    train: Callable[..., Any],
    parsed: tuple,
    training: Step | None,
    evaluation: Step,
    model: str,
    texts: dict[str, Path],
    start: int,
) -> None:
    """One task of [`run_side_by_side`]: what of the two steps is not done, a recipe's `main` and its measures.

    Args:
        train, parsed: the recipe's `main`, and its options.
        training: the step that it is; None where nothing is trained.
        evaluation: the step of measuring it.
        model: what to measure.
        texts: paths of the texts and questions by name.
        start: what [`choose_start`] found.
    """
    if training is not None and not training.is_done():
        train(*parsed)
        release_large_blocks()
        training.note_done()
    if not evaluation.is_done():
        evaluate_model(model, texts, evaluation.output, start)
        evaluation.note_done()


def load_costs(path: Path) -> tuple[dict[str, float], set[str]]:
    """Seconds by the title of a step, and the titles that a kill made too short; [`Costs`] keeps them."""
    found = load_json(path, kind="quickstart_costs", version=1, read=checked(_COSTS))
    return found["seconds"], set(found.get("interrupted", ()))


class Costs:
    """Seconds of every step, kept in a file over interrupted runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds, self.interrupted = load_costs(path) if path.exists() else ({}, set())

    @contextmanager
    def of(self, title: str) -> Iterator[None]:
        """Add the time that this takes; a kill leaves it among the interrupted."""
        started, known = time.monotonic(), title in self.interrupted
        self.interrupted.add(title)
        self._save()
        try:
            yield
        finally:
            self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - started
            if not known:
                self.interrupted.discard(title)
            self._save()

    def _save(self) -> None:
        costs = {"seconds": self.seconds, "interrupted": sorted(self.interrupted)}
        save_json(self.path, costs, kind="quickstart_costs", version=1)
