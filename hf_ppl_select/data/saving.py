"""Saving without half-written files: write aside, fsync, rename. What is saved is JSON with a kind and a version."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield aside
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path`, all of it or nothing."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def save_json(path: str | os.PathLike, payload: dict[str, Any], *, kind: str, version: int) -> None:
    """Save `payload` as JSON with a header naming what it is, e.g. `kind="scaling_law"`. NaN is refused."""
    document = {"kind": f"hf_ppl_select/{kind}", "schema_version": version, **payload}
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def load_json(path: str | os.PathLike, *, kind: str, version: int) -> dict[str, Any]:
    """Load what [`save_json`] wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, another kind of file, or a schema this version does not read.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); was it written by hf_ppl_select?") from error
    expected = f"hf_ppl_select/{kind}"
    found = document.get("kind") if isinstance(document, dict) else type(document).__name__
    if found != expected:
        raise ValueError(
            f"{path} holds {found!r}, not {expected!r}; pass the file that hf_ppl_select saved as a {kind}."
        )
    if document.get("schema_version") != version:
        raise ValueError(
            f"{path} has schema version {document.get('schema_version')!r}, this hf_ppl_select reads {version}; "
            "make the file again, or install the version that wrote it."
        )
    return {key: value for key, value in document.items() if key not in ("kind", "schema_version")}
