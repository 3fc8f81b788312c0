"""What `fit_law.py` prints and draws of a law: how sure it is, where the optimum is, and what is worth doing next."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitting.conditions import hash_texts
from hf_ppl_select.data.load import load_texts
from hf_ppl_select.data.saving import load_json, save_json
from hf_ppl_select.data.schema import Flag, Number, Text, checked, maybe
from hf_ppl_select.law.budgets import exhausted_at, gain_by_budget
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.law.intervals import check_intervals, param_intervals
from hf_ppl_select.law.optimum import general_points
from hf_ppl_select.likelihood.model_identity import resolve_revision
from hf_ppl_select.probes.plan import precision_by_runs
from hf_ppl_select.scoring.perplexity import PerplexityScorer, evaluate_perplexity

if TYPE_CHECKING:
    from hf_ppl_select import PerplexityLandscape, ScalingLaw
    from hf_ppl_select.law.optimum import Optimum

_BASE_LOSS = {
    **dict.fromkeys(("model", "dtype", "general_eval_file"), Text()),
    "measuring": Number(0, 1e6, whole=True),
    "general_loss": Number(0, 1e6),
}

_FORM = {
    **dict.fromkeys(("form", "space"), Text()),
    "column": (Text(), [Text()]),
    "num_params": Number(0, 100, whole=True),
    "chosen": Flag(),
    **dict.fromkeys(("r2", "loo_mae", "loo_se", "held_out_d_mae", "aicc", "E"), maybe(Number())),
    "problem": maybe(Text()),
}


def load_comparison(path: Path) -> list[dict[str, Any]]:
    """The forms that comparison.json compares; ValueError where it is none, or was changed."""
    return load_json(path, kind="law_comparison", version=1, read=checked({"forms": [_FORM]}))["forms"]


def load_base_loss(path: Path) -> dict[str, Any]:
    """The base model's loss in base.json, and of what it is; ValueError where the file is none, or was changed."""
    return load_json(path, kind="base_loss", version=2, read=checked(_BASE_LOSS))


def print_law(law: ScalingLaw) -> None:
    """The law, and its parameters with 95 % intervals where there are runs enough."""
    print(law)
    if problem := check_intervals(law):
        print(f"{problem}\n")
        return
    print("  parameter      value   95 % interval")
    for name, (low, high) in param_intervals(law).items():
        print(f"  {name:9} {law.params[name]:10.4g}   {low:.4g} to {high:.4g}")
    print(flush=True)


def forgetting_bound(
    law: ScalingLaw, rows: list[dict[str, Any]], script_args, training_args, model_args
) -> dict[str, Any]:
    """The options of [`find_optimum`] that bound the general loss; none without --max_forgetting."""
    if script_args.max_forgetting is None:
        return {}
    general_law = fit_scaling_law(general_points(rows), space=law.space, model=law.model, column=law.column)
    base = script_args.base_general_loss
    if base is None:
        base = _base_general_loss(script_args, training_args, model_args)
    print(f"general loss of the base model: {base:.4f}; its law has the form {general_law.form}")
    return {"general_law": general_law, "max_general_loss": base + script_args.max_forgetting}


def best_landscape(
    law: ScalingLaw, landscape: PerplexityLandscape, budget: int | None, bound: dict[str, Any]
) -> Optimum:
    """Find the optimum at the budget, or at a probe's tokens, and print it."""
    optimum = law.optimum(landscape, budget or min(law.num_tokens_range[1], landscape.num_tokens), **bound)
    print(f"{optimum}\n", flush=True)
    return optimum


