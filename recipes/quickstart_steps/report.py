"""The quickstart's evaluation of one model, and its report: every number with its uncertainty."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np

from comparing.run_comparison import differences
from comparing.run_records import Run, read_folders
from comparing.tables import differences_table, intervals_cover, values_table
from fitting.probe_runs import format_comparison
from hf_ppl_select import PerplexityLandscape, ScalingLaw, run_benchmarks
from hf_ppl_select.data.load import load_rows
from hf_ppl_select.data.saving import load_json, save_json, write_atomically
from hf_ppl_select.law.intervals import check_intervals
from hf_ppl_select.plots.plots import plot_landscape
from hf_ppl_select.scoring.perplexity import evaluate_perplexity
from quickstart_steps.data import QuickstartArguments
from training.precision import fast_bfloat16

TEXT_SETS = {"domain": "held_out", "general": "general"}  # the files of texts that each loss is of


def evaluate_model(model_name: str | Path, texts: dict[str, Path], folder: Path) -> None:
    """Likelihoods of the held-out and general texts, and the benchmarks; nothing to do if both are there.

    float32 weights, bfloat16 autocast where it is fast: the same arithmetic for the base model and trained ones.
    """
    if (folder / "held_out.json").exists() and (folder / "benchmarks.json").exists():
        print(f"{folder} is there: nothing to do", flush=True)
        return
    import torch

    from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model

    model, tokenizer = load_model(str(model_name), dtype="float32")
    engine = LikelihoodEngine(model, autocast_dtype=torch.bfloat16 if fast_bfloat16() else None)
    found = {}
    for name, file in TEXT_SETS.items():
        scored = evaluate_perplexity(model, tokenizer, load_rows(str(texts[file]))["text"][:], engine=engine)
        found[name] = {"nll_sum": scored.nll_sum.tolist(), "num_tokens": scored.num_tokens.tolist()}
        print(f"{name} loss {scored.nll_per_token:.4f} nats per token", flush=True)
    benchmarks = [str(texts["ontology_questions"])] if "ontology_questions" in texts else []
    run_benchmarks(model, tokenizer, [*benchmarks, "general_questions"], engine=engine).save(
        folder / "benchmarks.json"
    )
    save_json(folder / "held_out.json", found, kind="text_likelihoods", version=1)


def write_report(folder: Path, args: QuickstartArguments, runs: list[str], seconds: float) -> Path:
    """Write report.md; returns its path."""
    law = ScalingLaw.load(folder / "law" / "law.json")
    landscape = PerplexityLandscape.load(folder / "scored" / "landscape.json")
    forms = load_json(folder / "law" / "comparison.json", kind="law_comparison", version=1)["forms"]
    members = {"base": ["base"], "random": [run for run in runs if "random" in run]}
    members["selected"] = [run for run in runs if "maxent" in run]
    groups = read_folders({name: [folder / "evaluations" / run for run in named] for name, named in members.items()})
    selected = PerplexityLandscape.from_dataset(load_rows(str(folder / "maxent")))
    plot_landscape(landscape, subset=selected, path=folder / "landscape.png")
    sections = [
        "# Quickstart: did selecting by perplexity pay?",
        _setting(args, landscape),
        "## What it bought",
        *_results(groups),
        "## What was selected",
        _composition_table(folder),
        "![landscape](landscape.png)",
        "## What the law said",
        f"```\n{format_comparison(forms)}\n\n{law}\n\n{law.optimum(landscape, args.num_tokens)}\n```",
        _predictions(folder, law, groups),
        "![law surface](law/law_surface.png)\n\n![predicted against measured](law/predicted_against_measured.png)",
        "![loss against tokens](law/loss_against_tokens.png)",
        f"Made in {seconds:.0f} s (finished steps of an earlier run not counted).",
    ]
    path = folder / "report.md"
    write_atomically(path, "\n\n".join(sections) + "\n")
    return path


def _setting(args: QuickstartArguments, landscape: PerplexityLandscape) -> str:
    corpus = args.dataset_name or "definitions of the Human Phenotype Ontology"
    dirt = (
        f" A share of {args.dirty:.0%} of it is dirt put there on purpose (seed {args.seed}): near-duplicates, "
        "boilerplate and garbled text in equal parts."
        if args.dataset_name is None and args.dirty
        else ""
    )
    return (
        f"{args.model or 'SmolLM2-135M-Instruct'} on {landscape.num_chunks:,} chunks of {args.chunk_length} tokens "
        f"({corpus}).{dirt} Continual pre-training on {args.num_tokens:,} tokens each: a random subset, and the "
        "subset that the law chose. The law's probes cost "
        f"{args.num_probes} x {args.probe_tokens:,} tokens more."
    )


def _results(groups: dict[str, list[Run]]) -> list[str]:
    """Each group's measures, and their differences from random with what they say, as in report.py."""
    rows = differences(groups, "random")
    note = "Two draws of chunks alone can differ by 0.01 to 0.02 nats."
    return [
        values_table(groups, [measure for measure, _ in rows]),
        differences_table(groups, rows, "random"),
        f"{intervals_cover(groups)} {note}",
    ]


def _composition_table(folder: Path) -> str:
    """Share of chunks of each kind, and the landscape, of the corpus and the two subsets."""
    sets = {name: load_rows(str(folder / place)) for name, place in
            (("corpus", "scored"), ("random", "random"), ("selected", "maxent"))}  # fmt: skip
    kinds = {name: Counter(rows["kind"][:]) for name, rows in sets.items()}
    lines = [f"| | {' | '.join(sets)} |", "|---|" + "---:|" * len(sets)]
    for kind in sorted(kinds["corpus"]):
        shares = (f"{kinds[name][kind] / len(rows):.1%}" for name, rows in sets.items())
        lines.append(f"| {kind} | {' | '.join(shares)} |")
    landscapes = [PerplexityLandscape.from_dataset(rows) for rows in sets.values()]
    lines.append("| chunks | " + " | ".join(f"{one.num_chunks:,}" for one in landscapes) + " |")
    lines.append("| perplexity, mean ± sd | " + " | ".join(f"{x.mu:.1f} ± {x.sigma:.1f}" for x in landscapes) + " |")
    geometric = (f"{math.exp(x.log_mu):.1f} ×÷ {math.exp(x.log_sigma):.2f}" for x in landscapes)
    lines.append(f"| perplexity, geometric | {' | '.join(geometric)} |")
    return "\n".join(lines)


def _predictions(folder: Path, law: ScalingLaw, groups: dict[str, list[Run]]) -> str:
    """The law's prediction of the two runs' domain loss beside what was measured."""
    problem = check_intervals(law)
    lines = ["| subset | predicted domain loss | 95 % interval | measured |", "|---|---:|---:|---:|"]
    for group, strategy in (("random", "random"), ("selected", "maxent")):
        subset = load_rows(str(folder / strategy))
        moments = PerplexityLandscape.from_dataset(subset).moments(law.space)
        num_tokens = sum(subset["num_tokens"][:])
        interval = "not known"
        if problem is None:
            interval = "{:.3f} to {:.3f}".format(*law.predict_interval(*moments, num_tokens))
        measured = np.mean(
            [nll.sum() / tokens.sum() for nll, tokens in (run.texts["domain"] for run in groups[group])]
        )
        predicted = float(law.predict(*moments, num_tokens))
        lines.append(f"| {group} | {predicted:.3f} | {interval} | {measured:.3f} |")
    if problem is not None:
        lines += ["", f"Without intervals: {problem}"]
    return "\n".join(lines)
