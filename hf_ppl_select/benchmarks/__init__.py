"""Multiple-choice benchmarks as data, scored by log-likelihood, with metrics that are `evaluate` modules."""

from .benchmark import Benchmark, own_benchmark
from .catalogue import BENCHMARKS, GROUPS, resolve_benchmarks
from .comparison import ComparedBenchmark, RunComparison, calibration, calibration_table, compare_records
from .estimates import Estimate, Record
from .evaluate_modules import METRICS, MODULES, load_metric
from .hub_results import eval_result_entries, model_index, save_eval_results
from .questions import Question
from .results import BenchmarkResult, BenchmarkResults, SavedRecords, load_records, markdown_table
from .runner import read_benchmarks, run_benchmarks

__all__ = [
    "BENCHMARKS",
    "GROUPS",
    "METRICS",
    "MODULES",
    "Benchmark",
    "BenchmarkResult",
    "BenchmarkResults",
    "ComparedBenchmark",
    "Estimate",
    "Question",
    "Record",
    "RunComparison",
    "SavedRecords",
    "calibration",
    "calibration_table",
    "compare_records",
    "eval_result_entries",
    "load_metric",
    "load_records",
    "markdown_table",
    "model_index",
    "own_benchmark",
    "read_benchmarks",
    "resolve_benchmarks",
    "run_benchmarks",
    "save_eval_results",
]
