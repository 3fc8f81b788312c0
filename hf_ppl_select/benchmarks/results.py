"""What a run of benchmarks found: records per question, metrics with intervals, group averages; saving it.

The records alone are saved as parquet, one row per question: what two models are compared by, and any tool opens.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.credentials import without_credentials
from ..data.saving import checksum, load_json, save_json, written_aside
from ..data.schema import Names, Number, Numbers, Text, check, maybe
from ..data.strict import parse_json
from .estimates import Estimate, Record, paired_differences
from .evaluate_modules import METRICS

KIND, VERSION = "benchmark_results", 1
_RECORDS_KIND, _METADATA = "hf_ppl_select/benchmark_records", b"hf_ppl_select"
_SETTINGS = ("model", "limit", "seed", "max_length", "num_fewshot", "dtype")
_DECIDE = ("num_fewshot", "max_length", "dtype")  # what differs beside the model's weights
_COUNT = Number(0, 1e12, whole=True)
_COUNTS = Numbers(Number(0, 1e9, whole=True))
_RECORD = {
    **dict.fromkeys(("index", "gold"), _COUNT),
    "predicted": _COUNT,
    "log_likelihoods": Numbers(Number(-math.inf, 1e3)),
    **dict.fromkeys(("num_chars", "num_bytes"), _COUNTS),
    "num_truncated": _COUNT,
    "digest": Text(),
}
_ESTIMATES = dict.fromkeys(METRICS, {**dict.fromkeys(("value", "low", "high"), Number(-1e9, 1e9)), "n": _COUNT})
_RUN = {
    "model": Text(),
    "limit": maybe(_COUNT),
    **dict.fromkeys(("seed", "max_length", "num_fewshot"), Number(0, 2**64, whole=True)),
    "dtype?": maybe(Text()),
}
_RESULTS = _RUN | {
    "num_resamples": _COUNT,
    "groups": Names(_ESTIMATES),
    "benchmarks": Names(
        {**dict.fromkeys(("name", "group", "source"), Text()), "metrics": _ESTIMATES, "records": [_RECORD]}
    ),
}
TITLES = {"choice_accuracy": "acc", "choice_accuracy_norm": "acc_norm", "choice_bits_per_byte": "bits per byte"}


@dataclass(frozen=True)
class BenchmarkResult:
    """One benchmark: its metrics by name (see `METRICS`) and its records, in the order of the file."""

    name: str
    group: str
    source: str
    metrics: dict[str, Estimate]
    records: tuple[Record, ...]

    @property
    def num_truncated(self) -> int:
        """Questions whose prompt did not fit into the model."""
        return sum(record.num_truncated > 0 for record in self.records)


@dataclass(frozen=True)
class BenchmarkResults:
    """Results of [`run_benchmarks`]: `results.benchmarks["medmcqa"].metrics["choice_accuracy"].value`.

    Attributes:
        model: name or folder of the model.
        benchmarks: by name.
        groups: for each group the metrics averaged over its benchmarks, each benchmark counting once.
        limit, seed, num_resamples, max_length, num_fewshot: the settings of the run.
        dtype: of the computing, e.g. `"bfloat16"` or `"float32, autocast bfloat16"`; None: not recorded.
    """

    model: str
    benchmarks: dict[str, BenchmarkResult]
    groups: dict[str, dict[str, Estimate]]
    limit: int | None
    seed: int
    num_resamples: int
    max_length: int
    num_fewshot: int = 0
    dtype: str | None = None

    def paired_difference(self, other: BenchmarkResults) -> dict[str, dict[str, Estimate]]:
        """This run minus another on the same questions, with a paired bootstrap: both are resampled together.

        Returns:
            for each benchmark that both have, and as `"average of <group>"` for each group with several of these, each
            metric's difference. An interval without 0 is a difference beyond the sampling of questions; it says
            nothing about other training seeds.

        Raises:
            ValueError: no benchmark in common, or a benchmark's questions differ.

        Warns:
            UserWarning: the runs differ in solved examples, window or precision, and so in what that does.
        """
        ours, theirs = self.saved_records(), other.saved_records()
        warn_of_other_settings(ours.settings, theirs.settings)
        return paired_differences(ours.records, theirs.records, ours.groups, self.seed, self.num_resamples)

    def saved_records(self) -> SavedRecords:
        """What [`load_records`] reads from the file that [`save_records`] writes."""
        return SavedRecords(
            {name: result.records for name, result in self.benchmarks.items()},
            {name: result.group for name, result in self.benchmarks.items()},
            {name: getattr(self, name) for name in _SETTINGS},
        )

    def to_markdown(self) -> str:
        """A table with a row per benchmark and, where a group has several, one for its average."""
        rows = {name: result.metrics for name, result in self.benchmarks.items()}
        for group, metrics in self.groups.items():
            if sum(result.group == group for result in self.benchmarks.values()) > 1:
                rows[f"average of {group}"] = metrics
        return markdown_table(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any], where: str = "the results") -> BenchmarkResults:
        """The reverse of [`to_dict`]; ValueError, naming `where` and the field, of what is no results."""
        check(payload, _RESULTS, where)
        benchmarks = {}
        for name, result in payload["benchmarks"].items():
            records = tuple(_record(record, where) for record in result["records"])
            benchmarks[name] = BenchmarkResult(
                **{**result, "metrics": _estimates(result["metrics"]), "records": records}
            )
        groups = {group: _estimates(metrics) for group, metrics in payload["groups"].items()}
        return cls(**{**payload, "benchmarks": benchmarks, "groups": groups})

    def save(self, path: str | os.PathLike) -> None:
        """Write everything, records included, as JSON: all of it or nothing."""
        save_json(path, self.to_dict(), kind=KIND, version=VERSION)

    def save_records(self, path: str | os.PathLike) -> None:
        """Write the records alone, one row per question, as parquet: what [`compare_records`] reads."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema(
            dict.fromkeys(("benchmark", "group"), pa.string())
            | dict.fromkeys(("index", "gold", "predicted"), pa.int64())
            | {"log_likelihoods": pa.list_(pa.float64())}
            | dict.fromkeys(("num_chars", "num_bytes"), pa.list_(pa.int64()))
            | {"num_truncated": pa.int64(), "digest": pa.string()}
        )
        rows = [
            {"benchmark": result.name, "group": result.group, **vars(record)}
            for result in self.benchmarks.values()
            for record in result.records
        ]
        header = {"kind": _RECORDS_KIND, "schema_version": VERSION, **self.saved_records().settings}
        header = without_credentials(header)
        header["checksum"] = checksum([header, rows])
        table = pa.Table.from_pylist(rows, schema).replace_schema_metadata({_METADATA: json.dumps(header)})
        with written_aside(path) as aside:
            pq.write_table(table, aside)

    @classmethod
    def load(cls, path: str | os.PathLike) -> BenchmarkResults:
        """Read what [`save`] wrote."""
        return load_json(path, kind=KIND, version=VERSION, read=cls.from_dict)


