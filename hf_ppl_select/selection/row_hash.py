"""A number in [0, 1) for every row, from a seed and the row's key alone: the same in any process, batch and order.

Whole numbers are mixed by splitmix64 (Steele, Lea & Flood, OOPSLA 2014), many at once in numpy; texts, and whatever
else JSON can hold, are hashed by keyed BLAKE2b, one at a time.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_BITS = 2.0**-53  # all a float64 holds


def uniform_numbers(keys: Any, seed: int, column: str = "key") -> np.ndarray:
    """One number in [0, 1) per key.

    Args:
        keys: an array or list `[n]`: whole numbers from -2^63 to 2^64 - 1 (also those that came as floats, as columns
            with gaps do), texts, or anything JSON can hold. Equal keys get equal numbers, whatever holds them.
        seed: any whole number; another one gives independent numbers.
        column: the keys' name, for errors.

    Raises:
        TypeError: a key that has no fixed text form.
    """
    if isinstance(keys, np.ndarray) and keys.dtype.kind in "iu":
        return of_integers(keys, seed)
    keys = keys.tolist() if hasattr(keys, "tolist") else list(keys)
    numbers = np.empty(len(keys))
    whole, where = [], []
    hasher = _text_hasher(seed)
    for i, key in enumerate(keys):
        if isinstance(key, str):
            numbers[i] = _of_text(key, hasher)
            continue
        if isinstance(key, (float, np.floating)):  # an integer column with gaps, read as floats
            key = None if key != key else int(key) if float(key).is_integer() else float(key)
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and -(2**63) <= key < 2**64:
            whole.append(int(key) % 2**64)
            where.append(i)
            continue
        try:
            text = json.dumps(key.tolist() if hasattr(key, "tolist") else key, sort_keys=True)
        except TypeError as error:
            raise TypeError(
                f"Column {column!r} holds {type(key).__name__}, which has no fixed text form; "
                "pass a key_column with text or ids."
            ) from error
        numbers[i] = _of_text(text, hasher)
    if whole:
        numbers[where] = of_integers(np.array(whole, dtype=np.uint64), seed)
    return numbers


def of_integers(keys: np.ndarray, seed: int) -> np.ndarray:
    """One number in [0, 1) per whole number, from the 64 bits of its two's complement."""
    start = hashlib.blake2b(str(seed).encode(), digest_size=8, person=b"hf_ppl_select").digest()
    bits = keys.astype(np.uint64 if keys.dtype.kind == "u" else np.int64).view(np.uint64)
    bits = (bits + np.uint64(int.from_bytes(start, "little"))) * _GOLDEN + _GOLDEN
    bits ^= bits >> np.uint64(30)
    bits *= _MIX_1
    bits ^= bits >> np.uint64(27)
    bits *= _MIX_2
    bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)) * _BITS


def _text_hasher(seed: int) -> Any:
    return hashlib.blake2b(digest_size=8, key=str(seed).encode(), person=b"hf_ppl_select")


def _of_text(text: str, hasher: Any) -> float:
    hasher = hasher.copy()  # keyed already
    hasher.update(text.encode("utf-8", "surrogatepass"))
    return (int.from_bytes(hasher.digest(), "little") >> 11) * _BITS
