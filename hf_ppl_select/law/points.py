"""The table of law points: what probe runs measured, and what a scaling law is fitted to.

One row is one evaluation of one probe: the run's name, the moments of the landscape of the chunks it had trained on by
then, how many tokens that was, and the held-out loss. The moments of perplexity are called mu, sigma, log_mu and
log_sigma; those of another score column carry its name, mu_perplexity_ratio and so on. Rows that share a `run` come
from one training run and are correlated, so everything that estimates an error (leave-one-out, bootstrap) leaves out
or draws whole runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..data.rows_file import read_rows, write_rows
from ..data.saving import one_at_a_time
from ..data.strict import check_text
from ..landscape.reach import log_name
from ..landscape.scores import Column, names_of

Space = Literal["linear", "log"]
REQUIRED_FIELDS = ("run", "mu", "sigma", "num_tokens", "loss")
MOMENTS = ("mu", "sigma", "log_mu", "log_sigma")
_ABOVE = {"mu": "more than 0", "sigma": "0 or more", "log_mu": "more than 0", "log_sigma": "0 or more"}
_OF_A_SCORE, _OF_A_LOG = (1e-100, 1e100), (1e-100, 1e4)  # smallest and largest: what is squared and summed is finite
_OF_A_LOSS, _OF_TOKENS = (1e-9, 1e6), (1e-9, 1e18)  # nats per token; tokens


@dataclass(frozen=True, eq=False)
class LawPoints:
    """Validated law points as columns of equal length n.

    Attributes:
        run: names of the probe runs (str).
        num_tokens: training tokens seen, D.
        loss: held-out domain loss, nats per token.
        general_loss: held-out general loss, nats per token; NaN where absent.
        scores: by score column the moments `(n, 4)`: mean and standard deviation of the score, then of its logarithm
            in nats (of nll, where the score is perplexity); NaN where absent.
    """

    run: np.ndarray
    num_tokens: np.ndarray
    loss: np.ndarray
    general_loss: np.ndarray
    scores: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def runs(self) -> tuple[str, ...]:
        """The distinct runs, in order of first appearance."""
        return tuple(dict.fromkeys(self.run.tolist()))

    def name(self, row: int) -> str:
        """How errors call a row."""
        return f"law point {row} (run {str(self.run[row])!r}, {self.num_tokens[row]:g} tokens)"

    def has_space(self, space: Space, column: Column = "perplexity") -> bool:
        """Whether every point carries the moments of `column` in `space`."""
        first = 0 if space == "linear" else 2
        return all(
            name in self.scores and not np.isnan(self.scores[name][:, first : first + 2]).any()
            for name in names_of(column)
        )

    def moments(self, space: Space, column: Column = "perplexity") -> tuple[np.ndarray, np.ndarray]:
        """`(mu, sigma)` of a score (`"linear"`) or of its logarithm in nats (`"log"`): each `(n,)`, of two `(n, 2)`.

        Raises:
            ValueError: no point has that column, or some lack its moments in that space.
        """
        if space not in ("linear", "log"):
            raise ValueError(f"space must be 'linear' or 'log', got {space!r}.")
        if not isinstance(column, str):
            return tuple(np.stack(both, axis=-1) for both in zip(*(self.moments(space, name) for name in column)))
        if column not in self.scores:
            raise ValueError(f"the law points have no moments of {column!r}, they have {', '.join(self.scores)}.")
        for k in (0, 1) if space == "linear" else (2, 3):
            missing = np.flatnonzero(np.isnan(self.scores[column][:, k]))
            if len(missing):
                what = column if k < 2 else f"{log_name(column)} (nats)"
                raise ValueError(
                    f"{self.name(missing[0])} has no {moment_field(MOMENTS[k], column)!r}, which space={space!r} "
                    f"needs; add the mean and standard deviation of {what} to every point, or fit another space."
                )
        return tuple(self.scores[column][:, slice(0, 2) if space == "linear" else slice(2, 4)].T)

    def take(self, rows: np.ndarray) -> LawPoints:
        """Some of the points: a mask or row numbers."""
        scores = {column: moments[rows] for column, moments in self.scores.items()}
        return LawPoints(self.run[rows], self.num_tokens[rows], self.loss[rows], self.general_loss[rows], scores)

    def to_rows(self) -> list[dict[str, Any]]:
        """The points as JSON-able rows; absent optional fields are left out."""
        rows = []
        for i in range(len(self)):
            row = {"run": self.run[i].item()}
            for column, moments in self.scores.items():
                row |= {moment_field(name, column): value for name, value in zip(MOMENTS, moments[i].tolist())}
            row |= {name: getattr(self, name)[i].item() for name in ("num_tokens", "loss", "general_loss")}
            row["num_tokens"] = int(row["num_tokens"]) if row["num_tokens"].is_integer() else row["num_tokens"]
            rows.append({name: value for name, value in row.items() if value == value})
        return rows


def read_law_points(points: Any) -> LawPoints:
    """Read and validate law points.

    Args:
        points: a list of dicts, a `datasets.Dataset`, the path of a `.jsonl` file, or [`LawPoints`]. Each row holds
            `run`, `mu`, `sigma`, `num_tokens` and `loss`, and optionally `log_mu`, `log_sigma` and `general_loss`;
            moments of other score columns are `mu_NAME`, `sigma_NAME`, `log_mu_NAME`, `log_sigma_NAME`, beside or
            instead of those of perplexity. Other fields are ignored.

    Returns:
        [`LawPoints`], in the order given.

    Raises:
        TypeError: `points` is none of these.
        ValueError: no rows; a field is missing, not a number, NaN, infinite or out of range; a run has two rows with
            the same num_tokens. The message names row and field.
    """
    if isinstance(points, LawPoints):
        return points
    if isinstance(points, (str, os.PathLike)):
        where = f" in {os.fspath(points)}"
        rows = read_rows(points)
    elif isinstance(points, Iterable) and not isinstance(points, Mapping):
        where, rows = "", list(points)
    else:
        raise TypeError(
            f"law points must be a list of dicts, a Dataset or a .jsonl path, got {type(points).__name__}."
        )
    if not rows:
        raise ValueError(f"there are no law points{where}; a fit needs several probe runs at two or more num_tokens.")

    clean, seen = [], {}
    for i, row in enumerate(rows):
        clean.append(_validate(row, f"law point {i}{where}"))
        key = (clean[-1]["run"], clean[-1]["num_tokens"])
        if key in seen:
            raise ValueError(
                f"law points {seen[key]} and {i}{where} are both run {key[0]!r} at {key[1]:g} tokens; "
                "keep one of them, or give different training runs different names."
            )
        seen[key] = i
    numbers = (np.array([row[name] for row in clean], dtype=float) for name in ("num_tokens", "loss", "general_loss"))
    found = dict.fromkeys(column for row in clean for column in row["scores"])
    nothing = (math.nan,) * len(MOMENTS)
    scores = {column: np.array([row["scores"].get(column, nothing) for row in clean]) for column in found}
    return LawPoints(np.array([row["run"] for row in clean]), *numbers, scores)


def moment_field(moment: str, column: str) -> str:
    """What a law point calls one of [`MOMENTS`] of one score column."""
    return moment if column == "perplexity" else f"{moment}_{column}"


def score_moments(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The moments of chunks as fields of a law point.

    Args:
        scores: by column, of each chunk `[n]`, above 0.
    """
    found = {}
    for column, values in scores.items():
        logs = np.log(values)
        moments = (values.mean(), values.std(), logs.mean(), logs.std())
        found |= {moment_field(name, column): float(value) for name, value in zip(MOMENTS, moments)}
    return found


