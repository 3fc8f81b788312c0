"""Which far chunks a subset takes, where single ones make much of its variance."""

from __future__ import annotations

import numpy as np

from .maxent_entries import Entries

_PARTNERS = 512  # chunks near a pick that may take its place


def pick_far(
    z: np.ndarray, chance: np.ndarray, number: float, groups: Entries, least: int, rng: np.random.Generator
) -> np.ndarray:
    """Far chunks, farthest first, whose squares add up to what is expected of all of them, none above 1 / `least`.

    What is left for the others to bring is their own variance, and their mean squared, which the far chunks decide.
    """
    squares = z * z
    expected = np.cumsum(chance * squares)
    total, left = float(expected[-1]), number - float(chance.sum())
    own = max((number - total) / left - (float(chance @ z) / left) ** 2, 0.0)
    phase = rng.uniform(0.25, 1.0)
    for _ in range(4):
        taken, used, start = [], 0.0, 0
        while start < len(z):
            room = squares[start:] <= min(total - used, total / least)
            due = expected[start:] >= used + phase * squares[start:]
            fits = room & due
            if not fits.any():
                break
            start += int(np.argmax(fits))
            taken.append(start)
            used += float(squares[start])
            start += 1
        left = number - len(taken)
        if left < 1:
            break
        total = number - left * (own + (z[taken].sum() / left) ** 2)
    taken = np.array(taken, dtype=np.int64)
    return _refined(taken, squares, total) if len(taken) >= 2 else taken


def _refined(taken: np.ndarray, squares: np.ndarray, total: float) -> np.ndarray:
    """Choose two of the picks anew, near where they were, so that all squares add up to `total` as well as can be."""
    last = taken[-2:]
    free = np.setdiff1d(np.arange(len(squares)), taken[:-2])[::-1]  # rising squares
    some = free[np.argsort(np.abs(free - last[0]), kind="stable")[:_PARTNERS]]
    wanted = total - squares[taken[:-2]].sum() - squares[some]
    right = np.clip(np.searchsorted(squares[free], wanted), 1, len(free) - 1)
    partners = np.stack([free[right - 1], free[right]])
    misses = np.where(partners == some, np.inf, np.abs(squares[partners] - wanted))
    side, best = np.unravel_index(int(np.argmin(misses)), misses.shape)
    if not misses[side, best] < abs(total - squares[taken].sum()):
        return taken
    return np.append(taken[:-2], [some[best], partners[side, best]])
