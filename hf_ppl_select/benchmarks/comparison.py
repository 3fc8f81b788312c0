"""Two runs compared question by question: differences with paired intervals, and exact McNemar tests. And one run's
confidence in its answers, compared with how often they are right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .estimates import Estimate, Record, metric_inputs, metric_terms, paired_differences
from .evaluate_modules import METRICS, load_metric
from .results import TITLES, BenchmarkResults, SavedRecords, load_records, warn_of_other_settings


@dataclass(frozen=True)
class ComparedBenchmark:
    """One benchmark, or the average of a group, under two runs.

    Attributes:
        ours, baseline: each metric under either run.
        differences: ours minus baseline, with its 95 % paired bootstrap interval.
        mcnemar_p: exact and two-sided, for the accuracy; None for an average.
        only_ours, only_baseline: questions that only one of the runs got right; None for an average.
    """

    ours: dict[str, float]
    baseline: dict[str, float]
    differences: dict[str, Estimate]
    mcnemar_p: float | None = None
    only_ours: int | None = None
    only_baseline: int | None = None


@dataclass(frozen=True)
class RunComparison:
    """Result of [`compare_records`]: the names of the two models, and a row per benchmark and average of a group."""

    ours: str
    baseline: str
    rows: dict[str, ComparedBenchmark]

    def to_markdown(self) -> str:
        """A table of the differences: accuracy first, with McNemar's p, then the other metrics."""
        lines = [
            "| benchmark | questions | acc, baseline → ours | "
            + " | ".join(f"{TITLES[metric]}, difference" for metric in METRICS)
            + " | right only in ours, baseline | McNemar p |",
            "|---|---:|---:|" + "---:|" * len(METRICS) + "---:|---:|",
        ]
        for title, row in self.rows.items():
            accuracy = f"{row.baseline[METRICS[0]]:.4f} → {row.ours[METRICS[0]]:.4f}"
            cells = [_signed(row.differences[metric]) for metric in METRICS]
            test = (
                ["", ""]
                if row.mcnemar_p is None
                else [f"{row.only_ours}, {row.only_baseline}", f"{row.mcnemar_p:.3g}"]
            )
            count = f"{row.differences[METRICS[0]].n:,}"
            lines.append(f"| {title} | {count} | {accuracy} | " + " | ".join([*cells, *test]) + " |")
        return "\n".join(lines)


def compare_records(
    ours: str | os.PathLike | BenchmarkResults,
    baseline: str | os.PathLike | BenchmarkResults,
    *,
    seed: int = 0,
    num_resamples: int = 1000,
) -> RunComparison:
    """Compare two runs on the benchmarks they have in common: ours minus baseline.

    Args:
        ours, baseline: the parquet files that `run_benchmarks.py` (or [`BenchmarkResults.save_records`]) wrote, or
            results.
        seed, num_resamples: of the bootstrap.

    Raises:
        FileNotFoundError, ValueError: a file is missing or not of that kind, there is no benchmark in common, or the
            two runs did not answer the same questions.

    Example:

    ```python
    comparison = compare_records("outputs/adapted.parquet", "outputs/base.parquet")
    print(comparison.to_markdown())
    comparison.rows["medqa_4options"].mcnemar_p
    ```
    """
    first, second = (
        run.saved_records() if isinstance(run, BenchmarkResults) else load_records(run) for run in (ours, baseline)
    )
    warn_of_other_settings(first.settings, second.settings)
    differences = paired_differences(first.records, second.records, first.groups, seed, num_resamples)
    rows = {}
    for title, estimates in differences.items():
        names = _members(title, first, second)
        means = [
            {metric: float(np.mean([_value(run.records[name], metric) for name in names])) for metric in METRICS}
            for run in (first, second)
        ]
        test = mcnemar_test(first.records[title], second.records[title]) if title in first.records else {}
        rows[title] = ComparedBenchmark(*means, estimates, **test)
    return RunComparison(str(first.settings["model"]), str(second.settings["model"]), rows)


def mcnemar_test(ours: Sequence[Record], baseline: Sequence[Record]) -> dict[str, Any]:
    """`mcnemar_p`, `only_ours` and `only_baseline` on the same questions, see [`ComparedBenchmark`]."""
    found = load_metric("paired_comparison").compute(
        predictions=[list(record.log_likelihoods) for record in ours],
        baseline_predictions=[list(record.log_likelihoods) for record in baseline],
        references=[record.gold for record in ours],
        num_resamples=1,  # its interval is not asked for
    )
    return {
        "mcnemar_p": found["mcnemar_p"],
        "only_ours": found["only_predictions"],
        "only_baseline": found["only_baseline"],
    }


def calibration(results: BenchmarkResults) -> dict[str, dict[str, float]]:
    """What the module `multiple_choice` finds, by benchmark."""
    module = load_metric("multiple_choice")
    settings = {"seed": results.seed, "num_resamples": results.num_resamples}
    return {
        name: module.compute(**metric_inputs(result.records), **settings)
        for name, result in results.benchmarks.items()
    }


def calibration_table(results: BenchmarkResults) -> str:
    """A Markdown table with a row per benchmark: Brier score, calibration error, mean confidence and accuracy."""
    lines = ["| benchmark | Brier score | calibration error | mean confidence | acc |", "|---|---:|---:|---:|---:|"]
    for name, found in calibration(results).items():
        brier = (
            "{choice_calibration_brier:.4f} [{choice_calibration_brier_low:.4f}, {choice_calibration_brier_high:.4f}]"
        )
        lines.append(
            f"| {name} | {brier.format(**found)} | {found['choice_calibration_ece']:.4f} | "
            f"{found['choice_calibration_confidence']:.4f} | "
            f"{results.benchmarks[name].metrics['choice_accuracy'].value:.4f} |"
        )
    return "\n".join(lines)


def _members(title: str, ours: SavedRecords, baseline: SavedRecords) -> Sequence[str]:
    common = [name for name in ours.records if name in baseline.records]
    return [title] if title in common else [name for name in common if title == f"average of {ours.groups[name]}"]


def _value(records: Sequence[Record], metric: str) -> float:
    above, below = metric_terms(records, metric).sum(axis=1)
    return above / below


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"
