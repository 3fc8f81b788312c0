"""The table of law points: what probe runs measured, and what a scaling law is fitted to.

One row is one evaluation of one probe: the run's name, the moments of the landscape of the chunks it had trained on by
then, how many tokens that was, and the held-out loss. Rows that share a `run` come from one training run and are
correlated, so everything that estimates an error (leave-one-out, bootstrap) leaves out or draws whole runs.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..data.saving import write_atomically

Space = Literal["linear", "log"]
SPACES: tuple[str, ...] = ("linear", "log")
REQUIRED_FIELDS = ("run", "mu", "sigma", "num_tokens", "loss")
OPTIONAL_FIELDS = ("log_mu", "log_sigma", "general_loss")
_POSITIVE = ("mu", "num_tokens", "loss", "log_mu", "general_loss")  # the spreads may be 0: all chunks alike


@dataclass(frozen=True, eq=False)
class LawPoints:
    """Validated law points as columns of equal length n.

    Attributes:
        run: names of the probe runs (str).
        mu, sigma: mean and standard deviation of perplexity.
        log_mu, log_sigma: mean and standard deviation of nll per token, in nats; NaN where absent.
        num_tokens: training tokens seen, D.
        loss: held-out domain loss, nats per token.
        general_loss: held-out general loss, nats per token; NaN where absent.
    """

    run: np.ndarray
    mu: np.ndarray
    sigma: np.ndarray
    log_mu: np.ndarray
    log_sigma: np.ndarray
    num_tokens: np.ndarray
    loss: np.ndarray
    general_loss: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def runs(self) -> tuple[str, ...]:
        """The distinct runs, in order of first appearance."""
        return tuple(dict.fromkeys(self.run.tolist()))

    def name(self, row: int) -> str:
        """How errors call a row."""
        return f"law point {row} (run {str(self.run[row])!r}, {self.num_tokens[row]:g} tokens)"

    def has_space(self, space: Space) -> bool:
        """Whether every point carries the moments of `space`."""
        return space == "linear" or not np.isnan(self.log_mu + self.log_sigma).any()

    def moments(self, space: Space) -> tuple[np.ndarray, np.ndarray]:
        """`(mu, sigma)`, each `(n,)`, of perplexity (`"linear"`) or of nll in nats (`"log"`).

        Raises:
            ValueError: log space is asked for and a point lacks `log_mu` or `log_sigma`.
        """
        if space == "linear":
            return self.mu, self.sigma
        if space != "log":
            raise ValueError(f"space must be 'linear' or 'log', got {space!r}.")
        for field in ("log_mu", "log_sigma"):
            missing = np.flatnonzero(np.isnan(getattr(self, field)))
            if len(missing):
                raise ValueError(
                    f"{self.name(missing[0])} has no {field!r}, which space='log' needs; "
                    "add the mean and standard deviation of nll (nats) to every point, or use space='linear'."
                )
        return self.log_mu, self.log_sigma

    def take(self, rows: np.ndarray) -> LawPoints:
        """Some of the points: a mask or row numbers."""
        return LawPoints(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to_rows(self) -> list[dict[str, Any]]:
        """The points as JSON-able rows; absent optional fields are left out."""
        rows = []
        for i in range(len(self)):
            row = {field.name: getattr(self, field.name)[i].item() for field in fields(self)}
            row["num_tokens"] = int(row["num_tokens"]) if row["num_tokens"].is_integer() else row["num_tokens"]
            rows.append({name: value for name, value in row.items() if value == value})
        return rows


def read_law_points(points: Any) -> LawPoints:
    """Read and validate law points.

    Args:
        points: a list of dicts, a `datasets.Dataset`, the path of a `.jsonl` file, or [`LawPoints`]. Each row holds
            `run`, `mu`, `sigma`, `num_tokens` and `loss`, and optionally `log_mu`, `log_sigma` and `general_loss`;
            other fields are ignored.

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
        rows = [row for _, row in _read_lines(Path(points))]
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
    columns = {name: np.array([row[name] for row in clean], dtype=float) for name in clean[0] if name != "run"}
    return LawPoints(run=np.array([row["run"] for row in clean]), **columns)


def append_law_points(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a `.jsonl` table of law points, surviving kills.

    A row with the same `(run, num_tokens)` as an earlier one replaces it, so a probe that runs again adds nothing
    twice. New rows are whole lines in one write, flushed to disk; a torn last line, left by a kill, is dropped.

    Args:
        path: the table; made with its folders if absent.
        rows: law points, validated like in [`read_law_points`]; further fields are kept.
    """
    path = Path(path)
    new = {}
    for i, row in enumerate(rows):
        clean = _validate(row, f"new law point {i}")
        new[clean["run"], clean["num_tokens"]] = json.dumps(dict(row), ensure_ascii=False, allow_nan=False)
    if not new:
        return
    old: dict[Any, str] = {}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line, row in _read_lines(path) if text else ():
        clean = _validate(row, f"a law point in {path}")
        old[clean["run"], clean["num_tokens"]] = line
    if not old.keys() & new.keys() and text == "".join(f"{line}\n" for line in old.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in new.values()))
            file.flush()
            os.fsync(file.fileno())
    else:
        write_atomically(path, "".join(f"{line}\n" for line in (old | new).values()))


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (line, parsed line); a last line cut off by a kill is skipped with a warning, others are errors."""
    text = path.read_text(encoding="utf-8", errors="replace")  # a torn line may end inside a character
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield line, json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"line {number} of {path} is not JSON ({error}); remove or repair it.") from error
            warnings.warn(f"the last line of {path} is cut off (a killed run?); it is left out.", stacklevel=3)


def _validate(row: Any, where: str) -> dict[str, Any]:
    """One row with exactly the known fields, as str and float."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is a {type(row).__name__}, not a dict with {', '.join(REQUIRED_FIELDS)}.")
    run = row.get("run")
    if run is None or run == "":
        raise ValueError(f"{where} has no 'run'; name the training run it comes from.")
    where = f"{where} (run {str(run)!r})"
    clean: dict[str, Any] = {"run": str(run)}
    for field in (*REQUIRED_FIELDS[1:], *OPTIONAL_FIELDS):
        value = row.get(field)
        if value is None:
            if field in REQUIRED_FIELDS:
                present = ", ".join(map(str, row))
                raise ValueError(f"{where} has no {field!r}; it has {present}.")
            clean[field] = math.nan
            continue
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
            raise ValueError(f"{where} has {field} {value!r}, which is not a number.")
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"{where} has {field} {value}; leave out points that were not measured or diverged.")
        if value < 0 or (value == 0 and field in _POSITIVE):
            bound = "more than 0" if field in _POSITIVE else "0 or more"
            raise ValueError(f"{where} has {field} {value:g}; it must be {bound}.")
        clean[field] = value
    return clean
