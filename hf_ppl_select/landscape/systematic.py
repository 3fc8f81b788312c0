"""Systematic sampling along the values, for rows that were put into bins: linear time, a few bytes per row."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

NUM_BINS = 1 << 15
WORKING_ROWS = 12_000  # about so many rows take part in repairs
_BLOCK = 1 << 20  # rows drawn together


def systematic(
    bin_of: np.ndarray, bins: np.ndarray, counts: np.ndarray, probabilities: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Bool mask `[n]`: each row with its bin's probability, and in any stretch of bins the expected number +- 1.

    A walk along the rows sorted by bin would take a row whenever the running sum of probabilities passes a whole
    number. Inside a bin that sum depends on how many rows came before only, so each bin's walk can be picked up where
    the last block of rows left it.
    """
    inside = np.zeros(len(bin_of), dtype=bool)
    expected = counts * probabilities
    phase, chance, seen = (np.zeros(NUM_BINS) for _ in range(3))
    chance[bins] = probabilities
    phase[bins] = (np.cumsum(expected) - expected + rng.random()) % 1.0
    for start in range(0, len(bin_of), _BLOCK):
        block = bin_of[start : start + _BLOCK]
        order = np.argsort(block, kind="stable")  # a radix sort
        here = np.bincount(block, minlength=NUM_BINS)
        # walk[k] is the running sum just before the k-th row of its bin
        first = np.cumsum(here) - here
        step = np.repeat(chance, here)
        walk = np.arange(len(block)) * step + np.repeat(phase + (seen - first) * chance, here)
        inside[start + order[np.floor(walk + step) > np.floor(walk)]] = True
        seen += here
    return inside


def working_rows(
    bin_of: np.ndarray, bins: np.ndarray, counts: np.ndarray, logit: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Rows for the repairs: all of a small corpus; else mostly undecided ones, and some of every value."""
    if len(bin_of) <= 4 * WORKING_ROWS:
        return np.arange(len(bin_of))
    share = undecided(logit)
    some_of_all = WORKING_ROWS / len(bins) / counts
    chance = np.zeros(NUM_BINS, dtype=np.float32)
    chance[bins] = np.minimum(share * (WORKING_ROWS / (share @ counts)) + some_of_all, 1.0)
    found = []
    for start in range(0, len(bin_of), _BLOCK):
        block = bin_of[start : start + _BLOCK]
        found.append(start + np.flatnonzero(rng.random(len(block), dtype=np.float32) < chance[block]))
    return np.concatenate(found)


def undecided(logit: np.ndarray) -> np.ndarray:
    w = expit(logit)
    return w * (1.0 - w) + 1e-6 / (1.0 + np.abs(logit)) ** 4
