"""Where rows come from: a name is a Hub dataset, a folder written by `save_to_disk`, or a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")  # what a chat template is rendered from, beside messages


def load_rows(name: str, config: str | None = None, split: str = "train") -> Dataset:
    """Load the rows of a dataset.

    Args:
        name: a Hub dataset; a folder written by `save_to_disk`, or one that `load_dataset` understands; or a .parquet,
            .jsonl, .json, .csv or .txt file (of .txt, each paragraph is a row).
        config: configuration of a Hub dataset.
        split: split, e.g. `"train"`; except of folders written by `save_to_disk` also sliced, e.g. `"train[:1000]"`.

    Raises:
        FileNotFoundError: `name` is written like a path and nothing is there, or only a part yet.
        ValueError: a file of another kind, one that cannot be read, no such split, or no rows; or a folder that lacks
            a shard, or has another than was written.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk

    path = Path(name).expanduser()
    kind = FILE_KINDS.get(path.suffix)
    if (path / "data").is_dir():
        check_folder_of_shards(path / "data", [shard.name for shard in path.glob("data/*.parquet")])
    if path.is_file():
        if kind is None:
            raise ValueError(f"{name} is not a dataset: bring a {', '.join(FILE_KINDS)} file, or a folder.")
        options = {"sample_by": "paragraph"} if kind == "text" else {}
        if kind == "json":
            check_json_rows(path)
        with _named(name, f" as {kind}, split {split!r}"):
            rows = load_dataset(kind, data_files={split.partition("[")[0]: str(path)}, split=split, **options)
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        with _named(name, ", a folder of save_to_disk"):
            rows = load_from_disk(str(path))
        splits = rows if isinstance(rows, DatasetDict) else {"train": rows}
        if split not in splits:
            raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits)}.")
        rows = splits[split].with_format(None)  # which it may have been saved with
    elif shards := sorted(path.glob("data/*.parquet")):
        # Named one by one: where a card lists them, datasets caches the rows under the last part of the path alone.
        files: dict[str, list[str]] = {}
        for shard in shards:
            files.setdefault(shard.name.partition("-")[0], []).append(str(shard))
        with _named(name):
            rows = load_dataset("parquet", data_files=files, split=split)
    elif (path / ".unfinished").is_dir():
        raise FileNotFoundError(f"{name} is not finished: run the command that writes it again, which goes on.")
    elif not path.exists() and (kind or name.startswith(("/", ".", "~"))):
        raise FileNotFoundError(f"{name} does not exist; give a file, a folder or the name of a Hub dataset.")
    else:
        with _named(name):
            rows = load_dataset(name, config, split=split)
    if not len(rows):
        raise ValueError(f"{name} has no rows in split {split!r}.")
    return rows


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
