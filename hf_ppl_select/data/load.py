"""Where rows come from: a name is a Hub dataset, a folder written by `save_to_disk`, or a file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shards import check_folder_of_shards
from .strict import check_json_rows

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

FILE_KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}
_TEXT_TYPES = ("string", "large_string")
_FOLDER_KINDS = {**FILE_KINDS, ".ndjson": "json", ".tsv": "csv", ".arrow": "arrow"}  # as `datasets` calls them
_BESIDE_DATA = {"metadata", "readme", "license", "licence", "copying", "notice", "citation", "requirements"}
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5,}-of-\d{5,}(?:-[0-9a-f]+)?\.parquet")  # its split comes first
_OF_CARDS = {"sample_by", "na_values", "keep_default_na", "na_filter"}  # what a card may choose otherwise than we do
_MISSING = ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"]
_MISSING += ["NA", "NULL", "NaN", "None", "n/a", "nan", "null"]  # with these, what pandas takes for a missing value
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")  # what a chat template is rendered from, beside messages


def load_rows(name: str, config: str | None = None, split: str = "train") -> Dataset:
    """Load the rows of a dataset.

    Of a .txt file, also in a folder, each paragraph is a row. Of a .csv file, "NA", "null", "None" and the like are
    texts in a column of texts, where only an empty cell is missing; in one of numbers they are missing, too.

    Args:
        name: a Hub dataset; a folder written by `save_to_disk`, or one that `load_dataset` understands, with files of
            one kind; or a .parquet, .jsonl, .json, .csv or .txt file.
        config: configuration of a Hub dataset.
        split: split, e.g. `"train"`; except of folders written by `save_to_disk` also sliced, e.g. `"train[:1000]"`.

    Raises:
        FileNotFoundError: `name` is written like a path and nothing is there, or only a part yet.
        ValueError: a file of another kind, one that cannot be read, no such split, or no rows; or a folder that lacks
            a shard, has another than was written, or holds files of several kinds.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk

    path = Path(name).expanduser()
    kind = FILE_KINDS.get(path.suffix)
    if (path / "data").is_dir():
        check_folder_of_shards(path / "data", [shard.name for shard in path.glob("data/*.parquet")])
    if path.is_file():
        if kind is None:
            raise ValueError(f"{name} is not a dataset: bring a {', '.join(FILE_KINDS)} file, or a folder.")
        if kind == "json":
            check_json_rows(path)
        with _named(name, f" as {kind}, split {split!r}"):
            files = {split.partition("[")[0]: str(path)}
            rows = _read(kind, partial(load_dataset, kind, data_files=files), split)
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        with _named(name, ", a folder of save_to_disk"):
            rows = load_from_disk(str(path))
        splits = rows if isinstance(rows, DatasetDict) else {"train": rows}
        if split not in splits:
            raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits)}.")
        rows = splits[split].with_format(None)  # which it may have been saved with
    elif config is None and (shards := sorted(path.glob("data/*.parquet"))) and all(map(_split_of_shard, shards)):
        # Named one by one: where a card lists them, datasets caches the rows under the last part of the path alone.
        files: dict[str, list[str]] = {}
        for shard in shards:
            files.setdefault(_split_of_shard(shard), []).append(str(shard))
        with _named(name):
            rows = load_dataset("parquet", data_files=files, split=split)
    elif (path / ".unfinished").is_dir():
        raise FileNotFoundError(f"{name} is not finished: run the command that writes it again, which goes on.")
    elif not path.exists() and (kind or name.startswith(("/", ".", "~"))):
        raise FileNotFoundError(f"{name} does not exist; give a file, a folder or the name of a Hub dataset.")
    elif path.is_dir():
        with _named(name):
            rows = _read(_kind_of_folder(path, config), partial(load_dataset, str(path.absolute()), config), split)
    else:
        with _named(name):
            rows = load_dataset(name, config, split=split)
    if not len(rows):
        raise ValueError(f"{name} has no rows in split {split!r}.")
    return rows


def _split_of_shard(path: Path) -> str | None:
    """`train` of train-00000-of-00002.parquet; None where a file is called otherwise."""
    match = _SHARD.fullmatch(path.name)
    return match[1] if match else None


def _read(kind: str | None, load: Callable[..., Dataset], split: str) -> Dataset:
    """Rows by `load`, but each paragraph of a text as one, and of .csv no text as missing because it is "NA"."""
    if kind != "csv":
        return load(split=split, **({"sample_by": "paragraph"} if kind == "text" else {}))
    # Were such words missing nowhere, one "NA" would turn numbers into texts. So all columns are read as pandas does,
    # which shows what they hold, and anew where a text is missing. A column that misses all is taken for texts, too.
    rows = load(split=split.partition("[")[0])
    missing = {column: rows.data.column(column).null_count for column in rows.column_names}
    texts = {column for column in rows.column_names if getattr(rows.features[column], "dtype", None) in _TEXT_TYPES}
    texts = {column for column, number in missing.items() if number and (number == len(rows) or column in texts)}
    if not texts:
        return load(split=split) if "[" in split else rows
    words = {column: [""] if column in texts else _MISSING for column in missing}
    return load(split=split, keep_default_na=False, na_values=words)


