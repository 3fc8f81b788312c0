"""The report's tables and caveats as Markdown, from groups of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from comparing.run_comparison import Interval, group_interval, verdict
from comparing.run_records import Measure, Run
from hf_ppl_select.benchmarks.comparison import mcnemar_test
from hf_ppl_select.benchmarks.results import other_settings


def cost_table(groups: Mapping[str, Sequence[Run]]) -> str:
    """Runs, tokens and time of each group."""
    lines = [
        "| group | runs | seeds | selected by | tokens trained on | training time |",
        "|---|---:|---|---|---:|---:|",
    ]
    for name, runs in groups.items():
        trained = [run.metrics for run in runs if run.metrics]
        selected = {(m.get("selection") or {}).get("strategy") for m in trained} - {None}
        seeds = ", ".join(str(m["seed"]) for m in trained if m.get("seed") is not None)
        counts = [m["num_tokens"] for m in trained]
        tokens = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)})) if counts else ""
        seconds = [m["train"].get("train_runtime", 0.0) for m in trained]
        time = f"{sum(seconds) / len(seconds):,.0f} s" + " each" * (len(seconds) > 1) if seconds else ""
        if any(m.get("resumed_from") for m in trained):
            time += " (since it was resumed)"
        lines.append(f"| {name} | {len(runs)} | {seeds} | {', '.join(sorted(selected))} | {tokens} | {time} |")
    return "\n".join(lines)


def caveats(groups: Mapping[str, Sequence[Run]], baseline: str) -> list[str]:
    """What makes a comparison unfair, said before any number."""
    found = []
    tokens = {name: [run.metrics["num_tokens"] for run in runs if run.metrics] for name, runs in groups.items()}
    base_tokens = tokens[baseline]
    for name, counts in tokens.items():
        if counts and base_tokens:
            ratio = (sum(counts) / len(counts)) / (sum(base_tokens) / len(base_tokens))
            if abs(ratio - 1) > 0.02:
                found.append(
                    f"**{name} had {ratio:.2f} times the training tokens of {baseline}, which may make a difference.**"
                )
    models = {run.metrics["model"] for runs in groups.values() for run in runs if run.metrics.get("model")}
    if len(models) > 1:
        found.append(f"**The runs start from different models: {', '.join(sorted(models))}.**")
    for setting, values in other_settings([run.settings for runs in groups.values() for run in runs]).items():
        both = " and ".join(map(str, values))
        found.append(f"**Benchmarks were measured with {setting} {both}: differences are of that, too.**")
    for name, runs in groups.items():
        seeds = [run.seed for run in runs if run.seed is not None]
        if len(set(seeds)) < len(seeds):
            found.append(f"**Runs of {name} share a seed, so their spread says too little about other seeds.**")
    return found


def values_table(groups: Mapping[str, Sequence[Run]], measures: Sequence[Measure]) -> str:
    """A row per measure: each group's mean."""
    lines = ["| | " + " | ".join(f"{name} ({len(runs)})" for name, runs in groups.items()) + " |"]
    lines.append("|---|" + "---:|" * len(groups))
    for measure in measures:
        found = [group_interval(measure, runs) for runs in groups.values()]
        cells = [f"{one.value:.4f} [{one.low:.4f}, {one.high:.4f}]" if one else "–" for one in found]
        lines.append(f"| {measure.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences_table(
    groups: Mapping[str, Sequence[Run]], rows: Sequence[tuple[Measure, Mapping[str, Interval]]], baseline: str
) -> str:
    """A row per measure: each group minus the baseline, with what that says."""
    others = [name for name in groups if name != baseline]
    lines = ["| | items | " + " | ".join(f"{name} − {baseline} | " for name in others) + "|"]
    lines.append("|---|---:|" + "---:|---|" * len(others))
    for measure, found in rows:
        cells = []
        for name in others:
            one = found.get(name)
            cells.append(f"{one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]" if one else "–")
            cells.append(verdict(measure, one) if one else "")
        count = sum(terms.shape[1] for terms in measure.terms(groups[baseline][0]))
        lines.append(f"| {measure.title} | {count:,} {measure.items} | {' | '.join(cells)} |")
    return "\n".join(lines)


def intervals_cover(groups: Mapping[str, Sequence[Run]]) -> str:
    """What the intervals stand for."""
    single = [name for name, runs in groups.items() if len(runs) == 1 and name != "base"]
    text = "95 % intervals, paired over texts and questions by bootstrap"
    if any(len(runs) > 1 for runs in groups.values()):
        text += (
            ", and over training seeds by Student's t. With few seeds they are wide, as they must be: for a mean 12.7 "
            "standard errors with two, 4.3 with three"
        )
    if not single:
        return f"{text}."
    return (
        f"{text}; they cover items only, not training seeds, where a group has one run: {', '.join(single)}. Another "
        "seed or draw of chunks may move its numbers by more; train several before believing a small difference."
    )


def paired_tests(groups: Mapping[str, Sequence[Run]], baseline: str) -> list[str]:
    """McNemar's exact test of accuracy, run by run: the first of a group with the first of the baseline, and so on."""
    lines = []
    for name in groups:
        if name == baseline:
            continue
        for ours, theirs in zip(groups[name], groups[baseline]):
            run, other = Path(ours.folder).name, Path(theirs.folder).name
            for benchmark in ours.records:
                if benchmark not in theirs.records:
                    continue
                found = mcnemar_test(ours.records[benchmark], theirs.records[benchmark])
                counts = f"{found['only_ours']} | {found['only_baseline']}"
                lines.append(f"| {benchmark} | {run} | {other} | {counts} | {found['mcnemar_p']:.3g} |")
    if not lines:
        return []
    head = ["| benchmark | run | compared with | right only in it | only in the other | McNemar p |"]
    note = f"p is exact and two-sided, of accuracy, and not corrected for being one of {len(lines)}."
    return ["## Question by question", "\n".join([*head, "|---|---|---|---:|---:|---:|", *lines]), note]
