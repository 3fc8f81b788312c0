"""The model card of a training run: what it was trained on and how, and its held-out losses as evaluation results."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_ppl_select import __version__
from training.options import TrainingRunArguments

if TYPE_CHECKING:
    from transformers import TrainerState
    from trl import ModelConfig, SFTConfig

_TEMPLATE = Path(__file__).with_name("card_template.md")
_RECIPES = {"cpt": "Continual pre-training", "sft": "Supervised fine-tuning"}
_METRICS = {"loss": "nats per token", "perplexity": "perplexity", "bits_per_byte": "bits per byte"}
_LIBRARIES = ("trl", "transformers", "datasets", "torch")


@dataclass
class TrainingRows:
    """What one epoch trains on, replay included: EOS counts, padding does not.

    `num_loss_tokens` are the targets: of prompt and completion those of the completion, and never the first token of
    a sequence; None for packing_strategy "wrapped", where sequences begin anywhere.
    """

    num_rows: int = 0
    num_tokens: int = 0
    num_loss_tokens: int | None = 0
    num_truncated_rows: int = 0
    num_truncated_tokens: int = 0
    num_rows_without_loss: int = 0
    num_replay_rows: int = 0
    num_replay_tokens: int = 0


@dataclass
class CardFacts:
    """What the model card says beyond what the trainer knows."""

    base_model: str = ""
    dataset: str = ""
    recipe: str = ""
    held_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: str, script_args: TrainingRunArguments, model_args: ModelConfig) -> CardFacts:
        domain = script_args.eval_file or f"{script_args.dataset_name} {script_args.dataset_test_split}"
        held_out = {"domain": domain, "general": script_args.general_eval_file or ""}
        return cls(model_args.model_name_or_path, script_args.dataset_name, recipe, held_out)


def training_card(
    *,
    name: str,
    facts: CardFacts,
    rows: TrainingRows,
    args: SFTConfig,
    state: TrainerState,
    is_adapter: bool,
    tags: list[str],
) -> ModelCard:
    """Build the card from the trainer's state as it is now: in a checkpoint, the results so far."""
    base = facts.base_model
    local_base, local_data = Path(base).exists(), Path(facts.dataset).exists()
    found = held_out_metrics(state.log_history)
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Language modeling",
            dataset_type=Path(facts.held_out.get(held_out, held_out)).name,
            dataset_name=f"held-out {held_out}",
            metric_type=metric,
            metric_name=f"{held_out} {_METRICS[metric]}",
            metric_value=values[metric],
        )
        for held_out, values in found.items()
        for metric in _METRICS
        if metric in values
    ]
    data = ModelCardData(
        base_model=None if local_base else base or None,
        datasets=None if local_data or not facts.dataset else [facts.dataset],
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys([*tags, *(["lora"] if is_adapter else [])])),
        model_name=name,
        eval_results=results or None,
    )
    what = "A LoRA adapter" if is_adapter else "A model"
    recipe = _RECIPES.get(facts.recipe, "Training")
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        name=name,
        summary=f"{what} by {recipe.lower()} of {_name(base, local_base)} on {_name(facts.dataset, local_data)}.",
        training=_training(rows, args, state),
        results=_results_table(found),
        results_note="Losses of held-out text, in nats per token; `change` is against the model before training. They "
        "are those of one training run: another seed gives others.",
        code=_code(args.hub_model_id or args.output_dir, base, is_adapter),
        versions=" · ".join([f"hf-ppl-select {__version__}", *(f"{name} {version(name)}" for name in _LIBRARIES)]),
    )


def held_out_metrics(log_history: list[dict]) -> dict[str, dict[str, float]]:
    """Latest metrics of each held-out set, by set and metric, with `change` of the loss since step 0 where known."""
    found: dict[str, dict[str, float]] = {}
    for log in log_history:
        for key, value in log.items():
            held_out, _, metric = key.partition("_")
            if held_out in ("domain", "general", "eval") and metric in (*_METRICS, "forgetting"):
                found.setdefault(held_out, {})["change" if metric == "forgetting" else metric] = value
    return found


def _name(name: str, local: bool) -> str:
    if not name:
        return "an unnamed source"
    return f"`{Path(name).name}`" if local else f"`{name}`"


def _training(rows: TrainingRows, args: SFTConfig, state: TrainerState) -> str:
    sequences = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    lines = [
        f"- {int(state.num_input_tokens_seen):,} tokens trained on in {state.global_step:,} steps "
        f"({rows.num_rows:,} rows of {rows.num_tokens:,} tokens in the training set)",
        f"- {sequences} sequences of at most {args.max_length} tokens a step; learning rate {args.learning_rate:g} "
        f"({getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}), seed {args.seed}",
    ]
    if rows.num_replay_rows:
        lines.append(f"- {rows.num_replay_tokens:,} of the training set's tokens are replayed general text")
    if rows.num_truncated_rows:
        lines.append(f"- {rows.num_truncated_rows:,} rows were cut at {args.max_length} tokens")
    return "\n".join(lines)


def _results_table(found: dict[str, dict[str, float]]) -> str:
    if not found:
        return ""
    lines = ["| held-out set | loss | change | perplexity | bits per byte |", "|---|---:|---:|---:|---:|"]
    for held_out, values in found.items():
        formats = {"loss": ".4f", "change": "+.4f", "perplexity": ".2f", "bits_per_byte": ".4f"}
        cells = (format(values[key], form) if key in values else "" for key, form in formats.items())
        lines.append(f"| {held_out} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _code(name: str, base: str, is_adapter: bool) -> str:
    if is_adapter:
        lines = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer", ""]
        lines.append(f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")  # loads {base} too')
    else:
        lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        lines.append(f'model = AutoModelForCausalLM.from_pretrained("{name}")')
    return "\n".join([*lines, f'tokenizer = AutoTokenizer.from_pretrained("{name}")'])
