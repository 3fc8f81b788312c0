"""What a run of benchmarks found: records per question, metrics with intervals, group averages, paired differences."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..saving import load_json, save_json
from .loading import METRICS

KIND, VERSION = "benchmark_results", 1
_TITLES = {"choice_accuracy": "acc", "choice_accuracy_norm": "acc_norm", "choice_bits_per_byte": "bits per byte"}


@dataclass(frozen=True)
class Record:
    """One question under one model. `log_likelihoods` (nats), `num_chars` and `num_bytes` hold one number per choice.

    `index` is the question's row in its file or split; `predicted` the choice with the highest log-likelihood;
    `num_truncated` the tokens its prompt lost on the left.
    """

    index: int
    gold: int
    predicted: int
    log_likelihoods: tuple[float, ...]
    num_chars: tuple[int, ...]
    num_bytes: tuple[int, ...]
    num_truncated: int = 0


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % bootstrap interval over questions, and the number of questions."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class BenchmarkResult:
    """One benchmark: its metrics by name (see `METRICS`) and its records, in the order of the file."""

    name: str
    group: str
    source: str
    metrics: dict[str, Estimate]
    records: tuple[Record, ...]

    @property
    def num_truncated(self) -> int:
        """Questions whose prompt did not fit into the model."""
        return sum(record.num_truncated > 0 for record in self.records)


@dataclass(frozen=True)
class BenchmarkResults:
    """Results of [`run_benchmarks`]: `results.benchmarks["medmcqa"].metrics["choice_accuracy"].value`.

    Attributes:
        model: name or folder of the model.
        benchmarks: by name.
        groups: for each group the metrics averaged over its benchmarks, each benchmark counting once.
        limit, seed, num_resamples, max_length: the settings of the run.
    """

    model: str
    benchmarks: dict[str, BenchmarkResult]
    groups: dict[str, dict[str, Estimate]]
    limit: int | None
    seed: int
    num_resamples: int
    max_length: int

    def paired_difference(self, other: BenchmarkResults) -> dict[str, dict[str, Estimate]]:
        """This run minus another on the same questions, with a paired bootstrap: both are resampled together.

        Returns:
            for each benchmark that both have, and as `"average of <group>"` for each group with several of these, each
            metric's difference. An interval without 0 is a difference beyond the sampling of questions; it says
            nothing about other training seeds.

        Raises:
            ValueError: no benchmark in common, or a benchmark's questions differ.
        """
        common = [name for name in self.benchmarks if name in other.benchmarks]
        if not common:
            raise ValueError(
                f"No benchmark in common: {', '.join(self.benchmarks)} here, {', '.join(other.benchmarks)} there."
            )
        for name in common:
            _check_same_questions(name, self.benchmarks[name].records, other.benchmarks[name].records)

        def paired(name: str, metric: str) -> np.ndarray:
            ours, theirs = (metric_terms(run.benchmarks[name].records, metric) for run in (self, other))
            return np.concatenate([ours, theirs])

        def difference(sums: np.ndarray) -> np.ndarray:
            return sums[0] / sums[1] - sums[2] / sums[3]

        members = {name: [name] for name in common}
        for group in dict.fromkeys(self.benchmarks[name].group for name in common):
            names = [name for name in common if self.benchmarks[name].group == group]
            if len(names) > 1:
                members[f"average of {group}"] = names
        rows = {}
        for title, names in members.items():
            rows[title] = {}
            for metric in METRICS:
                terms = [paired(name, metric) for name in names]
                rows[title][metric] = mean_estimate(terms, difference, self.seed, self.num_resamples)
        return rows

    def to_markdown(self) -> str:
        """A table with a row per benchmark and, where a group has several, one for its average."""
        rows = {name: result.metrics for name, result in self.benchmarks.items()}
        for group, metrics in self.groups.items():
            if sum(result.group == group for result in self.benchmarks.values()) > 1:
                rows[f"average of {group}"] = metrics
        return markdown_table(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any]) -> BenchmarkResults:
        """The reverse of [`to_dict`]."""
        benchmarks = {}
        for name, result in payload["benchmarks"].items():
            records = tuple(
                Record(**{key: tuple(value) if isinstance(value, list) else value for key, value in record.items()})
                for record in result["records"]
            )
            benchmarks[name] = BenchmarkResult(
                **{**result, "metrics": _estimates(result["metrics"]), "records": records}
            )
        groups = {group: _estimates(metrics) for group, metrics in payload["groups"].items()}
        return cls(**{**payload, "benchmarks": benchmarks, "groups": groups})

    def save(self, path: str | os.PathLike) -> None:
        """Write everything, records included, as JSON: all of it or nothing."""
        save_json(path, self.to_dict(), kind=KIND, version=VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike) -> BenchmarkResults:
        """Read what [`save`] wrote."""
        return cls.from_dict(load_json(path, kind=KIND, version=VERSION))


def markdown_table(rows: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A Markdown table of metrics with their intervals, e.g. of [`BenchmarkResults.paired_difference`]."""
    lines = [
        "| benchmark | questions | " + " | ".join(_TITLES[metric] for metric in METRICS) + " |",
        "|---|---:|" + "---:|" * len(METRICS),
    ]
    for title, metrics in rows.items():
        cells = [str(metrics[metric]) for metric in METRICS]
        lines.append(f"| {title} | {metrics[METRICS[0]].n:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def metric_terms(records: tuple[Record, ...], metric: str) -> np.ndarray:
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


def _estimates(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Estimate]:
    return {metric: Estimate(**estimate) for metric, estimate in metrics.items()}


def _check_same_questions(name: str, ours: tuple[Record, ...], theirs: tuple[Record, ...]) -> None:
    same = [(r.index, r.gold, r.num_bytes) for r in ours] == [(r.index, r.gold, r.num_bytes) for r in theirs]
    if not same:
        raise ValueError(
            f"{name}: the two runs did not answer the same questions ({len(ours)} and {len(theirs)}); run both on the "
            "same data with the same limit and seed."
        )
