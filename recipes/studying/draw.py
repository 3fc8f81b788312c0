"""One draw of a study: a corpus by one seed, its reference, scores, probes and laws, and every arm's run."""

from __future__ import annotations

import hashlib
import os
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from fitting.probe_runs import choose_probes, design_runs
from studying.plan import LAWS
from studying.pool import Pool
from studying.records import Records
from studying.runs import Runner
from studying.subsets import (
    COLUMNS,
    choose_rows,
    describe,
    fit_laws,
    interval_of,
    predictions,
    sums_by_kind,
    with_replay,
)
from trainer_callbacks.measuring import DivergedError

if TYPE_CHECKING:
    from datasets import Dataset


def run_draw(pool: Pool, records: Path) -> None:
    """All of a draw that its records lack; what recipes print goes to log.txt.

    Args:
        records: the folder of the study's records.
    """
    pool.folder.mkdir(parents=True, exist_ok=True)
    known = Records(records / f"{pool.corpus}-{pool.seed}.jsonl", pool.plan)
    if "done" in known:
        return
    output = os.fdopen(os.dup(1), "w")
    with (pool.folder / "log.txt").open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            _Draw(pool, known, output).run()
        except Exception:
            traceback.print_exc(file=log)
            raise
        finally:
            output.close()


class _Draw:
    def __init__(self, pool: Pool, records: Records, output: TextIO) -> None:
        self.pool, self.args, self.records, self.output = pool, pool.args, records, output
        self.started = time.monotonic()

    def run(self) -> None:
        self.pool.write()
        scored = self.pool.scored()
        self._say("scored")
        held_out = self.pool.rows("held_out").select_columns(self.pool.trained_on)
        sets = {"domain": held_out, "general": self.pool.rows("general")}
        runner = Runner(self.pool.model, sets, self.pool.folder / "trainer", self.args)
        benchmarks = bool(self.args.benchmarks) and self.pool.corpus in self.args.benchmark_corpora
        self._describe_corpus(scored, runner, benchmarks)
        laws = self._laws(scored, runner)
        for arm in self.args.arms_of(self.pool.corpus):
            if f"arm {arm}" not in self.records:
                self._arm(arm, scored, laws, runner, benchmarks and self._is_evaluated(arm, laws))
        self.records.add("done", {"seconds": round(time.monotonic() - self.started, 1)})

    def _is_evaluated(self, arm: str, laws: dict[str, Any]) -> bool:
        """Whether it, or an arm of the same law, is one to evaluate on benchmarks: the two share a run."""
        kinds = {name: (law.form, law.space, law.column) for name, law in laws.items() if name in LAWS}
        same = {name for name in kinds if kinds[name] == kinds.get(arm)}
        return not ({arm} | same).isdisjoint(self.args.benchmark_arms)

    def _say(self, what: str) -> None:
        line = f"[{self.pool.corpus} {self.pool.seed}, {time.monotonic() - self.started:4.0f} s] {what}"
        print(line, file=self.output, flush=True)

    def _describe_corpus(self, scored: Dataset, runner: Runner, benchmarks: bool) -> None:
        """What the corpus is, and the base model's likelihoods."""
        base, counts = runner.measure_base(benchmarks and "base" not in self.records)
        if "base" in self.records:
            return
        everything = describe(scored, np.arange(len(scored)))
        trusted = runner.tokenizer(self.pool.rows("trusted")[self.pool.column][:])["input_ids"]
        self.records.add(
            "base",
            {
                "corpus": self.pool.corpus,
                "seed": self.pool.seed,
                "characters": self.pool.characters(),
                "deduplicated": everything,
                "trusted_tokens": sum(map(len, trusted)),
                "tokens_of_texts": counts,
                "rungs": [{"num_tokens": 0, **base}],
            },
        )
        self._say(f"{everything['num_chunks']:,} chunks, {everything['num_tokens']:,} tokens once deduplicated")

    def _laws(self, scored: Dataset, runner: Runner) -> dict[str, Any]:
        """Train the probes, fit the laws; none without probes."""
        args = self.args
        if not args.num_probes:
            return {}
        script = SimpleNamespace(  # of fit_law.py's options those that design its probes
            column=list(COLUMNS[:2]), num_probes=args.num_probes, num_tokens=args.probe_tokens, probe_space="log",
            ladder=[args.probe_tokens // 2, args.probe_tokens], total_tokens=None,
        )  # fmt: skip
        plan = design_runs(script, scored, self.pool.seed)
        points, chosen = [], None
        for k, probe in enumerate(plan.probes):
            what = f"probe {probe.run}"
            if what not in self.records:
                chosen = chosen or choose_probes(plan, scored, self.pool.seed)
                subset, moments = chosen[k]
                found = self._train(what, subset, [one["num_chunks"] for one in moments], runner)
                if found is None:
                    continue
                for rung, at in zip(found["rungs"], moments, strict=True):
                    rung["moments"] = {name: value for name, value in at.items() if not name.startswith("num_")}
                self.records.add(what, found)
            if "rungs" in self.records[what]:
                points += self._points(probe.run, self.records[what]["rungs"])
        laws, comparison, problems = fit_laws(points)
        if "laws" not in self.records:
            described = {
                name: {"form": law.form, "space": law.space, "column": law.column, "params": law.params}
                for name, law in laws.items()
            }
            self.records.add("laws", {"comparison": comparison, "laws": described, "problems": problems})
            law = laws.get("law")
            self._say("law: " + ("none" if law is None else f"{law.form} of {law.column}"))
        return laws

    def _points(self, run: str, rungs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tokens = self.records["base"]["tokens_of_texts"]["domain"]
        return [
            {"run": run, "num_tokens": rung["num_tokens"], "loss": sum(rung["domain"]) / sum(tokens)} | rung["moments"]
            for rung in rungs
        ]

    def _arm(self, arm: str, scored: Dataset, laws: dict[str, Any], runner: Runner, benchmarks: bool) -> None:
        """Choose, see whether an arm before chose the same, train, record."""
        args, what, seed = self.args, f"arm {arm}", self.pool.seed
        if arm == "random raw":
            subset, ladder = self.pool.raw(), [times * args.num_tokens for times in args.random_times]
            kinds = sums_by_kind(subset["kind"][:], subset["num_tokens"][:])
            about = {"kinds": kinds, "num_tokens": sum(kinds.values())}
        else:
            try:
                rows, about = choose_rows(arm.removesuffix(", replay"), scored, laws, args.num_tokens, seed)
            except ValueError as error:
                self.records.add(what, {"problem": str(error)})
                self._say(f"{arm}: {str(error)[:100]}")
                return
            about |= describe(scored, rows)
            about["predicted"] = {
                str(at): predictions(laws, about["moments"], at) for at in (args.probe_tokens, about["num_tokens"])
            }
            if arm == "law":
                about["interval"] = interval_of(laws[arm], about)
            subset, ladder = scored.select(rows), [args.probe_tokens, args.num_tokens]
            if arm in LAWS and (same := self._same(rows, arm)):
                self.records.add(what, about | {"same_as": same})
                return
            about["rows_sha256"] = _hash(rows)
            if arm == "law, replay":
                replay = self.pool.rows("replay")["text"][:]
                subset = with_replay(scored, laws["law"], replay, runner.tokenizer, args, seed)
        seen = np.cumsum(subset["num_tokens"][:])
        numbers = [int(np.searchsorted(seen, rung, side="right")) for rung in ladder]
        found = self._train(what, subset, numbers, runner, benchmarks)
        if found is not None:
            self.records.add(what, about | found)

    def _train(
        self, what: str, subset: Dataset, ladder: list[int], runner: Runner, benchmarks: bool = False
    ) -> dict[str, Any] | None:
        """Rungs and seconds; of a run that diverged the record says so, and None is returned."""
        started, tokens = time.monotonic(), np.cumsum(subset["num_tokens"][:])
        # after as many tokens in every arm: random raw trains on, to see when it gets there
        at = int(np.argmin([abs(tokens[rows - 1] - self.args.num_tokens) for rows in ladder])) if benchmarks else None
        try:
            rungs = runner.run(subset.select_columns(self.pool.trained_on), ladder, self.pool.seed, at)
        except DivergedError as error:
            self.records.add(what, {"problem": str(error)})
            return None
        for rung in rungs:
            rung["num_tokens"] = int(tokens[rung.pop("num_rows") - 1])
        loss = sum(rungs[-1]["domain"]) / sum(self.records["base"]["tokens_of_texts"]["domain"])
        self._say(f"{what}: domain loss {loss:.4f}")
        return {"rungs": rungs, "seconds": round(time.monotonic() - started, 1)}

    def _same(self, rows: np.ndarray, arm: str) -> str | None:
        """An arm before that trained on the same rows in the same order."""
        for name, record in self.records.by_what.items():
            if record.get("rows_sha256") == _hash(rows) and name != f"arm {arm}":
                return name.removeprefix("arm ")
        return None


def _hash(rows: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(rows, dtype=np.int64).tobytes()).hexdigest()
