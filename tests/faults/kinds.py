"""One good file of every kind that we write and read again, and its reader."""

import dataclasses

import numpy as np

from comparing.run_records import read_run
from fitting.law_report import load_base_loss, load_comparison
from fitting.probe_runs import load_end
from hf_ppl_select import (
    NgramScorer,
    PerplexityLandscape,
    PerplexitySelector,
    ScalingLaw,
    compare_scaling_laws,
)
from hf_ppl_select.benchmarks import BenchmarkResults, load_records
from hf_ppl_select.benchmarks.estimates import Estimate, Record
from hf_ppl_select.benchmarks.evaluate_modules import METRICS
from hf_ppl_select.benchmarks.results import BenchmarkResult
from hf_ppl_select.data.saving import load_json, save_json
from hf_ppl_select.data.shards import load_manifest, load_note, save_manifest, save_note
from hf_ppl_select.landscape.joint import JointLandscape
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.law.points import append_law_points, read_law_points
from hf_ppl_select.selection.report import load_report
from hf_ppl_select.selection.select import plan_selection
from quickstart_steps.done import load_step
from quickstart_steps.runs import load_costs
from quickstart_steps.texts import QuickstartArguments
from scoring.reference import settings_of
from studying.plan import StudyArguments, load_plan, write_plan
from training.checkpoints import list_files, total_loss_of


def scored(num_rows=400, seed=0):
    """Columns of a scored corpus."""
    rng = np.random.default_rng(seed)
    return {
        "text": [f"text {i}" for i in range(num_rows)],
        "perplexity": np.exp(rng.normal(3, 0.4, num_rows)),
        "num_tokens": rng.integers(20, 60, num_rows),
        "ratio": np.exp(rng.normal(0.5, 0.2, num_rows)),
    }


def law_points():
    """A law without noise: rows of five runs of three lengths."""
    rows = []
    for mu, sigma in ((12.0, 3.0), (18.0, 6.0), (25.0, 5.0), (30.0, 12.0), (22.0, 9.0)):
        for num_tokens in (1000, 3000, 9000):
            loss = 1.5 + 6 / (mu**0.1 * sigma**0.05 * num_tokens**0.2)
            rows.append({"run": f"mu-{mu:g}", "mu": mu, "sigma": sigma, "num_tokens": num_tokens, "loss": loss})
    return rows


def results():
    records = tuple(Record(i, i % 2, 0, (-1.5 - i, -2.25), (4, 5), (4, 6), 0, f"{i:08x}") for i in range(6))
    metrics = {name: Estimate(0.5, 0.25, 0.75, 6) for name in METRICS}
    one = BenchmarkResult("medqa", "medical", "here", metrics, records)
    return BenchmarkResults("tiny", {"medqa": one}, {"medical": metrics}, None, 0, 100, 512)


def _metrics(path):
    counts = dict.fromkeys(("seed", "num_rows", "num_empty_rows", "num_tokens", "num_processes"), 3)
    found = {"train": {"train_loss": 2.5}, "training_rows": {}, "selection": None, "resumed_from": None}
    texts = {"recipe": "cpt", "model": "tiny", "dataset": "rows.jsonl"}
    payload = {**texts, **counts, **found, "log_history": [{"step": 1, "loss": 2.5}]}
    save_json(path, payload, kind="training_metrics", version=1)


def _held_out(path):
    payload = {"domain": {"nll_sum": [12.5, 3.75], "num_tokens": [4, 2]}}
    save_json(path, payload, kind="text_likelihoods", version=1)


def _points(path):
    append_law_points(path, law_points())


def _law(path):
    fit_scaling_law(law_points(), "no_interaction", "linear", model="tiny").save(path)


def _landscape(path):
    PerplexityLandscape.from_dataset(scored(100), model="tiny").save(path)


def _joint(path):
    PerplexityLandscape.from_dataset(scored(60), column=("perplexity", "ratio")).save(path)


