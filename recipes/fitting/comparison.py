"""Law forms of several score columns beside each other, out of sample: which to take, and the table to print."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from hf_ppl_select import compare_scaling_laws
from hf_ppl_select.landscape.scores import in_words
from hf_ppl_select.law.comparison import choose_form, only_without_features


def compare_columns(
    points: Sequence[Mapping[str, Any]], columns: Sequence[str], form: str = "auto", space: str = "auto"
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every law form of every score column, and of every two together, out of sample: the table, best first, and its
    row to take: of those within one standard error of the best the one with fewest parameters.
    """
    rows = []
    for column in (*columns, *(itertools.combinations(columns, 2) if space != "linear" else ())):
        asked = space if isinstance(column, str) else "log"
        found = compare_scaling_laws(points, form=form, space=asked, column=column)
        rows += [row | {"chosen": False} for row in found if not rows or row["form"] != "data_only"]
    rows.sort(key=lambda row: (row["problem"] is not None, row["loo_mae"] or 0.0, row["num_params"]))
    chosen = rows[0] if len(rows) == 1 else choose_form(rows)
    if form == "auto" and (blind := only_without_features(rows)):
        warnings.warn(blind, stacklevel=2)
    chosen["chosen"] = True
    return rows, chosen


def format_comparison(comparison: Sequence[Mapping[str, Any]]) -> str:
    """The forms as a table, best out of sample first; with the score column where there are several."""
    comparison = [row | {"column": in_words(row["column"])} for row in comparison]
    columns = dict.fromkeys(row["column"] for row in comparison)
    width = max(map(len, columns)) + 2 if len(columns) > 1 else 0
    head = "column"[:width].ljust(width)
    lines = [f"{head}form            space   params   R2     error of a run left out (nats, ± standard error)"]
    for row in comparison:
        name = f"{row['column'] if width else '':{width}}{row['form']:15} {row['space']:7} {row['num_params']:6}"
        if row["problem"]:
            lines.append(f"{name}   {row['problem']}")
        else:
            chosen = "  <- chosen" if row.get("chosen") else ""
            lines.append(f"{name}   {row['r2']:.3f}  {row['loo_mae']:.4f} ± {row['loo_se']:.4f}{chosen}")
    return "\n".join(lines)
