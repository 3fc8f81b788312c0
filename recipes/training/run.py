"""The steps that cpt.py and sft.py share around the trainer: replay, callbacks, and what a finished run leaves."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ppl_select.data.load import load_answers, load_rows, load_texts
from hf_ppl_select.data.saving import save_json
from hf_ppl_select.selection.report import load_report
from trainer_callbacks import TokensPerSecondCallback
from trainer_callbacks.measuring import DivergedError, measure_and_log
from trainer_callbacks.processes import shards_weights
from training.checkpoints import remove_checkpoints
from training.held_out_records import BASE, LATEST, RecordingCallback
from training.options import REPLAY, TrainingRunArguments
from training.publishing import push_model
from training.trainer import RecipeTrainer, Replay

if TYPE_CHECKING:
    from datasets import Dataset

_MEASURED = (LATEST, BASE, "benchmarks.json", "benchmarks.parquet")  # of a model, beside it


def load_replay(script_args: TrainingRunArguments) -> Replay | None:
    """The rows of `replay_dataset`: its text, or prompt and completion, or messages."""
    if script_args.replay_dataset is None:
        if script_args.replay is not None:
            raise ValueError(f"--replay {script_args.replay:g} needs --replay_dataset, the text to mix in.")
        return None
    has_text = "text" in load_rows(script_args.replay_dataset).column_names
    rows, _ = (load_texts if has_text else load_answers)(script_args.replay_dataset)
    return Replay(rows, REPLAY if script_args.replay is None else script_args.replay)


def add_callbacks(trainer: RecipeTrainer, held_out: dict[str, Dataset], **options: Any) -> None:
    """Tokens per second on the progress bar; the perplexity of held-out rows, where each process has all weights."""
    TokensPerSecondCallback.replace_bar_of(trainer)
    if not held_out:
        return
    if shards_weights(trainer):
        if trainer.eval_dataset is None:
            raise ValueError(
                "the weights are sharded over processes (FSDP or ZeRO-3), so the trainer itself must measure held-out "
                "rows: add --eval_strategy steps --eval_steps 100, or leave the held-out options out."
            )
        if "general" in held_out and trainer.is_world_process_zero():
            print(
                "With sharded weights only domain rows are measured, as eval_loss; general rows are not.", flush=True
            )
        return
    trainer.add_callback(RecordingCallback(trainer, held_out, **options))


def train_and_finish(
    trainer: RecipeTrainer, script_args: TrainingRunArguments, num_empty: int, subset: Path | None
) -> None:
    """Train; save the model, its card and metrics.json; merge and push where asked.

    Raises:
        DivergedError: training diverged. metrics.json has what was logged until then; there is no model.
    """
    args = trainer.args
    if args.resume_from_checkpoint is None:
        if trainer.is_world_process_zero():
            forget_earlier_model(Path(args.output_dir))
        trainer.accelerator.wait_for_everyone()  # before any writes a checkpoint
    try:
        result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except DivergedError:
        save_metrics(trainer, {"diverged_at_step": trainer.state.global_step}, script_args, num_empty, subset)
        raise
    if args.load_best_model_at_end:  # not the last one, which was measured last
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, RecordingCallback):
                measure_and_log(trainer, callback.measure)
    trainer.save_model(args.output_dir, _internal_call=True)  # else transformers pushes it in a commit of its own
    trainer.create_model_card()
    save_metrics(trainer, result.metrics, script_args, num_empty, subset)
    if trainer.is_world_process_zero():
        print(f"Saved the model and metrics.json to {args.output_dir}.", flush=True)
    if script_args.merge_adapter:
        save_merged(trainer)
    pushes = args.push_to_hub and trainer.is_world_process_zero()
    if pushes:
        trainer._finish_current_push()
    # Together: a process that ends just after a collective call can abort, when gloo's thread still holds its tensors
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if pushes:  # last, and alone: what fails here loses nothing, and no process waits for it
        print(f"Pushed to {push_model(args)}.", flush=True)


def forget_earlier_model(folder: Path) -> None:
    """Remove what was measured of the model that a new one replaces, and its checkpoints: they would be taken for the
    new one's.
    """
    stale = [name for name in _MEASURED if (folder / name).exists()]
    for name in stale:
        (folder / name).unlink()
    if stale := [*stale, *remove_checkpoints(folder)]:
        print(f"{folder} gets another model: {', '.join(stale)} of the earlier one removed.", flush=True)


def save_metrics(
    trainer: RecipeTrainer,
    found: dict[str, Any],
    script_args: TrainingRunArguments,
    num_empty: int,
    subset: Path | None,
) -> None:
    """Save metrics.json: what was trained on, `found` at the end, and what was logged on the way."""
    args = trainer.args
    if trainer.is_world_process_zero():
        metrics = {
            "recipe": trainer.card_facts.recipe,
            "model": trainer.card_facts.base_model,
            "dataset": script_args.dataset_name,
            "seed": args.seed,
            "num_rows": trainer.training_rows.num_rows - trainer.training_rows.num_replay_rows,
            "num_empty_rows": num_empty,
            "num_tokens": trainer.state.num_input_tokens_seen,
            "training_rows": asdict(trainer.training_rows),
            "selection": load_report(subset / "selection.json") if subset else None,
            "num_processes": args.world_size,
            "resumed_from": args.resume_from_checkpoint,
            "train": found,
            "log_history": trainer.state.log_history,
        }
        metrics = json.loads(json.dumps(metrics), parse_constant=lambda name: None)  # JSON has no NaN: null
        save_json(Path(args.output_dir, "metrics.json"), metrics, kind="training_metrics", version=1)


def save_merged(trainer: RecipeTrainer) -> None:
    """The model with the LoRA adapter added to its weights, and the tokenizer, in `output_dir/merged`.

    Weights are added in the model's own dtype: in float32 the merged model gives the adapter's numbers to rounding,
    in bfloat16 to about three digits.
    """
    folder = Path(trainer.args.output_dir, "merged")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        print(
            f"{folder} is left out: a model sharded by FSDP or DeepSpeed is merged from its saved adapter, with peft."
        )
    elif trainer.is_world_process_zero():
        merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        merged.save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)
        print(f"Saved the merged model to {folder}.", flush=True)
