"""The quickstart's report: every number with its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from comparing.run_comparison import difference, differences, verdict
from comparing.run_records import Run, measures_of, read_folders
from comparing.tables import differences_table, intervals_cover, values_table
from fitting.comparison import format_comparison
from fitting.law_report import load_comparison
from hf_ppl_select import PerplexityLandscape, ScalingLaw
from hf_ppl_select.data.load import load_rows
from hf_ppl_select.data.saving import write_atomically
from hf_ppl_select.landscape.scores import names_of
from hf_ppl_select.law.intervals import check_intervals
from hf_ppl_select.plots.plots import plot_landscape
from quickstart_steps.runs import ARMS, PROBE_TEXTS, TRUSTED, load_costs
from quickstart_steps.subsets import chunks_of, composition_table, in_common
from quickstart_steps.texts import QuickstartArguments
from training.checkpoints import load_metrics

BASELINES = ("random raw", "random deduplicated")
_CHANCE = (
    " The law reads nothing of the landscape, so what it selected are chunks from all over the deduplicated corpus: "
    "what sets the two apart is chance."
)
LAW_PICTURES = ("law_surface", "predicted_against_measured", "loss_against_tokens")


def write_report(folder: Path, args: QuickstartArguments, seeds: Sequence[int], arms: Sequence[str]) -> Path:
    """Write report.md; returns its path."""
    law = ScalingLaw.load(folder / "law" / "law.json")
    scored = load_rows(str(folder / "scored"))
    landscape = PerplexityLandscape.from_dataset(scored, column=law.column)
    forms = load_comparison(folder / "law" / "comparison.json")
    folders = {arm.replace("-", " ", 1): [folder / "evaluations" / f"{arm}-{seed}" for seed in seeds] for arm in arms}
    single = {name: folder / "evaluations" / name.partition(" ")[0] for name in ("base", TRUSTED)}
    every = read_folders({name: [path] for name, path in single.items() if path.exists()} | folders)
    groups = {group: [_without_probes(run) for run in runs] for group, runs in every.items()}
    for column in names_of(law.column):
        subset = PerplexityLandscape.from_dataset(load_rows(str(folder / f"selected-{seeds[0]}")), column=column)
        whole = PerplexityLandscape.from_dataset(scored, column=column)
        plot_landscape(whole, subset=subset, path=folder / f"landscape_{column}.png")
    pictures = [f"![{column}](landscape_{column}.png)" for column in names_of(law.column)]
    if (folder / "law" / "law_surface.png").exists():
        pictures += [f"![{name.replace('_', ' ')}](law/{name}.png)" for name in LAW_PICTURES]
    sections = [
        "# Quickstart: did selecting pay?",
        _headline(groups, law),
        _setting(args, landscape, _trusted_tokens(folder)),
        "## What it bought",
        *_results(groups),
        "## What was selected",
        composition_table(folder, seeds, arms, args.num_tokens),
        in_common(folder, seeds, arms),
        "## What the law said",
        f"```\n{format_comparison(forms)}\n\n{law}\n\n{law.optimum(landscape, args.num_tokens)}\n```",
        _predictions(folder, law, every, seeds),
        *pictures,
        "## What it cost",
        _costs(folder, args, len(arms) * len(seeds)),
    ]
    path = folder / "report.md"
    write_atomically(path, "\n\n".join(filter(None, sections)) + "\n")
    return path


def _without_probes(run: Run) -> Run:
    """Without the loss that the law was fitted on, which is in none of the tables but that of its predictions."""
    return replace(run, texts={name: texts for name, texts in run.texts.items() if name != PROBE_TEXTS})


def _headline(groups: dict[str, list[Run]], law: ScalingLaw) -> str:
    """What selecting bought on the domain, against each thing else to train on, and what it did to the rest."""
    losses = {measure.names[0]: measure for measure in measures_of(groups) if measure.kind == "loss"}

    def minus(name: str, ours: str, theirs: str) -> str:
        found = difference(losses[name], groups[ours], groups[theirs])
        said = f" ({verdict(losses[name], found)})" if name == "domain" else ""
        return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] against {theirs}{said}"

    domain = [minus("domain", "selected", baseline) for baseline in (*BASELINES, TRUSTED) if baseline in groups]
    general = [minus("general", "selected", baseline) for baseline in ("random raw", "base")]
    oracle = ""
    if "oracle" in groups:
        oracle = (
            f" Domain loss of random clean chunks, known by their labels: {minus('domain', 'oracle', 'random raw')}."
        )
    return (
        f"**Domain loss of the selected subset, nats per token: {'; '.join(domain)}. Its general loss: "
        f"{'; '.join(general)}.{oracle}{'' if law.terms else _CHANCE}**"
    )


def _setting(args: QuickstartArguments, landscape: PerplexityLandscape, trusted_tokens: int) -> str:
    corpus = args.dataset_name or "definitions of the Human Phenotype Ontology"
    dirt = (
        f" A share of {args.dirty:.0%} of it is dirt put there on purpose (seed {args.seed}), in equal "
        "parts: bad scans, boilerplate, near-duplicates, off-domain prose and tables of codes. The off-domain prose "
        "is of Python's help topics, as are, in other passages, often of the same pages, the general texts: random "
        "subsets train on some of it, and so gain there."
        if args.dataset_name is None and args.dirty
        else ""
    )
    held_out = "whole families of terms that were held out"
    if args.dataset_name is not None:
        held_out = (
            args.eval_file
            or args.trusted
            and f"a part of {args.trusted}, split off beforehand"
            or "documents of the corpus that were held out, clean or not"
        )
    measured = f" Domain loss is of {held_out}; the law's probes were measured on other texts of the same kind."
    seeds = f"{args.num_seeds} seed" + "s" * (args.num_seeds > 1)
    trusted = (
        f" Beside them, what training on the trusted texts alone gives, once on their {trusted_tokens:,} tokens: the "
        "reference, which is there for the perplexity ratio."
        if trusted_tokens
        else ""
    )
    return (
        f"{args.model or 'SmolLM2-135M-Instruct'} on {corpus}, {landscape.num_chunks:,} chunks of {args.chunk_length} "
        f"tokens once deduplicated.{dirt}{measured} Continual pre-training on {args.num_tokens:,} tokens each, "
        f"{seeds}: the subsets that the law chose, random ones of the same chunks, and random ones of the documents "
        f"as they were.{trusted}"
    )


def _results(groups: dict[str, list[Run]]) -> list[str]:
    """Each group's measures, and their differences from random ones and from the base model, as in report.py."""
    tables = [values_table(groups, measures_of(groups))]
    for baseline, left_out in (
        ("random raw", {"base"}),
        ("random deduplicated", {"base", "random raw"}),
        ("base", ()),
    ):
        compared = {name: runs for name, runs in groups.items() if name not in left_out}
        tables.append(differences_table(compared, differences(compared, baseline), baseline))
    return [
        *tables,
        intervals_cover(groups)
        + " They are for this one corpus: subsets of different seeds share chunks, and other corpora may differ more. "
        "Of so many intervals some exclude 0 by chance, one in twenty; texts count as independent, also those of one "
        "topic." + _few_texts(groups),
    ]


