"""What a draw's arms choose from: its texts, made once, deduplicated and scored by the recipes that users run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line import parse_options
from hf_ppl_select import NgramScorer
from hf_ppl_select.data.load import load_rows
from hf_ppl_select.likelihood.models import load_tokenizer
from quickstart_steps.done import Step
from quickstart_steps.runs import command_line_of, draw_from_documents, draw_rows
from studying.answers import write_answers
from studying.plan import StudyArguments
from studying.subsets import sums_by_kind
from studying.texts import write_general, write_texts
from training.cpu_trainer import release_large_blocks
from training.precision import training_precision

if TYPE_CHECKING:
    from datasets import Dataset

Recipe = tuple[Callable[[], Any], Callable[..., None]]  # a recipe's `make_parser` and `main`


@dataclass(frozen=True)
class Pool:
    """A corpus by one seed, in a folder of its own.

    Attributes:
        weights: the model's commit, or a hash of its files; it decides every step, as the `plan` does by its hash.
        recipes: those that make "deduplicated", "scored" and, of answers, "reference".
    """

    folder: Path
    corpus: str
    seed: int
    model: str
    weights: str
    plan: str
    recipes: Mapping[str, Recipe]
    args: StudyArguments

    @property
    def column(self) -> str:
        """What is trained on: texts, or the completions of prompts."""
        return "completion" if self.corpus == "answers" else "text"

    @property
    def trained_on(self) -> list[str]:
        """The columns that the trainer reads."""
        return ["prompt", "completion"] if self.corpus == "answers" else ["text"]

    def rows(self, name: str) -> Dataset:
        """One of the files of texts."""
        return load_rows(str(self.folder / "texts" / f"{name}.jsonl"))

    def write(self) -> None:
        """The texts, unless they are there."""
        step = Step(self.folder, "texts", (self.weights, self.plan))
        if step.is_done():
            return
        if self.corpus == "answers":
            write_answers(step.output, self.seed, self.args)
            write_general(step.output, self.seed, self.args)
        else:
            write_texts(step.output, self.corpus, self.seed, self.args, load_tokenizer(self.model))
        step.note_done()

    def scored(self) -> Dataset:
        """The deduplicated chunks, or rows, with all scores."""
        texts = self.folder / "texts"
        options = {
            "dataset_name": texts / "documents.jsonl",
            "text_column": self.column,
            "near_threshold": 0.6 if self.corpus == "ontology" else 0.8,  # documents are short; the default
            "max_sentence_documents": 20,
            "count_by": "kind",
        }
        self._step("deduplicated", options)
        options = {"dataset_name": self.folder / "deduplicated", "model_name_or_path": self.model}
        if self.corpus == "answers":
            self._step("reference", self._fine_tuning())
            options |= {"chunk_length": 0, "reference": self.folder / "reference", "ifd": True}
        else:
            trusted = {"trusted": texts / "trusted.jsonl", "eval_file": texts / "held_out.jsonl"}
            options |= {"chunk_length": self.args.chunk_length, "keep_columns": "kind", **trusted}
        self._step("scored", options)
        scored = load_rows(str(self.folder / "scored"))
        trusted, corpus = (rows[self.column][:] for rows in (self.rows("trusted"), scored))
        return scored.map(NgramScorer.fit(trusted, corpus, text_column=self.column), batched=True)

    def raw(self) -> Dataset:
        """Random chunks, or rows, of the documents as they are: for the longest budget."""
        most = int(max(self.args.random_times) * self.args.num_tokens)
        if self.corpus == "answers":
            rows = self.rows("documents")
            tokens = load_tokenizer(self.model)(rows["completion"][:], add_special_tokens=False)["input_ids"]
            counts = [len(ids) for ids in tokens]
            return draw_rows(rows.add_column("num_tokens", counts), most, self.seed)
        raw = {"num_tokens": most, "chunk_length": self.args.chunk_length, "seed": self.seed}
        step = Step(self.folder, "random-raw", (self.weights, str(raw)), (self.folder / "texts",))
        if not step.is_done():
            draw_from_documents(self.folder / "texts" / "documents.jsonl", step.output, self.model, **raw)
            step.note_done()
        return load_rows(str(step.output / "chunks.jsonl"))

    def characters(self) -> dict[str, int]:
        """Of each kind, before anything is dropped."""
        documents = self.rows("documents")
        return sums_by_kind(documents["kind"][:], map(len, documents[self.column][:]))

    def _fine_tuning(self) -> dict[str, Any]:
        """Options of sft.py that train the reference on the trusted answers."""
        return {
            "model_name_or_path": self.model,
            "dataset_name": self.folder / "texts" / "trusted.jsonl",
            "learning_rate": self.args.learning_rate,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "max_length": 2 * self.args.chunk_length + 16,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "dtype": "float32",
            **training_precision(),
        }

    def _step(self, name: str, named: dict[str, Any]) -> None:
        options = command_line_of(named | {"output_dir": self.folder / name})
        step = Step(self.folder, name, (self.weights, *options), (self.folder / "texts",))
        if not step.is_done():
            make_parser, main = self.recipes[name]
            main(*parse_options(make_parser(), options))
            release_large_blocks()
            step.note_done()
