"""Parts of the subset's card: what it is composed of, the code that selects it again, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..landscape.scores import as_column, counted_in, names_of

_MOST_GROUPS = 30
_ORDERS = {
    "easy_to_hard": "Its rows go from the lowest {} to the highest.",
    "hard_to_easy": "Its rows go from the highest {} to the lowest.",
    "shuffled": "Its rows are shuffled by the seed.",
}
_DEFAULTS = {"column": "perplexity", "near_threshold": 0.8, "replay": 0.0, "order": "dataset", "text_column": "text"}
_SCORED_WITH = {"perplexity": "", "perplexity_ratio": ", reference=...", "ifd": ", ifd=True"}
_KNOWN = (*_SCORED_WITH, "ngram_ratio")
_DEFAULTS["num_tokens_column"] = "num_tokens"
_COMPOSITION = ("column", "group_by", "group_num_tokens", "min_group_tokens", "deduplicate", "near_threshold")
_COMPOSITION += ("min_score", "max_score", "replay", "order", "text_column", "num_tokens_column")


def composition(report: Mapping[str, Any]) -> str | None:
    """Regimes, groups, replay and order; None where nothing is known of them."""
    parts, columns = [], names_of(as_column(report.get("column", "perplexity")))
    for column in columns if report.get("regimes") else ():
        rows = [
            [f"{number(row['low'])} to {number(row['high'])}", f"{row['num_chunks']:,}", f"{row['num_tokens']:,}"]
            for row in report["regimes"]
            if row.get("column", column) == column
        ]
        parts.append(f"What was taken of each tenth of the corpus by {column}:")
        parts.append(table([column, "chunks", counted_in(report)], rows))
    if groups := report.get("groups"):
        group_by = report.get("options", {}).get("group_by", "group")
        shown = sorted(groups, key=lambda group: -group["num_tokens"])[:_MOST_GROUPS]
        rows = [
            [_cell(group["group"]), f"{group['corpus_tokens']:,}", f"{group['budget']:,}"]
            + [f"{group['num_chunks']:,}", f"{group['num_tokens']:,}"]
            + [cell for name in ("mu", "sigma") for cell in _moments(group[name], len(columns))]
            for group in shown
        ]
        parts.append(f"What was taken of each `{group_by}`:")
        unit = counted_in(report)
        header = [f"`{group_by}`", f"{unit} to choose from", "budget", "chunks", unit]
        header += [f"mean {column}" for column in columns]
        spread = [f"standard deviation of {column}" for column in columns]
        parts.append(table([*header, *(spread if len(columns) > 1 else ["standard deviation"])], rows))
        if len(groups) > len(shown):
            parts.append(f"And {len(groups) - len(shown):,} more, see `selection.json`.")
    if replay := report.get("replay"):
        parts.append(
            f"Replay against forgetting: {replay['num_tokens']:,} {counted_in(report)} in {replay['num_chunks']:,} "
            f"rows of general text, {100 * replay['share']:g} % of the budget, drawn at random and mixed in. The "
            "moments above and the predicted losses are of the other rows."
        )
    if report.get("order") in _ORDERS:
        parts.append(_ORDERS[report["order"]].format(columns[0]))
    return "\n\n".join(parts) or None


def code_to_reproduce(
    report: Mapping[str, Any], source_id: str | None, details: str, model: str | None, has_law: bool
) -> str:
    """Python that selects the same rows again, given the same chunks; `details` says which part of the source."""
    imports, steps = [], []
    whole = source_id is not None and not details
    where = f'load_dataset("{source_id}", split="train")' if whole else "..."
    of = f"rows of {source_id}{details}, " if details else ""
    steps.append(f"corpus = {where}  # {of}cut into the same chunks, in the same order (chunk_documents)")
    columns = names_of(as_column(report.get("column", "perplexity")))
    if model and (made := [name for name in columns if name in _SCORED_WITH]):
        imports.append("PerplexityScorer")
        options = "".join(_SCORED_WITH[name] for name in made)
        steps.append(f'corpus = corpus.map(PerplexityScorer("{model}"{options}), batched=True)')
    if "ngram_ratio" in columns:
        imports.append("NgramScorer")
        steps.append("trusted = ...  # the texts that the corpus was compared with")
        steps.append("corpus = corpus.map(NgramScorer.fit(trusted, corpus), batched=True)")
    steps += [f"corpus = ...  # with its column {name}" for name in columns if name not in _KNOWN]
    head = ["from datasets import load_dataset"] if whole else []
    if report.get("streaming"):
        imports.append("PerplexitySelector")
        steps.append('selector = PerplexitySelector.load("selector.json")  # from this dataset')
        steps.append("subset = corpus.filter(selector, batched=True)")
        return "\n".join([*head, f"from hf_ppl_select import {', '.join(sorted(imports))}", "", *steps])
    imports.append("select_subset")
    options = f'num_tokens={report["budget"]!r}, strategy="{report["strategy"]}", seed={report["seed"]}'
    if report.get("optimum") and has_law:
        imports.append("ScalingLaw")
        steps.append('law = ScalingLaw.load("law.json")  # from this dataset')
        options = f"law=law, {options}"
    elif report.get("target"):
        mu, sigma = report["target"]
        options = f'target=({mu!r}, {sigma!r}), space="{report["space"]}", {options}'
    if report.get("replay"):
        steps.append("general = ...  # the rows to replay, with the columns of the corpus")
        options += ", replay_dataset=general"
    for name in _COMPOSITION:
        value = report.get("options", {}).get(name)
        if value is not None and value != _DEFAULTS.get(name):
            if isinstance(value, list):  # as JSON has them: two columns, or budgets by group
                value = tuple(value) if name == "column" else dict(map(tuple, value))
            options += f", {name}={value!r}"
    steps.append(f"subset = select_subset(corpus, {options})")
    return "\n".join([*head, f"from hf_ppl_select import {', '.join(sorted(imports))}", "", *steps])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def public_name(model: str | None) -> str | None:
    """A model's name; of a folder on one machine only its last part, which is all that others can use."""
    return Path(model).name if model and Path(model).is_absolute() else model


def _cell(name: Any) -> str:
    return "(none)" if name is None else str(name).replace("|", "\\|").replace("\n", " ")


def _moments(moment: Any, columns: int) -> list[str]:
    """Cells of a moment that may be unknown, or a pair."""
    if moment is None:
        return ["-"] * columns
    return [number(value) for value in (moment if columns > 1 else [moment])]


def number(value: float) -> str:
    """Four digits, or a whole number where that has more."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
