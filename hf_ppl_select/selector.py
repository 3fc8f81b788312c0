"""The selector: a stateless filter that is three numbers and a seed, for shards and streams."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .landscape import BINS_PER_NAT, PerplexityLandscape
from .maxent import inclusion_probability, solve_maxent
from .saving import load_json, save_json
from .targets import FAR_OFF, Space, check_budget, check_space, check_target, move_inside, out_of_reach

if TYPE_CHECKING:
    from .scaling_law import ScalingLaw

_VERSION = 1
_NEVER = 2.0**-53  # no hash is needed to drop a row of a smaller probability


@dataclass(frozen=True)
class PerplexitySelector:
    """A stateless filter that keeps a row with probability `w(perplexity)`, decided by a seeded hash of its text.

    `w = sigmoid(lambda_0 + lambda_1 z + lambda_2 z^2)` with `z = (x - centre) / scale`, where x is perplexity or, in
    log space, its logarithm (nll). The same row is kept or not in any process, batch, shard or order. Rows whose keys
    are equal share one fate, so remove duplicates first. Rows without a finite perplexity are never kept.

    Attributes:
        lambdas: the three numbers.
        centre, scale: mu and sigma of the target.
        space: "linear" (x = perplexity) or "log" (x = nll, nats).
        seed: another seed keeps other rows of the same landscape.
        perplexity_column: the column that holds perplexity.
        key_column: the column that is hashed: text, an id, or anything JSON can hold.
        expected_num_tokens: tokens it keeps of the corpus it was made for, in expectation; None if unknown.
        num_tokens_std: standard deviation of that number (chunks of like perplexity counted as equally long).
    """

    lambdas: tuple[float, float, float]
    centre: float
    scale: float
    space: Space = "linear"
    seed: int = 0
    perplexity_column: str = "perplexity"
    key_column: str = "text"
    expected_num_tokens: float | None = None
    num_tokens_std: float | None = None
    _version: int = field(default=_VERSION, init=False, repr=False)  # part of the fingerprint `datasets` makes

    def __post_init__(self) -> None:
        object.__setattr__(self, "lambdas", tuple(float(number) for number in self.lambdas))
        numbers = (*self.lambdas, self.centre, self.scale)
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
        perplexity_column: str = "perplexity",
        key_column: str = "text",
    ) -> PerplexitySelector:
        """The maximum-entropy selector of a subset with mean `mu` and standard deviation `sigma`.

        Args:
            mu, sigma: the target, of perplexity (`space="linear"`) or of nll in nats (`space="log"`).
            landscape: of the corpus to be filtered.
            num_tokens: expected tokens to keep.
            space, seed, perplexity_column, key_column: see the class.

        Raises:
            ValueError: a budget that is not positive or above the corpus, or a target that no such subset has.
        """
        check_space(space)
        check_budget(num_tokens, landscape.num_tokens)
        region = landscape.attainable_region(num_tokens, space)
        check_target(region, mu, sigma, num_tokens)
        count, tokens, weight, u1, _, v1, _ = landscape.sums.T
        centres = (landscape.bins + 0.5) / BINS_PER_NAT
        values = centres + v1 / weight if space == "log" else np.exp(centres) * (1.0 + u1 / weight)  # exact bin means
        per_chunk = tokens / count
        solution = solve_maxent(
            values, mu, sigma, num_tokens, num_tokens=per_chunk, counts=count, weights=landscape.weights
        )
        if not solution.converged and solution.error > FAR_OFF:
            raise ValueError(out_of_reach(region, mu, sigma, num_tokens))
        w = solution.inclusion_probability(values)
        return cls(
            lambdas=solution.lambdas,
            centre=solution.centre,
            scale=solution.scale,
            space=space,
            seed=seed,
            perplexity_column=perplexity_column,
            key_column=key_column,
            expected_num_tokens=solution.num_tokens,
            num_tokens_std=float(np.sqrt(np.sum(count * per_chunk**2 * w * (1.0 - w)))),
        )

    @classmethod
    def from_law(
        cls, law: ScalingLaw, landscape: PerplexityLandscape, num_tokens: float, seed: int = 0, **columns: str
    ) -> PerplexitySelector:
        """The selector of the subset that `law` predicts to be best: its optimum for this corpus and budget.

        An optimum on the very edge of what the corpus can give is moved a little inside. `columns` may name
        `perplexity_column` and `key_column`.
        """
        check_budget(num_tokens, landscape.num_tokens)
        optimum = law.optimum(landscape, num_tokens)
        region = landscape.attainable_region(num_tokens, law.space)
        mu, sigma = move_inside(region, optimum.mu, optimum.sigma)
        return cls.from_target(
            mu, sigma, landscape=landscape, num_tokens=num_tokens, space=law.space, seed=seed, **columns
        )

    def inclusion_probability(self, perplexity: Any) -> np.ndarray:
        """w for perplexities of any shape; 0 where perplexity is NaN, infinite or not positive."""
        perplexity = np.asarray(perplexity, dtype=np.float64)
        valid = np.isfinite(perplexity) & (perplexity > 0)
        safe = np.where(valid, perplexity, 1.0)
        x = np.log(safe) if self.space == "log" else safe
        return np.where(valid, inclusion_probability(x, self.lambdas, self.centre, self.scale), 0.0)

    def __call__(self, rows: Any) -> bool | list[bool]:
        """Decide about one row (a dict) or a batch (a dict of lists): the function for `filter`, batched or not.

        Raises:
            KeyError: the perplexity or key column is missing.
            TypeError: a key that cannot be hashed.
        """
        perplexity, keys = self._column(rows, "perplexity_column"), self._column(rows, "key_column")
        if not (isinstance(perplexity, (list, tuple)) or getattr(perplexity, "ndim", 0) > 0):
            return self._decide([perplexity], [keys])[0]
        return self._decide(perplexity, keys)

    def _decide(self, perplexity: Any, keys: Any) -> list[bool]:
        w = self.inclusion_probability([np.nan if value is None else float(value) for value in perplexity])
        return [p > _NEVER and (p >= 1.0 or self._uniform(key) < p) for p, key in zip(w.tolist(), keys, strict=True)]

    def _uniform(self, key: Any) -> float:
        """A number in [0, 1) that depends on seed and key alone; 53 bits, all a float64 holds."""
        if not isinstance(key, str):
            try:
                key = json.dumps(key.tolist() if hasattr(key, "tolist") else key, sort_keys=True)
            except TypeError as error:
                raise TypeError(
                    f"Column {self.key_column!r} holds {type(key).__name__}, which has no fixed text form; "
                    "pass a key_column with text or ids."
                ) from error
        digest = hashlib.blake2b(
            key.encode("utf-8", "surrogatepass"), digest_size=8, key=str(self.seed).encode(), person=b"hf_ppl_select"
        ).digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53

    def _column(self, rows: Any, option: str) -> Any:
        name = getattr(self, option)
        if name not in rows:
            hint = "run dataset.map(score_ppl, batched=True) first, or name" if option[0] == "p" else "name"
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
