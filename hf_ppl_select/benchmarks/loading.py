"""Reading benchmarks into questions, from the Hub or local files, and loading the package's `evaluate` modules."""

from __future__ import annotations

import csv
import json
import os
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .tasks import FILE_SUFFIXES, Benchmark, Row, answer_index

if TYPE_CHECKING:
    import evaluate

METRICS = ("choice_accuracy", "choice_accuracy_norm", "choice_bits_per_byte")
_NESTED_COLUMNS = ("choices", "context", "endings")  # JSON in .csv files


@dataclass(frozen=True)
class Question:
    """One question: the choices continue `prompt` after a space. `index` is its row in the file or split."""

    index: int
    prompt: str
    choices: tuple[str, ...]
    gold: int


def load_metric(name: str) -> evaluate.Metric:
    """Load one of the package's `evaluate` modules by its path, so that it works offline.

    Args:
        name: `"choice_accuracy"`, `"choice_accuracy_norm"` or `"choice_bits_per_byte"`.
    """
    import evaluate

    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}; there are {', '.join(METRICS)}.")
    return evaluate.load(str(Path(__file__).parent / "metrics" / name), keep_in_memory=True)


def find_source(
    benchmark: Benchmark,
    data_dir: str | os.PathLike | None = None,
    data_files: Mapping[str, str | os.PathLike] | None = None,
) -> Path | None:
    """The local file to read a benchmark from, or None for the Hub.

    `data_files[name]` comes first, then the benchmark's own path, then `data_dir`, which holds `<file_stem>` or
    `<name>` with one of the known endings.

    Raises:
        FileNotFoundError: the file, or one for this benchmark in `data_dir`, does not exist.
        ValueError: the file has an unknown ending.
    """
    if data_files and benchmark.name in data_files:
        path = Path(data_files[benchmark.name])
    elif benchmark.is_file:
        path = Path(benchmark.dataset)
    elif data_dir is not None:
        stems = [stem for stem in (benchmark.file_stem, benchmark.name) if stem]
        candidates = [Path(data_dir) / f"{stem}{suffix}" for stem in stems for suffix in FILE_SUFFIXES]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"{benchmark.name}: {data_dir} has no {' or '.join(stems)} ({', '.join(FILE_SUFFIXES)}); add the "
                "file, drop the benchmark, or leave data_dir out to load it from the Hub."
            )
    else:
        return None
    if path.suffix not in FILE_SUFFIXES:
        raise ValueError(f"{benchmark.name}: {path} does not end in {', '.join(FILE_SUFFIXES)}.")
    if not path.is_file():
        raise FileNotFoundError(f"{benchmark.name}: there is no file {path}.")
    return path


def load_questions(
    benchmark: Benchmark, path: Path | None = None, *, limit: int | None = None, seed: int = 0
) -> list[Question]:
    """Read a benchmark's questions and check every one of them.

    Args:
        benchmark: which.
        path: the local file, see [`find_source`]; None loads it from the Hub.
        limit: keep this many, drawn with `seed`; the draw of a smaller limit is part of that of a larger one.
        seed: of the draw.

    Raises:
        ValueError: a row lacks a column, has a null in it or an answer out of range; the row is named.
        ConnectionError: the Hub cannot be reached.
    """
    source = str(path) if path else f"{benchmark.dataset} ({benchmark.split}) on the Hub"
    questions = []
    for index, row in enumerate(_read(path) if path else _read_hub(benchmark)):
        try:
            if benchmark.where is None or str(row[benchmark.where[0]]) in benchmark.where[1]:
                questions.append(_question(benchmark, index, row))
        except KeyError as error:
            message = f"no column {error}; there are {', '.join(map(str, row))}."
            raise ValueError(f"{benchmark.name}, row {index} of {source}: {message}") from None
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # a null, or another type than expected
            raise ValueError(f"{benchmark.name}, row {index} of {source}: {error}") from None
    if not questions:
        kept = f" with {benchmark.where[0]!r} among those it keeps" if benchmark.where else ""
        raise ValueError(f"{benchmark.name}: {source} has no rows{kept}.")
    if limit is not None and limit < len(questions):
        drawn = np.random.default_rng(seed).permutation(len(questions))[:limit]
        questions = [questions[i] for i in np.sort(drawn)]
    return questions


def _question(benchmark: Benchmark, index: int, row: Row) -> Question:
    if benchmark.prepare is not None:
        row = benchmark.prepare(row)
    prompt = _StrictFormatter().vformat(benchmark.prompt, (), row)
    choices = benchmark.choices if isinstance(benchmark.choices, tuple) else tuple(row[benchmark.choices])
    if not prompt.strip():
        raise ValueError("the prompt is empty.")
    if len(choices) < 2 or not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError(f"there must be two or more choices, none of them empty, not {list(choices)}.")
    return Question(index, prompt, choices, answer_index(row[benchmark.answer], choices))


class _StrictFormatter(string.Formatter):
    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        value, first = super().get_field(field_name, args, kwargs)
        if value is None:
            raise ValueError(f"column {field_name!r} is null.")
        return value, first


def _read_hub(benchmark: Benchmark) -> list[Row]:
    from datasets import load_dataset

    try:
        return load_dataset(benchmark.dataset, benchmark.config, split=benchmark.split).to_list()
    except (ConnectionError, FileNotFoundError) as error:
        raise ConnectionError(
            f"{benchmark.name}: cannot load {benchmark.dataset!r} from the Hub ({error}). Pass data_dir= or "
            "data_files= to read a local file with the same columns."
        ) from error


def _read(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [_parse_nested(path, index, row) for index, row in enumerate(csv.DictReader(file))]
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json" and text.lstrip().startswith("["):
        return json.loads(text)
    return list(_json_lines(path, text))


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not valid JSON: {error}.") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is not a JSON object.")
            yield row


def _parse_nested(path: Path, index: int, row: dict[str, str]) -> Row:
    parsed: Row = dict(row)
    for column in _NESTED_COLUMNS:
        if str(row.get(column, "")).startswith(("[", "{")):
            try:
                parsed[column] = json.loads(row[column])
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, row {index}: column {column!r} must be JSON in .csv, not {row[column]!r} ({error})."
                ) from None
    return parsed
