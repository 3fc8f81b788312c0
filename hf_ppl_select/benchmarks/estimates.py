"""Records of single questions, metrics of them as ratios of sums, and intervals of averages and of paired runs.

The interval of one benchmark's own accuracy is in metrics/multiple_choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .evaluate_modules import METRICS


@dataclass(frozen=True)
class Record:
    """One question under one model. `log_likelihoods` (nats), `num_chars` and `num_bytes` hold one number per choice.

    `index` is the question's row in its file or split; `predicted` the choice with the highest log-likelihood;
    `num_truncated` the tokens its prompt lost on the left; `digest` a hash of the question and its choices.
    """

    index: int
    gold: int
    predicted: int
    log_likelihoods: tuple[float, ...]
    num_chars: tuple[int, ...]
    num_bytes: tuple[int, ...]
    num_truncated: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % bootstrap interval over questions, and the number of questions."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def metric_inputs(records: Sequence[Record]) -> dict[str, list[Any]]:
    """What the `evaluate` modules take, from the records of one benchmark."""
    return {
        "predictions": [list(record.log_likelihoods) for record in records],
        "references": [record.gold for record in records],
        "num_chars": [list(record.num_chars) for record in records],
        "num_bytes": [list(record.num_bytes) for record in records],
    }


def metric_terms(records: Sequence[Record], metric: str) -> np.ndarray:
    """A metric as a ratio of sums over questions: float64 `[2, questions]`, numerators and denominators."""
    ones = np.ones(len(records))
    if metric == "choice_accuracy":
        return np.stack([[float(r.predicted == r.gold) for r in records], ones])
    if metric == "choice_accuracy_norm":
        best = [np.argmax(np.divide(r.log_likelihoods, r.num_chars)) for r in records]
        return np.stack([[float(b == r.gold) for b, r in zip(best, records, strict=True)], ones])
    if metric == "choice_bits_per_byte":
        bits = [-r.log_likelihoods[r.gold] / np.log(2) for r in records]
        return np.stack([bits, [float(r.num_bytes[r.gold]) for r in records]])
    raise ValueError(f"There is no metric {metric!r}; there are {', '.join(METRICS)}.")


def mean_estimate(
    terms: list[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], seed: int, num_resamples: int
) -> Estimate:
    """The mean over benchmarks of a statistic of sums, each benchmark's questions resampled on their own.

    Args:
        terms: for each benchmark an array `[k, questions]`.
        statistic: sums `[k]` or `[k, resamples]` to values `[]` or `[resamples]`.
    """
    values, resampled = [], []
    for position, columns in enumerate(terms):
        rng = np.random.default_rng([seed, position])
        n, block = columns.shape[1], max(1, 2**22 // columns.shape[1])
        values.append(statistic(columns.sum(axis=1)))
        sums = []
        for start in range(0, num_resamples, block):
            rows = rng.integers(n, size=(min(block, num_resamples - start), n))
            sums.append(np.stack([column[rows].sum(axis=1) for column in columns]))
        resampled.append(statistic(np.concatenate(sums, axis=1)))
    low, high = np.quantile(np.mean(resampled, axis=0), [0.025, 0.975])
    return Estimate(float(np.mean(values)), float(low), float(high), sum(columns.shape[1] for columns in terms))


def paired_differences(
    ours: Mapping[str, Sequence[Record]],
    theirs: Mapping[str, Sequence[Record]],
    groups: Mapping[str, str],
    seed: int,
    num_resamples: int,
) -> dict[str, dict[str, Estimate]]:
    """Ours minus theirs on the same questions, by benchmark and metric; both are resampled together.

    Args:
        ours, theirs: the records of each run by benchmark.
        groups: the group of each benchmark; one that several benchmarks share gets a row, `"average of <group>"`.

    Raises:
        ValueError: no benchmark in common, or a benchmark's questions differ.
    """
    common = [name for name in ours if name in theirs]
    if not common:
        raise ValueError(f"No benchmark in common: {', '.join(ours)} here, {', '.join(theirs)} there.")
    for name in common:
        _check_same_questions(name, ours[name], theirs[name])

    def paired(name: str, metric: str) -> np.ndarray:
        return np.concatenate([metric_terms(records[name], metric) for records in (ours, theirs)])

    def difference(sums: np.ndarray) -> np.ndarray:
        return sums[0] / sums[1] - sums[2] / sums[3]

    members = {name: [name] for name in common}
    for group in dict.fromkeys(groups[name] for name in common):
        names = [name for name in common if groups[name] == group]
        if len(names) > 1:
            members[f"average of {group}"] = names
    rows = {}
    for title, names in members.items():
        rows[title] = {}
        for metric in METRICS:
            terms = [paired(name, metric) for name in names]
            rows[title][metric] = mean_estimate(terms, difference, seed, num_resamples)
    return rows


def _check_same_questions(name: str, ours: Sequence[Record], theirs: Sequence[Record]) -> None:
    same = len(ours) == len(theirs) and all(
        (a.index, a.gold, a.num_bytes) == (b.index, b.gold, b.num_bytes)
        and (a.digest == b.digest or not a.digest or not b.digest)  # results saved by an older version have none
        for a, b in zip(ours, theirs, strict=True)
    )
    if not same:
        raise ValueError(
            f"{name}: the two runs did not answer the same questions ({len(ours)} and {len(theirs)}); run both on the "
            "same data with the same limit and seed."
        )
