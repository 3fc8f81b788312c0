"""The options that cpt.py and sft.py share, what can be wrong with them, and where a run goes on from."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from training.checkpoints import checkpoint_to_resume

if TYPE_CHECKING:
    from trl import ModelConfig, SFTConfig


REPLAY = 0.05


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
    replay: float | None = field(
        default=None, metadata={"help": f"Its share of all tokens trained on. Default: {REPLAY}."}
    )
    merge_adapter: bool = field(
        default=False, metadata={"help": "Of LoRA, also save the model with the adapter merged in: output_dir/merged."}
    )


def check_options(script_args: TrainingRunArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Find what can be wrong before anything is loaded, and set what tokens are counted by.

    Raises:
        ValueError: with the option to change.
    """
    token_to_environment(training_args)
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
    if script_args.strategy != "maxent" and script_args.num_tokens is None:
        raise ValueError(f"--strategy {script_args.strategy} selects; it needs --num_tokens, the budget.")
    if training_args.push_to_hub:
        from hf_ppl_select.hub.repository import check_branch, check_hub_access

        check_branch(training_args.hub_revision)
        name = training_args.hub_model_id or Path(training_args.output_dir).absolute().name
        training_args.hub_model_id = check_hub_access(name, repo_type="model")
    if training_args.include_num_input_tokens_seen == "no":
        # Packed rows have no padding, but their EOS tokens may be the padding token.
        training_args.include_num_input_tokens_seen = "all" if training_args.packing else "non_padding"
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})
    training_args.resume_from_checkpoint = checkpoint_to_resume(training_args)


def token_to_environment(training_args: SFTConfig) -> None:
    """Move the Hub's token from training arguments to HF_TOKEN, where every client finds it: arguments are saved.

    Raises:
        ValueError: there are two different ones.
    """
    loading = training_args.model_init_kwargs
    loading = json.loads(loading) if isinstance(loading, str) else dict(loading or {})
    tokens = [training_args.hub_token, *(loading.pop(name, None) for name in ("token", "use_auth_token"))]
    tokens = {token for token in tokens if isinstance(token, str) and token}
    if not tokens:
        return
    if len(tokens) > 1:
        raise ValueError("--hub_token and the token in --model_init_kwargs differ; set the one to use as HF_TOKEN.")
    os.environ["HF_TOKEN"] = tokens.pop()
    training_args.hub_token = None
    training_args.model_init_kwargs = loading or None
    for place in [i for i, word in enumerate(sys.argv) if word == "--hub_token"][::-1]:  # Ray hands them on
        del sys.argv[place : place + 2]


def _is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None
