"""Which landscapes to probe, and in which order to train on a probe's chunks.

A scaling law needs short training runs on subsets whose (mu, sigma) spread over what the corpus can give. One run
gives several law points when it is evaluated at several num_tokens, so each prefix of it should have the run's
landscape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..landscape.attainable import AttainableRegion, attainable_region
from ..landscape.landscape import PerplexityLandscape
from ..landscape.leaning import leaning_subsets, without_outliers
from ..landscape.targets import Space, check_budget, check_space

_EDGE = 0.03  # probes stay away from the edge of reach by this share of its extent: there, w is a step function
_NARROWEST = 0.25  # of the widest spread at the same mean: narrower subsets are nearly one perplexity
_CANDIDATES = 48  # grid points per axis
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class ProbeTarget:
    """One probe run: select its chunks with `select_subset(..., target=(mu, sigma), space=space, strategy=strategy)`.

    Attributes:
        run: its name among the law points: "random", "probe-00", "probe-01", ...
        mu, sigma: mean and standard deviation of perplexity (space "linear") or of nll (space "log") to aim at.
        space: what mu and sigma mean.
        strategy: "maxent", or "random" for the run that has the corpus's own moments (pass no target then).
    """

    run: str
    mu: float
    sigma: float
    space: Space
    strategy: Literal["maxent", "random"] = "maxent"


def design_probes(
    perplexity: Any,
    num_tokens: Any,
    *,
    num_runs: int,
    tokens_per_run: float,
    space: Space = "log",
    seed: int = 0,
) -> list[ProbeTarget]:
    """Targets that spread over the useful part of what subsets of a corpus can reach; the first is a random subset.

    Useful means: chunks without outliers (outside Tukey's fences on nll: 1.5 interquartile ranges beyond the
    quartiles); means between their 5 % and 95 % quantiles; spreads from a quarter to all of what a subset that only
    leans to lower or to higher perplexities has; and all a little off the edge of the attainable region. Inside, each
    next target is the point farthest from all earlier ones, starting from the corpus's own moments, with mu and sigma
    rescaled to [0, 1].

    Args:
        perplexity: of each chunk `[n]`; None, NaN and infinity are left out.
        num_tokens: of each chunk `[n]`.
        num_runs: how many probes, the random one included.
        tokens_per_run: tokens each probe trains on.
        space: where the targets spread, "log" or "linear".
        seed: shifts the grid of candidates.

    Raises:
        ValueError: num_runs below 1, a budget that is not positive or above the corpus, too few chunks to vary.
    """
    check_space(space)
    if num_runs < 1:
        raise ValueError(f"num_runs={num_runs}; at least 1 probe is needed, and about 8 to fit a law.")
    landscape = PerplexityLandscape.from_values(perplexity, num_tokens)
    check_budget(tokens_per_run, landscape.num_tokens)
    corpus_mu, corpus_sigma = landscape.moments(space)
    probes = [ProbeTarget("random", corpus_mu, corpus_sigma, space, "random")]
    if num_runs == 1:
        return probes

    perplexity, tokens = np.array(perplexity, dtype=np.float64), np.array(num_tokens, dtype=np.float64)
    nll = np.log(perplexity[np.isfinite(perplexity) & (tokens > 0)])
    core = without_outliers(nll)
    core = core if space == "log" else np.exp(core)
    budget = tokens_per_run / landscape.tokens_per_chunk
    if not np.ptp(core) > 1e-9:
        raise ValueError(f"The perplexities of {len(nll):,} chunks hardly differ: there is nothing to probe.")
    if budget > 0.9 * len(core):
        raise ValueError(
            f"tokens_per_run={tokens_per_run:,} is most of the corpus, {len(core):,} chunks of "
            f"{landscape.tokens_per_chunk:,.0f} tokens without outliers: all probes would be alike. Lower it."
        )
    mu, sigma = _useful(attainable_region(core, budget, space=space), core, np.random.default_rng(seed))

    extent = np.array([np.ptp(mu), np.ptp(sigma)])
    points = np.stack([mu, sigma], axis=1) / extent
    distance = np.hypot(*(points - np.array([corpus_mu, corpus_sigma]) / extent).T)
    for number in range(num_runs - 1):
        farthest = int(np.argmax(distance))
        probes.append(ProbeTarget(f"probe-{number:02d}", float(mu[farthest]), float(sigma[farthest]), space))
        distance = np.minimum(distance, np.hypot(*(points - points[farthest]).T))
    return probes


def _useful(region: AttainableRegion, core: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Candidates `(mu, sigma)`, flat: a jittered grid over the useful part of the region, its own edges included."""
    margin = _EDGE * float(region.mu[-1] - region.mu[0])
    low, high = np.quantile(core, [0.05, 0.95])
    mu = _grid(max(low, region.mu[0] + margin), min(high, region.mu[-1] - margin), rng)
    tight, wide = region.sigma_bounds(mu)
    ceiling = np.minimum(
        np.interp(mu, *leaning_subsets(core, region.budget / len(core))), wide - _EDGE * (wide - tight)
    )
    floor = np.maximum(tight + _EDGE * (wide - tight), _NARROWEST * ceiling)
    ceiling = np.maximum(ceiling, floor)
    share = _grid(0.0, 1.0, rng)
    return np.repeat(mu, len(share)), (floor[:, None] + (ceiling - floor)[:, None] * share).ravel()