def append_law_points(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a `.jsonl` table of law points, surviving kills.

    A row with the same `(run, num_tokens)` as an earlier one replaces it, so a probe that runs again adds nothing
    twice. The table is replaced as a whole, and each row gets a `checksum` that says which of how many it is.

    Args:
        path: the table; made with its folders if absent.
        rows: law points, validated like in [`read_law_points`]; further fields are kept.
    """
    path = Path(path)
    new = {}
    for i, row in enumerate(rows):
        clean = _validate(row, f"new law point {i}")
        new[clean["run"], clean["num_tokens"]] = dict(row)
    if not new:
        return
    with one_at_a_time(path.parent):
        table: dict[Any, dict[str, Any]] = {}
        for row in read_rows(path) if path.exists() else ():
            clean = _validate(row, f"a law point in {path}")
            table[clean["run"], clean["num_tokens"]] = row
        write_rows(path, list((table | new).values()))


def _validate(row: Any, where: str) -> dict[str, Any]:
    """One row as str, floats, and its moments by score column."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is a {type(row).__name__}, not a dict with {', '.join(REQUIRED_FIELDS)}.")
    run = row.get("run")
    if run is None or run == "":
        raise ValueError(f"{where} has no 'run'; name the training run it comes from.")
    if isinstance(run, (bool, float)) or not isinstance(run, (str, Integral)) or len(str(run)) > 1000:
        raise ValueError(f"{where} has run {run!r:.80}, which is no name; name the training run it comes from.")
    check_text(str(run), where)
    where = f"{where} (run {str(run)!r})"
    others = [field[len("mu_") :] for field in row if field.startswith("mu_") and row[field] is not None]
    has_perplexity = not others or row.get("mu") is not None or row.get("sigma") is not None
    scores = {}
    for column in (*(["perplexity"] if has_perplexity else []), *others):
        above = _ABOVE if column == "perplexity" else _ABOVE | {"log_mu": None}  # a ratio's logarithm has either sign
        scores[column] = tuple(
            _number(row, moment_field(name, column), where, above[name], limits, required=name in REQUIRED_FIELDS)
            for name, limits in zip(MOMENTS, (_OF_A_SCORE, _OF_A_SCORE, _OF_A_LOG, _OF_A_LOG))
        )
    numbers = {
        name: _number(row, name, where, "more than 0", limits, required=name in REQUIRED_FIELDS)
        for name, limits in (("num_tokens", _OF_TOKENS), ("loss", _OF_A_LOSS), ("general_loss", _OF_A_LOSS))
    }
    return {"run": str(run), **numbers, "scores": scores}


def _number(
    row: Mapping[str, Any], field: str, where: str, above: str | None, limits: tuple[float, float], required: bool
) -> float:
    """A finite float, `above` a bound in words, its size within limits; NaN where it is absent and may be."""
    value = row.get(field)
    if value is None:
        if required:
            raise ValueError(f"{where} has no {field!r}; it has {', '.join(map(str, row)):.300}.")
        return math.nan
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise ValueError(f"{where} has {field} {value!r:.80}, which is not a number.")
    smallest, largest = limits
    if abs(value) > largest and not abs(value) == math.inf:  # also of 10^400, which is no float
        raise ValueError(f"{where} has {field} {str(value):.20}; it must be at most {largest:g}.")
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{where} has {field} {value}; leave out points that were not measured or diverged.")
    if above is not None and (value < 0 or (value == 0 and above == "more than 0")):
        raise ValueError(f"{where} has {field} {value:g}; it must be {above}.")
    if 0 < abs(value) < smallest:
        raise ValueError(f"{where} has {field} {value:g}; it must be {smallest:g} or more.")
    return value
