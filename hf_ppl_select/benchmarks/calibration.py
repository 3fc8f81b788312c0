"""How well a run's confidence in its answers agrees with how often they are right."""

from __future__ import annotations

from .estimates import metric_inputs
from .metric_modules import load_metric
from .results import BenchmarkResults


def calibration(results: BenchmarkResults) -> dict[str, dict[str, float]]:
    """What the module `choice_calibration` finds, by benchmark."""
    module = load_metric("choice_calibration")
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
