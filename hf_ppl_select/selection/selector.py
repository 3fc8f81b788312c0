"""The selector: a stateless filter that is a few numbers and a seed, for shards and streams."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from ..data.saving import load_json, save_json
from ..data.schema import Number, Numbers, Text, check, maybe
from ..landscape.joint import JointLandscape
from ..landscape.landscape import PerplexityLandscape
from ..landscape.maxent import line_of, nearest, solve
from ..landscape.reach import Space, check_budget, check_space
from ..landscape.scores import (
    Column,
    Moment,
    as_column,
    as_moment,
    check_log_space,
    check_one_column,
    in_words,
    names_of,
)
from .candidates import check_guards
from .row_hash import uniform_numbers

if TYPE_CHECKING:
    from ..law.optimum import Optimum
    from ..law.scaling_law import ScalingLaw

_VERSION = 3  # 1 hashed whole numbers as text; 2 had z^2 where z^2 - 1 is now
_BLOCK = 1 << 16  # rows decided together: memory does not grow with the batch
_MOMENT = (Number(-1e100, 1e100), Numbers(Number(-1e100, 1e100), size=2))
_SCHEMA = {
    "lambdas": Numbers(),
    "centre": _MOMENT,
    "scale": _MOMENT,
    "space?": Text(),
    "seed?": Number(-(2**64), 2**64, whole=True),
    "column?": (Text(), [Text()]),
    "key_column?": Text(),
    "farthest?": maybe(Number(1e-100)),
    **dict.fromkeys(("min_score?", "max_score?"), maybe(Number())),
    **{f"{name}?": maybe(Number(0, 1e18)) for name in ("expected_num_tokens", "num_tokens_std")},
    **{f"{name}?": maybe(_MOMENT) for name in ("expected_mu", "expected_sigma", "mu_std", "sigma_std")},
}
_NEVER = 2.0**-53  # no hash is needed to drop a row of a smaller probability


@dataclass(frozen=True)
class PerplexitySelector:
    """A stateless filter that keeps a row with probability `w(score)`, decided by a seeded hash of its text.

    `w = sigmoid(l + lambda_1 z + lambda_2 (z^2 - 1))` with `z = (x - centre) / scale`, where x is the score or, in
    log space, its logarithm: see [`~hf_ppl_select.landscape.maxent`]. The same row is kept or not in any
    process, batch, shard or order. Rows whose keys are equal share one fate, so remove duplicates first. Rows without
    a finite score are never kept.

    Of two score columns w has a term z and a term z^2 - 1 of each, and needs both scores: always in log space.

    Attributes:
        lambdas: the three numbers (l, lambda_1, lambda_2); of two columns five, l, then of each z, of each z^2 - 1.
        centre, scale: mu and sigma of the target; of two columns pairs, and so are the expected moments and their
            standard errors.
        space: "linear" (x = score) or "log" (x = its logarithm, nats).
        seed: another seed keeps other rows of the same landscape.
        column: the score: perplexity, or another column of positive numbers; or two, `(first, second)`.
        key_column: the column that is hashed: text, or an id. Whole numbers are mixed many at once (splitmix64, some
            10 ns a row), texts one at a time (keyed BLAKE2b, some 2 us for 600 bytes); see `row_hash`.
        farthest: rows with |z| above this are never kept: no subset with such moments can hold them. None: no bound.
        expected_num_tokens: tokens it keeps of the corpus it was made for, in expectation; None if unknown.
        num_tokens_std: standard deviation of that number (chunks of like score counted as equally long).
        expected_mu, expected_sigma: moments of what it keeps, in `space`, in expectation.
        mu_std, sigma_std: standard errors of them, over seeds (to first order: for hundreds of rows kept, and more).
        min_score, max_score: guards of a single score: rows outside are never kept. The landscape that it was made
            for is then that of the rows inside.
    """

    lambdas: tuple[float, ...]
    centre: Moment
    scale: Moment
    space: Space = "linear"
    seed: int = 0
    column: Column = "perplexity"
    key_column: str = "text"
    farthest: float | None = None
    expected_num_tokens: float | None = None
    num_tokens_std: float | None = None
    expected_mu: Moment | None = None
    expected_sigma: Moment | None = None
    mu_std: Moment | None = None
    sigma_std: Moment | None = None
    min_score: float | None = None
    max_score: float | None = None
    _version: int = field(default=_VERSION, init=False, repr=False)  # part of the fingerprint `datasets` makes

    def __post_init__(self) -> None:
        check({name: value for name, value in vars(self).items() if name != "_version"}, _SCHEMA, "the selector")
        object.__setattr__(self, "lambdas", tuple(float(number) for number in self.lambdas))
        object.__setattr__(self, "column", as_column(self.column))
        number = len(names_of(self.column))
        if number > 1:
            check_log_space(self.space)
            for name in ("centre", "scale", "expected_mu", "expected_sigma", "mu_std", "sigma_std"):
                if getattr(self, name) is not None:  # lists, in a file
                    object.__setattr__(self, name, as_moment(getattr(self, name)))
        centre, scale = (np.ravel(moment).tolist() for moment in (self.centre, self.scale))
        numbers = (*self.lambdas, *centre, *scale, self.farthest or 1.0)
        sizes = (len(self.lambdas), len(centre), len(scale))
        if sizes != (1 + 2 * number, number, number) or not np.isfinite(numbers).all() or min(scale) <= 0:
            of = "three finite lambdas, a finite centre and a scale"
            if number > 1:
                of = f"five finite lambdas, two finite centres and two scales for {in_words(self.column)}, all scales"
            raise ValueError(f"A selector needs {of} above 0; got {numbers}.")
        check_space(self.space)
        check_guards(self.min_score, self.max_score)
        if number > 1 and (self.min_score, self.max_score) != (None, None):
            check_one_column(self.column, "a selector with guards")

    @classmethod
    def from_target(
        cls,
        mu: Moment,
        sigma: Moment,
        *,
        landscape: PerplexityLandscape | JointLandscape,
        num_tokens: float,
        space: Space | None = None,
        seed: int = 0,
        key_column: str = "text",
    ) -> PerplexitySelector:
        """The maximum-entropy selector of a subset with mean `mu` and standard deviation `sigma`.

        Args:
            mu, sigma: the target, of the score (`space="linear"`) or its logarithm in nats (`space="log"`); of two
                columns pairs, in the landscape's order.
            landscape: of the corpus to be filtered; its column, or columns, are the selector's.
            num_tokens: expected tokens to keep.
            space: "linear" if not given, of two columns "log".
            seed, key_column: see the class.

        Raises:
            ValueError: a budget that is not positive or above the corpus, or a target that no such subset has.
        """
        space = space or ("linear" if isinstance(landscape.column, str) else "log")
        check_space(space)
        check_budget(num_tokens, landscape.num_tokens)
        tilt = solve(landscape.cells(space), mu, sigma, np.array([num_tokens]))
        if not tilt.reached:
            raise ValueError(landscape.out_of_reach(num_tokens, space, mu, sigma))
        moments = {f"expected_{name}": getattr(tilt, name) for name in ("mu", "sigma")}
        moments |= {name: getattr(tilt, name) for name in ("mu_std", "sigma_std")}
        if isinstance(landscape.column, str):
            moments = {name: moment for name, (moment,) in moments.items()}
        return cls(
            lambdas=(*tilt.levels, *tilt.lambdas),
            centre=as_moment(mu),
            scale=as_moment(sigma),
            space=space,
            seed=seed,
            column=landscape.column,
            key_column=key_column,
            farthest=tilt.farthest,
            expected_num_tokens=tilt.num_tokens,
            num_tokens_std=tilt.num_tokens_std,
            **moments,
        )

    @classmethod
    def from_law(
        cls,
        law: ScalingLaw,
        landscape: PerplexityLandscape | JointLandscape,
        num_tokens: float,
        seed: int = 0,
        key_column: str = "text",
    ) -> PerplexitySelector:
        """The selector of the subset that `law` predicts to be best: its optimum for this corpus and budget.

        An optimum on the very edge of what the corpus can give is moved a little inside.
        """
        check_budget(num_tokens, landscape.num_tokens)
        optimum = law.optimum(landscape, num_tokens)
        return cls.from_optimum(optimum, landscape, seed=seed, key_column=key_column)

    @classmethod
    def from_optimum(
        cls,
        optimum: Optimum,
        landscape: PerplexityLandscape | JointLandscape,
        *,
        seed: int = 0,
        key_column: str = "text",
    ) -> PerplexitySelector:
        """As [`~PerplexitySelector.from_law`], with an optimum that `law.optimum` found for the same landscape."""
        space, num_tokens = optimum.space, optimum.num_tokens
        near = nearest(landscape.cells(space), *map(np.atleast_1d, (optimum.mu, optimum.sigma)), [num_tokens])
        mu, sigma = (moment if len(moment) > 1 else moment[0] for moment in near)
        return cls.from_target(
            mu, sigma, landscape=landscape, num_tokens=num_tokens, space=space, seed=seed, key_column=key_column
        )

    def inclusion_probability(self, scores: Any) -> np.ndarray:
        """w for scores of any shape, of two columns `(..., 2)`.

        It is 0 where a score is NaN, infinite or not positive, and outside the guards.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if isinstance(self.column, str):
            scores = scores[..., None]
        elif scores.shape[-1:] != (2,):
            raise ValueError(f"scores of {in_words(self.column)} must be (..., 2), got {scores.shape}.")
        valid = np.isfinite(scores) & (scores > 0)
        if self.min_score is not None:
            valid &= scores >= self.min_score
        if self.max_score is not None:
            valid &= scores <= self.max_score
        safe = np.where(valid, scores, 1.0)
        x = np.log(safe) if self.space == "log" else safe
        level, *lambdas = self.lambdas
        farthest = np.inf if self.farthest is None else self.farthest
        centre, scale = np.ravel(self.centre), np.ravel(self.scale)
        line = line_of(x.reshape(-1, x.shape[-1]), centre, scale, lambdas, farthest)
        return np.where(valid.all(axis=-1), expit(level + line).reshape(x.shape[:-1]), 0.0)

    def __call__(self, rows: Any) -> bool | list[bool]:
        """Decide about one row (a dict) or a batch (a dict of lists): the function for `filter`, batched or not.

        Raises:
            KeyError: the score or key column is missing.
            TypeError: a key that cannot be hashed.
        """
        scores = [self._column(rows, name, "column") for name in names_of(self.column)]
        keys = self._column(rows, self.key_column, "key_column")
        is_batch = isinstance(scores[0], (list, tuple)) or getattr(scores[0], "ndim", 0) > 0
        if not is_batch:
            scores, keys = [[score] for score in scores], [keys]
        if len(set(map(len, scores))) > 1:
            raise ValueError(f"{in_words(self.column)} have {' and '.join(str(len(x)) for x in scores)} values.")
        kept = self.keep(scores[0] if len(scores) == 1 else np.array(scores, dtype=np.float64).T, keys)
        return kept.tolist() if is_batch else bool(kept[0])

    def keep(self, scores: Any, keys: Any) -> np.ndarray:
        """Decide about columns: bool `[n]`. Arrays of whole-number keys take some 50 ns a row.

        Args:
            scores: `[n]`, of two columns `[n, 2]`; None, NaN and infinity are never kept.
            keys: `[n]`, what the key column holds.

        Raises:
            ValueError: the columns differ in length.
            TypeError: a key that cannot be hashed.
        """
        if len(scores) != len(keys):
            raise ValueError(f"{in_words(self.column)} has {len(scores)} values, the keys are {len(keys)}.")
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

    def _column(self, rows: Any, name: str, option: str) -> Any:
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

        def read(d: dict[str, Any], where: str) -> PerplexitySelector:
            check(d, _SCHEMA, where)
            return cls(**d)

        return load_json(path, kind="perplexity_selector", version=_VERSION, read=read)