def _selector(path):
    landscape = PerplexityLandscape.from_dataset(scored())
    PerplexitySelector.from_target(22.0, 6.0, landscape=landscape, num_tokens=4000, seed=3).save(path)


def _selection(path):
    plan_selection(scored(), num_tokens=4000, target=(22.0, 6.0), seed=3).save(path)


def _shard(num_rows):
    return {"num_rows": num_rows, "num_bytes": 1000 + num_rows, "sha256": f"{num_rows:064x}"}


def _manifest(path):
    shards = {f"train-{index:05d}-of-00003.parquet": _shard(index) for index in range(3)}
    save_manifest(path, {"seed": 0, "keep_columns": ["kind"], "dtype": None}, shards)


def _reference(path):
    payload = {"settings": {"model": "tiny", "lora": False, "epochs": 1.0}, "source": {"trusted": "trusted.jsonl"}}
    save_json(path, payload, kind="reference", version=1)


def _checkpoint(path):
    for name in ("model.safetensors", "optimizer.pt"):
        (path.parent / name).write_text(name)
    list_files(path.parent, 12.5)


def _base_loss(path):
    texts = {"model": "sha256:12", "dtype": "float32", "general_eval_file": "0f"}
    save_json(path, {**texts, "measuring": 3, "general_loss": 3.25}, kind="base_loss", version=2)


def _comparison(path):
    forms = compare_scaling_laws(law_points(), space="linear")
    save_json(path, {"forms": forms}, kind="law_comparison", version=1)


def _costs(path):
    save_json(
        path, {"seconds": {"Score": 12.5, "Train": 3.75}, "interrupted": ["Train"]}, kind="quickstart_costs", version=1
    )


def _probe_end(path):
    save_json(path, {"num_points": 3}, kind="probe_end", version=1)


def _quickstart(path):
    save_json(path, dataclasses.asdict(QuickstartArguments()), kind="quickstart", version=2)


def _ngrams(path):
    NgramScorer.fit(["fever and cough"] * 3, ["fever, tea and rest", "a cough"], num_buckets=64).save(path)


def _plan(path):
    write_plan(path.parent, StudyArguments(), "weights")


def _step(path):
    save_json(path, {"options": ["1"], "read": {"a": "0f"}, "left": {"b": "1e"}}, kind="quickstart_step", version=1)


KINDS = {  # by file name: a writer, and a reader whose results compare
    "law.json": (_law, lambda path: ScalingLaw.load(path).to_dict()),
    "landscape.json": (_landscape, lambda path: PerplexityLandscape.load(path).to_dict()),
    "joint.json": (_joint, lambda path: JointLandscape.load(path).to_dict()),
    "selector.json": (_selector, lambda path: dataclasses.asdict(PerplexitySelector.load(path))),
    "selection.json": (_selection, load_report),
    "points.jsonl": (_points, lambda path: read_law_points(path).to_rows()),
    "benchmarks.json": (lambda path: results().save(path), lambda path: BenchmarkResults.load(path).to_dict()),
    "benchmarks.parquet": (lambda path: results().save_records(path), load_records),
    "metrics.json": (_metrics, lambda path: read_run(path.parent).metrics),
    "manifest.json": (_manifest, load_manifest),
    "train-00003-of-00070.parquet.json": (lambda path: save_note(path, _shard(7)), load_note),
    "trained_on.json": (_reference, lambda path: settings_of(path.parent)),
    "checkpoint.json": (_checkpoint, lambda path: total_loss_of(path.parent)),
    "base.json": (_base_loss, load_base_loss),
    "ended.json": (_probe_end, load_end),
    "comparison.json": (_comparison, load_comparison),
    "costs.json": (_costs, load_costs),
    "settings.json": (_quickstart, lambda path: load_json(path, kind="quickstart", version=2)),
    "scored.json": (_step, load_step),
    "plan.json": (_plan, load_plan),
    "ngrams.safetensors": (_ngrams, lambda path: NgramScorer.load(path).settings()),
    "held_out.json": (_held_out, lambda path: {k: v.tolist() for k, v in read_run(path.parent).texts.items()}),
}
