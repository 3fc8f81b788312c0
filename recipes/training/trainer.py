"""The trainer of cpt.py and sft.py: counts what it trains on, says what is cut, mixes in replay, writes its card."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from datasets import concatenate_datasets
from huggingface_hub import get_token
from transformers import set_seed

from hf_ppl_select.data.saving import write_atomically
from hf_ppl_select.hub.existing import existing_readme, join_cards, read_card
from hf_ppl_select.hub.repository import in_plain_words, plain_hub_errors
from hf_ppl_select.hub.retries import HTTP_ERROR, http_cause, patiently
from training.card import CardFacts, TrainingRows, training_card
from training.checkpoints import begin_checkpoint, list_files, total_loss_of
from training.cpu_trainer import CpuSFTTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTConfig


@dataclass(frozen=True)
class Replay:
    """Rows of general text, or of the kind that is trained on, to make up a `share` of all tokens (0 to 1)."""

    rows: Dataset
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"--replay must be a share of the tokens between 0 and 1, like 0.05, not {self.share}.")


class RecipeTrainer(CpuSFTTrainer):
    """`SFTTrainer` with exact counts in `training_rows`, a model card with held-out losses, and replay.

    TRL truncates rows in silence, drops those that lose all of their answer, and keeps the others. Here each row is
    tokenized whole first, so what is lost is known before training.
    """

    def __init__(
        self, *, args: SFTConfig, replay: Replay | None = None, card_facts: CardFacts | None = None, **kwargs: Any
    ):
        self.replay = replay
        self.card_facts = card_facts or CardFacts()
        self.training_rows = TrainingRows()
        self.total_loss = torch.zeros(())  # of all steps, also those before a resume
        set_seed(args.seed)  # also of the adapter's first weights, before trl 1.15
        super().__init__(args=args, **kwargs)
        self.their_readme = None  # of the repository to push to; asked before training, which no lost line ends then
        if args.push_to_hub and self.is_world_process_zero():
            self.their_readme = existing_readme(self.hub_model_id, "model", args.hub_token, args.hub_revision)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        with plain_hub_errors(f"Cannot make the repository {self.args.hub_model_id}", get_token()):
            patiently(lambda: super(RecipeTrainer, self).init_hf_repo(*args, **kwargs))

    def _finish_current_push(self) -> None:
        """Wait for the push of a checkpoint; one that failed ends no training, and the last push has all of it."""
        try:
            super()._finish_current_push()
        except (HTTP_ERROR, OSError, RuntimeError) as error:
            self.push_in_progress = None
            cause = http_cause(error) or error
            doing = f"A push of a checkpoint to {self.hub_model_id} failed, and training goes on"
            self._say(str(in_plain_words(doing, cause, get_token())))

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any):
        before = total_loss_of(resume_from_checkpoint) if resume_from_checkpoint else 0.0
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        self.total_loss = torch.tensor(math.nan if before is None else before, dtype=dtype, device=self.args.device)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any):
        if self.state.global_step >= self.state.max_steps:  # resumed where it ended: transformers would go on a step
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any):
        loss = super().training_step(*args, **kwargs)
        self.total_loss += loss.detach()
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "train_loss" in logs and not math.isnan(total := self._total_over_processes()):
            logs["train_loss"] = total / max(self.state.global_step, 1)  # transformers' is of the steps since a resume
        super().log(logs, *args, **kwargs)

    def _total_over_processes(self) -> float:
        return float(self.accelerator.gather(self.total_loss.reshape(1)).mean())

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self._get_output_dir(trial=None), f"checkpoint-{self.state.global_step}")
        if self.is_world_process_zero():
            begin_checkpoint(folder)
        super()._save_checkpoint(*args, **kwargs)
        total = self._total_over_processes()  # and all have written their part
        if self.is_world_process_zero() and folder.is_dir():
            list_files(folder, None if math.isnan(total) else total)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if dataset_name == "train":
            dataset = self._tokenize_whole(dataset, processing_class, args, formatting_func)
            if self.replay is not None:
                dataset = self._mix_in(self.replay, dataset, processing_class, args)
            self._count(dataset, args, packing)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _tokenize_whole(self, dataset, processing_class, args, formatting_func=None) -> Dataset:
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        tokenized = super()._prepare_dataset(dataset, processing_class, whole, False, formatting_func, "train")
        return tokenized.select_columns(["input_ids", "labels"])

    def _mix_in(self, replay: Replay, dataset: Dataset, processing_class, args) -> Dataset:
        """Add rows drawn from `replay` until they are its share of all tokens, and shuffle; both by the seed."""
        wanted = replay.share / (1 - replay.share) * _lengths(dataset).sum()
        drawn = replay.rows.shuffle(seed=args.seed)
        num_rows = min(256, len(drawn))
        while True:  # tokenize no more of a large dataset than it takes
            tokenized = self._tokenize_whole(drawn.select(range(num_rows)), processing_class, args)
            tokens = np.cumsum(_lengths(tokenized))
            if tokens[-1] >= wanted or num_rows == len(drawn):
                break
            num_rows = min(len(drawn), math.ceil(1.2 * num_rows * wanted / tokens[-1]))
        taken = min(int(np.searchsorted(tokens, wanted)) + 1, num_rows)
        rows = self.training_rows
        rows.num_replay_rows, rows.num_replay_tokens = taken, int(tokens[taken - 1])
        if tokens[-1] < wanted:
            share = tokens[-1] / (tokens[-1] + wanted * (1 - replay.share) / replay.share)
            self._say(
                f"The replay dataset has only {tokens[-1]:,} tokens: a share of {share:.4f}, not {replay.share}."
            )
        mixed = concatenate_datasets([dataset, tokenized.select(range(taken)).cast(dataset.features)])
        return mixed.shuffle(seed=args.seed)

    def _count(self, dataset: Dataset, args, packing: bool) -> None:
        """Fill `training_rows`, and say what does not fit into `max_length`."""
        splits = packing and args.packing_strategy != "bfd"  # sequences are cut into pieces, and no token is lost
        longest = args.max_length or math.inf
        rows = self.training_rows
        for batch in dataset.with_format("arrow").iter(1000):
            lengths = pc.list_value_length(batch["labels"]).to_numpy()
            counted = pc.list_flatten(batch["labels"]).to_numpy() != -100
            row = np.repeat(np.arange(len(lengths)), lengths)
            position = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            begins = position == 0
            if splits:
                begins |= position % longest == 0
            else:
                from_end = not packing and args.truncation_mode == "keep_end"
                start = np.maximum(lengths - longest, 0)[row] if from_end else 0
                counted &= (position >= start) & (position < start + longest)
                begins |= position == start
                rows.num_truncated_rows += int((lengths > longest).sum())
                rows.num_truncated_tokens += int(np.maximum(lengths - longest, 0).sum())
            targets = np.bincount(row[counted & ~begins], minlength=len(lengths))
            rows.num_rows += len(lengths)
            fitting = lengths if splits else np.minimum(lengths, longest)
            if not packing and args.max_length is not None:  # TRL leaves out rows that have nothing to learn
                fitting = fitting * (np.bincount(row[counted], minlength=len(lengths)) > 0)
            rows.num_tokens += int(fitting.sum())
            rows.num_loss_tokens += int(targets.sum())
            rows.num_rows_without_loss += int((targets == 0).sum())
        if rows.num_rows_without_loss == rows.num_rows:
            raise ValueError(
                f"within --max_length {args.max_length} none of {rows.num_rows:,} rows has a token to learn; raise it."
            )
        if rows.num_truncated_rows:
            lost = rows.num_truncated_tokens / (rows.num_tokens + rows.num_truncated_tokens)
            end = "beginning" if not packing and args.truncation_mode == "keep_end" else "end"
            self._say(
                f"{rows.num_truncated_rows:,} of {rows.num_rows:,} rows are longer than --max_length {longest} "
                f"tokens: they lose their {end}, {lost:.1%} of all tokens, and {rows.num_rows_without_loss:,} rows "
                "have nothing left to learn. To keep rows whole raise --max_length; to cut them into pieces instead: "
                "--packing --packing_strategy bfd_split."
            )
        if packing and args.pad_to_multiple_of:
            self._say("With --packing, --pad_to_multiple_of adds padding that is counted as tokens.")
        if packing and args.packing_strategy == "wrapped":
            rows.num_loss_tokens = None

    def _say(self, message: str) -> None:
        if PartialState().is_main_process:
            print(message, flush=True)

    def create_model_card(self, model_name: str | None = None, dataset_name=None, tags=None) -> None:
        """Write README.md into the output folder: TRL calls this for each checkpoint and before a push.

        Of a README that is there, or in the repository to push to, only our own section is rewritten.
        """
        if self.is_world_process_zero():
            card = training_card(
                name=model_name or self.args.output_dir.rstrip("/").rpartition("/")[2],
                facts=self.card_facts,
                rows=self.training_rows,
                args=self.args,
                state=self.state,
                is_adapter=hasattr(self.accelerator.unwrap_model(self.model), "peft_config"),
                tags=["generated_from_trainer", *self._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
            )
            path = Path(self.args.output_dir, "README.md")
            readme = read_card(path)
            write_atomically(path, join_cards(self.their_readme if readme is None else readme, str(card)))


def _lengths(dataset: Dataset) -> np.ndarray:
    """Tokens of each row, int64 `[rows]`."""
    batches = dataset.select_columns(["input_ids"]).with_format("arrow").iter(1000)
    return np.concatenate([pc.list_value_length(batch["input_ids"]).to_numpy() for batch in batches]).astype(np.int64)
