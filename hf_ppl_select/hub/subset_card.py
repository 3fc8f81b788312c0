"""The dataset card of a subset: pure functions from what is known about it to Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData

from .subset_claims import limitations, of_a_model, prediction_table, verdict
from .tables import code_to_reproduce, composition, number, public_name, table

if TYPE_CHECKING:
    from ..landscape.joint import JointLandscape
    from ..landscape.landscape import PerplexityLandscape
from ..landscape.reach import log_name
from ..landscape.scores import Column, as_column, counted_in, in_words, names_of

_TEMPLATE = Path(__file__).with_name("subset_card_template.md")
_TAGS = ["perplexity", "data-selection", "scaling-laws", "continual-pre-training", "hf_ppl_select"]
_METHODS = {
    "maxent": "the most diverse subset (maximum entropy) whose mean and standard deviation are the target's",
    "greedy_dos": "chunk after chunk the one that brings mean and variance nearest to the target (the paper's greedy "
    "distance-to-optimum selection)",
    "regime": "one interval of the score, of all that fill the budget the best one",
    "random": "a random sample, the baseline of the other strategies",
    "low": "the chunks of lowest score",
    "high": "the chunks of highest score",
    "middle": "the chunks around the median of the score",
}
_DROPPED = {
    "no_score": "without {} (empty text)",
    "infinite_score": "of infinite {}",
    "below_min_score": "of {} below the guard",
    "above_max_score": "of {} above the guard",
    "longer_than_budget": "longer than the budget",
    "duplicate": "with the text of an earlier one",
    "near_duplicate": "with nearly the text of an earlier one",
}


def subset_card(
    report: Mapping[str, Any],
    *,
    law: Any = None,
    landscape: PerplexityLandscape | JointLandscape | None = None,
    license: str | None = None,
    source: str | None = None,
    name: str | None = None,
    **metadata: Any,
) -> str:
    """Build the card of a subset. What is not known has no section.

    Args:
        report: what [`Selection.report`] gives, or a part of it (`num_chunks` at least).
        law: the [`ScalingLaw`] that chose or judged the subset.
        landscape: of the corpus selected from.
        license: Hub identifier of the source's licence.
        source: where the text comes from: a Hub dataset id, which may be followed by which part of it in brackets,
            `"user/name (split train[1000:])"`; or words.
        name: `"user/name"` or `"name"`, for the title.
        metadata: further entries of the card's YAML block, e.g. `configs`.

    Returns:
        Markdown with a YAML block.
    """
    title = (name or "Subset selected by perplexity").rpartition("/")[2]
    named = re.fullmatch(r"([\w.-]+/[\w.-]+)( \(.*\))?", source or "")
    source_id, details = named.groups(default="") if named else (None, "")
    model = _model(landscape) or _model(law)
    data = DatasetCardData(
        license=license,
        pretty_name=title,
        tags=_TAGS,
        task_categories=["text-generation"],
        size_categories=[_size_category(_num_rows(report))],
        source_datasets=[source_id] if source_id else None,
        **metadata,
    )
    strategy = report.get("strategy")
    card = DatasetCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        pretty_name=title,
        summary=_summary(report, source, model),
        strategy=strategy,
        scored=_scored(_column(report)),
        method=_METHODS.get(strategy),
        moments=_moments_table(report),
        moments_note=_moments_note(report),
        composition=composition(report),
        prediction=prediction_table(report, law),
        verdict=verdict(report),
        law=law and str(law),
        law_params=law and table(["parameter", "value"], [(f"`{n}`", f"{v:.6g}") for n, v in law.params.items()]),
        law_note=law and _law_note(law),
        landscape=landscape and _landscape_table(landscape, counted_in(report)),
        column=landscape and in_words(landscape.column),
        code=strategy and code_to_reproduce(report, source_id, details, model, law is not None),
        key=_key(report),
        indices_sha256=report.get("indices_sha256"),
        limitations=limitations(report, law),
        source_note=_source_note(source, source_id, details, license),
    )
    return str(card).rstrip() + "\n"


def _summary(report: Mapping[str, Any], source: str | None, model: str | None) -> str:
    size, unit = f"{report['num_chunks']:,} chunks of text", counted_in(report)
    size += f" ({report['num_tokens']:,} {unit})" if "num_tokens" in report else ""
    replay = report.get("replay")
    out_of = f" out of {report['corpus']['num_chunks']:,}" if "corpus" in report else ""
    origin = f" of {source}" if source else ""
    by = (f" under `{model}`" if model else " under a language model") if of_a_model(report) else ""
    general = (
        f"; and {replay['num_chunks']:,} rows of general text ({replay['num_tokens']:,} {unit})" if replay else ""
    )
    return f"{size}{out_of}{origin}, selected by their {in_words(_column(report))}{by}{general}."


def _law_note(law: Any) -> str:
    if not law.model:
        return ""
    whose = "Its scores are those" if of_a_model({"column": law.column}) else "It predicts the loss"
    return f"{whose} of `{_model(law)}`. "


def _key(report: Mapping[str, Any]) -> str:
    """What decides about a row of a stream."""
    scores = " and ".join(f"`{name}`" for name in names_of(_column(report)))
    return f"{scores} and a hash of `{report.get('key_column', 'text')}`"


def _column(report: Mapping[str, Any]) -> Column:
    return as_column(report.get("column", "perplexity"))


def _scored(column: Column) -> str:
    if not isinstance(column, str):
        return "Every chunk has two scores, the columns `{}` and `{}`.".format(*column)
    if column != "perplexity":
        return f"Every chunk has a score, the column `{column}`."
    return (
        "Every chunk was scored by its perplexity under a frozen base model, "
        "`PPL(x) = exp(-(1/T) sum log p(x_t | x_<t))`."
    )


def _num_rows(report: Mapping[str, Any]) -> int:
    return report["num_chunks"] + (report["replay"]["num_chunks"] if report.get("replay") else 0)


def _moments_table(report: Mapping[str, Any]) -> str | None:
    if "achieved" not in report:
        return None
    column, target = _column(report), report.get("target")
    header = ["", "chunks", counted_in(report)]
    if isinstance(column, str):
        header += [f"mean {column} (mu)", f"standard deviation of {column} (sigma)"]
    for name in names_of(column):
        header += [f"mean {log_name(name)}, {_unit(name)}", f"standard deviation of {log_name(name)}, nats"]

    def cells(moments: Mapping[str, Any]) -> list[str]:
        if isinstance(column, str):
            return [number(moments[name]) for name in ("mu", "sigma", "log_mu", "log_sigma")]
        return [number(x) for pair in zip(moments["log_mu"], moments["log_sigma"]) for x in pair]

    rows = []
    if corpus := report.get("corpus"):
        sizes = f"{corpus['num_chunks']:,}", f"{corpus['num_tokens']:,}"
        rows.append(["corpus (a random subset has its moments)", *sizes, *cells(corpus)])
    if target and not isinstance(column, str):
        aim = cells({"log_mu": target[0], "log_sigma": target[1]})
        rows.append(["target", "-", f"{report['budget']:,}", *aim])
    elif target:
        aim = [number(value) for value in target]
        aim = ["-", "-", *aim] if report["space"] == "log" else [*aim, "-", "-"]
        rows.append(["target", "-", f"{report['budget']:,}", *aim])
    sizes = f"{report['num_chunks']:,}", f"{report['num_tokens']:,}"
    rows.append(["**this subset**", *sizes, *cells(report["achieved"])])
    return table(header, rows)


def _moments_note(report: Mapping[str, Any]) -> str:
    notes = ["One chunk has one vote in these moments."]
    achieved = report.get("achieved", {})
    if "lowest_score" in achieved:
        lowest, highest = np.atleast_1d(achieved["lowest_score"]), np.atleast_1d(achieved["highest_score"])
        for name, low, high in zip(names_of(_column(report)), lowest, highest):
            notes.append(f"The subset's {name} lies between {number(low)} and {number(high)}.")
    if "seed" in report:
        notes.append(f"Strategy `{report['strategy']}`, seed {report['seed']}.")
    if dropped := {reason: number for reason, number in report.get("dropped", {}).items() if number}:
        names = {reason: _DROPPED.get(reason, reason).format(in_words(_column(report))) for reason in dropped}
        counts = ", ".join(f"{number:,} {names[reason]}" for reason, number in dropped.items())
        notes.append(f"Chunks that could not be chosen: {counts}.")
    return " ".join(notes)


def _landscape_table(landscape: PerplexityLandscape | JointLandscape, unit: str) -> str:
    rows = [
        ["chunks", f"{landscape.num_chunks:,}"],
        [unit, f"{landscape.num_tokens:,}"],
        ["one vote in the moments has", {"chunks": "a chunk", "tokens": f"a {unit[:-1]}"}[landscape.weights]],
    ]
    score, one = in_words(landscape.column), isinstance(landscape.column, str)
    if of_a_model({"column": landscape.column}):
        rows.insert(0, ["model that scored it", f"`{_model(landscape)}`" if landscape.model else "not recorded"])
    if one:
        rows.append([f"mean of {score} (mu)", number(landscape.mu)])
        rows.append([f"standard deviation of {score} (sigma)", number(landscape.sigma)])
    for name, m, s in zip(names_of(landscape.column), *map(np.atleast_1d, (landscape.log_mu, landscape.log_sigma))):
        rows.append([f"mean of {log_name(name)}, {_unit(name)}", number(m)])
        rows.append([f"standard deviation of {log_name(name)}, nats", number(s)])
        rows.append([f"geometric mean of {name}", number(math.exp(m))])
    if one:
        rows.append([f"median of {score}", number(landscape.quantile(0.5))])
        for q in (0.05, 0.25, 0.75, 0.95):
            rows.append([f"{100 * q:.0f} % quantile of {score}", number(landscape.quantile(q))])
    rows.append([f"left out: chunks without {score} (empty text)", f"{landscape.num_skipped:,}"])
    rows.append([f"left out: chunks of infinite {score}", f"{landscape.num_infinite:,}"])
    return table(["quantity", "value"], rows)


def _unit(column: str) -> str:
    """Of the mean of a score's logarithm."""
    return "nats per token" if column == "perplexity" else "nats"


def _source_note(source: str | None, source_id: str | None, details: str, license: str | None) -> str:
    where = f"[{source_id}](https://huggingface.co/datasets/{source_id}){details}" if source_id else source
    note = f"The text comes from {where}. " if where else "The source of the text is not recorded. "
    if license:
        return note + f"It is under the licence of its source: `{license}`."
    return note + "The licence of the source is not recorded: add it before sharing this dataset."


def _size_category(number: int) -> str:
    bounds = [(1_000, "1K"), (10_000, "10K"), (100_000, "100K"), (1_000_000, "1M"), (10_000_000, "10M")]
    bounds += [(100_000_000, "100M"), (1_000_000_000, "1B")]
    if number < 1_000:
        return "n<1K"
    for (low, low_name), (high, high_name) in zip(bounds, bounds[1:], strict=False):
        if low <= number < high:
            return f"{low_name}<n<{high_name}"
    return "n>1B"


def _model(scored: Any) -> str | None:
    return public_name(scored.model) if scored is not None else None
