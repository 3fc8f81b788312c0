"""The report of a study: a table for each question, from its records alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hf_ppl_select.data.saving import write_atomically
from studying.picture import plot_study
from studying.plan import FIXED_RULES, LAWS
from studying.results import Mean, Study, words


def write_report(folder: Path) -> Path:
    """Write report.md and its figures, of all corpora and of the first one of several; returns its path."""
    study = Study(folder)
    picture = plot_study(study, folder / "study.png", study.corpora)
    if len(study.corpora) > 1:
        plot_study(study, folder / f"study_{study.corpora[0]}.png", study.corpora[:1])
    parts = ["# Study", _setting(study), f"![What each arm bought]({picture.name})", "## Arms at equal tokens"]
    for corpus in study.corpora:
        parts += [f"### {_title(study, corpus)}", arms_table(study, corpus)]
    sections = {
        "What was to be shown": must_show(study),
        "Further differences, exploratory": further_table(study),
        "The laws' errors, nats": errors_table(study),
        "Which law was chosen": _choices(study),
    }
    for title, table in sections.items():
        parts += [f"## {title}", table] if table.count("\n") > 1 else []  # not of a study without laws
    parts += ["## What of each kind was kept"]
    parts += [f"### {corpus}\n\n{kinds_table(study, corpus)}" for corpus in study.corpora if corpus != "clean"]
    for corpus in study.options["benchmark_corpora"]:
        if corpus in study.corpora:
            parts += [f"## Benchmarks, {corpus}", benchmarks_table(study, corpus)]
    if problems := study.problems():
        lines = [f"- {draw.corpus} {draw.seed}, {what}: {why}" for draw, what, why in problems]
        parts += ["## What was not measured", "\n".join(lines)]
    parts += ["## What it cost", _costs(study)]
    path = folder / "report.md"
    write_atomically(path, "\n\n".join(parts) + "\n")
    return path


def signed(found: Mean) -> str:
    if not found.num:
        return "not measured"
    if np.isnan(found.low):
        return f"{found.value:+.3f} (one draw)"
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def plain(found: Mean) -> str:
    if np.isnan(found.low):
        return f"{found.value:.4f} (one draw)"
    return f"{found.value:.4f} [{max(0, found.low):.4f}, {found.high:.4f}]"


def arms_table(study: Study, corpus: str) -> str:
    """Losses, and differences of domain and general loss from both random ones."""
    with_oracle = bool(study.of(corpus, "oracle", "random raw"))
    head = "| arm | draws | domain loss | minus random raw | minus random | general loss, minus base |"
    lines = [head + " of the oracle's gain |" * with_oracle, "|---|---:|---:|---:|---:|---:|" + "---:|" * with_oracle]
    for arm in ["base", *study.arms(corpus)]:
        mean = study.mean(corpus, arm)
        cells = [arm, f"{mean.num}", f"{mean.value:.3f}"]
        for other in ("random raw", "random"):
            cells.append("" if arm in (other, "base") else signed(study.difference(corpus, arm, other)))
        cells.append("" if arm == "base" else signed(study.difference(corpus, arm, "base", "general")))
        if with_oracle:
            cells.append("" if arm in ("base", "random raw") else f"{study.oracle_share(corpus, arm):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def must_show(study: Study) -> str:
    """Each aim, what came out, and whether it is met."""
    lines = ["| corpus | aim | what came out | met |", "|---|---|---|---|"]

    def row(corpus: str, aim: str, found: str, met: bool | None) -> None:
        lines.append(f"| {corpus} | {aim} | {found} | {'' if met is None else 'yes' if met else '**no**'} |")

    for corpus in study.corpora:
        dirty = corpus != "clean"
        for theirs in ("random raw", "random"):
            if study.of(corpus, "law", theirs):
                found = study.difference(corpus, "law", theirs)
                said = signed(found)
                if not found.high < 0 and not found.low > 0:
                    said += f"; {found.runs_to_tell:,.0f} draws would tell" if found.num > 1 else ""
                row(corpus, f"law minus {theirs}: below 0", said, found.high < 0 if dirty else None)
        if study.of(corpus, "law", "oracle", "random raw"):
            share = study.oracle_share(corpus, "law")
            off = signed(study.difference(corpus, "law", "oracle"))
            row(corpus, "at least 1.0 of the oracle's gain", f"{share:.2f}; law minus oracle {off}", share >= 1)
        rules = [arm for arm in FIXED_RULES if study.of(corpus, arm, "law")]
        if rules:
            best = min(rules, key=lambda arm: study.mean(corpus, arm).value)
            found = study.difference(corpus, "law", best)
            row(corpus, "no worse than the best fixed rule", f"minus {best}: {signed(found)}", found.value <= 0)
        if study.of(corpus, "law", "random raw"):
            times = study.tokens_of_random(corpus, "law")
            most = max(study.options["random_times"])
            shown = ", ".join(f"more than {most:g}" if np.isinf(t) else f"{t:.2f}" for t in sorted(times))
            known = most >= 2.5 or not any(map(np.isinf, times))
            saved = (
                f". 60 % or more: {sum(t >= 2.5 for t in times)} of {len(times)} draws" if known else ", not measured"
            )
            met = float(np.median(times)) >= 2.5 if known else None
            row(corpus, "random raw takes 2.5 times the tokens", f"times: {shown}{saved}", met)
        errors = study.left_out_errors(corpus)
        if "chosen" in errors and "data only" in errors:
            ratio = errors["chosen"].value / errors["data only"].value
            row(corpus, "law's error on a probe left out: half of data only's", f"{ratio:.2f} of it", ratio <= 0.5)
    return "\n".join(lines)


def further_table(study: Study) -> str:
    """What else the arms say: one law against another, replay, and the regret against the best arm in hindsight."""
    lines = ["| corpus | difference | domain loss | general loss |", "|---|---|---:|---:|"]
    for corpus in study.corpora:
        choosing = [arm for arm in study.arms(corpus) if arm not in ("oracle", "law, replay")]
        best = min(choosing, key=lambda arm: study.mean(corpus, arm).value)
        pairs = [
            ("law both", "law perplexity"),
            ("law both", "law ratio"),
            ("law, replay", "law"),
            ("paper", "random"),
        ]
        pairs += [("law", "paper"), ("law", "n-gram top quarter"), ("law", "ratio top quarter"), ("law", "oracle")]
        for ours, theirs in pairs:
            if study.of(corpus, ours, theirs):
                found = [signed(study.difference(corpus, ours, theirs, texts)) for texts in ("domain", "general")]
                lines.append(f"| {corpus} | {ours} minus {theirs} | {' | '.join(found)} |")
        if study.of(corpus, "law"):
            found = [signed(study.difference(corpus, "law", best, texts)) for texts in ("domain", "general")]
            lines.append(f"| {corpus} | regret: law minus the best arm in hindsight, {best} | {' | '.join(found)} |")
    return "\n".join(lines)


def errors_table(study: Study) -> str:
    """On probes left out, and on the arms, which no law has seen, at the probes' tokens and at the budget."""
    times = study.num_tokens / study.options["probe_tokens"]
    columns = ["perplexity", "perplexity_ratio", "perplexity and perplexity_ratio"]
    named = {"data only": "data only", "paper": "the paper's form", "law": "chosen"}
    named |= dict(zip(("law perplexity", "law ratio", "law both"), columns))
    head = f"| corpus | law | a probe left out | arms, at a probe's tokens | arms, at {times:g} times |"
    lines = [head, "|---|---|---:|---:|---:|"]
    for corpus in study.corpora:
        left_out = study.left_out_errors(corpus)
        probe, budget = study.unseen_errors(corpus, "probe"), study.unseen_errors(corpus, "budget")
        for law, name in named.items():
            cells = [plain(found[key]) if key in found else "" for found, key in
                     ((left_out, name), (probe, law), (budget, law))]  # fmt: skip
            name = f"{law}{' (best form)' * (law in LAWS and law != 'law')}"
            lines += [f"| {corpus} | {name} | {' | '.join(cells)} |"] if any(cells) else []
        inside, num = study.covered(corpus)
        if num:
            lines.append(
                f"| {corpus} | law's 95 % interval for its own subset | | | held the loss {inside} of {num} |"
            )
    return "\n".join(lines)


