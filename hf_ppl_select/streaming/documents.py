"""Documents in parquet files, a file at a time: their hashes, the texts of some rows, a file of those that are kept.

What one machine of many does when documents are deduplicated: recipes/deduplicate_ray.py. Memory stays flat, but for
hashes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.saving import written_aside
from ..deduplication.duplicates import Deduplicate, as_texts
from ..deduplication.near_duplicates import find_near_duplicates
from ..deduplication.parts import hash_part
from .parquet_files import ParquetFiles, check_columns, gathered, is_local, named

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 1000  # read together
TEXT_COLUMN = "name the column with the text by text_column"  # advice where there is none


def hash_file(
    files: ParquetFiles, index: int, text_column: str, how: Deduplicate, threshold: float, ngram: int
) -> tuple[int | np.ndarray, ...]:
    """How many rows a file has, and what [`~hf_ppl_select.deduplication.parts.hash_part`] says of them.

    Raises:
        KeyError: the file has no such column.
        ValueError: it is broken.
    """
    with files.open(index) as file:
        check_columns(files.paths[index], file.schema_arrow.names, (text_column,), TEXT_COLUMN)
        number = file.metadata.num_rows
    texts = (as_texts(batch.column(0).to_pylist()) for batch in _batches(files, index, [text_column]))
    return number, *hash_part(texts, number, how, threshold, ngram)


def pick_texts(
    files: ParquetFiles, index: int, text_column: str, wanted: Sequence[np.ndarray]
) -> tuple[int | pa.Array, ...]:
    """How many texts were wanted of a file, and those of each of `wanted`: rows of the file, rising, none twice."""
    import pyarrow as pa

    rows = np.sort(np.concatenate(wanted))
    texts, start = [], 0
    for batch in _batches(files, index, [text_column]):
        here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + len(batch))] - start
        texts.append(pa.array(as_texts(batch.column(0).take(pa.array(here)).to_pylist()), pa.large_string()))
        start += len(batch)
    every = pa.concat_arrays(texts)
    return len(rows), *(every.take(pa.array(np.searchsorted(rows, part))) for part in wanted)


def compare_texts(threshold: float, ngram: int, *texts: pa.Array) -> np.ndarray:
    """Which of these texts, part after part, repeat an earlier one nearly, bool `[n]`."""
    import pyarrow as pa

    every = pa.chunked_array(texts, pa.large_string())

    def read(which: np.ndarray | None) -> Iterator[list[str]]:
        chosen = np.arange(len(every)) if which is None else which
        for start in range(0, len(chosen), _ROWS):
            yield every.take(pa.array(chosen[start : start + _ROWS])).to_pylist()

    return find_near_duplicates(read, len(every), threshold, ngram) >= 0


def write_kept(
    files: ParquetFiles, index: int, text_column: str, reasons: np.ndarray, filesystem: Any, path: str | None
) -> dict[int, int]:
    """Write the rows of a file whose reason to be dropped is -1, with all columns.

    Args:
        reasons: of all rows of the file, int8 `[rows]`.
        filesystem, path: of `fsspec`, where to write them; None: only count.

    Returns:
        The characters of the texts, by reason.

    Raises:
        ValueError: the file has other rows than before.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open(index) as file:
        schema = file.schema_arrow  # with the features, for `load_dataset`
        if file.metadata.num_rows != len(reasons):
            raise ValueError(f"{files.paths[index]} has changed meanwhile; start again, with a new output_dir.")
    characters: dict[int, int] = {}

    def kept() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in _batches(files, index, None):
            here = reasons[start : start + len(batch)]
            texts = as_texts(batch.column(schema.names.index(text_column)).to_pylist())
            lengths = np.fromiter((len(text or "") for text in texts), np.int64, len(batch))
            for reason in np.unique(here).tolist():
                characters[reason] = characters.get(reason, 0) + int(lengths[here == reason].sum())
            start += len(batch)
            yield batch.filter(pa.array(here < 0))

    if path is None:
        deque(kept(), maxlen=0)
        return characters
    with _whole(filesystem, path) as aside, pq.ParquetWriter(aside, schema, write_page_checksum=True) as writer:
        for table in gathered(kept()):
            writer.write_table(table)
    return characters


@contextmanager
def _whole(filesystem: Any, path: str) -> Iterator[Any]:
    """What to write to, so that two who write the same `path` do not mix; stores of objects see to that themselves."""
    if is_local(filesystem):
        with written_aside(path) as aside:
            yield aside
    else:
        with filesystem.open(path, "wb") as file:
            yield file


def _batches(files: ParquetFiles, index: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    with named(files.paths[index]), files.open(index) as file:
        yield from file.iter_batches(_ROWS, columns=columns)
