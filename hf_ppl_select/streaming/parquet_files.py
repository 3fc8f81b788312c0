"""Selection from parquet files larger than memory, in two passes: a landscape, then a filter. Memory stays flat.

The first pass reads two columns of numbers and keeps a sketch. The second asks the stateless selector about each row
and writes what it keeps, one output file for each input file. Files are read a few thousand rows at a time, on disk or
anywhere `fsspec` reaches (`hf://datasets/...`, `s3://...`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..data.shards import MANIFEST, check_whole, is_as_described
from ..landscape.landscape import PerplexityLandscape
from ..landscape.scores import check_one_column, counted_in, which_are_scored
from ..selection.candidates import check_guards
from ..selection.selector import PerplexitySelector

if TYPE_CHECKING:
    import pyarrow as pa

    from .sharded_output import ShardedOutput

_ROWS = 4096  # read together
_WRITE_BYTES = 32_000_000  # of text and all, gathered before they are written
_READ_BYTES = 1_000_000  # of a column, read at once from a file
_SPLITS = {  # as `datasets` names them
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_MAKING = dict.fromkeys(("perplexity", "perplexity_ratio", "ifd", "num_tokens"), "score.py")  # recipes, by column
_MAKING |= dict.fromkeys(("ngram_ratio", "num_words"), "score_ngrams.py")
KEY_COLUMN = "the selector draws by it; make one with a key_column (of a recipe: --text_column) that is there"


@dataclass(frozen=True)
class ParquetFiles:
    """Scored chunks in parquet files.

    Attributes:
        filesystem: of `fsspec`.
        paths: on it, sorted.
        column, num_tokens_column: the score, and tokens of each chunk.
        min_score, max_score: guards; rows outside do not exist for the passes below, but are counted.
        shards: what a manifest says of local files, which the first pass compares with them. Of others parquet's own
            checksums are compared, page by page.
    """

    filesystem: Any
    paths: tuple[str, ...]
    column: str = "perplexity"
    num_tokens_column: str = "num_tokens"
    min_score: float | None = None
    max_score: float | None = None
    shards: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_one_column(self.column, "a stream of parquet files")

    @property
    def counted_in(self) -> str:
        """What budgets and sizes of these files count: tokens, or words."""
        return counted_in({"num_tokens_column": self.num_tokens_column})

    @classmethod
    def find(cls, name: str, split: str = "train", **options: Any) -> ParquetFiles:
        """The parquet files of a dataset.

        Args:
            name: a file, a folder, a URL of `fsspec`, or a Hub dataset.
            split: where files are named by split (`data/train-...`, `train/...`, `corpus_train.parquet`: by the words
                that `datasets` knows), those of this one.
            options: further attributes.

        Raises:
            FileNotFoundError: nothing there, or no parquet file of that split.
            ValueError: shards are missing, or have another size than was written.
        """
        from fsspec.core import url_to_fs

        check_guards(options.get("min_score"), options.get("max_score"))
        local = Path(name).expanduser()
        url = str(local.resolve()) if local.exists() else name
        if "://" not in name and not local.exists():
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
                raise FileNotFoundError(f"{name} does not exist; give a folder, a .parquet file or a Hub dataset.")
            url = f"hf://datasets/{name}"
        filesystem, root = url_to_fs(url)
        if root.endswith(".parquet"):
            return cls(filesystem, (root,), **options)
        found = sorted(filesystem.glob(f"{root.rstrip('/')}/**/*.parquet"))
        found = [path for path in found if not any(part.startswith(".") for part in path[len(root) :].split("/"))]
        inside = {path: path[len(root.rstrip("/")) :] for path in found}
        of_split = [path for path in found if _is_of_split(inside[path], split)]
        others = {other for other in _SPLITS if any(_is_of_split(path, other) for path in inside.values())}
        if not of_split and (split != "train" or others):
            there = f"; it has files of {' and '.join(sorted(others))}" if others else ""
            raise FileNotFoundError(
                f"{name} has no parquet file of split {split!r} (like data/{split}-00000.parquet){there}."
            )
        if not found:
            raise FileNotFoundError(f"{name} has no .parquet file; a streamed selection reads parquet only.")
        files = cls(filesystem, tuple(of_split or found), **options)
        return files._whole()

    def describe(self) -> list[tuple[str, int]]:
        """Name and size of each file: to notice that they have changed."""
        return [(path.rpartition("/")[2], int(self.filesystem.size(path) or 0)) for path in self.paths]

    def _whole(self) -> ParquetFiles:
        """With what manifests say of the files; ValueError where a folder lacks a shard, or one is too short."""
        folders: dict[str, list[str]] = {}
        for path in self.paths:
            folders.setdefault(path.rpartition("/")[0], []).append(path)
        hashes, local = {}, is_local(self.filesystem)
        for folder, paths in folders.items():
            sizes = {path.rpartition("/")[2]: int(self.filesystem.size(path) or 0) for path in paths}
            with TemporaryDirectory() as here:
                manifest = Path(folder if local else here, MANIFEST)
                if not local and self.filesystem.exists(f"{folder}/{MANIFEST}"):
                    self.filesystem.get_file(f"{folder}/{MANIFEST}", str(manifest))
                there = manifest if manifest.exists() else None
                listed = check_whole(sizes, there, folder, lambda name, folder=folder: self._rows(f"{folder}/{name}"))
            hashes |= {f"{folder}/{name}": shard for name, shard in listed.items()}
        return replace(self, shards=hashes if local else {})

    def _rows(self, path: str) -> int:
        with self.open(self.paths.index(path)) as file:
            return file.metadata.num_rows

    def check_columns(self, *names: str, advice: str | None = None) -> None:
        """KeyError if the first file lacks a column; it ends with `advice`."""
        with self.open(0) as file:
            check_columns(self.paths[0], file.schema_arrow.names, names, advice)

    def landscape(self, model: str | None = None) -> tuple[PerplexityLandscape, dict[str, int]]:
        """The first pass: the landscape inside the guards, and how many rows are outside.

        Raises:
            KeyError: a file lacks a column.
            ValueError: no row has a finite score inside the guards.
        """
        for path, shard in self.shards.items():
            if not is_as_described(path, shard):
                raise ValueError(f"{path} is not what was written: its SHA-256 differs; get it or make it again.")
        landscape, dropped = None, {}
        columns = (self.column, self.num_tokens_column)
        with _bar("Landscape") as bar:
            for index in range(len(self.paths)):
                for batch in self._batches(index, bar, len(self.paths), columns):
                    scores, tokens = (_numbers(batch, name) for name in columns)
                    scored = which_are_scored(scores, tokens, self.column, bar.n)
                    inside = np.ones(len(scores), dtype=bool)
                    for reason, outside in self._outside(scores).items():
                        outside &= inside & scored  # the others are counted by the landscape
                        dropped[reason] = dropped.get(reason, 0) + int(outside.sum())
                        inside &= ~outside
                    part = PerplexityLandscape._from_arrays(
                        scores[inside], tokens[inside], "chunks", model, bar.n, self.column
                    )
                    landscape = part if landscape is None else landscape.merge(part)
        if landscape is None or not len(landscape.bins):
            where = f"{len(self.paths)} parquet files"
            raise ValueError(f"no row of {where} has a finite {self.column} inside the guards.")
        dropped = {"no_score": landscape.num_skipped, "infinite_score": landscape.num_infinite, **dropped}
        return landscape, dropped

    def write_selected(self, selector: PerplexitySelector, output: ShardedOutput) -> None:
        """The second pass: write the rows that `selector` keeps, one shard for each file, if it is not there yet.

        Raises:
            KeyError: a file lacks a column.
        """
        import pyarrow.parquet as pq

        missing = output.missing
        with _bar("Select") as bar:
            for index in missing:
                with self.open(index) as file:
                    schema = file.schema_arrow  # with the features, for `load_dataset`
                batches = self._batches(index, bar, len(missing))
                options = {"schema": schema, "write_page_checksum": True}
                with output.writing(index) as aside, pq.ParquetWriter(aside, **options) as writer:
                    for table in gathered(self.keep(selector, batch) for batch in batches):
                        writer.write_table(table)

    def keep(self, selector: PerplexitySelector, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of a batch inside the guards, and with tokens, that `selector` keeps."""
        import pyarrow as pa

        mask = selector_mask(selector, batch, self.num_tokens_column)
        for outside in self._outside(_numbers(batch, self.column)).values():
            mask &= ~outside
        return batch.filter(pa.array(mask))

    def _outside(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        guards = {}
        if self.min_score is not None:
            guards["below_min_score"] = scores < self.min_score
        if self.max_score is not None:
            guards["above_max_score"] = np.isfinite(scores) & (scores > self.max_score)
        return guards

    def open(self, index: int) -> Any:
        """One of the files, as a `pyarrow.parquet.ParquetFile` that is read little by little."""
        import pyarrow.parquet as pq

        file = self.filesystem.open(self.paths[index], "rb")
        # buffered, a column chunk is read as it is decoded; otherwise all of it at once
        options = {"buffer_size": _READ_BYTES, "pre_buffer": False, "page_checksum_verification": True}
        with named(self.paths[index]):
            return pq.ParquetFile(file, **options)

    def _batches(
        self, index: int, bar: tqdm, num_files: int, columns: tuple[str, ...] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """One file, some rows at a time; the bar counts them, as if all `num_files` were as long as those so far."""
        with named(self.paths[index]), self.open(index) as file:
            needed = (self.column, self.num_tokens_column)
            check_columns(self.paths[index], file.schema_arrow.names, needed)
            bar.files = getattr(bar, "files", 0) + 1
            bar.total = (bar.n + file.metadata.num_rows) * num_files // bar.files
            for batch in file.iter_batches(_ROWS if columns is None else 16 * _ROWS, columns=columns):
                yield batch
                bar.update(batch.num_rows)


def _is_of_split(path: str, split: str) -> bool:
    """Whether a path below the dataset's folder, from "/" on, names a split by one of the words for it."""
    words = "|".join(map(re.escape, _SPLITS.get(split, (split,))))
    return re.search(rf"[/\-._ 0-9]({words})[/\-._ 0-9]", path) is not None


@contextmanager
def named(path: str) -> Iterator[None]:
    """Errors of pyarrow about a broken file as a ValueError that names it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the disk or network, not of what is in the file
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as parquet ({reason}); get it or make it again.") from error


def is_local(filesystem: Any) -> bool:
    return "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,))


def check_columns(path: str, present: list[str], needed: tuple[str, ...], advice: str | None = None) -> None:
    """KeyError if a file lacks a column; it ends with `advice`, or the recipe that makes the column."""
    if missing := [name for name in needed if name not in present]:
        recipe = _MAKING.get(missing[0])
        advice = advice or (f"score it with recipes/{recipe} first" if recipe else "name one of these")
        raise KeyError(f"{path} has no column {missing[0]!r}, it has {', '.join(present)}; {advice}.")


def _bar(what: str) -> tqdm:
    return tqdm(desc=what, unit=" rows", unit_scale=True, delay=1.0)


def selector_mask(
    selector: PerplexitySelector, batch: pa.RecordBatch | pa.Table, num_tokens_column: str | None = None
) -> np.ndarray:
    """Which rows of an Arrow batch a selector keeps, bool `[n]`; the same as `dataset.filter(selector, batched=True)`.

    With `num_tokens_column` only rows that have tokens, as landscapes count no others.

    Raises:
        KeyError: a column the selector reads is missing.
        ValueError: it reads two score columns.
    """
    import pyarrow as pa

    check_one_column(selector.column, "selector_mask")
    check_columns("the batch", batch.schema.names, (selector.column,))
    check_columns("the batch", batch.schema.names, (selector.key_column,), KEY_COLUMN)
    scores = _numbers(batch, selector.column)
    mask = selector.inclusion_probability(scores) > 0  # of the others no key is read
    if num_tokens_column is not None:
        mask &= _numbers(batch, num_tokens_column) > 0
    keys = batch.column(selector.key_column).filter(pa.array(mask))
    if pa.types.is_integer(keys.type) and not keys.null_count:
        keys = keys.to_numpy(zero_copy_only=False)
    else:
        keys = keys.to_pylist()
    mask[mask] = selector.keep(scores[mask], keys)
    return mask


def _numbers(batch: Any, name: str) -> np.ndarray:
    return np.array(batch.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)


def gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Small batches put together into tables of some size."""
    import pyarrow as pa

    waiting, size = [], 0
    for batch in batches:
        if batch.num_rows:
            waiting.append(batch)
            size += batch.nbytes
        if size > _WRITE_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting, size = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)