def kinds_table(study: Study, corpus: str) -> str:
    kinds = study.kinds(corpus)
    names = sorted({kind for shares in kinds.values() for kind in shares})
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for arm, shares in kinds.items():
        lines.append(f"| {arm} | {' | '.join(f'{shares.get(kind, 0):.1%}' for kind in names)} |")
    return "\n".join(lines)


def benchmarks_table(study: Study, corpus: str) -> str:
    """Accuracy and bits per byte of the right answer: the base model's, and differences from it; law minus random."""
    arms = [arm for arm in study.options["benchmark_arms"] if study.of(corpus, arm)]
    heads = [f"{arm}{_more_tokens(study, corpus, arm)} minus base" for arm in arms]
    pairs = [(arm, "base") for arm in arms]
    if all(study.benchmark_tokens(corpus, arm) for arm in ("law", "random")):
        heads.append("law minus random")
        pairs.append(("law", "random"))
    lines = [f"| benchmark | measure | base | {' | '.join(heads)} |"]
    lines.append("|---|---|---:|" + "---:|" * len(pairs))
    for name in study.benchmarks(corpus):
        for metric, title in (("accuracy", "accuracy"), ("bits", "bits per byte")):
            base = study.benchmark_mean(corpus, "base", name, metric)
            found = [study.benchmark_difference(corpus, *pair, name, metric) for pair in pairs]
            if base is not None:
                cells = ["not measured" if one is None else signed(one) for one in found]
                lines.append(f"| {name} | {title} | {base:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _more_tokens(study: Study, corpus: str, arm: str) -> str:
    """Where benchmarks were measured after other tokens than the budget: how many times as many."""
    times = (study.benchmark_tokens(corpus, arm) or study.num_tokens) / study.num_tokens
    return f", after {times:.1f} times the tokens," if abs(times - 1) > 0.05 else ""


def _setting(study: Study) -> str:
    options = study.options
    counts = ", ".join(f"{corpus} {len(study.of(corpus))}" for corpus in study.corpora)
    return (
        f"{options['model'] or 'SmolLM2-135M-Instruct'}, chunks of {options['chunk_length']} tokens; each arm trains "
        f"on {study.num_tokens:,} tokens, {options['num_probes']} probes of {options['probe_tokens']:,} beforehand, "
        f"the reference on about {options['trusted_tokens']:,}. Draws: {counts}. {study.plan['statistics']} Plan: "
        f"sha256 {study.plan['sha256'][:16]}. Below 0 is better, but of accuracy; intervals are of 95 %."
    )


def _title(study: Study, corpus: str) -> str:
    return f"{corpus}: {study.plan['corpora'][corpus]}"


def _choices(study: Study) -> str:
    lines = ["| corpus | seed | form | columns | kind of optimum |", "|---|---:|---|---|---|"]
    for draw in study.draws:
        found = draw.records["laws"]["laws"].get("law") if "laws" in draw.records else None
        if found is not None:
            kind = draw.records.by_what.get("arm law", {}).get("kind", "")
            cells = (draw.corpus, str(draw.seed), f"{found['form']}, {found['space']}", words(found["column"]), kind)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _costs(study: Study) -> str:
    """Tokens beside an arm's own that each way to choose has to pay for."""
    options = study.options
    probes = options["num_probes"] * options["probe_tokens"]
    trusted = int(np.mean([draw.records["base"]["trusted_tokens"] for draw in study.draws]))
    scored = int(np.mean([draw.records["base"]["deduplicated"]["num_tokens"] for draw in study.draws]))
    costs = {
        ("low", "middle", "high"): (0, scored),
        ("ratio top quarter",): (trusted, 2 * scored),
        ("ifd top quarter",): (0, 2 * scored),
        ("n-gram top quarter",): (0, 0),
        ("paper", "law perplexity"): (probes, scored),
        ("law", "law ratio", "law both"): (probes + trusted, 2 * scored),
    }
    measured = {arm for corpus in study.corpora for arm in study.arms(corpus)}
    lines = ["| | tokens trained on beforehand | tokens scored |", "|---|---:|---:|"]
    for arms, (before, tokens) in costs.items():
        if names := [arm for arm in arms if arm in measured]:
            lines.append(f"| {', '.join(names)} | {before:,} | {tokens:,} |")
    return "\n".join(lines)
