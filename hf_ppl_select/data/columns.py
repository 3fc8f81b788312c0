"""Read numbers from whatever holds scored rows: a dataset, a stream, a DataFrame, a dict of lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def read_columns(dataset: Any, *names: str, batch_size: int = 100_000) -> Iterator[list[np.ndarray]]:
    """Yield the named columns as float arrays, a batch at a time; None becomes NaN."""
    present = getattr(dataset, "column_names", None)
    if isinstance(present, dict):
        raise TypeError(f"the dataset has splits ({', '.join(present)}); pass one of them, like dataset['train'].")
    if not hasattr(dataset, "select_columns") and not hasattr(dataset, "keys"):
        raise TypeError(f"expected a scored datasets.Dataset, got {type(dataset).__name__}.")
    if present is None:  # a stream whose columns are not known yet, or a dict or DataFrame
        present = list(next(iter(dataset), {})) if hasattr(dataset, "select_columns") else list(dataset.keys())
    if missing := [name for name in names if name not in present]:
        raise KeyError(
            f"the dataset has no column {missing[0]!r}, it has {', '.join(map(str, present)) or 'none'}; "
            "run dataset.map(score_ppl, batched=True) first, or name the one it is in (column=, num_tokens_column=)."
        )
    if hasattr(dataset, "select_columns"):
        chosen = dataset.select_columns(list(names))
        if hasattr(dataset, "num_rows"):  # in memory or mapped from disk: no Python numbers on the way
            tables = chosen.with_format("arrow").iter(batch_size)
            batches = ({name: table[name].to_numpy() for name in names} for table in tables)
        else:  # a stream may hold Python rows already
            batches = chosen.with_format(None).iter(batch_size)
    else:
        batches = [dataset] if len(dataset[names[0]]) else []
    for batch in batches:
        yield [np.array(batch[name], dtype=float) for name in names]
