"""Arithmetic of hashes modulo 2^64, many at once: the same in every process, on every machine. NumPy only."""

from __future__ import annotations

import numpy as np

BASE = 0x9E3779B97F4A7C15  # of polynomials over bytes: odd, so that it has an inverse


def mix(numbers: np.ndarray) -> np.ndarray:
    """The bijection of splitmix64 (Steele, Lea & Flood, OOPSLA 2014): each bit comes to depend on all others."""
    mixed = numbers ^ (numbers >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of `BASE` and of its inverse, from 0 up: uint64 `[size]` each."""
    bases = np.array([BASE, pow(BASE, -1, 1 << 64)], dtype=np.uint64)
    found = np.repeat(bases[:, None], size, axis=1)
    found[:, 0] = 1
    return tuple(np.cumprod(found, axis=1))
