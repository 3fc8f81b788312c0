"""Running benchmarks: questions -> token ids -> log-likelihoods per choice -> records -> metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .benchmark import Benchmark
from .catalogue import resolve_benchmarks
from .encoding import Request, encode_questions, model_max_length
from .estimates import Estimate, Record, mean_estimate, metric_inputs, metric_terms
from .evaluate_modules import METRICS, load_metric
from .questions import Question, load_questions
from .results import BenchmarkResult, BenchmarkResults
from .rows import find_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..likelihood.engine import LikelihoodEngine
    from ..likelihood.shared_prefix import SharedPrefixScorer


def run_benchmarks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    benchmarks: str | Benchmark | Sequence[str | Benchmark] = ("medical", "general"),
    *,
    data_dir: str | os.PathLike | None = None,
    data_files: Mapping[str, str | os.PathLike] | None = None,
    limit: int | None = None,
    num_fewshot: int = 0,
    seed: int = 0,
    num_resamples: int = 1000,
    max_length: int | None = None,
    engine: LikelihoodEngine | None = None,
    progress: bool = True,
) -> BenchmarkResults:
    """Score multiple-choice benchmarks by log-likelihood, with the prompts of lm-evaluation-harness.

    Everything is read and checked before the model runs.

    Args:
        model: a causal LM on its device.
        tokenizer: its tokenizer.
        benchmarks: names (`"medqa_4options"`), groups (`"medical"`, `"general"`), paths of own files with the columns
            `question`, `choices`, `answer`, or [`Benchmark`]s.
        data_dir: a folder with local files, e.g. `medqa_4options_test.parquet`, read instead of the Hub.
        data_files: the local file of single benchmarks, by name.
        limit: this many questions of each benchmark, drawn with `seed`.
        num_fewshot: solved examples before each question, drawn with `seed` from the benchmark's training or
            development split; `data_files["<name>:examples"]` is a local file of it.
        seed: of the draws and of the bootstrap.
        num_resamples: of the bootstrap.
        max_length: tokens; default: what the model can read. Longer prompts lose their left end, which is counted.
        engine: a [`~hf_ppl_select.likelihood.engine.LikelihoodEngine`] of `model`, to choose batch size or autocast.
        progress: show a bar with tokens/s and the time left for each benchmark.

    Returns:
        [`BenchmarkResults`].

    Raises:
        ValueError: an unknown benchmark (near names are listed), a bad row, a limit below 1, or a model whose
            log-likelihoods are not finite.
        FileNotFoundError: a local file does not exist.
        ConnectionError: the Hub cannot be reached.
        PermissionError: a data set is gated and its terms are not accepted.

    Example:

    ```python
    model, tokenizer = load_model("HuggingFaceTB/SmolLM2-135M")
    results = run_benchmarks(model, tokenizer, ["medical", "commonsense_qa"], limit=200)
    print(results.to_markdown())
    results.save("results.json")
    ```
    """
    from ..likelihood.engine import LikelihoodEngine
    from ..likelihood.shared_prefix import SharedPrefixScorer

    for option, value in (("num_resamples", num_resamples), ("max_length", max_length)):
        _check_positive(option, value)
    loaded = read_benchmarks(
        benchmarks, data_dir=data_dir, data_files=data_files, limit=limit, num_fewshot=num_fewshot, seed=seed
    )
    max_length = min(
        max_length or model_max_length(model.config, tokenizer), model_max_length(model.config, tokenizer)
    )
    # All of them first: what cannot be scored is an error now, and not after another one's run
    encoded = [encode_questions(questions, tokenizer, max_length, name=each.name) for each, _, questions in loaded]
    engine = engine or LikelihoodEngine(model)
    scorer = SharedPrefixScorer(engine)

    results = {}
    for benchmark, source, questions in loaded:
        requests = encoded.pop(0)
        log_likelihoods = score_requests(scorer, requests, title=benchmark.name, progress=progress)
        records = tuple(
            _record(question, row, scores)
            for question, row, scores in zip(questions, requests, log_likelihoods, strict=True)
        )
        metrics = _metrics(records, seed, num_resamples)
        results[benchmark.name] = BenchmarkResult(benchmark.name, benchmark.group, source, metrics, records)

    groups = {}
    for group in dict.fromkeys(result.group for result in results.values()):
        members = [result.records for result in results.values() if result.group == group]
        groups[group] = {
            metric: mean_estimate(
                [metric_terms(records, metric) for records in members], lambda s: s[0] / s[1], seed, num_resamples
            )
            for metric in METRICS
        }
    return BenchmarkResults(
        model=model.config.name_or_path,
        benchmarks=results,
        groups=groups,
        limit=limit,
        seed=seed,
        num_resamples=num_resamples,
        max_length=max_length,
        num_fewshot=num_fewshot,
        dtype=engine.precision,
    )


def read_benchmarks(
    benchmarks: str | Benchmark | Sequence[str | Benchmark],
    *,
    data_dir: str | os.PathLike | None = None,
    data_files: Mapping[str, str | os.PathLike] | None = None,
    limit: int | None = None,
    num_fewshot: int = 0,
    seed: int = 0,
) -> list[tuple[Benchmark, str, list[Question]]]:
    """Find, read and check benchmarks: for each the benchmark, where it came from, and its questions.

    The arguments and errors are those of [`run_benchmarks`]; no model is needed, so a recipe can fail before it loads
    one.
    """
    _check_positive("limit", limit)
    if not isinstance(num_fewshot, int) or num_fewshot < 0:
        raise ValueError(f"num_fewshot must be a whole number of at least 0, not {num_fewshot!r}.")
    chosen = resolve_benchmarks(benchmarks)
    unknown = {name.removesuffix(":examples") for name in data_files or {}} - {benchmark.name for benchmark in chosen}
    if unknown:
        names = ", ".join(benchmark.name for benchmark in chosen)
        raise ValueError(f"data_files names {', '.join(sorted(unknown))}, not among the benchmarks to run: {names}.")
    if data_dir is not None and not Path(data_dir).is_dir():
        raise FileNotFoundError(f"data_dir {os.fspath(data_dir)!r} is not a folder.")
    sources = [find_source(benchmark, data_dir, data_files) for benchmark in chosen]
    examples = [
        find_source(benchmark, data_dir, data_files, examples=True) if num_fewshot else None for benchmark in chosen
    ]
    options = {"limit": limit, "seed": seed, "num_fewshot": num_fewshot}
    return [
        (
            benchmark,
            path.name if path else benchmark.dataset,
            load_questions(benchmark, path, examples_path=examples_path, **options),
        )
        for benchmark, path, examples_path in zip(chosen, sources, examples, strict=True)
    ]


def _check_positive(option: str, value: int | None) -> None:
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{option} must be a whole number of at least 1, not {value!r}.")


def score_requests(
    scorer: SharedPrefixScorer, requests: Sequence[Sequence[Request]], *, title: str = "", progress: bool = False
) -> list[list[float]]:
    """Log-likelihood in nats of each choice, float64; what requests have in common at their beginning runs once.

    Raises:
        ValueError: the model gives log-likelihoods that are not finite.
    """
    from tqdm.auto import tqdm

    flat = [request for row in requests for request in row]
    with tqdm(desc=title, unit="tok", unit_scale=True, disable=not progress) as bar:
        found = -scorer.nll([request.ids for request in flat], [request.start for request in flat], bar=bar)
    if not np.isfinite(found).all():
        raise ValueError(f"{title}: the model gives log-likelihoods that are not finite; are its weights sound?")
    log_likelihoods = iter(found.tolist())
    return [[next(log_likelihoods) for _ in row] for row in requests]


def _record(question: Question, requests: Sequence[Request], log_likelihoods: list[float]) -> Record:
    return Record(
        index=question.index,
        gold=question.gold,
        predicted=int(np.argmax(log_likelihoods)),
        log_likelihoods=tuple(log_likelihoods),
        num_chars=tuple(len(choice) for choice in question.choices),
        num_bytes=tuple(len(choice.encode("utf-8")) for choice in question.choices),
        num_truncated=max(request.num_truncated for request in requests),
        digest=question.digest,
    )


def _metrics(records: Sequence[Record], seed: int, num_resamples: int) -> dict[str, Estimate]:
    found = load_metric("multiple_choice").compute(**metric_inputs(records), seed=seed, num_resamples=num_resamples)
    return {name: Estimate(*(found[f"{name}{end}"] for end in ("", "_low", "_high")), found["n"]) for name in METRICS}
