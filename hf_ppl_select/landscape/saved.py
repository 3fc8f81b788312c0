"""What a saved landscape may hold: columns of numbers per bin that chunks of some corpus can have summed up to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.schema import Anything, Number, Numbers, Text, check, maybe

BIN = Number(-1e9, 1e9, whole=True)
_COUNT = Number(0, 1e15, whole=True)
_SUM = Number(-1e18, 1e18)
_SMALLEST, _LARGEST = -746.0, 710.0  # ln of what float64 holds


def read_sums(
    d: Mapping[str, Any], names: tuple[str, ...], column: Any, bins: Any, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """The bins and sums of a landscape's `to_dict`.

    Args:
        names: of the sums: chunks, tokens, weight, then of each column Σ w·offset and Σ w·offset² in some order.
        column, bins: their schemas.
        where: the file, for errors.

    Raises:
        ValueError: naming the field that is missing, of another type, or that no chunks can have.
    """
    schema = {"model": maybe(Text()), "column?": column, "weights": Text(("chunks", "tokens")), "bins": bins}
    schema |= {"num_skipped": _COUNT, "num_infinite": _COUNT, "bins_per_nat": Number(1, 256, whole=True)}
    check(d, schema | {"summary?": Anything()} | dict.fromkeys(names, Numbers(_SUM)), where)
    if not d["bins"] or any(len(d[name]) != len(d["bins"]) for name in names):
        sizes = ", ".join(f"{name} {len(d[name]):,}" for name in ("bins", *names))
        raise ValueError(f"{where} must have as many numbers of each kind, and some; it has {sizes}.")
    sums = np.stack([np.array(d[name], dtype=float) for name in names], axis=1)
    found = np.array(d["bins"], dtype=np.int64)
    per_nat, pairs = d["bins_per_nat"], found.reshape(len(found), -1)
    count, tokens, weight = sums[:, :3].T
    half = np.expm1(0.5 / per_nat) * (1 + 1e-6)  # the furthest a score lies from the middle of its bin, in either sum
    keys = pairs[:, 0] if pairs.shape[1] == 1 else pairs[:, 0] * (1 << 32) + pairs[:, 1]
    for wrong, what in (
        (per_nat & (per_nat - 1), "bins of a width that no landscape has"),
        (pairs.min() < _SMALLEST * per_nat or pairs.max() > _LARGEST * per_nat, "bins that no score lies in"),
        (np.any(np.diff(keys) <= 0), "bins that do not rise"),
        (np.any((count < 1) | (count % 1 != 0)), "a count that is no number of chunks"),
        (np.any(tokens <= 0), "a bin without tokens"),
        (np.any(weight != (count if d["weights"] == "chunks" else tokens)), "other weights than it names"),
        (np.any(np.abs(sums[:, 3:]) > half * weight[:, None]), "offsets that leave their bins"),
    ):
        if wrong:
            raise ValueError(f"{where} has {what}; make the file again, or restore it.")
    return found, sums