@dataclass(frozen=True)
class SavedRecords:
    """The records of a run by benchmark, the group of each benchmark, and the settings of the run."""

    records: dict[str, tuple[Record, ...]]
    groups: dict[str, str]
    settings: dict[str, Any]


def other_settings(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Settings that decide numbers and are not the same in all runs that tell them, with the values there are."""
    values = {name: {run[name] for run in runs if run.get(name) is not None} for name in _DECIDE}
    return {name: sorted(found) for name, found in values.items() if len(found) > 1}


def warn_of_other_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any], stacklevel: int = 3) -> None:
    """A warning for each setting in which two runs that are compared differ."""
    for setting in other_settings([ours, theirs]):
        warnings.warn(
            f"{setting} is {ours[setting]} in one run and {theirs[setting]} in the other: differences are of that, "
            "too.",
            stacklevel=stacklevel,
        )


def load_records(path: str | os.PathLike) -> SavedRecords:
    """Read what [`BenchmarkResults.save_records`] wrote.

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
        rows = table.to_pylist()
        header = parse_json((table.schema.metadata or {}).get(_METADATA, b"{}").decode(), f"the header of {path}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a parquet file with the records of a run: {reason}") from None
    header = header if isinstance(header, dict) else {}
    if (header.get("kind"), header.get("schema_version")) != (_RECORDS_KIND, VERSION):
        raise ValueError(
            f"{path} holds {header.get('kind')!r} of version {header.get('schema_version')!r}, not "
            f"{_RECORDS_KIND!r} of version {VERSION}: pass the records that run_benchmarks.py saved."
        )
    written = header.pop("checksum", None)
    settings = {name: header.get(name) for name in _SETTINGS}
    check(settings, _RUN, os.fspath(path))
    check(rows, [_RECORD | dict.fromkeys(("benchmark", "group"), Text())], os.fspath(path))
    known = {"kind", "schema_version", *_SETTINGS}
    if written is None and {*header, "dtype"} == known:  # not one whose name was damaged
        warnings.warn(f"{path} has no checksum, as earlier versions wrote it; save it again.", stacklevel=2)
    elif written != checksum([header, rows]):
        raise ValueError(f"{path} is not what was written: its checksum differs. Run the benchmarks again.")
    records: dict[str, list[Record]] = {}
    groups: dict[str, str] = {}
    for row in rows:
        name = row.pop("benchmark")
        groups[name] = row.pop("group")
        records.setdefault(name, []).append(_record(row, os.fspath(path)))
    return SavedRecords({name: tuple(found) for name, found in records.items()}, groups, settings)


def markdown_table(rows: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A Markdown table of metrics with their intervals, e.g. of [`BenchmarkResults.paired_difference`]."""
    lines = [
        "| benchmark | questions | " + " | ".join(TITLES[metric] for metric in METRICS) + " |",
        "|---|---:|" + "---:|" * len(METRICS),
    ]
    for title, metrics in rows.items():
        cells = [str(metrics[metric]) for metric in METRICS]
        lines.append(f"| {title} | {metrics[METRICS[0]].n:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _record(row: Mapping[str, Any], where: str) -> Record:
    record = Record(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})
    sizes = {len(record.log_likelihoods), len(record.num_chars), len(record.num_bytes)}
    within = max(record.gold, record.predicted) < min(sizes) and min(*record.num_chars, *record.num_bytes) > 0
    if len(sizes) > 1 or not within:
        raise ValueError(f"{where} has a record of question {record.index} whose choices do not fit together.")
    return record


def _estimates(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Estimate]:
    return {metric: Estimate(**estimate) for metric, estimate in metrics.items()}
