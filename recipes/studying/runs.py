"""One training run of a study: from the base model, on chunks in order, measured at each rung of a ladder."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback

from hf_ppl_select import run_benchmarks
from hf_ppl_select.benchmarks.estimates import metric_terms
from hf_ppl_select.likelihood.engine import load_model
from studying.plan import StudyArguments
from trainer_callbacks.held_out import HeldOutSet, tokenize_sets
from trainer_callbacks.measuring import measure_and_log
from trainer_callbacks.processes import engine_of
from training.cpu_trainer import in_order, release_large_blocks, sft_trainer_class
from training.precision import training_precision

if TYPE_CHECKING:
    from transformers import Trainer

METRICS = ("choice_accuracy", "choice_bits_per_byte")
_ROOM = 16  # tokens that a chunk may have more of, once it is tokenized alone and ended


class RungRecorder(TrainerCallback):
    """Keeps each held-out text's nll (nats, summed) at some steps, and `benchmarks` at the step of that number."""

    def __init__(
        self, trainer: Trainer, sets: Sequence[HeldOutSet], steps: Sequence[int], benchmarks: Any, at: int | None
    ) -> None:
        self.trainer, self.sets, self.steps, self.benchmarks, self.at = trainer, sets, steps, benchmarks, at
        self.found: list[dict[str, Any]] = []

    def on_step_end(self, args, state, control, **kwargs: object) -> None:
        if state.global_step in self.steps:
            measure_and_log(self.trainer, self.measure)

    def measure(self, engine: Any) -> dict[str, float]:
        measured = {one.name: one.measure(engine) for one in self.sets}
        self.found.append({name: rounded(one.nll_sum) for name, one in measured.items()})
        if self.trainer.state.global_step == self.at:
            self.found[-1]["benchmarks"] = self.benchmarks(self.trainer.model, engine)
        return {name: one.nll_per_token for name, one in measured.items()}


class Runner:
    """Trains from the same base model again and again.

    Args:
        model: Hub id or folder.
        texts: held-out rows by name of their set.
        folder: for what the trainer wants to write, which is nothing of use.
    """

    def __init__(self, model: str, texts: Mapping[str, Dataset], folder: Path, args: StudyArguments) -> None:
        self.model, self.tokenizer = load_model(model, dtype="float32")
        self.texts, self.folder, self.args = texts, folder, args
        self.sets: list[HeldOutSet] | None = None

    def measure_base(self, with_benchmarks: bool) -> tuple[dict[str, Any], dict[str, list[int]]]:
        """What a rung holds, of the base model; and the tokens of each held-out text by set."""
        trainer = self._trainer(Dataset.from_dict({"text": ["a"]}), 0)
        self.sets = tokenize_sets(trainer, self.texts)
        engine, trainer.model = engine_of(trainer), trainer.model.eval()
        measured = {one.name: one.measure(engine) for one in self.sets}
        found = {name: rounded(one.nll_sum) for name, one in measured.items()}
        if with_benchmarks:
            found["benchmarks"] = self._benchmarks(trainer.model, engine, with_bytes=True)
        return found, {name: one.num_tokens.tolist() for name, one in measured.items()}

    def run(
        self, rows: Dataset, ladder: Sequence[int], seed: int, benchmarks_at: int | None = None
    ) -> list[dict[str, Any]]:
        """Train on these rows in their order, of text or of prompt and completion; what was found at each rung.

        Args:
            ladder: numbers of rows, rising. A rung is measured after the step that is nearest to it.
            benchmarks_at: the place in the ladder of the rung at which benchmarks are measured, too.
        """
        trainer = self._trainer(rows, seed)
        last = -(-len(rows) // self.args.batch_size)
        steps = [min(max(1, round(rung / self.args.batch_size)), last) for rung in ladder]
        if len(set(steps)) < len(steps):
            raise ValueError(f"Rungs of {list(ladder)} rows are less than a step of {self.args.batch_size} apart.")
        at = None if benchmarks_at is None else steps[benchmarks_at]
        recorder = RungRecorder(trainer, self.sets, steps, self._benchmarks, at)
        trainer.add_callback(recorder)
        trainer.train()
        del trainer
        release_large_blocks()
        return [
            {"num_rows": min(step * self.args.batch_size, len(rows)), **found}
            for step, found in zip(steps, recorder.found, strict=True)
        ]

    def _trainer(self, rows: Dataset, seed: int) -> Trainer:
        from transformers import set_seed
        from trl import SFTConfig

        args = SFTConfig(
            output_dir=str(self.folder),
            learning_rate=self.args.learning_rate,
            lr_scheduler_type="constant",
            num_train_epochs=1,
            per_device_train_batch_size=self.args.batch_size,
            gradient_checkpointing=False,
            max_length=2 * self.args.chunk_length + _ROOM,  # prompt and completion
            packing=False,
            save_strategy="no",
            logging_steps=1_000_000,
            disable_tqdm=True,
            report_to="none",
            seed=seed,
            **training_precision(),
        )
        set_seed(seed)
        return in_order(sft_trainer_class(args))(
            model=copy.deepcopy(self.model),
            args=args,
            train_dataset=rows,
            processing_class=self.tokenizer,
        )

    def _benchmarks(self, model: Any, engine: Any, with_bytes: bool = False) -> dict[str, dict[str, list]]:
        """Of each question whether it was answered right, and the bits of the right answer; its bytes, once."""
        options = {"data_dir": self.args.data_dir, "limit": self.args.num_questions, "progress": False}
        results = run_benchmarks(model, self.tokenizer, self.args.benchmarks, engine=engine, **options)
        found = {}
        for name, records in results.saved_records().records.items():
            (right, _), (bits, num_bytes) = (metric_terms(records, metric) for metric in METRICS)
            found[name] = {"accuracy": right.astype(int).tolist(), "bits": rounded(bits)}
            if with_bytes:
                found[name]["num_bytes"] = num_bytes.astype(int).tolist()
        return found


def rounded(values: Any) -> list[float]:
    """To 0.001: a held-out text has some 120 tokens and 300 nats."""
    return np.round(np.asarray(values, dtype=np.float64), 3).tolist()
