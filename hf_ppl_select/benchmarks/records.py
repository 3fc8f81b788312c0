"""The records of a run as parquet, one row per question: what two models are compared by, and any tool opens."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.saving import written_aside
from .estimates import Record

if TYPE_CHECKING:
    from .results import BenchmarkResults

KIND, VERSION = "hf_ppl_select/benchmark_records", 1
_METADATA = b"hf_ppl_select"
_SETTINGS = ("model", "limit", "seed", "max_length", "num_fewshot")


@dataclass(frozen=True)
class SavedRecords:
    """The records of a run by benchmark, the group of each benchmark, and the settings of the run."""

    records: dict[str, tuple[Record, ...]]
    groups: dict[str, str]
    settings: dict[str, Any]


def save_records(path: str | os.PathLike, results: BenchmarkResults) -> None:
    """Write `benchmark`, `group` and the columns of [`Record`], a row per question, all of it or nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "benchmark": pa.string(),
            "group": pa.string(),
            "index": pa.int64(),
            "gold": pa.int64(),
            "predicted": pa.int64(),
            "log_likelihoods": pa.list_(pa.float64()),
            "num_chars": pa.list_(pa.int64()),
            "num_bytes": pa.list_(pa.int64()),
            "num_truncated": pa.int64(),
            "digest": pa.string(),
        }
    )
    rows = [
        {"benchmark": result.name, "group": result.group, **vars(record)}
        for result in results.benchmarks.values()
        for record in result.records
    ]
    header = {"kind": KIND, "schema_version": VERSION, **{name: getattr(results, name) for name in _SETTINGS}}
    table = pa.Table.from_pylist(rows, schema).replace_schema_metadata({_METADATA: json.dumps(header)})
    with written_aside(path) as aside:
        pq.write_table(table, aside)


def load_records(path: str | os.PathLike) -> SavedRecords:
    """Read what [`save_records`] wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not parquet, another kind of file, or a schema this version does not read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no file {os.fspath(path)!r}; run_benchmarks.py saves one beside its output."
        )
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file with the records of a run: {error}") from None
    header = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
    if (header.get("kind"), header.get("schema_version")) != (KIND, VERSION):
        raise ValueError(
            f"{path} holds {header.get('kind')!r} of version {header.get('schema_version')!r}, not {KIND!r} of "
            f"version {VERSION}: pass the records that run_benchmarks.py saved."
        )
    records: dict[str, list[Record]] = {}
    groups: dict[str, str] = {}
    for row in table.to_pylist():
        name = row.pop("benchmark")
        groups[name] = row.pop("group")
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        records.setdefault(name, []).append(Record(**fields))
    return SavedRecords(
        {name: tuple(found) for name, found in records.items()}, groups, {name: header[name] for name in _SETTINGS}
    )
