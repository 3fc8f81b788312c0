"""Rows in memory by the rule of a stream, to the budget: see [`~hf_ppl_select.landscape.maxent`].

A row is kept where logit(u) - lambda . phi(x) < l_g. Here u runs evenly along the columns, which keeps every stretch
of values at its share, and rows are taken in the order of logit(u) - lambda . phi(x) - l_g until each budget is full.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import logit

from .cells import SMALL, Cells, blocks
from .maxent import Tilt, solve

_GOLDEN = (5**0.5 - 1) / 2
_DRAWS = 48  # of how many a small subset is the best
_MORE_DRAWS = 480  # while none is within the bars: where a dozen rows make most of a variance
_EFFORT = 8_000_000  # rows drawn, over all draws
_GOOD = 0.05  # an error of the moments, as a share of the bar, that needs no other draw
_FAR = 3.0  # standard deviations from the target beyond which single rows weigh much
_MANY = 500_000  # up to so many rows the dual can be solved over single rows
_FAIR = 0.3  # an error, as a share of the bar, that needs no finer solution
_PER_CELL = 12  # rows in a stretch of a serpentine through two columns


def spread_out(x: np.ndarray, codes: np.ndarray | None = None) -> np.ndarray:
    """An order of rows `[n, c]` group by group and along the first column; with more, a serpentine through two."""
    order = np.argsort(x[:, 0], kind="stable")
    if codes is not None:
        order = order[np.argsort(codes[order], kind="stable")]
    if x.shape[1] > 1:
        block = max(1, int(np.sqrt(_PER_CELL * len(x))))
        for i, start in enumerate(range(0, len(x), block)):
            part = order[start : start + block]
            order[start : start + block] = part[np.argsort(x[part, 1] * (-1) ** i, kind="stable")]
    return order


def choose(
    tilt: Tilt,
    x: np.ndarray,
    tokens: np.ndarray,
    budgets: np.ndarray,
    fill: Callable[[np.ndarray], np.ndarray],
    seed: int,
    codes: np.ndarray | None = None,
) -> tuple[np.ndarray, Tilt]:
    """Rows as the tilt keeps them: of a few draws by `seed` the one with the best moments.

    Where none is good, because w is a step inside a cell, the tilt is solved anew over single rows first.

    Args:
        tilt: solved for cells of the same rows.
        x: columns `[n, c]`, finite.
        tokens: `[n]`.
        budgets: that the tilt was solved for `[G]`.
        fill: takes how late each row comes `[n]` (below 0: it would be kept in a stream) and returns the rows that
            fill the budgets, in that order.
        seed: of the draws.
        codes: group of each row `[n]`.

    Returns:
        What `fill` returned, and the tilt.
    """
    order = spread_out(x, codes)
    chosen, off = _best_draw(tilt, x, codes, order, fill, seed, _DRAWS, _GOOD)
    able = np.isfinite(tilt.logit(x, codes)) if off > _FAIR and tilt.reached else np.zeros(0)
    if len(x) > SMALL and 0 < np.count_nonzero(able) <= _MANY:  # the others are out of the question
        single = Cells.of_rows(x[able], tokens[able], None if codes is None else codes[able], few=_MANY)
        finer = solve(single, tilt.centre, tilt.scale, budgets, start=tilt)
        again, still = _best_draw(finer, x, codes, order, fill, seed, _DRAWS, _GOOD)
        if still < off:
            chosen, off, tilt = again, still, finer
    if off > 1 and tilt.reached:
        chosen, _ = _best_draw(tilt, x, codes, order, fill, seed, _MORE_DRAWS, 1.0)
    return chosen, tilt


def _best_draw(tilt, x, codes, order, fill, seed, most, enough) -> tuple[np.ndarray, float]:
    """Of at most `most` draws the first that is off by less than `enough`, or the best; and how far off it is."""
    rng, line, best, least = np.random.default_rng(seed), tilt.logit(x, codes), None, np.inf
    far = np.flatnonzero((np.abs(x - tilt.centre) > _FAR * np.array(tilt.scale)).any(axis=1) & np.isfinite(line))
    for draw in range(max(1, min(most, _EFFORT // (len(x) + 1000 * len(tilt.levels))))):
        late, start = np.empty(len(x)), rng.random()
        for rows in blocks(len(x)):
            late[order[rows]] = (np.arange(rows.start, rows.stop) * _GOLDEN + start) % 1.0
        if draw % 2:  # of a few that weigh much, evenly spread ones can all be off by a half
            late[far] = rng.random(len(far))
        for rows in blocks(len(x)):
            late[rows] = logit(late[rows].clip(1e-12, 1 - 1e-12)) - line[rows]
        chosen = fill(late)
        off = tilt.off(x[chosen]) if len(chosen) else np.inf
        if best is None or off < least:
            best, least = chosen, off
        if least < enough:
            break
    return best, least


def until_full(late: np.ndarray, tokens: np.ndarray, budget: float) -> np.ndarray:
    """Positions in rising order of `late` until the next does not fit; sorted are only those below 0, or few more."""
    for near in (late < 0.3, np.isfinite(late), np.ones(len(late), dtype=bool)):
        rows = np.flatnonzero(near)
        if tokens[rows].sum() > budget:
            break
    rows = rows[np.argsort(late[rows], kind="stable")]
    return rows[: int(np.searchsorted(np.cumsum(tokens[rows]), budget, side="right"))]
