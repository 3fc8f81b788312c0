"""What a selection chose, why, and what it reached: the rows, and a report that is enough to choose them again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.saving import load_json, save_json
from ..data.schema import Anything, Flag, Names, Number, Numbers, Text, check, maybe
from ..landscape.maxent import Tilt
from ..landscape.reach import Space, log_name
from ..landscape.scores import Column, as_moment, counted_in, extrapolated
from ..version import __version__
from .predictions import MOST_LOSS, say_gain
from .replay import align_columns

if TYPE_CHECKING:
    from datasets import Dataset

    from ..law.optimum import Optimum

SELECTION_VERSION = 3  # 2 had no column, and perplexity in the names of options
_FOUND = Names(Anything())
_COLUMN = (Text(), [Text()])
_TARGET = maybe([(Number(), Numbers(size=2))])
_SEED = Number(0, 2**64, whole=True)
_GROUPS = maybe((Number(), [[(Text(), Number(), Flag(), None)]]))  # pairs of a group and its tokens
_OPTIONS = {
    **dict.fromkeys(("strategy", "order", "text_column", "num_tokens_column"), Text()),
    **dict.fromkeys(("space", "group_by", "deduplicate", "model"), maybe(Text())),
    **dict.fromkeys(("group_num_tokens", "min_group_tokens"), _GROUPS),
    **dict.fromkeys(("min_score", "max_score"), maybe(Number())),
    **dict.fromkeys(("near_threshold", "replay"), Number(0, 1)),
    "num_tokens": Number(0, 1e18),
    "seed": _SEED,
    "target": _TARGET,
    "column": _COLUMN,
}
_COUNT, _MOMENT = Number(0, 1e18), (Number(), Numbers(size=2))
_MOMENTS = {
    **dict.fromkeys(("log_mu", "log_sigma"), _MOMENT),
    **dict.fromkeys(("mu?", "sigma?", "lowest_score?", "highest_score?"), _MOMENT),
}
_SIZES = dict.fromkeys(("num_chunks", "num_tokens"), _COUNT)
_GROUP = {
    "group": (Text(), Number(), Flag(), None),
    **dict.fromkeys(("corpus_chunks", "corpus_tokens", "budget"), _COUNT),
    **dict.fromkeys(("mu", "sigma"), maybe(_MOMENT)),
    **_SIZES,
}
_LAW = {
    **dict.fromkeys(("form", "space"), Text()),
    "column": _COLUMN,
    "model": maybe(Text()),
    "params": Names(Number()),
}
_SCHEMA = {
    "strategy": Text(),
    "seed": _SEED,
    "space": Text(("linear", "log")),
    "column": _COLUMN,
    "target": _TARGET,
    "budget": Number(0, 1e18),
    "num_tokens": Number(0, 1e18),
    "num_chunks": Number(0, 1e15, whole=True),
    "achieved": _MOMENTS,
    "corpus": _MOMENTS | _SIZES,
    "dropped": Names(Number(0, 1e15, whole=True)),
    "regimes?": [{"column?": Text(), "low": Number(), "high": Number(), **_SIZES}],
    "groups?": maybe([_GROUP]),
    "law?": maybe(
        {"form": Text(), "space": Text(), "column": _COLUMN, "model": maybe(Text()), "params": Names(Number())}
    ),
    **{f"{name}?": maybe(_FOUND) for name in ("replay", "maxent", "optimum", "promised")},
    **{f"{name}?": maybe(Flag()) for name in ("projected", "predicted_trusted", "random_trusted", "streaming")},
    **{f"{name}?": maybe(Number(0, MOST_LOSS)) for name in ("predicted_loss", "random_loss")},
    "extrapolation?": maybe(Number(0, 1e18)),
    **{f"{name}_sha256?": Text(longest=64) for name in ("indices", "replay_indices", "is_replay")},
    **dict.fromkeys(("num_tokens_column?", "key_column?"), Text()),
    "options?": _OPTIONS,
    "inputs?": _FOUND,
    "order?": Text(),
    "package_version": Text(),
}
_ARRAYS = ("indices", "replay_indices", "is_replay")


@dataclass(frozen=True, eq=False)
class Selection:
    """Which rows were chosen, why, and what was reached. `report()` is everything but the rows, JSON-able.

    Of two score columns each moment, and lowest_score and highest_score, is a pair.

    Attributes:
        indices: chosen rows of the dataset in the order they come, int64 `[num_chunks]`; rising in order "dataset".
        strategy: how they were chosen.
        seed: the seed; all that is random depends on it.
        space: what mu and sigma of the target mean.
        column: the score column, or both.
        target: (mu, sigma) aimed at; None for random, low, high, middle.
        budget: tokens asked for, replay included.
        num_tokens: tokens chosen from the dataset: with the replay's at most the budget, and less than one chunk
            below it.
        num_chunks: rows chosen from the dataset.
        achieved: mu, sigma (of the score), log_mu, log_sigma (of its logarithm), lowest_score and highest_score of
            the rows chosen from the dataset. Of two columns there is no mu and sigma.
        corpus: mu, sigma, log_mu, log_sigma, num_chunks, num_tokens of the rows that could be chosen, likewise.
        dropped: rows that could not be chosen, counted by reason.
        regimes: for each decile of the scores that could be chosen: lowest and highest score, and chunks
            and tokens chosen; of two columns first those of one, then of the other, with the `column`'s name.
        groups: for each group its budget, what could be chosen and what was; None without groups.
        replay: share, num_chunks and num_tokens of the replay; None without.
        replay_indices: rows of the replay dataset, in the order they come, int64.
        is_replay: which rows of the subset are replay, bool `[num_rows]`.
        order: the order of the rows.
        projected: a law's optimum was moved to a target that this selection can reach; None without a law.
        maxent: the tilt behind strategy "maxent", without groups.
        optimum: the law's optimum, if a law gave the target.
        predicted_loss: the law's loss for the chosen landscape and tokens (without replay), nats per token; None
            without a law, and where its form is so far from its probes that it gives none.
        random_loss: the law's loss for a random subset of the same size.
        predicted_trusted, random_trusted: whether the law's probes cover those landscapes; if not, it extrapolates.
        extrapolation: tokens chosen over those of the law's longest probe.
        law: form, space, column, model and parameters of the law.
        options: what was asked for, to ask for it again.
        inputs: num_rows of the dataset and the SHA-256 of its scores and tokens; the same of the replay's.
    """

    indices: np.ndarray
    strategy: str
    seed: int
    space: Space
    column: Column
    target: tuple[Any, Any] | None
    budget: float
    num_tokens: int
    num_chunks: int
    achieved: dict[str, Any]
    corpus: dict[str, Any]
    dropped: dict[str, int]
    regimes: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] | None = None
    replay: dict[str, float] | None = None
    replay_indices: np.ndarray | None = None
    is_replay: np.ndarray | None = None
    order: str = "dataset"
    projected: bool | None = None
    maxent: Tilt | None = None
    optimum: Optimum | None = None
    predicted_loss: float | None = None
    random_loss: float | None = None
    predicted_trusted: bool | None = None
    random_trusted: bool | None = None
    extrapolation: float | None = None
    law: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows of the subset, replay included."""
        return self.num_chunks + (len(self.replay_indices) if self.replay_indices is not None else 0)

    def apply(self, dataset: Dataset, replay_dataset: Dataset | None = None) -> Dataset:
        """The subset, a plain `Dataset`: rows of the dataset by index, no text is copied.

        Replay rows come mixed in, with the dataset's columns; `subset.add_column("replay", plan.is_replay)` marks
        them.

        Raises:
            ValueError: the replay dataset is missing, or lacks columns of the dataset.
        """
        chosen = dataset.select(self.indices)
        if self.replay_indices is None:
            return chosen
        if replay_dataset is None:
            raise ValueError("This selection has replay rows; pass replay_dataset= too.")
        from datasets import concatenate_datasets

        general = align_columns(replay_dataset.select(self.replay_indices), dataset)
        place = np.empty(self.num_rows, dtype=np.int64)
        place[~self.is_replay] = np.arange(len(chosen))
        place[self.is_replay] = len(chosen) + np.arange(len(general))
        return concatenate_datasets([chosen, general]).select(place)

    def report(self) -> dict[str, Any]:
        """All but the rows, of which it holds a hash: with the same dataset it says how to get the same subset."""
        report = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in _ARRAYS}
        for name in ("maxent", "optimum"):
            report[name] = None if report[name] is None else asdict(report[name])
        report["package_version"] = __version__
        report["indices_sha256"] = _hash_rows(self.indices)
        if self.replay_indices is not None:
            report["replay_indices_sha256"] = _hash_rows(self.replay_indices)
            report["is_replay_sha256"] = _hash_rows(np.flatnonzero(self.is_replay))
        return json.loads(json.dumps(report, allow_nan=False, default=plain_number))

    def __str__(self) -> str:
        lines = [summarize(self.report())]
        if self.optimum is not None:
            lines.append(say_gain(self.optimum))
        return "\n".join(lines)

    def save(self, path: str | os.PathLike) -> None:
        """Save the report as JSON (kind "selection")."""
        save_json(path, self.report(), kind="selection", version=SELECTION_VERSION)


