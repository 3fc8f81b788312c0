"""One selection from candidates: the strategy, over all of them or group by group."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from ..landscape.cells import Cells
from ..landscape.drawing import choose, until_full
from ..landscape.maxent import Tilt, nearest, solve
from ..landscape.reach import Space
from ..landscape.scores import Moment, digits
from . import baselines
from .candidates import Candidates
from .groups import GroupBudgets, Groups, choose_in_groups, describe_groups, split_budget
from .replay import stream_seed

if TYPE_CHECKING:
    from ..law.scaling_law import ScalingLaw

_GROUP_SEEDS = 16  # of the seed's streams, group k has number _GROUP_SEEDS + k


class Choice:
    """Chooses positions among candidates; with groups, so many tokens of each.

    Args:
        candidates: what can be chosen.
        budget: tokens, at most those of the candidates.
        space: what mu and sigma mean.
        strategy: see `plan_selection`.
        seed: of the draw.
        law: tells strategy "regime" what an interval is worth; without one that is how near it is to the target.
        groups: of the candidates, or None.
        group_num_tokens, min_group_tokens: see [`~hf_ppl_select.selection.groups.split_budget`].
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
        groups: Groups | None = None,
        group_num_tokens: Mapping[Any, float] | None = None,
        min_group_tokens: float | Mapping[Any, float] | None = None,
    ) -> None:
        self.candidates, self.tokens, self.budget = candidates, candidates.tokens, budget
        self.space, self.strategy, self.seed, self.law, self.groups = space, strategy, seed, law, groups
        self.values = np.log(candidates.scores) if space == "log" else candidates.scores
        self.columns = self.values.reshape(len(self.tokens), -1)  # [n, c]
        self.split: GroupBudgets | None = None
        self._tilts: dict[Any, Tilt] = {}
        if groups is not None:
            limits = {"group_num_tokens": group_num_tokens, "min_group_tokens": min_group_tokens}
            self.split = split_budget(groups, self.tokens, budget, **limits)

    @property
    def budgets(self) -> np.ndarray:
        return np.array([float(self.budget)]) if self.split is None else self.split.budgets

    @cached_property
    def cells(self) -> Cells:
        if self.groups is None and self.values.ndim == 1:
            return self.candidates.landscape.cells(self.space)
        return Cells.of_rows(self.columns, self.tokens, None if self.groups is None else self.groups.codes)

    def tilt(self, mu: Moment, sigma: Moment) -> Tilt:
        """The maximum-entropy selection with these moments."""
        if (mu, sigma) not in self._tilts:
            self._tilts[mu, sigma] = solve(self.cells, mu, sigma, self.budgets)
        return self._tilts[mu, sigma]

    def check(self, mu: Moment, sigma: Moment) -> None:
        """ValueError if nothing that can be chosen has these moments."""
        if self.tilt(mu, sigma).reached:
            return
        landscape = self.candidates.landscape
        if self.groups is None or not solve(landscape.cells(self.space), mu, sigma, [self.budget]).reached:
            raise ValueError(landscape.out_of_reach(self.budget, self.space, mu, sigma))
        near_mu, near_sigma = self.bring_in_reach(mu, sigma)
        raise ValueError(
            f"With these budgets of the groups no subset has mean {digits(mu)} and standard deviation {digits(sigma)} "
            f"(space {self.space!r}), though without groups one has; near to it is mean {digits(near_mu)}, standard "
            f"deviation {digits(near_sigma)}. Choose that, or other budgets."
        )

    def bring_in_reach(self, mu: Moment, sigma: Moment) -> tuple[Moment, Moment]:
        """The target, or one near to it that can be chosen."""
        if self.values.ndim > 1:
            return nearest(self.cells, mu, sigma, self.budgets)
        (mu,), (sigma,) = nearest(self.cells, (mu,), (sigma,), self.budgets)
        return mu, sigma

    def choose(self, target: tuple[Moment, Moment] | None) -> tuple[np.ndarray, Tilt | None]:
        """Positions among the candidates, rising; and the tilt behind "maxent"."""
        if self.budget >= self.tokens.sum():
            return np.arange(len(self.tokens)), None
        if self.strategy == "maxent":
            codes = None if self.groups is None else self.groups.codes
            rows, tilt = choose(
                self.tilt(*target), self.columns, self.tokens, self.budgets, self._fill, self.seed, codes
            )
            return np.sort(rows), tilt
        if self.groups is None:
            return np.sort(self._choose(np.arange(len(self.tokens)), self.budget, target, self.seed)), None
        targets = self._group_targets(target) if self.strategy == "greedy_dos" else [target] * len(self.groups.names)
        return choose_in_groups(
            self.groups,
            self.tokens,
            self.split,
            lambda k, rows, budget: self._choose(rows, budget, targets[k], stream_seed(self.seed, _GROUP_SEEDS + k)),
        ), None

    def describe(self, chosen: np.ndarray) -> list[dict[str, Any]] | None:
        """What was chosen of each group; None without groups."""
        if self.groups is None:
            return None
        return describe_groups(self.groups, self.candidates.scores, self.tokens, chosen, self.budgets)

    def _fill(self, late: np.ndarray) -> np.ndarray:
        if self.groups is None:
            return until_full(late, self.tokens, self.budget)
        return choose_in_groups(
            self.groups,
            self.tokens,
            self.split,
            lambda k, rows, budget: rows[until_full(late[rows], self.tokens[rows], budget)],
        )

    def _choose(self, rows: np.ndarray, budget: float, target: tuple[float, float] | None, seed: int) -> np.ndarray:
        """Some of `rows`, by a strategy other than "maxent"."""
        values, tokens = self.values[rows], self.tokens[rows]
        if target is not None and not target[1] > 0:  # one value: nothing to choose by
            return rows[baselines.choose_ranked("random", values, tokens, budget, seed)]
        if self.strategy == "regime":
            return rows[baselines.choose_regime(values, tokens, budget, self._cost(target))]
        if self.strategy == "greedy_dos":
            return rows[baselines.choose_greedy_dos(values, tokens, budget, *target)]
        return rows[baselines.choose_ranked(self.strategy, values, tokens, budget, seed)]

    def _group_targets(self, target: tuple[float, float]) -> list[tuple[float, float]]:
        """The moments each group has under the joint maximum-entropy selection: together they are the target."""
        w = expit(self.tilt(*target).logit(self.columns, self.groups.codes))
        kept = np.maximum(self.groups.sum(w), 1e-300)
        mean = self.groups.sum(w * self.values) / kept
        spread = np.sqrt(self.groups.sum(w * (self.values - mean[self.groups.codes]) ** 2) / kept)
        return [(float(m), float(s) if s > 1e-9 * target[1] else 0.0) for m, s in zip(mean, spread)]

    def _cost(self, target: tuple[float, float] | None) -> Any:
        """What an interval costs: its distance to the target, or its predicted loss where the probes vouch for it.

        If there is no such interval, of those whose mean the probes cover.
        """
        if self.law is None:
            return lambda mu, sigma: np.hypot(mu - target[0], sigma - target[1])
        from ..law.optimum import trusted_region  # needs scipy.spatial, which only laws do

        def cost(mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
            valid, trusted = (mu > 0) & (sigma > 0), trusted_region(self.law)
            low, high = trusted.vertices[:, 0].min(), trusted.vertices[:, 0].max()
            loss = self.law.predict(np.where(valid, mu, 1.0), np.where(valid, sigma, 1.0), self.budget)
            beyond = 1e3 * ~trusted.contains(mu, sigma) + 1e6 * ((mu < low) | (mu > high))
            return np.where(valid, loss + beyond, np.nan)

        return cost