def _few_texts(groups: dict[str, list[Run]]) -> str:
    number = groups["base"][0].texts["domain"].shape[1]
    few = f" **Of {number} held-out texts intervals are too narrow: give more by --eval_file or --trusted.**"
    return few if number < 10 else ""


def _predictions(folder: Path, law: ScalingLaw, groups: dict[str, list[Run]], seeds: Sequence[int]) -> str:
    """The law's prediction of the runs' loss on the probes' held-out texts beside what was measured on them."""
    problem = check_intervals(law)
    lines = [
        "| subset | predicted loss on the probes' texts | 95 % interval | measured on them |",
        "|---|---:|---:|---:|",
    ]
    for arm in ARMS[:2]:
        group = arm.replace("-", " ", 1)
        for seed, run in zip(seeds, groups[group], strict=True):
            subset = chunks_of(folder, arm, seed)
            moments = PerplexityLandscape.from_dataset(subset, column=law.column).moments(law.space)
            num_tokens = sum(subset["num_tokens"][:])
            interval = "not known"
            if problem is None:
                interval = "{:.3f} to {:.3f}".format(*law.predict_interval(*moments, num_tokens))
            nll, tokens = run.texts[PROBE_TEXTS]
            predicted = float(law.predict(*moments, num_tokens))
            lines.append(f"| {group}, seed {seed} | {predicted:.3f} | {interval} | {nll.sum() / tokens.sum():.3f} |")
    if problem is not None:
        lines += ["", f"Without intervals: {problem}"]
    return "\n".join(lines)


def _trusted_tokens(folder: Path) -> int:
    """That the reference was trained on; 0 where there is none."""
    metrics = folder / "scored" / "reference" / "metrics.json"
    return load_metrics(metrics)["num_tokens"] if metrics.exists() else 0


def _costs(folder: Path, args: QuickstartArguments, num_runs: int) -> str:
    """Tokens trained on, and time, of each step."""
    seconds, interrupted = load_costs(folder / "costs.json")
    tokens = {
        "Fit the law": args.num_probes * args.probe_tokens,
        "Train and": num_runs * args.num_tokens,
    }
    if trusted := _trusted_tokens(folder):
        tokens["Score"] = trusted
    lines = ["| step | tokens trained on | time |", "|---|---:|---:|"]
    for title, time in seconds.items():
        trained = next((f"{count:,}" for beginning, count in tokens.items() if title.startswith(beginning)), "")
        lines.append(f"| {title} | {trained} | {time:.0f} s{', and what a kill lost' * (title in interrupted)} |")
    return "\n".join([*lines, f"| in all | {sum(tokens.values()):,} | {sum(seconds.values()):.0f} s |"])
