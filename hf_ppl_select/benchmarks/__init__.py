"""Multiple-choice benchmarks as data, scored by log-likelihood, with metrics that are `evaluate` modules."""

from .loading import METRICS, Question, load_metric
from .results import BenchmarkResult, BenchmarkResults, Estimate, Record, markdown_table
from .runner import read_benchmarks, run_benchmarks
from .tasks import BENCHMARKS, GROUPS, Benchmark, own_benchmark, resolve_benchmarks

__all__ = [
    "BENCHMARKS",
    "GROUPS",
    "METRICS",
    "Benchmark",
    "BenchmarkResult",
    "BenchmarkResults",
    "Estimate",
    "Question",
    "Record",
    "load_metric",
    "markdown_table",
    "own_benchmark",
    "read_benchmarks",
    "resolve_benchmarks",
    "run_benchmarks",
]
