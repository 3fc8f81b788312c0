"""A study's records: one JSON line for each thing that was measured, in one file per draw; a killed study goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Records:
    """The lines of one file, by their `what`.

    Args:
        path: the file; a last line that a kill cut short is dropped.
        plan: hash of the study's plan, which every line holds.

    Raises:
        ValueError: a line that is no record, or is of another plan.
    """

    def __init__(self, path: Path, plan: str) -> None:
        self.path, self.plan = path, plan
        self.by_what: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        whole, _, torn = text.rpartition("\n")
        if torn:
            with path.open("r+b") as file:
                file.truncate(len((whole + "\n").encode() if whole else b""))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                what, of_plan = record["what"], record["plan"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ValueError(f"{path}, line {number} is not a record of a study.") from None
            if of_plan != plan:
                raise ValueError(f"{path}, line {number} is of another plan: {of_plan[:16]}, not {plan[:16]}.")
            self.by_what[what] = record

    def __contains__(self, what: str) -> bool:
        return what in self.by_what

    def __getitem__(self, what: str) -> dict[str, Any]:
        return self.by_what[what]

    def add(self, what: str, found: Mapping[str, Any]) -> None:
        """Write a line, at once and for good."""
        record = json.loads(json.dumps({"what": what, "plan": self.plan, **found}))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.by_what[what] = record
