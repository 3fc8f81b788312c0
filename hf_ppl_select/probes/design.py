"""Which landscapes to probe, and in which order to train on a probe's chunks.

A scaling law needs short training runs on subsets whose (mu, sigma) spread over what the corpus can give. One run
gives several law points when it is evaluated at several num_tokens, so each prefix of it should have the run's
landscape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..landscape.cells import Cells
from ..landscape.landscape import PerplexityLandscape
from ..landscape.maxent import leaning, solve, tilted
from ..landscape.reach import FAR_OFF, Space, check_budget, check_space
from ..landscape.scores import check_one_column
from ..law.points import score_moments

_NARROWEST = 0.25  # of the widest spread at the same mean: narrower subsets are nearly one value
_STEEPEST = 75.0  # lambda of the means farthest out: steeper tilts are steps
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class ProbeTarget:
    """One probe run: select its chunks with `select_subset(..., target=(mu, sigma), space=space, column=column,
    strategy=strategy)`.

    Attributes:
        run: its name among the law points: "random", "probe-00", "probe-01", ...
        mu, sigma: mean and standard deviation of the score (space "linear") or its logarithm (space "log") to aim at.
        space: what mu and sigma mean.
        strategy: "maxent", or "random" for the run that has the corpus's own moments (pass no target then).
        column: the score column.
    """

    run: str
    mu: float
    sigma: float
    space: Space
    strategy: Literal["maxent", "random"] = "maxent"
    column: str = "perplexity"


def design_probes(
    landscape: PerplexityLandscape,
    *,
    num_runs: int,
    tokens_per_run: float,
    space: Space = "log",
    seed: int = 0,
) -> list[ProbeTarget]:
    """Targets that spread over the useful part of what subsets of a corpus can be; the first is a random subset.

    Candidates are what tilts give that lean to lower or higher scores, or are a bump, of the chunks without outliers
    (outside Tukey's fences on the logarithm): no second clump at the other end, and no junk. Useful are means between
    the 5 % and 95 % quantiles of these chunks and spreads from a quarter to all of what a subset that only leans has.
    Each next target is the candidate farthest from all earlier ones, starting from the corpus's own moments, with mu
    and sigma rescaled to [0, 1]; and that [`~hf_ppl_select.landscape.maxent.solve`] can select from all chunks, as
    `select_subset` will.

    Args:
        landscape: of the corpus.
        num_runs: how many probes, the random one included.
        tokens_per_run: tokens each probe trains on.
        space: where the targets spread, "log" or "linear".
        seed: shifts the grid of candidates.

    Raises:
        ValueError: num_runs below 1, a budget that is not positive or above the corpus, too few chunks to vary.
    """
    check_one_column(landscape.column, "design_probes")
    check_space(space)
    if num_runs < 1:
        raise ValueError(f"num_runs={num_runs}; at least 1 probe is needed, and about 8 to fit a law.")
    check_budget(tokens_per_run, landscape.num_tokens)
    corpus_mu, corpus_sigma = landscape.moments(space)
    column = landscape.column
    probes = [ProbeTarget("random", corpus_mu, corpus_sigma, space, "random", column)]
    if num_runs == 1:
        return probes
    core = landscape.cells(space, outliers=False)
    number = int(core.counts.sum())
    if not np.ptp(core.mean) + core.std.max() > 1e-9:
        raise ValueError(f"The {landscape.column} of {number:,} chunks hardly differs: there is nothing to probe.")
    if tokens_per_run > 0.9 * core.tokens.sum():
        raise ValueError(
            f"tokens_per_run={tokens_per_run:,} is most of the corpus, {number:,} chunks of "
            f"{landscape.tokens_per_chunk:,.0f} tokens without outliers: all probes would be alike. Lower it."
        )
    points, everything = _useful(core, tokens_per_run, np.random.default_rng(seed)), landscape.cells(space)
    extent = np.ptp(points, axis=0)
    distance = np.hypot(*((points - [corpus_mu, corpus_sigma]) / extent).T)
    while len(probes) < num_runs:
        farthest = int(np.argmax(distance))
        if not distance[farthest] > 0:
            raise ValueError(f"This corpus has only {len(probes)} probes of {tokens_per_run:,} tokens that differ.")
        mu, sigma = map(float, points[farthest])
        if solve(everything, (mu,), (sigma,), np.array([tokens_per_run])).error > FAR_OFF:
            distance[farthest] = 0.0
            continue
        probes.append(ProbeTarget(f"probe-{len(probes) - 1:02d}", mu, sigma, space, column=column))
        distance = np.minimum(distance, np.hypot(*((points - points[farthest]) / extent).T))
    return probes


def _useful(core: Cells, budget: float, rng: np.random.Generator) -> np.ndarray:
    """Candidates (mu, sigma) `[n, 2]`: of tilts b (z - c)^2 for a jittered grid of centres c and bends b <= 0."""
    centres = np.sinh(np.linspace(-4.5, 4.5, 49) + rng.uniform(-0.09, 0.09))
    bends = -np.geomspace(0.005, 30.0, 33) * np.exp(rng.uniform(-0.1, 0.1))
    b, c = (a.ravel() for a in np.meshgrid(bends, centres))
    a = np.concatenate([-2 * b * c, np.sinh(np.linspace(-4.5, 4.5, 49))])  # and of those that only lean
    lambdas = np.stack([a, np.concatenate([b, np.zeros(49)])], 1)
    lambdas = lambdas[np.abs(a) <= _STEEPEST]
    points = np.concatenate(tilted(core, lambdas, budget), axis=1)
    low, high = np.interp([0.05, 0.95], np.cumsum(core.votes) / core.votes.sum(), core.mean[:, 0])
    widest = np.interp(points[:, 0], *leaning(core, budget))
    useful = (points[:, 0] >= low) & (points[:, 0] <= high) & (points[:, 1] >= _NARROWEST * widest)
    return points[useful]


def probe_order(values: Any, seed: int = 0) -> np.ndarray:
    """An order of a subset's rows in which every prefix has about the landscape of the whole.

    A row whose score has rank r comes at the place of `(r * golden ratio + start) mod 1`, start drawn from `seed`: any
    stretch of the order holds low, middle and high scores in their shares, so a prefix's moments are nearer to the
    whole's than a shuffle's would be. Stretches of a sixteenth of the rows, 64 at most, are then shuffled, so that no
    batch has a fixed pattern.

    Args:
        values: scores of the rows of the subset `[n]`.
        seed: another seed, another order.

    Returns:
        A permutation `[n]`, for `subset.select(order)`.
    """
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    rank = np.empty(len(values))
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    order = np.argsort((rank * _GOLDEN + rng.random()) % 1.0, kind="stable")
    stretch = min(64, max(1, len(order) // 16))  # a quarter of a run should be like the whole of it
    for start in range(0, len(order), stretch):
        rng.shuffle(order[start : start + stretch])
    return order


def prefix_points(scores: Mapping[str, Any], num_tokens: Any, ladder: Sequence[float]) -> list[dict[str, float | int]]:
    """What a run has trained on by each num_tokens of a ladder: the landscape fields of its law points.

    Args:
        scores: by column, of the run's rows in training order `[n]`.
        num_tokens: of the same rows `[n]`.
        ladder: token counts, from the first row's to all rows' together (or less than one chunk more).

    Returns:
        One dict per rung, in the order given: the moments of each column, named as law points name them, and the
        `num_tokens` and `num_chunks` of the longest prefix within the rung.

    Raises:
        ValueError: a rung outside the run.
    """
    tokens = np.asarray(num_tokens, dtype=np.int64)
    seen, longest = np.cumsum(tokens), int(tokens.max())  # a run may end up to one chunk short of its budget
    points = []
    for rung in ladder:
        length = int(np.searchsorted(seen, rung, side="right"))
        if length == 0 or rung >= seen[-1] + longest:
            raise ValueError(
                f"num_tokens={rung:,} is outside the run, whose rows hold {seen[0]:,} to {seen[-1]:,} tokens."
            )
        prefix = {column: np.asarray(values, dtype=np.float64)[:length] for column, values in scores.items()}
        points.append(score_moments(prefix) | {"num_tokens": int(seen[length - 1]), "num_chunks": length})
    return points
