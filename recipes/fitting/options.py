"""What can be wrong with fit_law.py's options, found before any probe trains, and what they leave open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig, SFTConfig

DEFAULT_COLUMNS = ("perplexity", "perplexity_ratio")  # of these the law takes what predicts best

MOST_CUT = 0.01  # of all tokens: a chunk's text, tokenized anew, can have a few more than it was cut to


def check_options(script_args, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Options that do not go together.

    Raises:
        ValueError: naming the option to change.
    """
    if script_args.num_workers > 1 and training_args.device.type != "cpu":
        raise ValueError("--num_workers is for CPUs: add --use_cpu, or train one probe per GPU with --ray.")
    if (script_args.license or script_args.dry_run) and not training_args.push_to_hub:
        raise ValueError("--license and --dry_run are about a push: add --push_to_hub, or leave them out.")
    if script_args.fit_only and script_args.probe_index is not None:
        raise ValueError("--fit_only trains no probe and --probe_index one; leave one of the two out.")
    for option in ("dataset_name", "eval_file") if script_args.num_probes != 0 else ():
        if getattr(script_args, option) is None:
            raise ValueError(f"probes need --{option}; or fit to known points: --points FILE --num_probes 0.")
    for option in ("budget", "max_forgetting"):
        if script_args.dataset_name is None and getattr(script_args, option) is not None:
            raise ValueError(f"--{option} is about the optimum on a corpus: name it with --dataset_name.")
    bounded = script_args.max_forgetting is not None and script_args.num_probes != 0
    if bounded and not (script_args.general_eval_file or script_args.points):
        raise ValueError("--max_forgetting needs probes that measure the general loss: add --general_eval_file.")
    quantized = model_args.load_in_4bit or model_args.load_in_8bit
    if script_args.max_forgetting is not None and quantized and script_args.base_general_loss is None:
        raise ValueError("--max_forgetting of a quantized model needs its own general loss: --base_general_loss.")
    ladder = script_args.ladder
    if ladder and script_args.num_tokens not in (None, max(ladder)):
        raise ValueError(
            f"a probe ends at the last rung of --ladder, {max(ladder):,} tokens, and --num_tokens is "
            f"{script_args.num_tokens:,}; make them equal, or leave --num_tokens out."
        )


def score_columns(script_args, dataset: Dataset | None) -> list[str]:
    """The score columns asked for, or those of [`DEFAULT_COLUMNS`] that the chunks have."""
    if script_args.column:
        return script_args.column
    present = [name for name in DEFAULT_COLUMNS if dataset is not None and name in dataset.column_names]
    return present or ["perplexity"]


def only_scored(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """The chunks that have all of several scores: probes spread in each, and laws may be of two.

    Chunks without the only score are left out, and counted, where it is read.
    """
    if len(columns) < 2 or not set(columns) <= set(dataset.column_names):
        return dataset
    scores = np.array([np.asarray(dataset[name][:], dtype=np.float64) for name in columns])
    whole = (np.isfinite(scores) & (scores > 0)).all(0)
    if whole.all():
        return dataset
    print(
        f"{(~whole).sum():,} of {len(whole):,} chunks lack one of {', '.join(columns)} and are left out.", flush=True
    )
    return dataset.select(np.flatnonzero(whole))


def check_corpus(dataset: Dataset, budget: float | None, max_length: int | None) -> None:
    """Whether the chunks suffice for the budget, and are trained on whole.

    Raises:
        ValueError: naming the option to change.
    """
    if "num_tokens" not in dataset.column_names:
        return  # told where the scores are read
    tokens = np.asarray(dataset["num_tokens"][:], dtype=np.float64)
    tokens = tokens[np.isfinite(tokens)]
    if budget is not None and budget > tokens.sum():
        raise ValueError(f"--budget {budget:,.0f} is more than the {tokens.sum():,.0f} tokens of the scored chunks.")
    longer = tokens[tokens > (max_length or np.inf)]
    if not len(longer):
        return
    said = f"{len(longer):,} of {len(tokens):,} chunks are longer than --max_length {max_length:,} tokens"
    said += f" (up to {longer.max():,.0f})"
    cut = (longer - max_length).sum()
    if cut <= MOST_CUT * tokens.sum():
        print(f"{said} and lose {cut:,.0f} of {tokens.sum():,.0f} tokens.", flush=True)
        return
    raise ValueError(
        f"{said}: probes would train on their beginnings, and the landscape is of all. Raise --max_length, or score "
        "shorter chunks (score.py --chunk_length)."
    )


def apart(rows: list[dict], known: list[dict], file: str) -> list[dict]:
    """Law points of a file beside those of this folder's probes: runs of one name are two runs, as each folder names
    its own `random`, `probe-00`, ... But points that are there already are these, and do not count twice.
    """
    names = {row["run"] for row in known}
    if num_known := sum(row in known for row in rows):
        print(f"{num_known:,} of {len(rows):,} law points of {file} are those of this folder, and count once.")
        rows = [row for row in rows if row not in known]
    if both := sorted({row["run"] for row in rows} & names):
        print(f"Runs of {file} that are named as ones here are called after it: {', '.join(map(str, both))}.")
    return [row | {"run": f"{row['run']} of {file}"} if row["run"] in names else row for row in rows]
