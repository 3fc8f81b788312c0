"""What `fit_law.py` does for each probe: choose its chunks, train on them in order, record law points on the way."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ppl_select.law_points import read_law_points
from hf_ppl_select.probes import ProbeTarget, prefix_points, probe_order
from hf_ppl_select.saving import load_json, save_json

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig, SFTConfig

    from hf_ppl_select import PerplexityLandscape, ScalingLaw
    from hf_ppl_select.optimum import Optimum


def check_same_settings(path: Path, script_args, training_args, model_args, dataset: Dataset, probes) -> None:
    """Refuse to add law points to a folder that holds points of other settings: they would not compare.

    Raises:
        ValueError: naming the settings that changed.
    """
    training = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "seed")
    settings = {
        "model": model_args.model_name_or_path,
        "use_peft": model_args.use_peft,
        "perplexities": hashlib.sha256(np.asarray(dataset["perplexity"][:], dtype=np.float64).tobytes()).hexdigest(),
        "eval_file": script_args.eval_file,
        "num_tokens": script_args.num_tokens,
        "probes": [asdict(probe) for probe in probes],
        **{name: getattr(training_args, name) for name in training},
    }
    settings = json.loads(json.dumps(settings))
    if path.exists():
        known = load_json(path, kind="probe_settings", version=1)
        if changed := [name for name in settings if known.get(name) != settings[name]]:
            raise ValueError(
                f"{path.parent} holds probes made with another {', '.join(changed)}. Go back to those settings to "
                "continue them, or choose another --output_dir."
            )
    else:
        save_json(path, settings, kind="probe_settings", version=1)


def run_probe(
    probe: ProbeTarget,
    dataset: Dataset,
    ladder: Sequence[int],
    folder: Path,
    training_args: SFTConfig,
    model_args: ModelConfig,
    held_out: Mapping[str, Any],
) -> None:
    """Train one probe from the base model, measuring at each rung; nothing to do if its last point is there."""
    from trl import get_peft_config

    from cpu_trainer import sft_trainer_class
    from hf_ppl_select import select_subset
    from trainer_callbacks import ScalingLawCallback, TokensPerSecondCallback

    points = folder / "points.jsonl"
    if points.exists():
        known = read_law_points(points)
        if sum(known.run == probe.run) >= len(ladder):
            return
    target = {"target": (probe.mu, probe.sigma), "space": probe.space} if probe.strategy == "maxent" else {}
    subset = select_subset(dataset, num_tokens=max(ladder), strategy=probe.strategy, seed=training_args.seed, **target)
    subset = subset.select(probe_order(subset["perplexity"][:], seed=training_args.seed))
    moments = prefix_points(subset["perplexity"][:], subset["num_tokens"][:], ladder)

    args = copy.deepcopy(training_args)
    args.output_dir = str(folder / "probes" / probe.run)
    args.run_name = probe.run
    args.train_sampling_strategy = "sequential"  # the order above gives each prefix the landscape of the whole
    args.packing = False
    args.include_num_input_tokens_seen = "non_padding"
    args.model_init_kwargs = {"dtype": model_args.dtype, "revision": model_args.model_revision}
    trainer = sft_trainer_class(args)(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=subset.select_columns([args.dataset_text_field]),
        peft_config=get_peft_config(model_args),
    )
    trainer.add_callback(ScalingLawCallback(trainer, points, probe.run, ladder=ladder, moments=moments, **held_out))
    TokensPerSecondCallback.replace_bar_of(trainer)
    trainer.train()
    del trainer
    gc.collect()


def format_comparison(comparison: Sequence[Mapping[str, Any]]) -> str:
    """The forms as a table, best out of sample first."""
    lines = ["form          space   params   R2     error of a run left out (nats, ± standard error)"]
    for row in comparison:
        name = f"{row['form']:13} {row['space']:7} {row['num_params']:6}"
        if row["problem"]:
            lines.append(f"{name}   {row['problem']}")
        else:
            chosen = "  <- chosen" if row.get("chosen") else ""
            lines.append(f"{name}   {row['r2']:.3f}  {row['loo_mae']:.4f} ± {row['loo_se']:.4f}{chosen}")
    return "\n".join(lines)


def plot_law(law: ScalingLaw, landscape: PerplexityLandscape, optimum: Optimum, folder: Path) -> None:
    """The law's surface, its predictions against what was measured, and its loss against training tokens."""
    from hf_ppl_select.plots import plot_law_surface, plot_loss_against_tokens, plot_predicted_against_measured

    plot_law_surface(law, landscape, optimum, path=folder / "law_surface.png")
    plot_predicted_against_measured(law, path=folder / "predicted_against_measured.png")
    smallest, largest = law.num_tokens_range
    longest = min(4 * largest, 0.5 * landscape.num_tokens)
    if longest > smallest:  # else the corpus is hardly larger than a probe
        path = folder / "loss_against_tokens.png"
        plot_loss_against_tokens(law, landscape, num_tokens_range=(smallest, longest), path=path)