def _kind_of_folder(path: Path, config: str | None) -> str | None:
    """What `datasets` reads a folder as, None where a card says how; ValueError where that is one of several kinds."""
    from datasets import load_dataset_builder
    from datasets.data_files import DataFilesDict, get_data_patterns
    from huggingface_hub import metadata_load

    files: list[Path] = []
    for folder, folders, names in os.walk(path):  # as `datasets`, without what is hidden
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    kinds = set(map(_kind_of_file, files))
    if len(kinds) == 1 and None not in kinds:
        return kinds.pop()  # without a search by `datasets`, which takes seconds for thousands of files
    card = (path / "README.md").is_file() and metadata_load(path / "README.md") or {}
    configs = card["configs"] if isinstance(card.get("configs"), list) else []
    said = {setting for settings in configs if isinstance(settings, dict) for setting in settings}
    data = [] if said & {"data_files", "data_dir"} else list(filter(_is_data, files))
    if len(set(map(_kind_of_file, data))) > 1:  # of which the names of splits, as in train.csv, may leave one kind
        found = DataFilesDict.from_patterns(get_data_patterns(str(path.resolve())), base_path=str(path.resolve()))
        data = [file for file in {Path(file) for files in found.values() for file in files} if _is_data(file)]
        _check_one_kind(data, path)
    builder = load_dataset_builder(str(path.absolute()), config)
    read = {Path(file) for files in (builder.config.data_files or {}).values() for file in files}
    if data:
        _check_one_kind([*data, *filter(_kind_of_file, read)], path)
    return None if said & _OF_CARDS else builder.name


def _kind_of_file(path: Path) -> str | None:
    """By any part of its name, as in `texts.txt.gz`."""
    return next((kind for suffix in reversed(path.suffixes) if (kind := _FOLDER_KINDS.get(suffix.lower()))), None)


def _is_data(path: Path) -> bool:
    """Whether a file of a kind of ours has rows, rather than something about them, as .json of a single object has."""
    if _kind_of_file(path) is None or path.name.partition(".")[0].lower() in _BESIDE_DATA:
        return False
    if path.suffix.lower() != ".json":
        return True
    with open(path, "rb") as file:
        return bool(re.match(rb"(\xef\xbb\xbf)?\s*(\[|\{.*\}[ \t\r]*\n\s*\{)", file.read(1 << 20)))


def _check_one_kind(files: Iterable[Path], path: Path) -> None:
    names = {_kind_of_file(file): file.name for file in sorted(files, reverse=True)}
    kinds = ", ".join(f"{kind} ({name})" for kind, name in sorted(names.items()))
    if len(names) > 1:
        raise ValueError(
            f"{path} has data files of several kinds, of which only one would be read: {kinds}. "
            "Give one of these files, or a folder that has one kind alone."
        )


