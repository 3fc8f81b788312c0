"""What decides the numbers of probe runs: law points of one folder compare only where all of it is the same."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ppl_select.data.load import load_texts
from hf_ppl_select.data.saving import load_json, save_json
from hf_ppl_select.likelihood.model_identity import resolve_revision
from hf_ppl_select.scoring.perplexity import PerplexityScorer

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_ppl_select.probes.plan import ProbePlan

_SETTINGS_VERSION = 3  # 1 hashed perplexities only, and its random probe was another subset; 2 went by names of files
_TRAINING = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "weight_decay",
    "optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "average_tokens_across_devices", "auto_find_batch_size", "label_smoothing_factor", "neftune_noise_alpha",
    "loss_type", "router_aux_loss_coef", "bf16", "fp16", "use_liger_kernel", "liger_kernel_config",
    "full_determinism", "seed", "data_seed", "model_init_kwargs", "chat_template_path", "dataset_text_field",
    "dataset_kwargs", "eos_token", "pad_token", "max_length", "truncation_mode", "padding_free",
    "pad_to_multiple_of", "completion_only_loss", "assistant_only_loss", "dataloader_drop_last",
)  # fmt: skip


def check_same_settings(
    folder: Path, script_args, training_args, model_args, dataset: Dataset, plan: ProbePlan
) -> str:
    """Refuse to add law points to a folder that holds points of other settings: they would not compare.

    With --fit_only, which trains nothing, model and texts need not be there; what is not is not compared. Settings of
    probes that came to no law point are forgotten, unless others of a job array may be on their way.

    Returns:
        What names the corpus: its dataset and a hash of its scores.

    Raises:
        ValueError: naming the settings that changed.
    """
    settings = _conditions(script_args, training_args, model_args, dataset, plan)
    settings = json.loads(json.dumps(settings, default=str))
    path = folder / "settings.json"
    if path.exists() and (script_args.probe_index is not None or any(folder.rglob("points.jsonl"))):
        known = load_json(path, kind="probe_settings", version=_SETTINGS_VERSION)
        if changed := [name for name in settings if known.get(name) != settings[name]]:
            raise ValueError(
                f"{folder} holds probes made with another {', '.join(changed)}. Go back to those settings to "
                "continue them, or choose another --output_dir."
            )
    elif not script_args.fit_only:
        save_json(path, settings, kind="probe_settings", version=_SETTINGS_VERSION)
    return f"{script_args.dataset_name} ({' and '.join(script_args.column)} sha256:{settings['scores'][:16]})"


def _conditions(script_args, training_args, model_args, dataset: Dataset, plan: ProbePlan) -> dict[str, Any]:
    column = training_args.dataset_text_field
    scores = np.stack([np.asarray(dataset[name][:], dtype=np.float64) for name in script_args.column])
    found = {
        "model": model_args.model_name_or_path,
        "column": script_args.column,
        "scores": hashlib.sha256(scores.tobytes()).hexdigest(),
        "texts": hash_texts(dataset, column, "num_tokens"),
        "num_tokens": plan.tokens_per_run,
        "ladder": plan.ladder,
        "probes": [asdict(probe) for probe in plan.probes],
        "measuring": PerplexityScorer._version,
    }
    for name in _TRAINING:
        if hasattr(training_args, name):
            found[name] = getattr(value := getattr(training_args, name), "value", value)
    for option in fields(model_args):
        value = getattr(model_args, option.name)
        decides = model_args.use_peft or not option.name.startswith(("lora_", "use_rslora", "use_dora"))
        if decides and option.name not in ("model_name_or_path", "model_revision"):
            found[option.name] = value
    # Not all that training needs is where the fit is made
    absent = (OSError,) if script_args.fit_only else ()
    with suppress(*absent):
        found["model_weights"] = resolve_revision(model_args.model_name_or_path, model_args.model_revision)
    for name in ("eval_file", "general_eval_file"):
        with suppress(*absent):
            file = getattr(script_args, name)
            found[name] = file and hash_texts(load_texts(file, column)[0], "text")
    if not script_args.fit_only:
        found["num_processes"] = training_args.world_size
    return found


def hash_texts(rows: Dataset, *columns: str) -> str:
    """A hash of some columns, wherever the rows were loaded from."""
    digest = hashlib.sha256()
    for batch in rows.select_columns(list(columns)).with_format("arrow").iter(1000):
        digest.update(json.dumps(batch.to_pydict(), default=repr, sort_keys=True).encode())
    return digest.hexdigest()
