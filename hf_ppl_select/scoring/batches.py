"""What a scorer is handed and hands back: a row or a batch, as a dict, an Arrow table or a pandas DataFrame.

`datasets` hands over its format (`with_format`), Ray Data its `batch_format`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .rows import columns_to_score, is_one_row


def is_table(rows: Any) -> bool:
    """Whether it is an Arrow table or a pandas DataFrame: a batch, and what replaces it must have all its columns."""
    return isinstance(rows, pa.Table) or _is_frame(rows)


def read_batch(rows: Any, text_column: str) -> tuple[dict[str, list], bool]:
    """The columns to score as lists of plain Python values, and whether `rows` was one row.

    A dict of one column `{"messages": []}` is an empty batch.

    Raises:
        KeyError: none of the columns to score is there.
        TypeError: neither a dict nor a table.
    """
    if not isinstance(rows, Mapping) and not is_table(rows):
        raise TypeError(
            f"A scorer takes a row or a batch as a dict, a pyarrow.Table or a pandas.DataFrame, not "
            f"{type(rows).__name__}: map with batched=True, or use with_format('arrow') or another of these."
        )
    columns = columns_to_score(dict.fromkeys(_names(rows)), text_column)
    values = {name: rows[name] for name in columns}
    if is_table(rows):
        return {name: _plain(column) for name, column in values.items()}, False
    if single := is_one_row(rows, columns):
        values = {name: [value] for name, value in values.items()}
    return {name: _plain(column) for name, column in values.items()}, single


def check_other_scores(rows: Any, known: Sequence[str], made: Sequence[str]) -> None:
    """ValueError where rows hold some of the `known` scores that are not `made` anew: they may be another model's."""
    if stale := [name for name in _names(rows) if name in known and name not in made]:
        raise ValueError(
            f"The rows hold {', '.join(stale)} of an earlier scoring, which this one does not make anew: remove them "
            f"first, dataset.remove_columns({stale})."
        )


def _names(rows: Any) -> list[str]:
    return rows.column_names if isinstance(rows, pa.Table) else list(rows)


def with_columns(rows: Any, columns: Mapping[str, Any]) -> Any:
    """The same row or batch with more columns."""
    if isinstance(rows, pa.Table):
        for name, values in columns.items():
            column = pa.array(values, from_pandas=True)  # NaN becomes null
            at = rows.schema.get_field_index(name)
            rows = rows.append_column(name, column) if at < 0 else rows.set_column(at, name, column)
        return rows
    arrays = {name: _array(values) for name, values in columns.items()}
    return rows.assign(**arrays) if _is_frame(rows) else {**rows, **arrays}


def nullable(values: np.ndarray) -> Any:
    """Scores with None for NaN, which becomes null in a column; all NaN they stay, so that the column has a type."""
    missing = np.isnan(values)
    if missing.all() or not missing.any():
        return values
    return [None if nothing else value for value, nothing in zip(values.tolist(), missing)]


def _array(values: Any) -> Any:
    """An array as it is; perplexities as float64, their None as NaN."""
    return values if hasattr(values, "dtype") else np.array(values, dtype=np.float64)[()]


def _is_frame(rows: Any) -> bool:
    return type(rows).__module__.partition(".")[0] == "pandas" and hasattr(rows, "assign")


def _plain(value: Any) -> Any:
    """Arrays of any kind, also within lists and dicts, as lists; a missing value of pandas as None."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, pa.ChunkedArray | pa.Array):
        return value.to_pylist()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    missing = type(value).__name__ == "NAType" or (isinstance(value, float) and math.isnan(value))
    return None if missing else value
