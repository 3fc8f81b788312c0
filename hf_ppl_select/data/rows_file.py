"""Tables as lines of JSON, each with a `checksum` that says which row of how many it is: `"3/12 sha256:9f86d0..."`.

So a table that was cut, thinned out or changed is told from a whole one. Whole tables may stand one after another.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .credentials import without_credentials
from .saving import checksum, write_atomically
from .strict import parse_json

logger = logging.getLogger(__name__)
_CHECKSUM = re.compile(r"\d{1,9}/(\d{1,9}) sha256:[0-9a-f]{16}")


def write_rows(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a table as a whole."""
    lines = []
    for number, row in enumerate(rows, start=1):
        row = without_credentials({name: value for name, value in row.items() if name != "checksum"})
        row["checksum"] = _checksum(row, number, len(rows))
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomically(path, "".join(lines))


def read_rows(path: str | os.PathLike) -> list[Any]:
    """The rows of a table, whatever JSON they hold.

    Of a last line that is no JSON, which a killed writer leaves, there is a warning, and it is left out.

    Raises:
        ValueError: a line before is not JSON, or a table with checksums lacks rows or was changed.
    """
    rows, lines = [], Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"line {number} of {os.fspath(path)}"
        try:
            rows.append(parse_json(line.decode("utf-8"), where))
        except ValueError as error:
            torn = isinstance(error, UnicodeDecodeError) or isinstance(error.__cause__, json.JSONDecodeError)
            if number == len(lines) and torn:
                warnings.warn(f"the last line of {path} is cut off (a killed run?); it is left out.", stacklevel=3)
            elif torn:
                raise ValueError(f"{where} is not JSON ({error.__cause__ or error}); remove or repair it.") from error
            else:
                raise
    _check_rows(rows, path)
    return rows


def _checksum(row: Any, number: int, size: int) -> str:
    return f"{number}/{size} {checksum([number, size, row])[:23]}"


def _is_checksum(value: Any) -> bool:
    return isinstance(value, str) and _CHECKSUM.fullmatch(value) is not None


def _check_rows(rows: list[Any], path: str | os.PathLike) -> None:
    """Whether the rows are those that were written, one whole table after another; or none has a checksum."""
    rows = [row if isinstance(row, dict) else {} for row in rows]
    if not any("checksum" in row or any(map(_is_checksum, row.values())) for row in rows):
        logger.info("%s has no checksums: another program wrote it, or an earlier version.", path)
        return
    number = size = 0
    for row, own in enumerate(rows):
        written = own.get("checksum")
        if number == size:  # the next table begins
            number, size = 0, int(_CHECKSUM.fullmatch(written)[1]) if _is_checksum(written) else 1
        number += 1
        if written != _checksum({name: value for name, value in own.items() if name != "checksum"}, number, size):
            raise ValueError(
                f"row {row} of {path} is not what was written there: its checksum differs, or rows before it are "
                "missing. Measure again, or restore the file; of a change by hand, take all checksums out."
            )
    if number < size:
        raise ValueError(
            f"{path} lost its end: it holds {number} of {size} rows. Restore it; or, if these are the ones you want, "
            "take all checksums out."
        )
