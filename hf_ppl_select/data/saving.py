"""Saving without half-written files: write aside, fsync, rename. What is saved is JSON with a kind and a version."""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from .credentials import without_credentials
from .strict import in_a_line, parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

T = TypeVar("T")
_ALGORITHM = "sha256:"
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"


@contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[Path]:
    """Give a hidden path beside `path` to write to; once the block is through, sync it and rename it to `path`.

    So `path` holds either its old content or all of the new one, even after a power cut.

    ```python
    with written_aside("train.parquet") as aside:
        dataset.to_parquet(aside)
    ```
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path_aside(path)
    try:
        yield aside
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(aside)):
            error.filename = os.fspath(path)  # what one knows it by; native writers name none
        with suppress(OSError):  # of a disk that is read-only by now: the first error says it
            aside.unlink(missing_ok=True)
        raise


def path_aside(path: Path) -> Path:
    """A hidden path beside `path`, to be renamed to it. What killed processes left beside it is removed first."""
    _sweep(path.parent)
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.partial")


@cache
def _sweep(folder: Path) -> None:
    """Once per folder and process. Of other machines, whose processes cannot be asked, nothing is removed."""
    for path in folder.glob(".*.partial"):
        match = re.search(rf"\.{_HOST}-(\d+)-[0-9a-f]{{8}}\.partial$", path.name)
        if match and not _is_running(int(match[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # where signal 0 ends it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path`, all of it or nothing."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def save_json(path: str | os.PathLike, payload: dict[str, Any], *, kind: str, version: int) -> None:
    """Save `payload` as JSON with a header naming what it is, e.g. `kind="scaling_law"`, and a checksum.

    NaN is refused, and what looks like a credential is hidden.
    """
    document = {"kind": f"hf_ppl_select/{kind}", "schema_version": version, "checksum": "", **payload}
    document = json.loads(json.dumps(document, ensure_ascii=False, allow_nan=False))  # tuples are lists from here on
    document = without_credentials(document)
    document["checksum"] = checksum({name: value for name, value in document.items() if name != "checksum"})
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def as_it_is(payload: Any, where: str) -> Any:
    """Of files whose every content is right."""
    return payload


def load_json(
    path: str | os.PathLike, *, kind: str, version: int, read: Callable[[dict[str, Any], str], T] = as_it_is
) -> T:
    """Load what [`save_json`] wrote.

    Files without a checksum, of earlier versions, load with a warning.

    Args:
        read: called with the payload and the file's name: checks it, and returns what it stands for.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file.
        ValueError: not JSON, another kind of file, a schema this version does not read, content that `read` refuses,
            or other content than was written.
    """
    where = os.fspath(path)
    try:
        document = parse_json(Path(path).read_text(encoding="utf-8"), where)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{where} does not exist; name the file that hf_ppl_select saved as a {kind}."
        ) from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{where} is a folder; name the file in it that was saved as a {kind}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); was it written by hf_ppl_select?") from error
    expected = f"hf_ppl_select/{kind}"
    found = document.get("kind") if isinstance(document, dict) else type(document).__name__
    if found != expected:
        raise ValueError(
            f"{path} holds {found!r:.80}, not {expected!r}; pass the file that hf_ppl_select saved as a {kind}."
        )
    written = document.pop("checksum", None)
    true = checksum(document)
    del document["kind"]
    version_is = document.pop("schema_version", None)
    if version_is != version or isinstance(version_is, bool):
        raise ValueError(
            f"{path} has schema version {version_is!r:.80}, this hf_ppl_select reads {version}; "
            "make the file again, or install the version that wrote it."
        )
    try:
        result = read(document, where)
    except ValueError as error:
        raise ValueError(in_a_line(str(error) if where in str(error) else f"{where}: {error}")) from error
    if written is None and not difflib.get_close_matches("checksum", document):  # one that was damaged, too
        warnings.warn(f"{path} has no checksum, as earlier versions wrote it; save it again.", stacklevel=3)
    elif written != true:
        raise ValueError(
            f"{path} is not what was written: its checksum differs. Make the file again, or restore it; of a change "
            "by hand, take the line with the checksum out."
        )
    return result


def checksum(document: Any) -> str:
    """Of what JSON says, however it is laid out: `sha256:` and 64 digits."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return _ALGORITHM + hashlib.sha256(text.encode()).hexdigest()


def check_not_input(output_dir: str | os.PathLike, name: str) -> None:
    """ValueError where the folder to write holds the dataset to read, `name`: to overwrite it would delete that."""
    rows, output = (Path(path).expanduser().resolve() for path in (name, output_dir))
    if rows == output or output / "data" in (rows, *rows.parents):
        raise ValueError(f"output_dir {os.fspath(output_dir)} holds the rows to read; name another folder.")


@contextmanager
def one_at_a_time(folder: str | os.PathLike) -> Iterator[None]:
    """Keep other processes that ask for the same folder waiting, so that reading, changing and replacing a file of it
    is one step. On Windows, and on file systems without locks, they do not wait.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL):
                raise
        yield
    finally:
        os.close(descriptor)
