"""Multiple-choice benchmarks while training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_ppl_select.benchmarks import Benchmark, BenchmarkResults, read_benchmarks, run_benchmarks

from .measuring import MeasuringCallback, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments

    from hf_ppl_select.likelihood.engine import LikelihoodEngine


class BenchmarkCallback(MeasuringCallback):
    """Logs benchmark results of the model as it trains, each with its 95 % interval over questions.

    For each benchmark and metric it logs `<benchmark>_<metric>` and the bounds `..._low` and `..._high`, e.g.
    `medmcqa_choice_accuracy`; where a group has several benchmarks, also the group's average, e.g.
    `medical_choice_accuracy`. It measures at step 0, every `every_n_steps` steps, after each evaluation of the
    trainer, and at the last step, in the mixed precision of the training. In runs of several processes each answers
    all questions, and what process 0 found is logged.

    The intervals are those of one model. Whether a model has changed since step 0 is answered better by the same
    questions paired: `callback.results[step].paired_difference(callback.results[0])`. With a `results_dir` these
    results outlive the process: a run resumed from a checkpoint has those of its earlier steps too.

    Args:
        trainer: any [`~transformers.Trainer`] with a causal LM, also wrapped by PEFT.
        benchmarks: names, groups, paths of own files or [`~hf_ppl_select.benchmarks.Benchmark`]s.
        data_dir, data_files: local files to read instead of the Hub, as in `run_benchmarks`.
        limit: this many questions of each benchmark, the same ones each time; a few hundred keep it quick.
        num_fewshot: solved examples before each question.
        seed: of the choice of both, and of the intervals.
        tokenizer: default: the trainer's.
        every_n_steps: measure each time so many steps are done; default: only when the trainer evaluates.
        results_dir: a folder to save each measurement in as `step-<n>.json`, records included; default: nothing is.

    Attributes:
        results: [`~hf_ppl_select.benchmarks.BenchmarkResults`] by step, with a record of each question.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `run_benchmarks`, before training starts.

    Example:

    ```python
    trainer.add_callback(BenchmarkCallback(trainer, ["medical", "commonsense_qa"], limit=200, every_n_steps=500))
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        benchmarks: str | Benchmark | Sequence[str | Benchmark],
        *,
        data_dir: str | os.PathLike | None = None,
        data_files: Mapping[str, str | os.PathLike] | None = None,
        limit: int | None = None,
        num_fewshot: int = 0,
        seed: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        every_n_steps: int | None = None,
        results_dir: str | os.PathLike | None = None,
    ) -> None:
        super().__init__(trainer, every_n_steps=every_n_steps)
        self.tokenizer = tokenizer or tokenizer_of(trainer)
        self.options = {
            "data_dir": data_dir,
            "data_files": data_files,
            "limit": limit,
            "num_fewshot": num_fewshot,
            "seed": seed,
        }
        self.benchmarks = [benchmark for benchmark, *_ in read_benchmarks(benchmarks, **self.options)]
        self.results: dict[int, BenchmarkResults] = {}
        self.results_dir = None if results_dir is None else Path(results_dir)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.results = {}
        for path in [] if self.results_dir is None else sorted(self.results_dir.glob("step-*.json")):
            if not state.global_step:  # of an earlier run: a resumed one would take them for its own
                if state.is_world_process_zero:
                    path.unlink()
            elif (step := int(path.stem.removeprefix("step-"))) <= state.global_step:
                self.results[step] = self._of_these_settings(BenchmarkResults.load(path), path)
        super().on_train_begin(args, state, control, **kwargs)

    def _of_these_settings(self, results: BenchmarkResults, path: Path) -> BenchmarkResults:
        for name in ("limit", "num_fewshot", "seed"):
            if (was := getattr(results, name)) != (now := self.options[name]):
                raise ValueError(
                    f"{path} was measured with {name} {was}, and this run has {now}: steps would not compare. Go back "
                    "to that, or choose another results_dir."
                )
        return results

    def measure(self, engine: LikelihoodEngine) -> dict[str, float]:
        results = run_benchmarks(
            engine.model, self.tokenizer, self.benchmarks, engine=engine, progress=False, **self.options
        )
        self.results[step := self.trainer.state.global_step] = results
        if self.results_dir is not None and self.trainer.is_world_process_zero():
            results.save(self.results_dir / f"step-{step}.json")
        estimates = {name: result.metrics for name, result in results.benchmarks.items()}
        for group, metrics in results.groups.items():
            if sum(result.group == group for result in results.benchmarks.values()) > 1:
                estimates[group] = metrics
        logs = {}
        for name, metrics in estimates.items():
            for metric, estimate in metrics.items():
                logs[f"{name}_{metric}"] = estimate.value
                logs[f"{name}_{metric}_low"] = estimate.low
                logs[f"{name}_{metric}_high"] = estimate.high
        return logs
