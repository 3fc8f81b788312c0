"""The steps that cpt.py and sft.py share: their options, where they go on from, and what a finished run leaves."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig, SFTConfig

    from training.trainer import RecipeTrainer, Replay


@dataclass
class TrainingRunArguments:
    dataset_name: str = field(
        metadata={
            "help": "What to train on: a Hub dataset, a folder written by `save_to_disk`, or a .parquet, .jsonl, .csv "
            "or .txt file."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on, e.g. train[1000:]."})
    dataset_test_split: str | None = field(
        default=None,
        metadata={"help": "Held-out split of the same dataset, instead of `eval_file`, e.g. train[:1000]."},
    )
    eval_file: str | None = field(
        default=None,
        metadata={"help": "Held-out domain rows, named like a dataset: logs domain_loss, domain_perplexity, ..."},
    )
    general_eval_file: str | None = field(
        default=None, metadata={"help": "Held-out general text: logs general_loss, general_forgetting, ..."}
    )
    perplexity_steps: int | None = field(
        default=None,
        metadata={"help": "Measure held-out rows every so many steps, besides step 0, evaluations and the last step."},
    )
    num_tokens: int | None = field(
        default=None,
        metadata={"help": "Select so many tokens of a scored dataset first, and train on them: see `law`."},
    )
    law: str | None = field(default=None, metadata={"help": "law.json of fit_law.py: select its optimum."})
    strategy: str = field(
        default="maxent",
        metadata={"help": "How to select: maxent, greedy_dos, regime, random, low, high or middle."},
    )
    replay_dataset: str | None = field(
        default=None, metadata={"help": "General text to mix in against forgetting, named like a dataset."}
    )
    replay: float = field(default=0.05, metadata={"help": "Its share of all tokens trained on."})
    merge_adapter: bool = field(
        default=False, metadata={"help": "Of LoRA, also save the model with the adapter merged in: output_dir/merged."}
    )


def check_options(script_args: TrainingRunArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Find what can be wrong before anything is loaded, and set what tokens are counted by.

    Raises:
        ValueError: with the option to change.
    """
    if model_args.model_name_or_path is None:
        raise ValueError("there is no model; pass --model_name_or_path, e.g. HuggingFaceTB/SmolLM2-135M.")
    if model_args.use_peft and not _is_installed("peft"):
        raise ValueError("--use_peft needs the peft library; install it with: pip install 'hf-ppl-select[peft]'")
    if missing := [
        name for name in ("trackio", "wandb") if name in training_args.report_to and not _is_installed(name)
    ]:
        raise ValueError(
            f"--report_to {missing[0]} needs that library: pip install {missing[0]}, or --report_to none."
        )
    if script_args.merge_adapter and not model_args.use_peft:
        raise ValueError("--merge_adapter merges a LoRA adapter; add --use_peft.")
    if script_args.merge_adapter and (model_args.load_in_4bit or model_args.load_in_8bit):
        raise ValueError(
            "--merge_adapter cannot merge into quantized weights without loss; leave it out, and merge the saved "
            "adapter into the model's own weights."
        )
    if script_args.law is not None and script_args.num_tokens is None:
        raise ValueError("--law needs --num_tokens, the budget to select.")
    if training_args.include_num_input_tokens_seen == "no":
        # Packed rows have no padding, but their EOS tokens may be the padding token.
        training_args.include_num_input_tokens_seen = "all" if training_args.packing else "non_padding"
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})
    training_args.resume_from_checkpoint = checkpoint_to_resume(training_args)


def _is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def checkpoint_to_resume(training_args: SFTConfig) -> str | None:
    """The checkpoint folder that `--resume_from_checkpoint` means: a path, or with `true` the latest complete one.

    Raises:
        ValueError: there is none. A run killed while it saved leaves an incomplete one, which is passed over.
    """
    wanted = training_args.resume_from_checkpoint
    if wanted in (None, False, "false", "False"):
        return None
    if wanted not in (True, "true", "True"):
        if not _is_complete(Path(wanted)):
            raise ValueError(
                f"{wanted} is no complete checkpoint; --resume_from_checkpoint true finds the latest one."
            )
        return str(wanted)
    folders = Path(training_args.output_dir).glob("checkpoint-*")
    complete = [folder for folder in folders if folder.name[11:].isdigit() and _is_complete(folder)]
    if not complete:
        raise ValueError(
            f"{training_args.output_dir} has no complete checkpoint; leave --resume_from_checkpoint out to start anew."
        )
    return str(max(complete, key=lambda folder: int(folder.name[11:])))


