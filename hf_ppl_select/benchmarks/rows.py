"""Rows of a benchmark: from its data set on the Hub, or from a .parquet, .jsonl, .json or .csv file.

The `prepare_...` functions then give them the columns that a benchmark's templates name.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..data.strict import parse_json
from .benchmark import FILE_SUFFIXES, Benchmark, Row
from .subject_names import CMMLU_SUBJECTS

_NESTED_COLUMNS = ("choices", "context", "endings", "Options")  # JSON in .csv files
MMMLU_LANGUAGES = {
    "AR_XY": "Arabic",
    "BN_BD": "Bengali",
    "DE_DE": "German",
    "ES_LA": "Spanish",
    "FR_FR": "French",
    "HI_IN": "Hindi",
    "ID_ID": "Indonesian",
    "IT_IT": "Italian",
    "JA_JP": "Japanese",
    "KO_KR": "Korean",
    "PT_BR": "Brazilian Portuguese",
    "SW_KE": "Swahili",
    "YO_NG": "Yoruba",
    "ZH_CN": "Simplified Chinese",
}
GPQA_SEED = 1234


def find_source(
    benchmark: Benchmark,
    data_dir: str | os.PathLike | None = None,
    data_files: Mapping[str, str | os.PathLike] | None = None,
    *,
    examples: bool = False,
) -> Path | None:
    """The local file to read a benchmark, or its few-shot examples, from, or None for the Hub.

    `data_files[name]` (`data_files["<name>:examples"]`) comes first, then the benchmark's own path, then `data_dir`,
    which holds the benchmark's stem or `<name>` with one of the known endings.

    Raises:
        FileNotFoundError: the file, or one for this benchmark in `data_dir`, does not exist.
        ValueError: the file has an unknown ending, or the benchmark has nothing to draw examples from.
    """
    key = f"{benchmark.name}:examples" if examples else benchmark.name
    own = benchmark.examples_dataset if examples else benchmark.dataset if benchmark.is_file else None
    if data_files and key in data_files:
        path = Path(data_files[key])
    elif own is not None:
        path = Path(own)
    elif examples and benchmark.examples_split is None:
        raise ValueError(
            f"{benchmark.name} has no rows beside its questions to draw examples from: run it with num_fewshot=0, or "
            f"give a file of its form as data_files[{key!r}] (an own benchmark: own_benchmark(..., examples=))."
        )
    elif data_dir is not None:
        stem = benchmark.examples_stem if examples else benchmark.file_stem
        other = f"{benchmark.name}_{benchmark.examples_split}" if examples else benchmark.name
        stems = list(dict.fromkeys(filter(None, (stem, other))))
        candidates = [Path(data_dir) / f"{stem}{suffix}" for stem in stems for suffix in FILE_SUFFIXES]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"{key}: {data_dir} has no {' or '.join(stems)} ({', '.join(FILE_SUFFIXES)}); add the "
                "file, drop the benchmark, or leave data_dir out to load it from the Hub."
            )
    else:
        return None
    if path.suffix not in FILE_SUFFIXES:
        raise ValueError(f"{key}: {path} does not end in {', '.join(FILE_SUFFIXES)}.")
    if not path.is_file():
        raise FileNotFoundError(f"{key}: there is no file {path}.")
    return path


def read_rows(benchmark: Benchmark, path: Path | None, split: str | None) -> list[Row]:
    """All rows of a local file, or of a split of the benchmark's data set on the Hub.

    Raises:
        ConnectionError: the Hub cannot be reached, or has no such data set.
        PermissionError: the data set is gated and its terms are not accepted.
        ValueError: the file is broken; the row or line is named.
    """
    return _read_file(path) if path else _read_hub(benchmark, split)


def _read_hub(benchmark: Benchmark, split: str | None) -> list[Row]:
    from datasets import load_dataset

    several = isinstance(benchmark.config, tuple)
    rows: list[Row] = []
    try:
        for config in benchmark.config if several else (benchmark.config,):
            options = {} if benchmark.revision is None else {"revision": benchmark.revision}
            if benchmark.hub_files is not None:
                files = benchmark.hub_files.format(config=config, split=split)
                found = load_dataset(benchmark.dataset, data_files={split: files}, split=split, **options).to_list()
            else:
                found = load_dataset(benchmark.dataset, config, split=split, **options).to_list()
            rows += [{**row, benchmark.config_column: config} for row in found] if several else found
    except (ConnectionError, FileNotFoundError) as error:  # a gated or missing data set is a FileNotFoundError
        if benchmark.gated and not isinstance(error, ConnectionError):
            raise PermissionError(
                f"{benchmark.name}: {benchmark.dataset!r} is gated. Accept its terms at "
                f"https://huggingface.co/datasets/{benchmark.dataset}, then log in (`hf auth login`, or the variable "
                f"HF_TOKEN); or pass data_dir= or data_files= ({error})."
            ) from error
        raise ConnectionError(
            f"{benchmark.name}: cannot load {benchmark.dataset!r} from the Hub ({error}). Pass data_dir= or "
            "data_files= to read a local file with the same columns."
        ) from error
    return rows


def _read_file(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path, page_checksum_verification=True).to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} is not a parquet file: {reason}") from None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); write it anew.") from None
    if path.suffix == ".csv":
        try:
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise ValueError(f"{path} is not a .csv file: {error}") from None
        return [_parse_nested(path, index, row) for index, row in enumerate(rows)]
    if path.suffix == ".json" and text.lstrip().startswith("["):
        rows = parse_json(text, str(path))
        if (wrong := next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)) is not None:
            raise ValueError(f"{path}, row {wrong} is not a JSON object.")
        return rows
    return list(_json_lines(path, text))


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = parse_json(line, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is not a JSON object.")
            yield row


def _parse_nested(path: Path, index: int, row: dict[str, str]) -> Row:
    parsed: Row = dict(row)
    for column in _NESTED_COLUMNS:
        if str(row.get(column, "")).startswith(("[", "{")):
            try:
                parsed[column] = parse_json(row[column], f"column {column!r}")
            except ValueError as error:
                raise ValueError(
                    f"{path}, row {index}: column {column!r} must be JSON in .csv, not {row[column]!r:.80} ({error})."
                ) from None
    return parsed


def strip_question(row: Row) -> Row:
    return {**row, "question": row["question"].strip()}


def prepare_mmlu(row: Row) -> Row:
    return {**strip_question(row), "topic": row["subject"].replace("_", " ")}


def prepare_mmmlu(row: Row) -> Row:
    topic = f"{row['Subject'].replace('_', ' ')} ({_known(MMMLU_LANGUAGES, row, 'locale')})"
    return {**row, "question": row["Question"].strip(), "topic": topic}


def prepare_cmmlu(row: Row) -> Row:
    return {**row, "question": row["Question"].strip(), "topic": _known(CMMLU_SUBJECTS, row, "subject")}


def _known(names: Mapping[str, str], row: Row, column: str) -> str:
    if row[column] not in names:
        raise ValueError(f"{column} {row[column]!r:.80} is none of {', '.join(names)}.")
    return names[row[column]]


def prepare_pubmedqa(row: Row) -> Row:
    return {**row, "abstract": "\n".join(row["context"]["contexts"])}


def prepare_arc(row: Row) -> Row:
    labels = list(row["choices"]["label"])
    if row["answerKey"] not in labels:
        raise ValueError(f"answerKey {row['answerKey']!r:.80} is none of the labels {labels!r:.300}.")
    return {**row, "texts": row["choices"]["text"], "gold": labels.index(row["answerKey"])}


def prepare_hellaswag(row: Row) -> Row:
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {**row, "query": clean_wikihow(query), "endings": [clean_wikihow(ending) for ending in row["endings"]]}


def clean_wikihow(text: str) -> str:
    """HellaSwag's WikiHow half carries "[title]", "[step]" and the like."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def prepare_gpqa(row: Row) -> Row:
    """The four answers in an order drawn from the question's own text, so that it is the same in every run."""
    columns = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3", "Correct Answer")
    answers = [_clean_gpqa(row[column]) for column in columns]
    digest = hashlib.sha256(row["Question"].encode("utf-8")).digest()
    order = np.random.default_rng([GPQA_SEED, *digest[:8]]).permutation(4).tolist()
    return {**row, "answers": [answers[i] for i in order], "gold": order.index(3)}


def _clean_gpqa(text: str) -> str:
    return text.strip().replace(" [title]", ". ").replace("  ", " ")


def prepare_diagnosis_arena(row: Row) -> Row:
    """The options as one line each, whether a row lists them by letter or as a text."""
    options = row["Options"]
    if isinstance(options, Mapping):
        options = "\n".join(f"{letter}. {text}" for letter, text in sorted(options.items()) if text is not None)
    if not isinstance(options, str) or not options.strip():
        raise ValueError(f"Options must be a text or one text per letter, not {row['Options']!r:.80}.")
    return {**row, "options": options.strip()}
