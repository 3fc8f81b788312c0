"""One draw of a study: a corpus by one seed, its reference, scores, probes and laws, and every arm's run."""

from __future__ import annotations

import hashlib
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from command_line import parse_options
from fitting.probe_runs import choose_probes, design_runs
from hf_ppl_select import NgramScorer
from hf_ppl_select.data.load import load_rows
from hf_ppl_select.likelihood.models import load_tokenizer
from quickstart_steps.done import Step
from quickstart_steps.runs import command_line_of, draw_from_documents
from studying.plan import LAWS, StudyArguments
from studying.records import Records
from studying.runs import Runner
from studying.subsets import COLUMNS, choose_rows, describe, fit_laws, interval_of, predictions, with_replay
from studying.texts import write_texts
from trainer_callbacks.measuring import DivergedError

if TYPE_CHECKING:
    from datasets import Dataset


Recipe = tuple[Callable[[], Any], Callable[..., None]]  # a recipe's `make_parser` and `main`


def run_draw(
    corpus: str,
    seed: int,
    folder: Path,
    model: str,
    weights: str,
    plan: str,
    recipes: Mapping[str, Recipe],
    args: StudyArguments,
) -> None:
    """All of a draw that its records lack; what recipes print goes to log.txt.

    Args:
        folder: the study's.
        recipes: those that make "deduplicated" and "scored".
        model: Hub id or folder.
        weights: its commit, or a hash of its files.
        plan: hash of the plan.
    """
    name = f"{corpus}-{seed}"
    own = folder / "draws" / name
    own.mkdir(parents=True, exist_ok=True)
    records = Records(folder / "records" / f"{name}.jsonl", plan)
    if "done" in records:
        return
    output = os.fdopen(os.dup(1), "w")
    with (own / "log.txt").open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            _Draw(corpus, seed, own, model, weights, recipes, args, records, output).run()
        except Exception:
            traceback.print_exc(file=log)
            raise
        finally:
            output.close()


SETS = {"domain": "held_out", "general": "general"}  # the files that the losses are of


