"""The numbers of a study, from its records: differences with intervals, tokens saved, errors of the laws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from studying.plan import load_plan
from studying.records import Records


@dataclass(frozen=True)
class Mean:
    """A mean over draws and its 95 % interval, Student's t; NaN ends where there is one draw."""

    value: float
    low: float
    high: float
    std: float
    num: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        values = np.array(list(values), dtype=np.float64)
        n = len(values)
        std = float(values.std(ddof=1)) if n > 1 else np.nan
        half = float(stats.t.ppf(0.975, n - 1)) * std / n**0.5 if n > 1 else np.nan
        mean = float(values.mean()) if n else np.nan
        return cls(mean, mean - half, mean + half, std, n)

    @property
    def runs_to_tell(self) -> float:
        """Draws with which an interval would exclude 0 in four of five studies, were mean and spread just these."""
        effect = abs(self.value) / self.std if self.std else np.inf
        if not 0 < effect < np.inf:
            return np.inf if effect == 0 else 2
        n = max(2, int(((1.96 + 0.84) / effect) ** 2))  # of the normal distribution, which is never too many
        while stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, effect * n**0.5) < 0.8:
            n += max(1, n // 200)
        return n


@dataclass(frozen=True)
class Draw:
    """What is known of one corpus and seed."""

    corpus: str
    seed: int
    records: Records

    def has(self, arm: str) -> bool:
        return f"arm {arm}" in self.records and "problem" not in self.arm(arm)

    def arm(self, name: str) -> dict[str, Any]:
        """Its record; of an arm that chose what one before had chosen, with that one's rungs."""
        record = self.records[f"arm {name}"]
        if "same_as" in record:
            return {**record, "rungs": self.records[f"arm {record['same_as']}"]["rungs"]}
        return record

    def base(self, texts: str = "domain") -> float:
        return self.loss(self.records["base"]["rungs"][0], texts)

    def loss(self, rung: dict[str, Any], texts: str = "domain") -> float:
        """Nats per token over the held-out texts."""
        return sum(rung[texts]) / sum(self.records["base"]["tokens_of_texts"][texts])

    def at_budget(self, name: str, num_tokens: int, texts: str = "domain") -> float:
        """An arm's loss at the budget."""
        if name == "base":
            return self.base(texts)
        rung = min(self.arm(name)["rungs"], key=lambda rung: abs(rung["num_tokens"] - num_tokens))
        return self.loss(rung, texts)


class Study:
    """A study's folder: plan.json and records/."""

    def __init__(self, folder: Path) -> None:
        self.plan = load_plan(folder / "plan.json")
        self.options = self.plan["options"]
        self.num_tokens = self.options["num_tokens"]
        self.draws: list[Draw] = []
        for path in sorted((folder / "records").glob("*.jsonl")):
            corpus, _, seed = path.stem.rpartition("-")
            records = Records(path, self.plan["sha256"])
            if "base" in records:
                self.draws.append(Draw(corpus, int(seed), records))
        if not self.draws:
            raise ValueError(f"{folder} holds no records yet: run the study first, without --report_only.")
        self.corpora = [name for name in self.options["corpora"] if self.of(name)]

    def of(self, corpus: str, *arms: str) -> list[Draw]:
        """The draws of a corpus in which all these arms were measured."""
        return [d for d in self.draws if d.corpus == corpus and all(a == "base" or d.has(a) for a in arms)]

    def arms(self, corpus: str) -> list[str]:
        return [arm for arm in self.plan["arms"][corpus] if self.of(corpus, arm)]

    def mean(self, corpus: str, arm: str, texts: str = "domain") -> Mean:
        return Mean.of(d.at_budget(arm, self.num_tokens, texts) for d in self.of(corpus, arm))

    def difference(self, corpus: str, ours: str, theirs: str, texts: str = "domain") -> Mean:
        """Loss of `ours` minus loss of `theirs`, within each draw on the same texts."""
        return Mean.of(
            d.at_budget(ours, self.num_tokens, texts) - d.at_budget(theirs, self.num_tokens, texts)
            for d in self.of(corpus, ours, theirs)
        )

    def oracle_share(self, corpus: str, arm: str) -> float:
        """The arm's mean gain over random raw, in mean gains of the oracle."""
        draws = self.of(corpus, arm, "oracle", "random raw")
        gains = [
            [d.at_budget("random raw", self.num_tokens) - d.at_budget(one, self.num_tokens) for d in draws]
            for one in (arm, "oracle")
        ]
        return float(np.mean(gains[0]) / np.mean(gains[1]))

    def tokens_of_random(self, corpus: str, arm: str) -> list[float]:
        """In budgets, what random raw takes to an arm's loss, per draw; `inf` where it never came there.

        Between two measurements the loss is taken as linear in the logarithm of the tokens; below the first one, the
        first one counts.
        """
        found = []
        for draw in self.of(corpus, arm, "random raw"):
            wanted = draw.at_budget(arm, self.num_tokens)
            rungs = draw.arm("random raw")["rungs"]
            tokens = np.log([rung["num_tokens"] for rung in rungs])
            losses = np.minimum.accumulate([draw.loss(rung) for rung in rungs])  # the best until then
            if wanted < losses[-1]:
                found.append(np.inf)
                continue
            at = int(np.argmax(losses <= wanted))
            if at == 0 or losses[at] == losses[at - 1]:
                found.append(float(np.exp(tokens[at]) / self.num_tokens))
                continue
            part = (losses[at - 1] - wanted) / (losses[at - 1] - losses[at])
            found.append(float(np.exp(tokens[at - 1] + part * (tokens[at] - tokens[at - 1])) / self.num_tokens))
        return found

    def left_out_errors(self, corpus: str) -> dict[str, Mean]:
        """Mean absolute error on a probe left out of the fit: of the chosen law, of the best form by columns, ..."""
        found: dict[str, list[float]] = {}
        for draw in self.of(corpus):
            if "laws" not in draw.records:
                continue
            rows = [row for row in draw.records["laws"]["comparison"] if row["problem"] is None]
            errors = {"chosen": next(row["loo_mae"] for row in rows if row["chosen"])}
            for row in rows:
                name = "data only" if row["form"] == "data_only" else words(row["column"])
                if row["form"] == "paper" and row["space"] == "linear" and row["column"] == "perplexity":
                    errors["the paper's form"] = row["loo_mae"]
                errors[name] = min(errors.get(name, np.inf), row["loo_mae"])
            for name, error in errors.items():
                found.setdefault(name, []).append(error)
        return {name: Mean.of(errors) for name, errors in found.items()}

    def unseen_errors(self, corpus: str, at: str) -> dict[str, Mean]:
        """Mean absolute error of each law on the arms, which no law has seen, `at` "probe" tokens or the "budget"."""
        found: dict[str, list[float]] = {}
        for draw in self.of(corpus):
            by_law: dict[str, list[float]] = {}
            for arm in self.arms(corpus):
                if not draw.has(arm) or "predicted" not in draw.arm(arm) or "replay" in arm:
                    continue
                if "same_as" in draw.arm(arm):
                    continue
                record = draw.arm(arm)
                tokens = sorted(record["predicted"], key=int)
                rung = record["rungs"][0 if at == "probe" else -1]
                for law, loss in record["predicted"][tokens[0 if at == "probe" else -1]].items():
                    by_law.setdefault(law, []).append(abs(loss - draw.loss(rung)))
            for law, errors in by_law.items():
                found.setdefault(law, []).append(float(np.mean(errors)))
        return {law: Mean.of(errors) for law, errors in found.items()}

    def covered(self, corpus: str) -> tuple[int, int]:
        """How often the measured loss of `law` lay in the interval that it gave beforehand, of how many times."""
        draws = [d for d in self.of(corpus, "law") if d.arm("law").get("interval")]
        inside = [
            d.arm("law")["interval"][0] <= d.at_budget("law", self.num_tokens) <= d.arm("law")["interval"][1]
            for d in draws
        ]
        return sum(inside), len(inside)

    def kinds(self, corpus: str) -> dict[str, dict[str, float]]:
        """Share of each kind in the documents (characters), the deduplicated chunks and each arm (tokens)."""
        found = {"documents": self._shares(d.records["base"]["characters"] for d in self.of(corpus))}
        found["deduplicated"] = self._shares(d.records["base"]["deduplicated"]["kinds"] for d in self.of(corpus))
        for arm in self.arms(corpus):
            if arm == "law, replay":  # of its record, these are what law alone has
                continue
            found[arm] = self._shares(d.arm(arm)["kinds"] for d in self.of(corpus, arm))
        return found

    def problems(self) -> list[tuple[Draw, str, str]]:
        """Draw, what was not measured there (an arm, a probe, a law), and why."""
        found = []
        for draw in self.draws:
            records = draw.records.by_what
            if "done" not in records:
                found.append((draw, "the draw", "it is not finished; the same command goes on"))
            found += [(draw, what, one["problem"]) for what, one in records.items() if "problem" in one]
            found += [(draw, f"law {name}", why) for name, why in records.get("laws", {}).get("problems", {}).items()]
        return found

    @staticmethod
    def _shares(counts: Iterable[dict[str, int]]) -> dict[str, float]:
        shares: dict[str, list[float]] = {}
        every = list(counts)
        for one in every:
            for kind, count in one.items():
                shares.setdefault(kind, []).append(count / sum(one.values()))
        return {kind: sum(values) / len(every) for kind, values in shares.items()}

    def benchmarks(self, corpus: str) -> list[str]:
        """Those that a corpus's draws were evaluated on."""
        found = (draw.records["base"]["rungs"][0].get("benchmarks", {}) for draw in self.of(corpus))
        return list(dict.fromkeys(name for one in found for name in one))

    def benchmark_difference(self, corpus: str, ours: str, theirs: str, name: str, metric: str) -> Mean | None:
        """Paired by question and draw; the interval is over draws and questions together."""
        rows, weights = [], None
        for draw in self.of(corpus, ours, theirs):
            first, second = (self._questions(draw, arm, name, metric) for arm in (ours, theirs))
            if first is None or second is None:
                continue
            rows.append(first - second)
            weights = self._weights(draw, name, metric, len(first))
        if len(rows) < 2:
            return None
        differences = np.array(rows) / weights.mean()
        per_draw, per_question = differences.mean(axis=1), differences.mean(axis=0)
        n, q = differences.shape
        error = np.sqrt(per_draw.var(ddof=1) / n + per_question.var(ddof=1) / q)
        half = float(stats.t.ppf(0.975, n - 1) * error)
        mean = float(differences.mean())
        return Mean(mean, mean - half, mean + half, float(per_draw.std(ddof=1)), n)

    def benchmark_mean(self, corpus: str, arm: str, name: str, metric: str) -> float | None:
        found = []
        for draw in self.of(corpus, arm):
            values = self._questions(draw, arm, name, metric)
            if values is not None:
                found.append(values.sum() / self._weights(draw, name, metric, len(values)).sum())
        return float(np.mean(found)) if found else None

    def _questions(self, draw: Draw, arm: str, name: str, metric: str) -> np.ndarray | None:
        rung = self._benchmark_rung(draw, arm)
        return None if rung is None else np.array(rung["benchmarks"][name][metric], dtype=np.float64)

    def _benchmark_rung(self, draw: Draw, arm: str) -> Mapping[str, Any] | None:
        record = draw.records["base"] if arm == "base" else draw.arm(arm)
        return next((rung for rung in record["rungs"] if "benchmarks" in rung), None)

    def benchmark_tokens(self, corpus: str, arm: str) -> float | None:
        """Training tokens after which benchmarks were measured, in the mean of the draws; None where they were not."""
        rungs = [self._benchmark_rung(draw, arm) for draw in self.of(corpus, arm)]
        tokens = [rung["num_tokens"] for rung in rungs if rung is not None]
        return float(np.mean(tokens)) if tokens else None

    def _weights(self, draw: Draw, name: str, metric: str, num: int) -> np.ndarray:
        if metric == "accuracy":
            return np.ones(num)
        return np.array(draw.records["base"]["rungs"][0]["benchmarks"][name]["num_bytes"], dtype=np.float64)


def words(column: Any) -> str:
    return column if isinstance(column, str) else " and ".join(column)