def summarize(report: Mapping[str, Any]) -> str:
    """What was aimed at, what was reached and what the law predicts, in a few lines."""
    unit = counted_in(report)
    lines = [
        f"Selected {report['num_chunks']:,} of {report['corpus']['num_chunks']:,} chunks, {report['num_tokens']:,} of "
        f"{report['budget']:,} {unit} asked for (strategy {report['strategy']}, seed {report['seed']})."
    ]
    if replay := report.get("replay"):
        lines.append(f"Replay: {replay['num_chunks']:,} rows, {replay['num_tokens']:,} {unit}, mixed in.")
    if dropped := [f"{number:,} {reason}" for reason, number in report["dropped"].items() if number]:
        lines.append(f"Not to choose from: {', '.join(dropped)}.")
    for name, rows in moment_rows(report).items():
        score = name if report["space"] == "linear" else f"{log_name(name)} (nats)"
        lines.append(f"{score + ': ':<14}mean      standard deviation")
        lines += [f"  {what:<12}{mu:<10.4g}{sigma:.4g}" for what, (mu, sigma) in rows.items()]
    if report.get("projected"):
        lines.append("The law's optimum is on the edge of reach, or beyond; the target is the nearest inside.")
    for group in (report.get("groups") or [])[:20]:
        lines.append(f"  {group['group']!s:<24}{group['num_tokens']:>12,} of {group['corpus_tokens']:,} {unit}")
    if report.get("groups") and len(report["groups"]) > 20:
        lines.append(f"  and {len(report['groups']) - 20:,} more groups")
    if report.get("predicted_loss") is not None and report.get("random_loss") is not None:
        loss, random = report["predicted_loss"], report["random_loss"]
        lines.append(
            f"Predicted loss {loss:.4f} nats per token; random subset {random:.4f}: gain {random - loss:.4f}."
        )
        lines += [f"Extrapolated: {why}." for why in extrapolated(report)]
    elif report.get("law"):
        lines.append("The law gives no loss to compare: a spread of 0, or moments too far from its probes.")
    return "\n".join(lines)