class _Draw:
    def __init__(self, corpus, seed, folder, model, weights, recipes, args, records, output) -> None:
        self.corpus, self.seed, self.folder, self.model = corpus, seed, folder, model
        self.weights, self.recipes, self.args, self.records, self.output = weights, recipes, args, records, output
        self.started = time.monotonic()

    def run(self) -> None:
        scored = self._scored()
        texts = {name: _texts(self.folder / "texts" / f"{file}.jsonl") for name, file in SETS.items()}
        runner = Runner(self.model, texts, self.folder / "trainer", self.args)
        benchmarks = bool(self.args.benchmarks) and self.corpus in self.args.benchmark_corpora
        self._describe_corpus(scored, runner, benchmarks)
        laws = self._laws(scored, runner)
        for arm in self.args.arms_of(self.corpus):
            if f"arm {arm}" not in self.records:
                self._arm(arm, scored, laws, runner, benchmarks and self._is_evaluated(arm, laws))
        self.records.add("done", {"seconds": round(time.monotonic() - self.started, 1)})

    def _is_evaluated(self, arm: str, laws: dict[str, Any]) -> bool:
        """Whether it, or an arm of the same law, is one to evaluate on benchmarks: the two share a run."""
        kinds = {name: (law.form, law.space, law.column) for name, law in laws.items() if name in LAWS}
        same = {name for name in kinds if kinds[name] == kinds.get(arm)}
        return not ({arm} | same).isdisjoint(self.args.benchmark_arms)

    def _say(self, what: str) -> None:
        line = f"[{self.corpus} {self.seed}, {time.monotonic() - self.started:4.0f} s] {what}"
        print(line, file=self.output, flush=True)

    def _scored(self) -> Dataset:
        """Deduplicated chunks with all scores."""
        tokenizer = load_tokenizer(self.model)
        texts = Step(self.folder, "texts", (self.weights, self.records.plan))
        if not texts.is_done():
            write_texts(texts.output, self.corpus, self.seed, self.args, tokenizer)
            texts.note_done()
        options = {
            "dataset_name": texts.output / "documents.jsonl",
            "near_threshold": 0.6 if self.corpus == "ontology" else 0.8,  # as the quickstart has it; the default
            "max_sentence_documents": 20,
            "count_by": "kind",
        }
        self._step("deduplicated", options)
        options = {
            "dataset_name": self.folder / "deduplicated",
            "model_name_or_path": self.model,
            "chunk_length": self.args.chunk_length,
            "keep_columns": "kind",
            "trusted": texts.output / "trusted.jsonl",
            "eval_file": texts.output / "held_out.jsonl",
        }
        self._step("scored", options)
        scored = load_rows(str(self.folder / "scored"))
        trusted = _texts(texts.output / "trusted.jsonl")
        return scored.map(NgramScorer.fit(trusted, scored), batched=True)

    def _step(self, name: str, named: dict[str, Any]) -> None:
        options = command_line_of(named | {"output_dir": self.folder / name})
        step = Step(self.folder, name, (self.weights, *options), (self.folder / "texts",))
        if not step.is_done():
            make_parser, main = self.recipes[name]
            main(*parse_options(make_parser(), options))
            step.note_done()
            self._say(f"{name}: done")

    def _describe_corpus(self, scored: Dataset, runner: Runner, benchmarks: bool) -> None:
        """What the corpus is, and the base model's likelihoods."""
        base, counts = runner.measure_base(benchmarks and "base" not in self.records)
        if "base" in self.records:
            return
        documents = load_rows(str(self.folder / "texts" / "documents.jsonl"))
        characters: Counter = Counter()
        for kind, text in zip(documents["kind"][:], documents["text"][:]):
            characters[kind] += len(text)
        everything = describe(scored, np.arange(len(scored)))
        trusted = load_rows(str(self.folder / "texts" / "trusted.jsonl"))["text"][:]
        self.records.add(
            "base",
            {
                "corpus": self.corpus,
                "seed": self.seed,
                "characters": dict(sorted(characters.items())),
                "deduplicated": everything,
                "trusted_tokens": sum(map(len, runner.tokenizer(trusted)["input_ids"])),
                "tokens_of_texts": counts,
                "rungs": [{"num_tokens": 0, **base}],
            },
        )
        self._say(f"{everything['num_chunks']:,} chunks, {everything['num_tokens']:,} tokens once deduplicated")

    def _laws(self, scored: Dataset, runner: Runner) -> dict[str, Any]:
        """Train the probes, fit the laws."""
        args = self.args
        script = SimpleNamespace(  # of fit_law.py's options those that design its probes
            column=list(COLUMNS[:2]), num_probes=args.num_probes, num_tokens=args.probe_tokens, probe_space="log",
            ladder=[args.probe_tokens // 2, args.probe_tokens], total_tokens=None,
        )  # fmt: skip
        plan = design_runs(script, scored, self.seed)
        points, chosen = [], None
        for k, probe in enumerate(plan.probes):
            what = f"probe {probe.run}"
            if what not in self.records:
                chosen = chosen or choose_probes(plan, scored, self.seed)
                subset, moments = chosen[k]
                found = self._train(what, subset["text"][:], [one["num_chunks"] for one in moments], runner)
                if found is None:
                    continue
                tokens = np.cumsum(subset["num_tokens"][:])
                for rung, at in zip(found["rungs"], moments, strict=True):
                    rung["num_tokens"] = int(tokens[rung.pop("num_texts") - 1])
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
        args, what = self.args, f"arm {arm}"
        if arm == "random raw":
            texts, tokens, about = self._raw()
            ladder = [times * args.num_tokens for times in args.random_times]
        else:
            try:
                rows, about = choose_rows(arm.removesuffix(", replay"), scored, laws, args.num_tokens, self.seed)
            except (ValueError, KeyError) as error:
                self.records.add(what, {"problem": str(error) if isinstance(error, ValueError) else "no law"})
                self._say(f"{arm}: {self.records[what]['problem'][:100]}")
                return
            about |= describe(scored, rows)
            about["predicted"] = {
                str(at): predictions(laws, about["moments"], at) for at in (args.probe_tokens, about["num_tokens"])
            }
            if arm == "law" and arm in laws:
                about["interval"] = interval_of(laws[arm], about)
            texts, tokens = scored.select(rows)["text"][:], scored.select(rows)["num_tokens"][:]
            ladder = [args.probe_tokens, args.num_tokens]
            if arm in LAWS and (same := self._same(rows, arm)):
                self.records.add(what, about | {"same_as": same})
                return
            about["rows_sha256"] = _hash(rows)
            if arm == "law, replay":
                replay = _texts(self.folder / "texts" / "replay.jsonl")
                subset = with_replay(scored, laws["law"], replay, runner.tokenizer, args, self.seed)
                texts, tokens = subset["text"][:], subset["num_tokens"][:]
        seen = np.cumsum(tokens)
        numbers = [int(np.searchsorted(seen, rung, side="right")) for rung in ladder]
        found = self._train(what, texts, numbers, runner, benchmarks)
        if found is not None:
            for rung in found["rungs"]:
                rung["num_tokens"] = int(seen[rung.pop("num_texts") - 1])
            self.records.add(what, about | found)

    def _train(self, what: str, texts, ladder, runner: Runner, benchmarks: bool = False) -> dict[str, Any] | None:
        """Rungs and seconds; of a run that diverged the record says so, and None is returned."""
        started = time.monotonic()
        try:
            rungs = runner.run(texts, ladder, self.seed, benchmarks)
        except DivergedError as error:
            self.records.add(what, {"problem": str(error)})
            return None
        loss = sum(rungs[-1]["domain"]) / sum(self.records["base"]["tokens_of_texts"]["domain"])
        self._say(f"{what}: domain loss {loss:.4f}")
        return {"rungs": rungs, "seconds": round(time.monotonic() - started, 1)}

    def _raw(self) -> tuple[list[str], list[int], dict[str, Any]]:
        """Random chunks of the documents as they are, for the longest budget there are enough of."""
        most = int(max(self.args.random_times) * self.args.num_tokens)
        raw = {"num_tokens": most, "chunk_length": self.args.chunk_length, "seed": self.seed}
        step = Step(self.folder, "random-raw", (self.weights, str(raw)), (self.folder / "texts",))
        if not step.is_done():
            draw_from_documents(self.folder / "texts" / "documents.jsonl", step.output, self.model, **raw)
            step.note_done()
        rows = load_rows(str(step.output / "chunks.jsonl"))
        tokens, kinds = rows["num_tokens"][:], Counter()
        for kind, count in zip(rows["kind"][:], tokens):
            kinds[kind] += count
        return rows["text"][:], tokens, {"kinds": dict(sorted(kinds.items())), "num_tokens": sum(tokens)}

    def _same(self, rows: np.ndarray, arm: str) -> str | None:
        """An arm before that trained on the same rows in the same order."""
        for name, record in self.records.by_what.items():
            if record.get("rows_sha256") == _hash(rows) and name != f"arm {arm}":
                return name.removeprefix("arm ")
        return None


def _texts(path: Path) -> list[str]:
    return load_rows(str(path))["text"][:]


def _hash(rows: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(rows, dtype=np.int64).tobytes()).hexdigest()
