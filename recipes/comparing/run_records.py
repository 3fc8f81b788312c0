"""What finished runs left in their folders: metrics.json, held-out likelihoods text by text, benchmark records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_ppl_select.benchmarks import METRICS, BenchmarkResults, Record, load_records
from hf_ppl_select.benchmarks.estimates import metric_terms
from hf_ppl_select.data.saving import load_json
from hf_ppl_select.data.schema import Names, Number, Numbers, checked
from training.checkpoints import load_metrics

TITLES = {"choice_accuracy": "accuracy", "choice_accuracy_norm": "accuracy per character", "choice_bits_per_byte":
          "bits per byte of the right answer"}  # fmt: skip
HIGHER_IS_BETTER = ("choice_accuracy", "choice_accuracy_norm")
_TEXTS = Names({"nll_sum": Numbers(Number(0, 1e15)), "num_tokens": Numbers(Number(0, 1e15))})


@dataclass(frozen=True)
class Run:
    """One training run, or a model that was only measured. What it has not left is empty.

    Attributes:
        folder: where it was read from.
        metrics: its metrics.json.
        texts: per held-out set the summed nll (nats) and tokens of each text, float64 `[2, texts]`.
        base_texts: the same at step 0.
        records: benchmark records by benchmark; groups: the group of each benchmark; settings: of measuring them.
        is_base: the model before training, which has no seed.
    """

    folder: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, np.ndarray] = field(default_factory=dict)
    base_texts: Mapping[str, np.ndarray] = field(default_factory=dict)
    records: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_base: bool = False

    @property
    def seed(self) -> int | None:
        return self.metrics.get("seed")


@dataclass(frozen=True)
class Measure:
    """A ratio of sums over items (texts or questions) that every run has or has not; of a group's average several.

    `terms(run)` gives one array `[2, items]` per benchmark, or None.
    """

    title: str
    kind: str  # "loss" or the name of a metric
    names: tuple[str, ...]
    items: str  # "texts" or "questions"

    @property
    def lower_is_better(self) -> bool:
        return self.kind not in HIGHER_IS_BETTER

    def terms(self, run: Run) -> list[np.ndarray] | None:
        if self.kind == "loss":
            return [run.texts[name] for name in self.names] if set(self.names) <= set(run.texts) else None
        if not set(self.names) <= set(run.records):
            return None
        return [metric_terms(run.records[name], self.kind) for name in self.names]


def read_groups(specifications: Sequence[str]) -> dict[str, list[Run]]:
    """Groups of runs from `name=folder,folder,...`; without a group "base", that of step 0 if the runs measured it.

    Raises:
        ValueError: a specification without a name or folder, a name or folder twice, or runs measured on other items.
        FileNotFoundError: a folder is missing, or holds nothing to report.
    """
    named: dict[str, list[str]] = {}
    for specification in specifications:
        name, _, folders = specification.partition("=")
        if not name or not folders or name in named:
            raise ValueError(f"--runs needs name=folder,folder,... with each name once, not {specification!r}.")
        named[name] = folders.split(",")
    return read_folders(named)


def read_folders(named: Mapping[str, Sequence[str | Path]]) -> dict[str, list[Run]]:
    """[`read_groups`] of folders by name of their group."""
    groups = {name: [read_run(folder) for folder in folders] for name, folders in named.items()}
    folders = [str(Path(run.folder).resolve()) for runs in groups.values() for run in runs]
    if twice := sorted({folder for folder in folders if folders.count(folder) > 1}):
        raise ValueError(f"{twice[0]} is given twice; a run counts once.")
    runs = [run for members in groups.values() for run in members]
    at_start = next((run.base_texts for run in runs if run.base_texts), {})
    if "base" not in groups and at_start:
        groups = {"base": [Run("step 0 of the runs", texts=at_start, is_base=True)], **groups}
    elif "base" in groups:
        groups["base"] = [replace(run, texts=run.texts or at_start, is_base=True) for run in groups["base"]]
    _check_same_items([*runs, *groups.get("base", [])])
    return groups


def read_run(folder: str | Path) -> Run:
    """Read what a folder holds of metrics.json, held_out.json, held_out_base.json, benchmarks.parquet or .json."""
    path = Path(folder)
    found: dict[str, Any] = {}
    if (path / "metrics.json").is_file():
        found["metrics"] = load_metrics(path / "metrics.json")
        if (step := found["metrics"]["train"].get("diverged_at_step")) is not None:
            raise ValueError(
                f"{folder} holds a run that diverged at step {step:.0f}; leave it out, or train it again."
            )
    for name, file in (("texts", "held_out.json"), ("base_texts", "held_out_base.json")):
        if (path / file).is_file():
            sets = load_json(path / file, kind="text_likelihoods", version=1, read=checked(_TEXTS))
            if uneven := [key for key, one in sets.items() if len(one["nll_sum"]) != len(one["num_tokens"])]:
                raise ValueError(f"{path / file} has other numbers of nll_sum and num_tokens in {uneven[0]!r}.")
            found[name] = {key: np.array([one["nll_sum"], one["num_tokens"]], float) for key, one in sets.items()}
    saved = None
    if (path / "benchmarks.parquet").is_file():
        saved = load_records(path / "benchmarks.parquet")
    elif (path / "benchmarks.json").is_file():
        saved = BenchmarkResults.load(path / "benchmarks.json").saved_records()
    if saved is not None:
        found |= {"records": saved.records, "groups": saved.groups, "settings": saved.settings}
    if not found:
        raise FileNotFoundError(
            f"{folder} holds nothing to report: no metrics.json, held_out.json, benchmarks.parquet or benchmarks.json."
        )
    return Run(str(folder), **found)


def measures_of(groups: Mapping[str, Sequence[Run]]) -> list[Measure]:
    """Held-out losses, then benchmarks and the averages of their groups, that two groups or more have."""
    found: dict[Measure, None] = {}
    for runs in groups.values():
        for run in runs:
            for name in run.texts:
                found[Measure(f"{name} loss (nats per token)", "loss", (name,), "texts")] = None
            for metric in METRICS:
                for name in run.records:
                    found[Measure(f"{name}: {TITLES[metric]}", metric, (name,), "questions")] = None
                for group in dict.fromkeys(run.groups.values()):
                    names = tuple(sorted(name for name in run.records if run.groups[name] == group))
                    if len(names) > 1:
                        title = f"average of {group}: {TITLES[metric]}"
                        found[Measure(title, metric, names, "questions")] = None
    shared = [m for m in found if sum(any(m.terms(run) for run in runs) for runs in groups.values()) > 1]
    return sorted(shared, key=lambda measure: measure.kind != "loss")


@dataclass(frozen=True, eq=False)
class _Digest:
    """Of a question; results that an older version saved have none, which is like any."""

    value: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Digest) and (self.value == other.value or not self.value or not other.value)


def _check_same_items(runs: Sequence[Run]) -> None:
    first: dict[str, tuple[Run, Any]] = {}
    for run in runs:
        items = {f"held-out set {name!r}": tuple(terms[1]) for name, terms in run.texts.items()}
        items |= {
            f"benchmark {name!r}": tuple((r.index, r.gold, r.num_bytes, _Digest(r.digest)) for r in records)
            for name, records in run.records.items()
        }
        for name, these in items.items():
            other, those = first.setdefault(name, (run, these))
            if these != those:
                raise ValueError(
                    f"{run.folder} and {other.folder} measured {name} on other items ({len(these):,} and "
                    f"{len(those):,}), so they do not compare; measure both on the same texts or questions."
                )
