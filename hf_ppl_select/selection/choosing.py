"""One selection from candidates: the strategy, over all of them or group by group."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..landscape.attainable import AttainableRegion
from ..landscape.maxent import MaxentSolution
from ..landscape.targets import Space, check_target, move_inside
from . import baselines as strategies
from .candidates import Candidates
from .group_targets import GroupTargets, draw_steered, group_targets
from .groups import GroupBudgets, Groups, choose_in_groups, split_budget
from .replay import stream_seed
from .report import describe_groups

if TYPE_CHECKING:
    from ..law.scaling_law import ScalingLaw

_FEW_CHUNKS = 50  # a group that gives fewer is drawn at its probabilities rather than brought to its own moments
_GROUP_SEEDS = 16  # of the seed's streams, group k has number _GROUP_SEEDS + k


class Choice:
    """Chooses positions among candidates; with [`~Choice.split`], so many tokens of each group.

    Args:
        candidates: what can be chosen.
        budget: tokens, at most those of the candidates.
        space: what mu and sigma mean.
        strategy: see `plan_selection`.
        seed: of the draw.
        law: tells strategy "regime" what an interval is worth; without one that is how near it is to the target.
    """

    def __init__(
        self,
        candidates: Candidates,
        budget: float,
        *,
        space: Space,
        strategy: str,
        seed: int,
        law: ScalingLaw | None,
    ) -> None:
        self.candidates, self.budget, self.space = candidates, budget, space
        self.strategy, self.seed, self.law = strategy, seed, law
        self.values = np.log(candidates.perplexity) if space == "log" else candidates.perplexity
        self.groups: Groups | None = None
        self.budgets: GroupBudgets | None = None
        self._region: AttainableRegion | None = None
        self._targets: tuple[tuple[float, float], GroupTargets] | None = None

    @property
    def region(self) -> AttainableRegion:
        """What subsets of this size can reach, whatever their groups."""
        if self._region is None:
            self._region = self.candidates.landscape.attainable_region(self.budget, self.space)
        return self._region

    def split(
        self,
        groups: Groups,
        group_num_tokens: Mapping[Any, float] | None = None,
        min_group_tokens: float | Mapping[Any, float] | None = None,
    ) -> None:
        """Give each group its budget; `groups` are those of the candidates."""
        tokens = self.candidates.tokens
        self.groups = groups
        self.budgets = split_budget(
            groups, tokens, self.budget, group_num_tokens=group_num_tokens, min_group_tokens=min_group_tokens
        )
        if isinstance(min_group_tokens, Mapping) or min_group_tokens is None:
            floors = min_group_tokens or {}
        else:
            floors = dict.fromkeys(groups.names, min_group_tokens)
        has = dict(zip(groups.names, groups.sum(tokens)))
        if short := [name for name, floor in floors.items() if has[name] < floor]:
            some = ", ".join(map(repr, short[:5])) + (", ..." if len(short) > 5 else "")
            warnings.warn(
                f"{len(short)} groups have fewer tokens than min_group_tokens and give all they have: {some}.",
                stacklevel=4,
            )

    def check(self, mu: float, sigma: float) -> None:
        """ValueError if nothing that can be chosen has these moments."""
        check_target(self.region, mu, sigma, self.budget)
        if self.groups is not None and not self._group_targets(mu, sigma).reached:
            raise ValueError(
                f"With these budgets of the groups no subset has mean {mu:.4g} and standard deviation {sigma:.4g} "
                f"(space {self.space!r}), though without groups one has. Choose a target nearer to the corpus's, or "
                "other budgets."
            )

    def bring_in_reach(self, mu: float, sigma: float) -> tuple[float, float]:
        """The target, or the nearest one in reach: with groups on the line to a random subset with these budgets."""
        mu, sigma = move_inside(self.region, mu, sigma)
        if self.groups is None or self._group_targets(mu, sigma).reached:
            return mu, sigma
        random_mu, random_sigma = self._random_moments()
        out, inside = 0.0, 1.0  # shares of the way to the random subset
        for _ in range(20):
            share = 0.5 * (out + inside)
            moved = mu + share * (random_mu - mu), sigma + share * (random_sigma - sigma)
            out, inside = (out, share) if self._group_targets(*moved).reached else (share, inside)
        share = min(1.0, inside + 0.02)
        return mu + share * (random_mu - mu), sigma + share * (random_sigma - sigma)

    def choose(self, target: tuple[float, float] | None) -> tuple[np.ndarray, MaxentSolution | None]:
        """Positions among the candidates, rising; and the solution behind "maxent" without groups."""
        tokens = self.candidates.tokens
        if self.budget >= tokens.sum():
            return np.arange(len(tokens)), None
        if self.groups is None:
            chosen, solution = self._choose(np.arange(len(tokens)), self.budget, target, self.seed)
            return np.sort(chosen), solution
        return self._choose_in_groups(target), None

    def describe(self, chosen: np.ndarray) -> list[dict[str, Any]] | None:
        """What was chosen of each group; None without groups."""
        if self.groups is None:
            return None
        return describe_groups(
            self.groups, self.candidates.perplexity, self.candidates.tokens, chosen, self.budgets.budgets
        )

    def _choose(
        self, rows: np.ndarray, budget: float, target: tuple[float, float] | None, seed: int
    ) -> tuple[np.ndarray, MaxentSolution | None]:
        """Some of `rows`, by the strategy."""
        values, tokens, solution = self.values[rows], self.candidates.tokens[rows], None
        if self.strategy == "random":
            chosen = strategies.choose_random(tokens, budget, seed)
        elif self.strategy == "low":
            chosen = strategies.choose_low(values, tokens, budget)
        elif self.strategy == "high":
            chosen = strategies.choose_high(values, tokens, budget)
        elif self.strategy == "middle":
            chosen = strategies.choose_middle(values, tokens, budget)
        elif self.strategy == "regime":
            chosen = strategies.choose_regime(values, tokens, budget, self._cost(target))
        elif self.strategy == "greedy_dos":
            chosen = strategies.choose_greedy_dos(values, tokens, budget, *target)
        else:
            chosen, solution = strategies.choose_maxent(values, tokens, budget, *target, seed)
        return rows[chosen], solution

    def _choose_in_groups(self, target: tuple[float, float] | None) -> np.ndarray:
        """Each group by the strategy; its target, if it has one, is its part of the joint one."""
        tokens = self.candidates.tokens
        joint = self.strategy in ("maxent", "greedy_dos")
        if not joint:
            return choose_in_groups(
                self.groups,
                tokens,
                self.budgets,
                lambda k, rows, budget: self._choose(rows, budget, target, self._group_seed(k))[0],
            )
        targets = self._group_targets(*target)
        z = (self.values - target[0]) / target[1]
        sums, off = np.zeros(3), np.zeros(2)  # number, sum of z, of z^2 so far; their excess over what was expected
        last = int(np.lexsort((self.budgets.budgets, self.budgets.flexible))[-1])

        def choose(k: int, rows: np.ndarray, budget: float) -> np.ndarray:
            if self.strategy == "maxent" and targets.num_chunks[k] < _FEW_CHUNKS:
                w, rng = targets.inclusion(k, z[rows]), np.random.default_rng(self._group_seed(k))
                chosen = rows[draw_steered(w, z[rows], tokens[rows], budget, off, rng)]
                off[:] += z[chosen].sum() - w @ z[rows], (z[chosen] ** 2 - 1).sum() - w @ (z[rows] ** 2 - 1)
                return chosen
            mu, sigma = targets.of_last(k, sums, *target) if k == last else (targets.mu[k], targets.sigma[k])
            if not (np.isfinite(mu) and sigma > 1e-9 * target[1]):  # nothing to choose by: one value, or one chunk
                return rows[strategies.choose_random(tokens[rows], budget, self._group_seed(k))]
            return self._choose(rows, budget, (float(mu), float(sigma)), self._group_seed(k))[0]

        def count(rows: np.ndarray) -> None:
            sums[:] += (len(rows), z[rows].sum(), z[rows] @ z[rows])

        return choose_in_groups(self.groups, tokens, self.budgets, choose, count)

    def _group_seed(self, group: int) -> int:
        return stream_seed(self.seed, _GROUP_SEEDS + group)

    def _group_targets(self, mu: float, sigma: float) -> GroupTargets:
        if self._targets is None or self._targets[0] != (mu, sigma):  # asked for when checked, and again when chosen
            budgets, tokens = self.budgets.budgets, self.candidates.tokens
            self._targets = (mu, sigma), group_targets(self.groups, self.values, tokens, budgets, mu, sigma)
        return self._targets[1]

    def _random_moments(self) -> tuple[float, float]:
        """Mean and standard deviation of a random subset with the groups' budgets."""
        has = self.groups.sum(self.candidates.tokens)
        share = np.where(has > 0, self.budgets.budgets / np.maximum(has, 1e-300), 0.0)[self.groups.codes]
        mean = share @ self.values / share.sum()
        return float(mean), float(np.sqrt(share @ (self.values - mean) ** 2 / share.sum()))

    def _cost(self, target: tuple[float, float] | None) -> Any:
        """What an interval costs: its distance to the target, or its predicted loss where the probes vouch for it.

        If there is no such interval, of those whose mean the probes cover.
        """
        if self.law is None:
            return lambda mu, sigma: np.hypot(mu - target[0], sigma - target[1])
        from ..law.optimum import trusted_region  # needs scipy.spatial, which only laws do

        def cost(mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
            valid = (mu > 0) & (sigma > 0)
            trusted = trusted_region(self.law)
            low, high = trusted.vertices[:, 0].min(), trusted.vertices[:, 0].max()
            for covered in (trusted.contains(mu, sigma), (mu >= low) & (mu <= high)):
                if np.any(valid & covered):
                    valid = valid & covered
                    break
            loss = np.full(len(mu), np.nan)
            loss[valid] = self.law.predict(mu[valid], sigma[valid], self.budget)
            return loss

        return cost
