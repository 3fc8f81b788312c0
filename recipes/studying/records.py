"""A study's records: one JSON line for each thing that was measured, in one file per draw; a killed study goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_ppl_select.data.saving import checksum
from hf_ppl_select.data.schema import Anything, Names, Number, Numbers, Text, check
from hf_ppl_select.data.strict import in_a_line, parse_json

_NLL = Numbers(Number(0, 1e9))
_MEASURED = {
    "num_tokens": Number(0, 1e15, whole=True),
    "domain": _NLL,
    "general?": _NLL,
    "moments?": Names(Number()),
    "benchmarks?": Names(Names(Anything())),
}
_RECORD = {"what": Text(), "plan": Text(), "checksum": Text(), "rungs?": [_MEASURED], "problem?": Text()}


class Records:
    """The lines of one file, by their `what`.

    Args:
        path: the file; a last line that a kill cut short does not count, and the next one takes its place.
        plan: hash of the study's plan, which every line holds.

    Raises:
        ValueError: a line that is no record, is of another plan, or is not what was written.
    """

    def __init__(self, path: Path, plan: str) -> None:
        self.path, self.plan = path, plan
        self.by_what: dict[str, dict[str, Any]] = {}
        self._torn = 0  # bytes of a line that a kill cut short
        if not path.exists():
            return
        *lines, torn = path.read_bytes().split(b"\n")
        self._torn = len(torn)
        for number, line in enumerate(lines, start=1):
            record = _read(line, f"{path}, line {number}")
            if record["plan"] != plan:
                raise ValueError(
                    f"{path}, line {number} is of another plan: {record['plan']:.16}, not {plan:.16}; restore it, or "
                    "choose another --output_dir."
                )
            self.by_what[record["what"]] = record

    def __contains__(self, what: str) -> bool:
        return what in self.by_what

    def __getitem__(self, what: str) -> dict[str, Any]:
        return self.by_what[what]

    def add(self, what: str, found: Mapping[str, Any]) -> None:
        """Write a line, at once and for good."""
        record = json.loads(json.dumps({"what": what, "plan": self.plan, **found}, allow_nan=False))
        record["checksum"] = checksum(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if self._torn:
                file.truncate(self.path.stat().st_size - self._torn)
                self._torn = 0
            file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.by_what[what] = record


def _read(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = parse_json(line.decode(), where)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error.reason}); restore it.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where} is not a record of a study; restore it.")
    known = {name.rstrip("?") for name in _RECORD}
    check({name: value for name, value in record.items() if name in known}, _RECORD, where)
    if record["checksum"] != checksum({name: value for name, value in record.items() if name != "checksum"}):
        raise ValueError(in_a_line(f"{where} is not what was written: its checksum differs; restore it."))
    return record