def moment_rows(report: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """By column, of the corpus, the target (if there is one) and the subset: (mu, sigma) in the selection's space."""
    names = ("mu", "sigma") if report["space"] == "linear" else ("log_mu", "log_sigma")
    rows = {"corpus": [report["corpus"][name] for name in names], "target": report["target"]}
    rows = {what: pair for what, pair in (rows | {"subset": [report["achieved"][n] for n in names]}).items() if pair}
    if isinstance(report["column"], str):
        return {report["column"]: rows}
    return {name: {what: (m[c], s[c]) for what, (m, s) in rows.items()} for c, name in enumerate(report["column"])}


def load_report(path: str | os.PathLike) -> dict[str, Any]:
    """The report that [`Selection.save`] wrote."""
    return load_json(path, kind="selection", version=SELECTION_VERSION, read=_check_report)


def _check_report(report: Any, where: str) -> dict[str, Any]:
    """Besides the schema: one score column has numbers for moments, two have pairs; a target has two moments."""
    check(report, _SCHEMA, where)
    column, target = report["column"], report["target"]
    if not isinstance(column, str) and len(set(column)) != 2:
        raise ValueError(f"{where} has column {column!r:.80}; it must be a text or two different ones.")
    needed = ("mu", "sigma", "log_mu", "log_sigma") if isinstance(column, str) else ("log_mu", "log_sigma")
    moments = [*report["achieved"].values(), *(report["corpus"].get(name, 0.0) for name in needed), *(target or ())]
    alike = {isinstance(moment, list) for moment in moments} <= {not isinstance(column, str)}
    if not alike or not set(needed) <= report["achieved"].keys() & report["corpus"].keys():
        raise ValueError(f"{where} has moments that are not those of column {column!r:.80}; make the file again.")
    if target is not None and len(target) != 2:
        raise ValueError(f"{where} has a target of {len(target)} moments; it must be a mean and a standard deviation.")
    return report


def plain_number(value: Any) -> Any:
    """For `json.dumps`: numbers of numpy."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be saved as JSON.")


def _hash_rows(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def describe_moments(scores: np.ndarray) -> dict[str, Any]:
    """`Selection.achieved` of chosen scores `[n]`; of two columns, `[n, 2]`, pairs."""
    logs = np.log(scores)
    numbers = (scores.mean(0), scores.std(0), logs.mean(0), logs.std(0), scores.min(0), scores.max(0))
    names = ("mu", "sigma", "log_mu", "log_sigma", "lowest_score", "highest_score")
    if scores.ndim > 1:
        names, numbers = names[2:], numbers[2:]
    return {name: as_moment(number) for name, number in zip(names, numbers)}


def describe_regimes(
    scores: np.ndarray, tokens: np.ndarray, chosen: np.ndarray, column: Column
) -> list[dict[str, Any]]:
    """`Selection.regimes`: what was chosen of each decile of the scores; a value on an edge is in the lower."""
    if scores.ndim > 1:
        parts = ((name, describe_regimes(scores[:, c], tokens, chosen, name)) for c, name in enumerate(column))
        return [{"column": name} | row for name, rows in parts for row in rows]
    edges = np.quantile(scores, np.linspace(0, 1, 11))
    place = np.clip(np.searchsorted(edges, scores[chosen], side="left") - 1, 0, 9)
    counts, sums = np.bincount(place, minlength=10), np.bincount(place, tokens[chosen], minlength=10)
    return [
        {"low": float(low), "high": float(high), "num_chunks": int(number), "num_tokens": int(total)}
        for low, high, number, total in zip(edges[:-1], edges[1:], counts, sums)
    ]
