"""Which of the quickstart's steps are done: a record of each says what it was asked, what it read and what it left.

A step is done where all three are as they were. Else what it left is removed, and it is run again. What a killed step
left has no record: its recipe goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hf_ppl_select import __version__
from hf_ppl_select.data.credentials import without_credentials
from hf_ppl_select.data.saving import load_json, save_json
from hf_ppl_select.data.schema import Names, Text, checked
from hf_ppl_select.data.shards import file_sha256

_FILES = Names(Text(longest=64))  # SHA-256 by path
_SCHEMA = {"options": [Text()], "read": _FILES, "left": _FILES}


@dataclass(frozen=True)
class Step:
    """A step that writes into the folder `name` of the quickstart's `folder`.

    Attributes:
        options: words that decide its result.
        reads: files and folders whose contents do.
    """

    folder: Path
    name: str
    options: tuple[str, ...]
    reads: tuple[Path, ...] = ()

    @property
    def output(self) -> Path:
        return self.folder / self.name

    @property
    def _record(self) -> Path:
        return self.folder / "steps" / f"{self.name.replace('/', '-')}.json"

    def is_done(self) -> bool:
        """Whether all is as it was noted; if not, what was left is removed."""
        if not self._record.is_file():
            return False
        try:
            known = load_step(self._record)
        except ValueError as error:
            print(f"{error} The step is run again.", flush=True)
            self._record.unlink()
            return False
        if changed := _difference(known, self._now()):
            print(f"{self.output} is made again: {changed}.", flush=True)
            self._record.unlink()
            _remove(self.output, known["left"])
        return not changed

    def note_done(self) -> None:
        """Record that it is done."""
        save_json(self._record, self._now(), kind="quickstart_step", version=1)

    def _now(self) -> dict[str, Any]:
        read = {}
        for path in self.reads:
            read |= {str(path / name): digest for name, digest in _hashes(path).items()}
        return without_credentials(
            {"options": [__version__, *self.options], "read": read, "left": _hashes(self.output)}
        )


def load_step(path: Path) -> dict[str, Any]:
    """A record of a step that is done; ValueError where it is none, or not what was written."""
    return load_json(path, kind="quickstart_step", version=1, read=checked(_SCHEMA))


def _difference(known: dict[str, Any], now: dict[str, Any]) -> str | None:
    """In words; a file that was added since to what the step left does not count."""
    if known["options"] != now["options"]:
        return "it was asked for otherwise"
    if changed := [name for name in known["read"] | now["read"] if known["read"].get(name) != now["read"].get(name)]:
        return f"it was made from another {changed[0]}"
    if changed := [name for name, digest in known["left"].items() if now["left"].get(name) != digest]:
        return f"its {changed[0]} is not what was written"
    return None


def _remove(folder: Path, names: Iterable[str]) -> None:
    """These files, and the folders that this empties."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for inside in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(inside.iterdir()):
            inside.rmdir()


def _hashes(path: Path) -> dict[str, str]:
    """The SHA-256 of a file, or of all files in a folder by their paths in it; empty where nothing is."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stamps = ((file, file.stat()) for file in files)
    return {
        str(file.relative_to(path)): _sha256(file, info.st_size, info.st_mtime_ns, info.st_ino)
        for file, info in stamps
    }


@cache
def _sha256(path: Path, *_stamps: int) -> str:
    """Content decides; the stamps tell whether to read it again in this process."""
    return file_sha256(path)