def _base_general_loss(script_args, training_args, model_args) -> float:
    """The base model's loss on the general text, nats per token; measured once and kept in base.json."""
    if script_args.general_eval_file is None:
        raise ValueError("--max_forgetting needs the base model's general loss: --general_eval_file, or the number.")
    path = Path(training_args.output_dir) / "base.json"
    texts = load_texts(script_args.general_eval_file, training_args.dataset_text_field)[0]
    # As the probes' are measured, under the trainer's autocast
    autocast = "bfloat16" if training_args.bf16 else "float16" if training_args.fp16 else None
    asked = {
        "model": resolve_revision(model_args.model_name_or_path, model_args.model_revision),
        "dtype": f"{model_args.dtype}, autocast {autocast}",
        "general_eval_file": hash_texts(texts, "text"),
        "measuring": PerplexityScorer._version,
    }
    if path.exists():
        known = load_base_loss(path)
        if all(known[name] == value for name, value in asked.items()):
            return known["general_loss"]
    import torch

    from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model

    model, tokenizer = load_model(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype or "auto",
        device="cpu" if training_args.use_cpu else None,
    )
    engine = LikelihoodEngine(model, autocast_dtype=autocast and getattr(torch, autocast))
    loss = evaluate_perplexity(model, tokenizer, texts["text"][:], engine=engine).nll_per_token
    save_json(path, {**asked, "general_loss": loss}, kind="base_loss", version=2)
    return loss


def print_planning(
    law: ScalingLaw, landscape: PerplexityLandscape, optimum: Optimum, total_tokens: float, bound: dict[str, Any]
) -> None:
    """What other budgets gain, where the corpus is exhausted, and what other probes of `total_tokens` would tell.

    Not of two score columns together, of which each optimum takes seconds.
    """
    if not isinstance(law.column, str):
        return
    print("   tokens     share   gain over random (95 % interval)   random needs")
    budgets = [optimum.num_tokens * 4.0**power for power in (-1, 0, 1, 2, 3)]
    for row in gain_by_budget(law, landscape, [b for b in budgets if b <= landscape.num_tokens], **bound):
        budget = row["num_tokens"]
        head = f"{budget:11,.0f}  {row['share']:6.1%}   "
        if row["problem"]:
            print(f"{head}no optimum: {row['problem'].split('(')[0].strip()}")
            continue
        between = "" if row["gain_low"] is None else f"({row['gain_low']:.4f} to {row['gain_high']:.4f})"
        needs = "never" if row["random_tokens"] is None else f"{row['random_tokens'] / budget:.3g} x the tokens"
        warning = "" if row["random_trusted"] else "   random extrapolated"
        print(f"{head}{row['gain']:.4f} {between:24}   {needs}{warning}")
    print(f"{exhausted_at(law, landscape, **bound)}\n", flush=True)
    if check_intervals(law) or not law.design_matrix(*landscape.moments(law.space), 1.0).shape[-1] > 2:
        return
    rows = precision_by_runs(law, landscape, total_tokens, optimum.num_tokens)
    if not (rows := [row for row in rows if row["problem"] is None]):
        return
    gain = "the gain without the bound on forgetting" if bound else "the gain"
    print(f"If this law were true, probes of {total_tokens:,.0f} tokens in all would know {gain} there so well:")
    print("  runs   tokens each   width of its 95 % interval   excludes 0   lost by following their law")
    for row in rows:
        width = f"{row['gain_width']:.4f} (gain {row['gain']:.4f})"
        head = f"{row['num_runs']:6}   {row['tokens_per_run']:11,}   {width:27}"
        print(f"{head} {row['detection']:9.0%}   {row['regret']:.4f}")
    print(flush=True)


_PLOTS = ("law_surface.png", "predicted_against_measured.png", "loss_against_tokens.png")


def remove_plots(folder: Path) -> None:
    """Those of an earlier law, which need not all be drawn again."""
    for name in _PLOTS:
        (folder / name).unlink(missing_ok=True)


def plot_law(
    law: ScalingLaw, landscape: PerplexityLandscape, optimum: Optimum, folder: Path, bound: dict[str, Any]
) -> None:
    """The law's surface, its predictions against what was measured, and its loss against training tokens.

    Not of two score columns together.
    """
    if not find_spec("matplotlib") or not isinstance(law.column, str):
        return
    from hf_ppl_select.plots.plots import plot_law_surface, plot_loss_against_tokens, plot_predicted_against_measured

    surface, predicted, against_tokens = (folder / name for name in _PLOTS)
    plot_law_surface(law, landscape, optimum, path=surface)
    plot_predicted_against_measured(law, path=predicted)
    smallest, largest = law.num_tokens_range
    longest = min(4 * largest, 0.5 * landscape.num_tokens)
    if longest > smallest:  # else the corpus is hardly larger than a probe
        ends = smallest, longest
        plot_loss_against_tokens(law, landscape, num_tokens_range=ends, path=against_tokens, **bound)
