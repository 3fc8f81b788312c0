"""A dataset written shard by shard: a killed run goes on where it was, and nobody loads it before it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..data.credentials import without_credentials
from ..data.saving import one_at_a_time, path_aside, written_aside
from ..data.shards import (
    check_folder_of_shards,
    describe_shard,
    is_as_described,
    load_manifest,
    load_note,
    save_manifest,
    save_note,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

T, R = TypeVar("T"), TypeVar("R")
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class ShardedOutput:
    """A folder that `load_dataset` reads: data/train-00000-of-00010.parquet and so on, and data/manifest.json.

    Shards are written aside and renamed, and gather in the hidden folder `.unfinished`, each with a note of its hash
    beside it; [`~ShardedOutput.publish`] makes it `data`, and the notes a part of the manifest. `load_dataset` knows
    shards by their names. A README.md that names them would be a trap: of two local folders with one name it makes
    `datasets` load the first again.

    Several processes, also on several machines with one file system, may each write some of them: see [`launched_as`].
    """

    folder: Path
    num_shards: int
    settings: Mapping[str, Any] = field(repr=False)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        num_shards: int,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        rank: int = 0,
    ) -> ShardedOutput:
        """Start a folder, or go on with one.

        Args:
            folder: the folder to write; made with its parents.
            num_shards: how many shards there will be.
            settings: all that decides what is in the shards, JSON-able; kept in the manifest.
            overwrite: where the folder was written with other settings, remove its shards and start anew.
            rank: only process 0 starts a folder; others wait until it has.

        Raises:
            ValueError: it was written with other settings; the message names them.
            FileExistsError: it has data that was not written here.
        """
        settings = without_credentials(json.loads(json.dumps(settings)))  # as they are saved
        output = cls(Path(folder), num_shards, settings)
        if output.folder.exists() and not output.folder.is_dir():
            raise FileExistsError(f"{folder} has data that was not written here; use another folder.")
        with nullcontext() if rank else one_at_a_time(folder):
            if output._start(overwrite, rank):
                return output
        while not output._is_ours():  # until the first process has started it
            time.sleep(0.1)
        return output

    def _start(self, overwrite: bool, rank: int) -> bool:
        """Start the folder, or see that it is started; False where the first process is still to do that."""
        manifest = self._current / "manifest.json"
        if manifest.exists():
            changed = self._changed(manifest)
            if not changed:
                self._check_what_is_there()
                return True
            if not overwrite and any(self._current.glob("*.parquet")):
                raise ValueError(f"{self.folder} has other settings: {changed}. Use another folder, or overwrite it.")
            if rank:
                return False
            shutil.rmtree(self._current.rename(path_aside(self._current)))  # half of it would be nobody's
        elif rank and not self.published:
            return False
        elif self.published:
            raise FileExistsError(f"{self.folder} has data that was not written here; use another folder.")
        save_manifest(self._current / "manifest.json", self.settings, None)
        return True

    def _changed(self, manifest: Path) -> str:
        """In which settings a manifest differs, in words."""
        earlier, ours = load_manifest(manifest)[0], self.settings
        names = sorted(name for name in ours | earlier if ours.get(name) != earlier.get(name))
        return "; ".join(f"{name} was {earlier.get(name)!r}, is {ours.get(name)!r}" for name in names)

    def _is_ours(self) -> bool:
        """Whether the folder is started, with these settings."""
        manifest = self._current / "manifest.json"
        return manifest.exists() and not self._changed(manifest)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the folder for a step; ValueError where it is another command's by now."""
        with one_at_a_time(self.folder):
            if not self._is_ours():
                taken = f"another command with other settings took {self.folder} meanwhile"
                raise ValueError(f"{taken}; name another folder.")
            yield

    def _check_what_is_there(self) -> None:
        """Remove shards of an earlier run that are not as they were written, so that they are written again.

        Raises:
            ValueError: a published one is damaged, or missing.
        """
        if self.published:
            return check_folder_of_shards(self.folder / "data", [path.name for path in self.paths])
        for path, shard in zip(self.paths, self._described()):
            if not path.exists():
                continue
            if shard is None:
                warnings.warn(f"{path} has no note of its hash, as earlier versions wrote it.", stacklevel=4)
            elif not is_as_described(path, shard):
                warnings.warn(f"{path} is not what was written; it is written again.", stacklevel=4)
                path.unlink(missing_ok=True)

    def _described(self) -> list[dict[str, Any] | None]:
        """For each shard what it was when it was written, from the note beside it or the manifest."""
        listed = load_manifest(self._current / "manifest.json")[1] or {}
        return [_read_note(path) or listed.get(path.name) for path in self.paths]

    @contextmanager
    def writing(self, index: int) -> Iterator[Path]:
        """A path to write a shard to; once the block is through, it is noted and takes its place.

        Where another process with the same settings has written it meanwhile, or published all, its one stays.

        Raises:
            ValueError: a command with other settings took the folder meanwhile.
        """
        with self._alone():  # before work is done for nothing
            path = self.folder / _UNFINISHED / self._name(index)
        half_written = [_note(path).name]
        try:
            with ExitStack() as step, written_aside(path) as aside:
                half_written.append(aside.name)
                yield aside
                shard = describe_shard(aside)
                step.enter_context(self._alone())  # until note and shard are both in place
                if self.published or (path.exists() and is_as_described(path, self._described()[index])):
                    raise FileExistsError(path)  # which stays
                save_note(_note(path), shard)
        except OSError:
            with self._alone():
                if not (path.exists() or self.published):
                    raise
        with self._alone():
            if self.published:  # and took along what was half written here
                for name in half_written:
                    (self.folder / "data" / name).unlink(missing_ok=True)
                shutil.rmtree(self.folder / _UNFINISHED, ignore_errors=True)

    @property
    def published(self) -> bool:
        return (self.folder / "data").exists()

    @property
    def _current(self) -> Path:
        return self.folder / ("data" if self.published else _UNFINISHED)

    def _name(self, index: int) -> str:
        return f"train-{index:05d}-of-{self.num_shards:05d}.parquet"

    @property
    def paths(self) -> list[Path]:
        """Where each shard is or will be; once published, those that have rows."""
        folder = self._current
        paths = [folder / self._name(index) for index in range(self.num_shards)]
        return [path for path in paths if path.exists()] if folder.name == "data" else paths

    @property
    def missing(self) -> list[int]:
        """The shards still to write."""
        return [index for index, path in enumerate(self.paths) if not path.exists()]

    def write(self, index: int, shard: Dataset) -> None:
        """Write a shard, all of it or nothing."""
        import pyarrow.parquet as pq

        rows = shard.with_format("arrow")[:].cast(shard.features.arrow_schema)  # with the features, for `load_dataset`
        with self.writing(index) as aside:
            pq.write_table(rows, aside, write_page_checksum=True)

    def write_from(self, index: int, folder: str | os.PathLike) -> None:
        """Write a shard of a folder's parquet files, by name, a row group at a time; of none, one without columns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts = sorted(Path(folder).rglob("*.parquet"))
        schema = pa.unify_schemas([*map(pq.read_schema, parts), pa.schema([])], promote_options="permissive")
        with self.writing(index) as aside, pq.ParquetWriter(aside, schema, write_page_checksum=True) as writer:
            for part in parts:
                with pq.ParquetFile(part) as rows:
                    for batch in rows.iter_batches():
                        writer.write_batch(batch.cast(schema))

    def fill(self, shards: Mapping[int, T], read: Callable[[T], R], finish: Callable[[R], Dataset]) -> None:
        """Write some shards: `finish(read(what))` for each index and what it is made of.

        `read` runs in a thread, one shard ahead of `finish`: a GPU need not wait for a tokenizer.
        """
        todo = list(shards.items())
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(read, todo[0][1]) if todo else None
            for (index, _), next_ in zip(todo, [*todo[1:], None]):
                found = following.result()
                following = ahead.submit(read, next_[1]) if next_ else None
                if not self.published:  # by another process with the same settings
                    self.write(index, finish(found))

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all shards, whole in memory."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        def tables():
            return [pq.read_table(path, columns=list(columns)) for path in self.paths]

        try:
            found = tables()
        except FileNotFoundError:
            if not self.published:
                raise
            found = tables()  # another process with the same settings published the shards meanwhile
        return pa.concat_tables(found)

    def publish(self) -> None:
        """Make `data` of the shards, in one step, without those that have no rows; nothing happens where that is done.

        Raises:
            FileNotFoundError: a shard is missing.
            ValueError: a command with other settings took the folder meanwhile.
        """
        with self._alone():
            if not self.published:
                if missing := self.missing:
                    raise FileNotFoundError(f"{self.folder} lacks {len(missing)} of {self.num_shards} shards.")
                self._publish()
            shutil.rmtree(self.folder / _UNFINISHED, ignore_errors=True)  # of processes that were slower

    def _publish(self) -> None:
        folder = self.folder / _UNFINISHED
        found = {path: shard or describe_shard(path) for path, shard in zip(self.paths, self._described())}
        empty = [path for path, shard in found.items() if not shard["num_rows"]]
        empty = empty[: self.num_shards - 1]  # datasets 4.4 to 5.0 cannot load what has one before others
        listed = {path.name: shard for path, shard in found.items() if path not in empty}
        save_manifest(folder / "manifest.json", load_manifest(folder / "manifest.json")[0], listed)
        for path in (*map(_note, self.paths), *empty):
            path.unlink(missing_ok=True)
        folder.rename(self.folder / "data")
        for left in (".*.partial", "*.parquet.json"):  # of a write that was killed, or by a slower process meanwhile
            for path in (self.folder / "data").glob(left):
                path.unlink(missing_ok=True)


def _note(path: Path) -> Path:
    """Where the hash of an unpublished shard is kept."""
    return path.with_name(f"{path.name}.json")


def _read_note(path: Path) -> dict[str, Any] | None:
    """What was noted of a shard; nothing where that was cut off, and so does not fit the shard either."""
    try:
        return load_note(_note(path))
    except FileNotFoundError:
        return None
    except ValueError:
        return {"num_bytes": -1}


def launched_as() -> tuple[int, int, int]:
    """`(rank, number of processes, rank on this machine)`, as `accelerate launch` and `torchrun` tell each process.

    Where a scheduler starts the processes, set `RANK` and `WORLD_SIZE` for each. Alone: `(0, 1, 0)`.

    Raises:
        ValueError: the environment's numbers do not fit together.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < size:
        raise ValueError(f"The environment says RANK={rank} of WORLD_SIZE={size}: ranks go from 0 to {size - 1}.")
    return rank, size, int(os.environ.get("LOCAL_RANK", rank))


def hash_rows(rows: Dataset) -> str:
    """A hash of all that is in the rows: equal for equal rows, wherever they were loaded from."""
    digest = hashlib.sha256()
    for table in rows.with_format("arrow").iter(1000):
        digest.update(json.dumps(table.to_pydict(), default=repr).encode())
    return digest.hexdigest()
