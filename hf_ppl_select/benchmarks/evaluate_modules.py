"""The package's `evaluate` modules, loaded by their path, so that they work offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

METRICS = ("choice_accuracy", "choice_accuracy_norm", "choice_bits_per_byte")  # the columns of a table of results
MODULES = ("multiple_choice", "paired_comparison")


def load_metric(name: str) -> evaluate.EvaluationModule:
    """Load one of the package's `evaluate` modules.

    Args:
        name: `"multiple_choice"` (all metrics of one run), or `"paired_comparison"` (of two runs).
    """
    import evaluate

    if name not in MODULES:
        raise ValueError(f"There is no metric {name!r}; there are {', '.join(MODULES)}.")
    return evaluate.load(str(Path(__file__).parent / "metrics" / name), keep_in_memory=True)