def _grid(low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Both ends, and evenly spaced points between them from a random start."""
    inner = (np.arange(_CANDIDATES) + rng.random()) / _CANDIDATES
    return low + (high - low) * np.concatenate([[0.0], inner, [1.0]])


def probe_order(perplexity: Any, seed: int = 0) -> np.ndarray:
    """An order of a subset's rows in which every prefix has about the landscape of the whole.

    A row whose perplexity has rank r comes at the place of `(r * golden ratio + start) mod 1`, start drawn from
    `seed`: any stretch of the order holds low, middle and high perplexities in their shares, so a prefix's moments
    are nearer to the whole's than a shuffle's would be. Stretches of 64 rows are then shuffled, so that no batch has
    a fixed pattern.

    Args:
        perplexity: of the rows of the subset `[n]`.
        seed: another seed, another order.

    Returns:
        A permutation `[n]`, for `subset.select(order)`.
    """
    perplexity = np.asarray(perplexity, dtype=np.float64)
    rng = np.random.default_rng(seed)
    rank = np.empty(len(perplexity))
    rank[np.argsort(perplexity, kind="stable")] = np.arange(len(perplexity))
    order = np.argsort((rank * _GOLDEN + rng.random()) % 1.0, kind="stable")
    for start in range(0, len(order), 64):
        rng.shuffle(order[start : start + 64])
    return order


def prefix_points(perplexity: Any, num_tokens: Any, ladder: Sequence[float]) -> list[dict[str, float | int]]:
    """What a run has trained on by each num_tokens of a ladder: the landscape fields of its law points.

    Args:
        perplexity: of the run's rows, in training order `[n]`.
        num_tokens: of the same rows `[n]`.
        ladder: token counts, from the first row's to all rows' together (or less than one chunk more).

    Returns:
        One dict per rung, in the order given: `mu, sigma` (perplexity), `log_mu, log_sigma` (nll, nats), and the
        `num_tokens` and `num_chunks` of the longest prefix within the rung.

    Raises:
        ValueError: a rung outside the run.
    """
    perplexity = np.asarray(perplexity, dtype=np.float64)
    tokens = np.asarray(num_tokens, dtype=np.int64)
    seen, longest = np.cumsum(tokens), int(tokens.max())  # a run may end up to one chunk short of its budget
    points = []
    for rung in ladder:
        length = int(np.searchsorted(seen, rung, side="right"))
        if length == 0 or rung >= seen[-1] + longest:
            raise ValueError(
                f"num_tokens={rung:,} is outside the run, whose rows hold {seen[0]:,} to {seen[-1]:,} tokens."
            )
        prefix = perplexity[:length]
        nll = np.log(prefix)
        moments = {"mu": prefix.mean(), "sigma": prefix.std(), "log_mu": nll.mean(), "log_sigma": nll.std()}
        points.append(
            {name: float(value) for name, value in moments.items()}
            | {"num_tokens": int(seen[length - 1]), "num_chunks": length}
        )
    return points
