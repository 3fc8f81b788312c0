"""Select the part of a corpus with a wanted perplexity landscape.

Two ways to the same subset. [`select_subset`] holds the perplexities in memory and meets the token budget to one
chunk. [`PerplexitySelector`] is three numbers and a seed: it decides about each row alone, so any engine can apply it
to shards or a stream, and it meets the budget in expectation.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import __version__, strategies
from .landscape import PerplexityLandscape
from .maxent import MaxentSolution
from .saving import save_json
from .selector import PerplexitySelector
from .targets import FAR_OFF, Space, check_budget, check_space, check_target, move_inside, out_of_reach

if TYPE_CHECKING:
    from datasets import Dataset

    from .optimum import Optimum
    from .scaling_law import ScalingLaw

Strategy = Literal["maxent", "greedy_dos", "regime", "random", "low", "high"]
STRATEGIES_WITH_TARGET = ("maxent", "greedy_dos", "regime")
STRATEGIES = (*STRATEGIES_WITH_TARGET, "random", "low", "high")

__all__ = ["PerplexitySelector", "Selection", "plan_selection", "select_subset"]

_VERSION = 1


@dataclass(frozen=True, eq=False)
class Selection:
    """Which rows were chosen, why, and what was reached. `report()` is everything but the rows, JSON-able.

    Attributes:
        indices: chosen rows of the dataset, rising, int64 `[num_chunks]`.
        strategy: how they were chosen.
        seed: the seed; "random" and "maxent" depend on it.
        space: what mu and sigma of the target mean.
        target: (mu, sigma) aimed at; None for random, low, high.
        budget: tokens asked for.
        num_tokens: tokens chosen: at most the budget, and less than one chunk below it.
        num_chunks: rows chosen.
        achieved: mu, sigma (of perplexity), log_mu, log_sigma (of nll), lowest_perplexity and highest_perplexity.
        corpus: mu, sigma, log_mu, log_sigma, num_chunks, num_tokens of the rows that could be chosen.
        dropped: rows that could not be chosen, counted by reason.
        maxent: the solution behind strategy "maxent".
        optimum: the law's optimum, if a law gave the target.
        predicted_loss: the law's loss for the chosen landscape, nats per token; None without a law.
        random_loss: the law's loss for a random subset of the same size.
        predicted_trusted, random_trusted: whether the law's probes cover those landscapes; if not, it extrapolates.
    """

    indices: np.ndarray
    strategy: Strategy
    seed: int
    space: Space
    target: tuple[float, float] | None
    budget: float
    num_tokens: int
    num_chunks: int
    achieved: dict[str, float]
    corpus: dict[str, float]
    dropped: dict[str, int]
    maxent: MaxentSolution | None = None
    optimum: Optimum | None = None
    predicted_loss: float | None = None
    random_loss: float | None = None
    predicted_trusted: bool | None = None
    random_trusted: bool | None = None

    def report(self) -> dict[str, Any]:
        """All but the indices, of which it holds a hash: with the same dataset it says how to get the same subset."""
        report = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "indices"}
        for name in ("maxent", "optimum"):
            report[name] = None if report[name] is None else asdict(report[name])
        report["package_version"] = __version__
        report["indices_sha256"] = hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest()
        return json.loads(json.dumps(report, allow_nan=False))

    def save(self, path: str | os.PathLike) -> None:
        """Save the report as JSON (kind "selection")."""
        save_json(path, self.report(), kind="selection", version=_VERSION)


def select_subset(
    dataset: Dataset,
    *,
    num_tokens: float,
    law: ScalingLaw | None = None,
    target: tuple[float, float] | None = None,
    space: Space | None = None,
    strategy: Strategy = "maxent",
    seed: int = 0,
    perplexity_column: str = "perplexity",
    num_tokens_column: str = "num_tokens",
) -> Dataset:
    """The best `num_tokens` tokens of a scored dataset: a plain `Dataset` of its rows, in their order.

    See [`plan_selection`], which takes the same arguments and also says what was reached.
    """
    plan = plan_selection(
        dataset,
        num_tokens=num_tokens,
        law=law,
        target=target,
        space=space,
        strategy=strategy,
        seed=seed,
        perplexity_column=perplexity_column,
        num_tokens_column=num_tokens_column,
    )
    return dataset.select(plan.indices)


def plan_selection(
    dataset: Any,
    *,
    num_tokens: float,
    law: ScalingLaw | None = None,
    target: tuple[float, float] | None = None,
    space: Space | None = None,
    strategy: Strategy = "maxent",
    seed: int = 0,
    perplexity_column: str = "perplexity",
    num_tokens_column: str = "num_tokens",
) -> Selection:
    """Choose rows whose tokens fill `num_tokens`, never above it and less than one chunk below.

    Strategies:
        - "maxent" (default): the most diverse subset with the target's mean and standard deviation.
        - "greedy_dos": the paper's greedy distance-to-optimum selection. It meets the target with two clumps.
        - "regime": one interval of perplexity; of all that fill the budget the one with the least predicted loss, or
          with moments nearest to an explicit target.
        - "random", "low", "high": drawn by the seed; the lowest perplexities; the highest.

    Args:
        dataset: a scored `datasets.Dataset`, or a dict of columns.
        num_tokens: the budget, in tokens.
        law: aim at this law's optimum for the corpus and budget. With random, low, high it only predicts.
        target: aim at this `(mu, sigma)` instead.
        space: "linear" (moments of perplexity) or "log" (of nll, nats); the law's own, "linear" with a target.
        strategy: see above; the first three need a law or a target.
        seed: all randomness comes from it.
        perplexity_column, num_tokens_column: what the scorer wrote. Rows without perplexity, with an infinite one, or
            with more tokens than the budget are dropped and counted.

    Raises:
        KeyError: a column is missing.
        TypeError: a stream, or a dataset of several splits.
        ValueError: contradicting options, a budget that is not positive or above the corpus, a target out of reach.
    """
    space = _check_options(law, target, space, strategy)
    perplexity, tokens = _read(dataset, perplexity_column, num_tokens_column)
    landscape = PerplexityLandscape.from_values(perplexity, tokens)
    fits = np.isfinite(perplexity) & (tokens > 0)
    check_budget(num_tokens, landscape.num_tokens)
    longer = fits & (tokens > num_tokens)
    rows = np.flatnonzero(fits & ~longer)
    if not len(rows):
        raise ValueError(f"num_tokens={num_tokens:,} is less than the shortest chunk has ({tokens[fits].min():,.0f}).")
    perplexity, tokens = perplexity[rows], tokens[rows]
    if longer.any():
        eligible = PerplexityLandscape.from_values(perplexity, tokens)
        check_budget(num_tokens, eligible.num_tokens)
    else:
        eligible = landscape
    values = np.log(perplexity) if space == "log" else perplexity

    optimum = None
    if strategy in STRATEGIES_WITH_TARGET:
        region = eligible.attainable_region(num_tokens, space)
        if law is not None:
            optimum = law.optimum(eligible, num_tokens)
            target = move_inside(region, optimum.mu, optimum.sigma)
        else:
            target = (float(target[0]), float(target[1]))
            if strategy != "regime":  # the nearest interval has no need to be near
                check_target(region, *target, num_tokens)

    chosen, solution = _choose(strategy, values, tokens, num_tokens, target, law, seed)
    if law is None and solution is not None and solution.error > FAR_OFF:
        raise ValueError(out_of_reach(region, *target, num_tokens))

    achieved = _moments(perplexity[chosen])
    mu, sigma = (achieved[name] for name in (("mu", "sigma") if space == "linear" else ("log_mu", "log_sigma")))
    if strategy == "maxent" and not np.allclose((mu, sigma), target, rtol=FAR_OFF, atol=0.0):
        warnings.warn(
            f"The subset of {len(chosen)} chunks has mu {mu:.4g} and sigma {sigma:.4g}, not {target[0]:.4g} and "
            f"{target[1]:.4g}: single chunks weigh too much. Choose a target further from the edge, or more tokens.",
            stacklevel=2,
        )
    names = ("mu", "sigma", "log_mu", "log_sigma", "num_chunks", "num_tokens")
    corpus = {name: getattr(eligible, name) for name in names}
    kept_tokens = int(tokens[chosen].sum())
    return Selection(
        indices=rows[chosen].astype(np.int64),
        strategy=strategy,
        seed=int(seed),
        space=space,
        target=target,
        budget=num_tokens,
        num_tokens=kept_tokens,
        num_chunks=len(chosen),
        achieved=achieved,
        corpus=corpus,
        dropped={
            "no_perplexity": landscape.num_skipped,
            "infinite_perplexity": landscape.num_infinite,
            "longer_than_budget": int(longer.sum()),
        },
        maxent=solution,
        optimum=optimum,
        **_predict("predicted", law, mu, sigma, kept_tokens),
        **_predict("random", law, *eligible.moments(space), kept_tokens),
    )


def _choose(
    strategy: Strategy,
    values: np.ndarray,
    tokens: np.ndarray,
    num_tokens: float,
    target: tuple[float, float] | None,
    law: ScalingLaw | None,
    seed: int,
) -> tuple[np.ndarray, MaxentSolution | None]:
    """Positions of the chosen chunks, rising, and the solution behind "maxent"."""
    solution = None
    if num_tokens >= tokens.sum():
        chosen = np.arange(len(tokens))
    elif strategy == "random":
        chosen = strategies.choose_random(tokens, num_tokens, seed)
    elif strategy == "low":
        chosen = strategies.choose_low(values, tokens, num_tokens)
    elif strategy == "high":
        chosen = strategies.choose_high(values, tokens, num_tokens)
    elif strategy == "regime":
        cost = _law_cost(law, num_tokens) if law else lambda mu, sigma: np.hypot(mu - target[0], sigma - target[1])
        chosen = strategies.choose_regime(values, tokens, num_tokens, cost)
    elif strategy == "greedy_dos":
        chosen = strategies.choose_greedy_dos(values, tokens, num_tokens, *target)
    else:
        chosen, solution = strategies.choose_maxent(values, tokens, num_tokens, *target, seed)
    return np.sort(chosen), solution


def _check_options(law: Any, target: Any, space: str | None, strategy: str) -> Space:
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is not known; the strategies are {', '.join(STRATEGIES)}.")
    if strategy in STRATEGIES_WITH_TARGET and (law is None) == (target is None):
        raise ValueError(f"strategy={strategy!r} needs a law or a target=(mu, sigma), one of the two.")
    if strategy not in STRATEGIES_WITH_TARGET and target is not None:
        raise ValueError(f"strategy={strategy!r} has no target; leave target out, or use 'maxent'.")
    if target is not None and (not isinstance(target, (tuple, list)) or len(target) != 2):
        raise ValueError(f"target={target!r} is not a pair (mu, sigma).")
    if space is not None:
        check_space(space)
    if law is not None and space not in (None, law.space):
        raise ValueError(f"space={space!r}, but the law lives in {law.space!r} space; leave space out.")
    return law.space if law is not None else space or "linear"


def _law_cost(law: ScalingLaw, num_tokens: float) -> Any:
    """Predicted loss of the intervals the probes vouch for, or if there are none, of those whose mean they cover."""
    from .optimum import trusted_region  # needs scipy.spatial, which only laws do

    def cost(mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        valid = (mu > 0) & (sigma > 0)
        trusted = trusted_region(law)
        low, high = trusted.vertices[:, 0].min(), trusted.vertices[:, 0].max()
        for covered in (trusted.contains(mu, sigma), (mu >= low) & (mu <= high)):
            if np.any(valid & covered):
                valid = valid & covered
                break
        loss = np.full(len(mu), np.nan)
        loss[valid] = law.predict(mu[valid], sigma[valid], num_tokens)
        return loss

    return cost


def _predict(name: str, law: ScalingLaw | None, mu: float, sigma: float, num_tokens: int) -> dict[str, Any]:
    """Nothing without a law, nor for one chunk, whose spread of 0 no law takes."""
    if law is None or not (mu > 0 and sigma > 0):
        return {}
    from .optimum import trusted_region

    loss = float(law.predict(mu, sigma, num_tokens))
    return {f"{name}_loss": loss, f"{name}_trusted": bool(trusted_region(law).contains(mu, sigma))}


def _moments(perplexity: np.ndarray) -> dict[str, float]:
    nll = np.log(perplexity)
    numbers = (perplexity.mean(), perplexity.std(), nll.mean(), nll.std(), perplexity.min(), perplexity.max())
    names = ("mu", "sigma", "log_mu", "log_sigma", "lowest_perplexity", "highest_perplexity")
    return {name: float(number) for name, number in zip(names, numbers)}


def _read(dataset: Any, *names: str) -> tuple[np.ndarray, ...]:
    """Columns as float64 `[n]`; None becomes NaN."""
    present = getattr(dataset, "column_names", None)
    if isinstance(present, dict):
        raise TypeError(f"The dataset has splits ({', '.join(present)}); pass one of them, like dataset['train'].")
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            "A stream has no rows to point at; use stream.filter(PerplexitySelector.from_law(...)) instead."
        )
    present = list(dataset) if present is None else present
    for name in names:
        if name not in present:
            raise KeyError(
                f"The dataset has no column {name!r}, it has {', '.join(present) or 'none'}; run "
                "dataset.map(score_ppl, batched=True) first, or pass perplexity_column= or num_tokens_column=."
            )
    if hasattr(dataset, "select_columns"):
        table = dataset.select_columns(list(names)).with_format("arrow")[:]
        columns = [table[name].to_numpy() for name in names]
    else:
        columns = [dataset[name] for name in names]
    arrays = tuple(np.array(column, dtype=np.float64) for column in columns)
    if not len(arrays[0]):
        raise ValueError("The dataset has no rows, so there is nothing to select.")
    return arrays