def _is_complete(folder: Path) -> bool:
    """The trainer writes its state after everything else."""
    try:
        return "global_step" in json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def select_on_the_way_in(script_args: TrainingRunArguments, training_args: SFTConfig) -> Path | None:
    """With `num_tokens`: select a subset as select_subset.py does, and train on it instead. Its folder, or None.

    It is saved beside the output folder, with its card, as `<output_dir>-subset`; a resumed run takes what is there.
    """
    if script_args.num_tokens is None:
        return None
    import select_subset

    folder = Path(f"{training_args.output_dir.rstrip('/')}-subset")
    options = select_subset.SelectArguments(
        dataset_name=script_args.dataset_name,
        dataset_config=script_args.dataset_config,
        dataset_split=script_args.dataset_train_split,
        law=script_args.law,
        num_tokens=script_args.num_tokens,
        strategy=script_args.strategy,
        seed=training_args.seed,
        output_dir=str(folder),
        overwrite=True,
    )
    with training_args.main_process_first(local=False, desc="selection"):
        resumes = training_args.resume_from_checkpoint is not None and (folder / "selection.json").is_file()
        if training_args.process_index == 0 and not resumes:
            select_subset.main(options)
    return folder


def load_replay(script_args: TrainingRunArguments) -> Replay | None:
    """The rows of `replay_dataset`: its text, or prompt and completion, or messages."""
    if script_args.replay_dataset is None:
        return None
    from hf_ppl_select.data.load import load_answers, load_rows, load_texts
    from training.trainer import Replay

    has_text = "text" in load_rows(script_args.replay_dataset).column_names
    rows, _ = (load_texts if has_text else load_answers)(script_args.replay_dataset)
    return Replay(rows, script_args.replay)


def add_callbacks(trainer: RecipeTrainer, held_out: dict[str, Dataset], **options: Any) -> None:
    """Tokens per second on the progress bar; the perplexity of held-out rows, where each process has all weights."""
    from trainer_callbacks import TokensPerSecondCallback
    from training.held_out_records import RecordingCallback

    TokensPerSecondCallback.replace_bar_of(trainer)
    if not held_out:
        return
    deepspeed = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if trainer.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3):
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


def finish_run(
    trainer: RecipeTrainer, result: Any, script_args: TrainingRunArguments, num_empty: int, subset: Path | None
) -> None:
    """Save the model, its card and metrics.json; merge and push where asked."""
    from hf_ppl_select.data.saving import save_json
    from trainer_callbacks.measuring import measure_and_log
    from training.held_out_records import RecordingCallback

    args = trainer.args
    if args.load_best_model_at_end:  # not the last one, which was measured last
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, RecordingCallback):
                measure_and_log(trainer, callback.measure)
    trainer.save_model(args.output_dir)
    trainer.create_model_card()
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
            "selection": json.loads((subset / "selection.json").read_text(encoding="utf-8")) if subset else None,
            "num_processes": args.world_size,
            "resumed_from": args.resume_from_checkpoint,
            "train": result.metrics,
            "log_history": trainer.state.log_history,
        }
        metrics = json.loads(json.dumps(metrics), parse_constant=lambda name: None)  # JSON has no NaN: null
        save_json(Path(args.output_dir, "metrics.json"), metrics, kind="training_metrics", version=1)
        print(f"Saved the model and metrics.json to {args.output_dir}.", flush=True)
    if args.push_to_hub:
        trainer.push_to_hub()
    if script_args.merge_adapter:
        save_merged(trainer)
    trainer.end()


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
