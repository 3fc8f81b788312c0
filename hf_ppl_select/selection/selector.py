"""The selector: a stateless filter that is three numbers and a seed, for shards and streams."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from ..data.saving import load_json, save_json
from ..landscape.landscape import PerplexityLandscape
from ..landscape.maxent import line_of, nearest, solve
from ..landscape.reach import Space, check_budget, check_space, out_of_reach
from .row_hash import uniform_numbers

if TYPE_CHECKING:
    from ..law.scaling_law import ScalingLaw

_VERSION = 3  # 1 hashed whole numbers as text; 2 had z^2 where z^2 - 1 is now
_BLOCK = 1 << 16  # rows decided together: memory does not grow with the batch
_NEVER = 2.0**-53  # no hash is needed to drop a row of a smaller probability


@dataclass(frozen=True)
class PerplexitySelector:
    """A stateless filter that keeps a row with probability `w(score)`, decided by a seeded hash of its text.

    `w = sigmoid(l + lambda_1 z + lambda_2 (z^2 - 1))` with `z = (x - centre) / scale`, where x is the score or, in
    log space, its logarithm: see [`~hf_ppl_select.landscape.maxent`]. The same row is kept or not in any
    process, batch, shard or order. Rows whose keys are equal share one fate, so remove duplicates first. Rows without
    a finite score are never kept.

    Attributes:
        lambdas: the three numbers (l, lambda_1, lambda_2).
        centre, scale: mu and sigma of the target.
        space: "linear" (x = score) or "log" (x = its logarithm, nats).
        seed: another seed keeps other rows of the same landscape.
        column: the score: perplexity, or another column of positive numbers.
        key_column: the column that is hashed: text, or an id. Whole numbers are mixed many at once (splitmix64, some
            10 ns a row), texts one at a time (keyed BLAKE2b, some 2 us for 600 bytes); see `row_hash`.
        farthest: rows with |z| above this are never kept: no subset with such moments can hold them. None: no bound.
        expected_num_tokens: tokens it keeps of the corpus it was made for, in expectation; None if unknown.
        num_tokens_std: standard deviation of that number (chunks of like score counted as equally long).
        expected_mu, expected_sigma: moments of what it keeps, in `space`, in expectation.
        mu_std, sigma_std: standard errors of them, over seeds (to first order: for hundreds of rows kept, and more).
    """

    lambdas: tuple[float, float, float]
    centre: float
    scale: float
    space: Space = "linear"
    seed: int = 0
    column: str = "perplexity"
    key_column: str = "text"
    farthest: float | None = None
    expected_num_tokens: float | None = None
    num_tokens_std: float | None = None
    expected_mu: float | None = None
    expected_sigma: float | None = None
    mu_std: float | None = None
    sigma_std: float | None = None
    _version: int = field(default=_VERSION, init=False, repr=False)  # part of the fingerprint `datasets` makes

    def __post_init__(self) -> None:
        object.__setattr__(self, "lambdas", tuple(float(number) for number in self.lambdas))
        numbers = (*self.lambdas, self.centre, self.scale, self.farthest or 1.0)
        if len(self.lambdas) != 3 or not np.isfinite(numbers).all() or self.scale <= 0:
            raise ValueError(
                f"A selector needs three finite lambdas, a finite centre and a scale above 0; got {numbers}."
            )
        check_space(self.space)

    @classmethod
    def from_target(
        cls,
        mu: float,
        sigma: float,
        *,
        landscape: PerplexityLandscape,
        num_tokens: float,
        space: Space = "linear",
        seed: int = 0,
        key_column: str = "text",
    ) -> PerplexitySelector:
        """The maximum-entropy selector of a subset with mean `mu` and standard deviation `sigma`.

        Args:
            mu, sigma: the target, of the score (`space="linear"`) or its logarithm in nats (`space="log"`).
            landscape: of the corpus to be filtered; its column is the selector's.
            num_tokens: expected tokens to keep.
            space, seed, key_column: see the class.

        Raises:
            ValueError: a budget that is not positive or above the corpus, or a target that no such subset has.
        """
        check_space(space)
        check_budget(num_tokens, landscape.num_tokens)
        tilt = solve(landscape.cells(space), (mu,), (sigma,), np.array([num_tokens]))
        if not tilt.reached:
            raise ValueError(out_of_reach(landscape.attainable_region(num_tokens, space), mu, sigma))
        return cls(
            lambdas=(*tilt.levels, *tilt.lambdas),
            centre=float(mu),
            scale=float(sigma),
            space=space,
            seed=seed,
            column=landscape.column,
            key_column=key_column,
            farthest=tilt.farthest,
            expected_num_tokens=tilt.num_tokens,
            num_tokens_std=tilt.num_tokens_std,
            expected_mu=tilt.mu[0],
            expected_sigma=tilt.sigma[0],
            mu_std=tilt.mu_std[0],
            sigma_std=tilt.sigma_std[0],
        )

    @classmethod
    def from_law(
        cls,
        law: ScalingLaw,
        landscape: PerplexityLandscape,
        num_tokens: float,
        seed: int = 0,
        key_column: str = "text",
    ) -> PerplexitySelector:
        """The selector of the subset that `law` predicts to be best: its optimum for this corpus and budget.

        An optimum on the very edge of what the corpus can give is moved a little inside.
        """
        check_budget(num_tokens, landscape.num_tokens)
        optimum = law.optimum(landscape, num_tokens)
        cells = landscape.cells(law.space)
        (mu,), (sigma,) = nearest(cells, (optimum.mu,), (optimum.sigma,), np.array([num_tokens]))
        return cls.from_target(
            mu, sigma, landscape=landscape, num_tokens=num_tokens, space=law.space, seed=seed, key_column=key_column
        )

    def inclusion_probability(self, scores: Any) -> np.ndarray:
        """w for scores of any shape; 0 where a score is NaN, infinite or not positive."""
        scores = np.asarray(scores, dtype=np.float64)
        valid = np.isfinite(scores) & (scores > 0)
        safe = np.where(valid, scores, 1.0)
        x = np.log(safe) if self.space == "log" else safe
        level, *lambdas = self.lambdas
        farthest = np.inf if self.farthest is None else self.farthest
        line = line_of(x.reshape(-1, 1), (self.centre,), (self.scale,), lambdas, farthest)
        return np.where(valid, expit(level + line).reshape(x.shape), 0.0)

    def __call__(self, rows: Any) -> bool | list[bool]:
        """Decide about one row (a dict) or a batch (a dict of lists): the function for `filter`, batched or not.

        Raises:
            KeyError: the score or key column is missing.
            TypeError: a key that cannot be hashed.
        """
        scores, keys = self._column(rows, "column"), self._column(rows, "key_column")
        if not (isinstance(scores, (list, tuple)) or getattr(scores, "ndim", 0) > 0):
            return bool(self.keep([scores], [keys])[0])
        return self.keep(scores, keys).tolist()

    def keep(self, scores: Any, keys: Any) -> np.ndarray:
        """Decide about columns: bool `[n]`. Arrays of whole-number keys take some 50 ns a row.

        Args:
            scores: `[n]`; None, NaN and infinity are never kept.
            keys: `[n]`, what the key column holds.

        Raises:
            ValueError: the columns differ in length.
            TypeError: a key that cannot be hashed.
        """
        if len(scores) != len(keys):
            raise ValueError(f"{self.column} has {len(scores)} values, the keys are {len(keys)}.")
        kept = np.zeros(len(scores), dtype=bool)
        for start in range(0, len(kept), _BLOCK):
            rows = slice(start, start + _BLOCK)
            w = self.inclusion_probability(np.array(scores[rows], dtype=np.float64))
            here = w >= 1.0
            open_ = np.flatnonzero((w > _NEVER) & ~here)
            some = keys[rows]
            some = some[open_] if isinstance(some, np.ndarray) else [some[i] for i in open_.tolist()]
            here[open_] = uniform_numbers(some, self.seed, self.key_column) < w[open_]
            kept[rows] = here
        return kept

    def _column(self, rows: Any, option: str) -> Any:
        name = getattr(self, option)
        if name not in rows:
            hint = "run dataset.map(score_ppl, batched=True) first, or name" if option == "column" else "name"
            raise KeyError(
                f"The rows have no column {name!r}, they have {sorted(rows)}; {hint} another column with "
                f"dataclasses.replace(selector, {option}=...)."
            )
        return rows[name]

    def save(self, path: str | os.PathLike) -> None:
        """Save as JSON (kind "perplexity_selector")."""
        state = {name: value for name, value in asdict(self).items() if name != "_version"}
        save_json(path, state, kind="perplexity_selector", version=_VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike) -> PerplexitySelector:
        """Load what [`~PerplexitySelector.save`] wrote; it selects the same rows."""
        return cls(**load_json(path, kind="perplexity_selector", version=_VERSION))