@contextmanager
def _named(name: str, how: str = "") -> Iterator[None]:
    """Errors of `datasets` about a file that it cannot read, as a ValueError with the cause.

    Without `how`, where rows come from the Hub, errors about names, configurations and splits stay what they are.
    """
    import pyarrow as pa
    from datasets.exceptions import DatasetGenerationError

    broken = (DatasetGenerationError, pa.ArrowException)
    if how:  # what its parsers raise on files that are not what they are called
        broken += (OSError, StopIteration, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
    try:
        yield
    except broken as error:
        if getattr(error, "errno", None) is not None:  # of the disk, not of what is in the file
            raise
        reason = " ".join(str(error.__cause__ or error).split())[:300] or "it is empty"
        raise ValueError(f"{name} cannot be read{how}: {reason}") from error


@contextmanager
def _decoded(name: str) -> Iterator[None]:
    """Of a text whose bytes, in parquet, are none."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} has a text that is not UTF-8 ({error.reason}); write it anew.") from error


def load_texts(
    name: str, column: str = "text", config: str | None = None, split: str = "train"
) -> tuple[Dataset, int]:
    """Load the rows that have text, as a dataset of one column `text`, and count those that have none.

    Args:
        column: which column holds the text; a dataset whose only column is `text`, as a .txt file's, needs no naming.
        name, config, split: as in [`load_rows`].

    Raises:
        ValueError: as [`load_rows`]; or no such column, a column of something else, or no text in any row.
    """
    rows = load_rows(name, config, split)
    if rows.column_names == ["text"]:
        column = "text"
    if column not in rows.column_names:
        raise ValueError(f"{name} has no column {column!r}; its columns are {', '.join(rows.column_names):.300}.")
    if (dtype := getattr(rows.features[column], "dtype", "list")) not in (*_TEXT_TYPES, "null"):
        raise ValueError(f"column {column!r} of {name} holds {dtype}, not text.")
    with _decoded(name):
        texts = rows.select_columns(column).filter(_has_text, batched=True, input_columns=column)
    if not len(texts):
        raise ValueError(f"{name} has no text: column {column!r} is empty in all of its {len(rows)} rows.")
    return texts if column == "text" else texts.rename_column(column, "text"), len(rows) - len(texts)


def load_answers(
    name: str,
    config: str | None = None,
    split: str = "train",
    *,
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    prompt_template: str | None = None,
) -> tuple[Dataset, int]:
    """Load the rows that have an answer to learn, as `prompt` and `completion` or as `messages`, and count the others.

    Prompt and completion are texts or lists of messages; `tools` and `chat_template_kwargs` stay beside either kind.

    Args:
        prompt_column, completion_column: the columns to take as `prompt` and `completion`.
        prompt_template: what to write around each prompt of text, e.g. `"Question: {prompt}\nAnswer:\n"`.
        name, config, split: as in [`load_rows`].

    Raises:
        ValueError: as [`load_rows`]; or the columns are of neither kind, the template has no `{prompt}` or is for
            messages, a message holds a number that is not finite, or no row has an answer.
    """
    if prompt_template is not None and "{prompt}" not in prompt_template:
        raise ValueError(f"prompt_template has no {{prompt}} in it: {prompt_template!r}.")
    rows = load_rows(name, config, split)
    pair = {prompt_column: "prompt", completion_column: "completion"}
    more = [column for column in TEMPLATE_COLUMNS if column in rows.column_names and column not in pair]
    if set(pair) <= set(rows.column_names):
        for column in pair:
            if (dtype := getattr(rows.features[column], "dtype", "list")) not in (*_TEXT_TYPES, "null", "list"):
                raise ValueError(f"column {column!r} of {name} holds {dtype}, neither text nor messages.")
        if prompt_template is not None and getattr(rows.features[prompt_column], "dtype", "list") == "list":
            raise ValueError(f"prompt_template is for prompts of text; {prompt_column!r} of {name} holds messages.")
        with _decoded(name):
            answered = rows.select_columns([*pair, *more]).filter(_has_both, batched=True, input_columns=list(pair))
        answered = answered.rename_columns({old: new for old, new in pair.items() if old != new})
        if prompt_template is not None:
            answered = answered.map(lambda row: {"prompt": prompt_template.replace("{prompt}", row["prompt"])})
    elif "messages" in rows.column_names:
        answered = rows.select_columns(["messages", *more])
        options = {"batched": True, "input_columns": "messages", "fn_kwargs": {"name": name}}
        with _decoded(name):
            answered = answered.filter(_has_assistant, **options)
    else:
        columns = f"{', '.join(rows.column_names):.300}"
        raise ValueError(
            f"{name} has neither {prompt_column!r} and {completion_column!r} nor 'messages'; its columns: {columns}."
        )
    if not len(answered):
        raise ValueError(f"{name} has no answer to train on in any of its {len(rows)} rows.")
    _check_finite(answered, name)
    return answered, len(rows) - len(answered)


def _check_finite(rows: Dataset, name: str) -> None:
    """ValueError where a message or a tool holds a number that JSON has no word for: no template should show it."""
    for field in rows.features.arrow_schema:
        if _holds_floats(field.type) and not all(map(_is_finite, rows[field.name])):
            raise ValueError(f"column {field.name!r} of {name} holds a number that is not finite; take it out.")


def _holds_floats(kind: pa.DataType) -> bool:
    import pyarrow as pa

    nested = (kind.field(i).type for i in range(kind.num_fields))
    may = pa.types.is_floating(kind) or isinstance(kind, pa.BaseExtensionType)  # that of JSON, in datasets 5
    return may or any(map(_holds_floats, nested))


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list) else not isinstance(value, float) or isfinite(value)


def _has_text(texts: list[str | None]) -> list[bool]:
    return [bool(text and text.strip()) for text in texts]


def _has_both(prompts: list, completions: list) -> list[bool]:
    return [bool(prompt) and bool(completion) for prompt, completion in zip(prompts, completions)]


def _has_assistant(conversations: list[list[dict] | None], name: str) -> list[bool]:
    for turns in conversations:
        if turns is not None and not isinstance(turns, list):
            raise ValueError(f"column 'messages' of {name} holds {type(turns).__name__}, not lists of messages.")
        if wrong := [turn for turn in turns or () if not isinstance(turn, dict) or "role" not in turn]:
            raise ValueError(f"column 'messages' of {name} holds {wrong[0]!r:.80}, no message with a role.")
    return [any(turn["role"] == "assistant" for turn in turns or ()) for turns in conversations]
