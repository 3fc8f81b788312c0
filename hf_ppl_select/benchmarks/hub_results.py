"""Results as evaluation entries of a model on the Hub: `.eval_results/*.yaml` files, and `model-index` for a card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.saving import write_atomically
from .catalogue import BENCHMARKS
from .evaluate_modules import METRICS

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from .results import BenchmarkResult, BenchmarkResults

_NAMES = {"choice_accuracy": "acc", "choice_accuracy_norm": "acc_norm", "choice_bits_per_byte": "bits_per_byte"}


def eval_result_entries(results: BenchmarkResults, *, date: str | None = None) -> list[dict[str, Any]]:
    """One entry per benchmark whose data set is on the Hub, with its accuracy (0 to 1); own files have no entry.

    As `.eval_results/*.yaml` has them, and `huggingface_hub.parse_eval_result_entries` of 1.4 or newer reads them.

    Args:
        results: of [`run_benchmarks`].
        date: ISO 8601; default: the Hub takes the commit's.
    """
    dated = {} if date is None else {"date": date}
    return [
        {
            "dataset": {"id": BENCHMARKS[name].dataset, "task_id": name},
            "value": result.metrics["choice_accuracy"].value,
            **dated,
            "notes": _notes(results, result),
        }
        for name, result in results.benchmarks.items()
        if _is_on_hub(name, result)
    ]


def save_eval_results(results: BenchmarkResults, folder: str | os.PathLike, *, date: str | None = None) -> Path | None:
    """Write the entries to `<folder>/.eval_results/hf_ppl_select.yaml`, to be uploaded with a model saved there.

    Returns:
        the file's path; None where no benchmark is on the Hub, and nothing is written.
    """
    import yaml

    entries = eval_result_entries(results, date=date)
    if not entries:
        return None
    path = Path(folder) / ".eval_results" / "hf_ppl_select.yaml"
    write_atomically(path, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))
    return path


def model_index(results: BenchmarkResults) -> list[EvalResult]:
    """All metrics of all benchmarks, own files too, as `eval_results` of a `huggingface_hub.ModelCardData`."""
    from huggingface_hub import EvalResult

    found = []
    for name, result in results.benchmarks.items():
        benchmark = BENCHMARKS[name] if _is_on_hub(name, result) else None
        config = benchmark.config if benchmark is not None else None
        for metric in METRICS:
            estimate = result.metrics[metric]
            found.append(
                EvalResult(
                    task_type="multiple-choice",
                    task_name="Multiple choice",
                    dataset_type=benchmark.dataset if benchmark is not None else name,
                    dataset_name=name,
                    dataset_config=config if isinstance(config, str) else None,
                    dataset_split=benchmark.split if benchmark is not None else None,
                    metric_type=_NAMES[metric],
                    metric_name=f"{_NAMES[metric]} ({_notes(results, result)})",
                    metric_value=estimate.value,
                    metric_args={"low": estimate.low, "high": estimate.high},
                )
            )
    return found


def _is_on_hub(name: str, result: BenchmarkResult) -> bool:
    """Whether these are questions of the catalogue; a file of one's own may have such a name, too."""
    return name in BENCHMARKS and not BENCHMARKS[name].is_file and result.group != "own"


def _notes(results: BenchmarkResults, result: BenchmarkResult) -> str:
    accuracy = result.metrics["choice_accuracy"]
    drawn = f", drawn with seed {results.seed}" if results.limit is not None else ""
    return (
        f"{results.num_fewshot}-shot, log-likelihood of the choices, {accuracy.n} questions{drawn}; "
        f"95 % interval {accuracy.low:.4f} to {accuracy.high:.4f}"
    )
