"""What `fit_law.py` does for its probes: choose them, train each on its chunks in order, record law points on the way.

One process trains all of them into points.jsonl; several at once (Ray, a job array) each write a file of their own.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitting.ray_probes import train_with_ray
from hf_ppl_select import PerplexityLandscape, select_subset
from hf_ppl_select.data.load import load_texts
from hf_ppl_select.data.saving import load_json, save_json
from hf_ppl_select.data.schema import Number, checked
from hf_ppl_select.law.points import LawPoints, append_law_points, read_law_points
from hf_ppl_select.probes.design import ProbeTarget, design_probes, prefix_points, probe_order
from hf_ppl_select.probes.plan import ProbePlan, plan_probes
from hf_ppl_select.selection.candidates import find_candidates
from trainer_callbacks.measuring import DivergedError
from training.cpu_trainer import release_large_blocks
from training.side_by_side import run_side_by_side

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig, SFTConfig


_DRAWS = 16
SCORES = ("perplexity", "perplexity_ratio", "ngram_ratio", "ifd")  # law points hold those that the chunks have


def design_runs(script_args, dataset: Dataset, seed: int) -> ProbePlan:
    """Which probes, how long, measured when: as the options say, or chosen for --total_tokens.

    With several score columns they take turns: the first probe is random, the second spreads in the first column.
    """
    landscapes = [PerplexityLandscape.from_dataset(dataset, column=column) for column in script_args.column]
    if script_args.total_tokens is not None:
        if script_args.num_tokens is not None or script_args.ladder is not None:
            raise ValueError(
                "--total_tokens chooses the probes' num_tokens and ladder; leave --num_tokens, --ladder out."
            )
        options = {"num_runs": script_args.num_probes, "space": script_args.probe_space, "seed": seed}
        plan = plan_probes(landscapes[0], script_args.total_tokens, **options)
        num_runs, num_tokens, ladder = len(plan.probes), plan.tokens_per_run, plan.ladder
    else:
        num_runs = 8 if script_args.num_probes is None else script_args.num_probes
        num_tokens = script_args.num_tokens or (max(script_args.ladder) if script_args.ladder else 1_000_000)
        ladder = script_args.ladder or [num_tokens // 4, num_tokens // 2, num_tokens]
    probes: list[ProbeTarget] = []
    for k, landscape in enumerate(landscapes):
        share = 1 + len(range(k, num_runs - 1, len(landscapes)))
        options = {"num_runs": share, "tokens_per_run": num_tokens, "space": script_args.probe_space, "seed": seed}
        random, *spread = design_probes(landscape, **options)
        probes = probes or [random] * num_runs
        probes[1 + k :: len(landscapes)] = spread
    named = [replace(probe, run=f"probe-{k:02d}") for k, probe in enumerate(probes[1:])]
    return ProbePlan((probes[0], *named), num_tokens, tuple(sorted(ladder)))


def choose_probes(plan: ProbePlan, dataset: Dataset, seed: int) -> list[tuple[Dataset, list[dict[str, Any]]]]:
    """The rows of each probe in training order, and its law points' landscapes: all of them, before any is trained.

    Raises:
        ValueError: a probe that cannot be selected, or a rung outside it.
    """
    chosen, budget = [], max(plan.ladder)
    for probe in plan.probes:
        if probe.strategy == "random":
            columns = list(dict.fromkeys(probe.column for probe in plan.probes))
            subset = dataset.select(representative_rows(dataset, budget, columns, probe.space, seed))
        else:
            target = {"target": (probe.mu, probe.sigma), "space": probe.space, "column": probe.column}
            subset = select_subset(dataset, num_tokens=budget, strategy=probe.strategy, seed=seed, **target)
            subset = subset.select(probe_order(subset[probe.column][:], seed=seed))
        names = [name for name in SCORES if name in subset.column_names and name != probe.column]
        scores = {name: np.asarray(subset[name][:], dtype=np.float64) for name in (probe.column, *names)}
        scores = {name: values for name, values in scores.items() if np.all(np.isfinite(values) & (values > 0))}
        chosen.append((subset, prefix_points(scores, subset["num_tokens"][:], plan.ladder)))
    return chosen


def representative_rows(
    dataset: Dataset, num_tokens: float, columns: Sequence[str], space: str, seed: int
) -> np.ndarray:
    """Rows of a random subset in training order, drawn evenly along the first score: of some draws the one whose
    moments are nearest to the corpus's own, so that the probes cover what the law says of random subsets.
    """
    every, best, least = find_candidates(dataset, num_tokens, column=columns[0]), None, np.inf
    scores = [np.asarray(dataset[column][:], dtype=np.float64)[every.rows] for column in columns]
    scores = [np.log(values) if space == "log" else values for values in scores]
    for draw in range(_DRAWS):
        order = probe_order(scores[0], seed=_DRAWS * seed + draw)
        order = order[: np.searchsorted(np.cumsum(every.tokens[order]), num_tokens, side="right")]
        off = [(values[order].mean() - values.mean(), values[order].std() - values.std()) for values in scores]
        error = max(np.abs(both).max() / values.std() for both, values in zip(off, scores))
        if error < least:
            best, least = order, error
    return every.rows[best]


def train_probes(
    plan: ProbePlan, chosen: Sequence[tuple[Dataset, list]], folder: Path, script_args, training_args, model_args
) -> dict[str, str]:
    """Train what is missing: here one by one or --num_workers at once, as Ray tasks, or only --probe_index; nothing
    with --fit_only.

    `chosen` is what [`choose_probes`] returned. Each rung is written when it is measured, so what is done stays done
    if a later probe fails, and the same command goes on from there. A probe that diverges is left behind.

    Returns:
        Why some diverged, by their runs.

    Raises:
        ValueError: no such probe, or --fit_only and some are missing.
    """
    index, num_probes = script_args.probe_index, len(plan.probes)
    if index is not None and not 0 <= index < num_probes:
        raise ValueError(f"--probe_index {index}: the {num_probes} probes are numbered from 0 to {num_probes - 1}.")
    missing = {i: plan.probes[i].run for i in range(num_probes) if not _is_done(folder, plan, plan.probes[i])}
    if index is None and script_args.fit_only:
        if missing:
            which = ", ".join(f"{i} ({run})" for i, run in missing.items())
            raise ValueError(
                f"{len(missing)} of {num_probes} probes are missing or not finished in {folder}: {which}. Train each "
                "with --probe_index, or all of them by leaving --fit_only out."
            )
        return {}
    if index is None and script_args.ray:
        if missing:
            train_with_ray(str(Path(__file__).parents[1] / "fit_law.py"), sys.argv[1:], missing)
        return {}
    diverged: dict[str, str] = {}
    column = training_args.dataset_text_field
    held_out = {"texts": load_texts(script_args.eval_file, column)[0]}
    if script_args.general_eval_file:
        held_out["general_texts"] = load_texts(script_args.general_eval_file, column)[0]
    if index is None and script_args.num_workers > 1:
        diverged = _train_side_by_side(
            plan, chosen, list(missing), folder, script_args, training_args, model_args, held_out
        )
    for i, probe in enumerate(plan.probes):
        if i == index or (index is None and script_args.num_workers == 1):
            print(
                f"Probe {i + 1} of {num_probes}: {probe.run}, mu {probe.mu:.3f}, sigma {probe.sigma:.3f}", flush=True
            )
            if i in missing:
                path = folder / "points.jsonl" if index is None else _own_points(folder, probe)
                try:
                    run_probe(probe, *chosen[i], plan.ladder, folder, path, training_args, model_args, held_out)
                except DivergedError as error:
                    print(f"{probe.run}: {error}", flush=True)
                    diverged[probe.run] = str(error)
    return diverged


def describe_diverged(diverged: Mapping[str, str], folder: Path) -> str:
    """What is said of probes that [`train_probes`] returns."""
    (run, why), *others = diverged.items()
    also = f" So did {', '.join(other for other, _ in others)}." if others else ""
    return (
        f"Probe {run}: {why}{also} Points measured until then and those of other probes are kept in {folder}. Another "
        "learning rate needs all probes anew, in another --output_dir: its points do not compare with these."
    )


def _train_side_by_side(
    plan: ProbePlan,
    chosen: Sequence[tuple[Dataset, list]],
    missing: Sequence[int],
    folder: Path,
    script_args,
    training_args,
    model_args,
    held_out: Mapping[str, Any],
) -> dict[str, str]:
    """Train the missing probes, each into a file of its own; why some diverged, by their runs."""
    quiet = copy.deepcopy(training_args)
    quiet.disable_tqdm = True
    probes = [plan.probes[i] for i in missing]
    tasks = [
        (probe, *chosen[i], plan.ladder, folder, _own_points(folder, probe), quiet, model_args, held_out)
        for i, probe in zip(missing, probes)
    ]
    options = {"sizes": [plan.tokens_per_run] * len(tasks), "description": "Probes", "tolerated": DivergedError}
    errors = run_side_by_side(run_probe, tasks, script_args.num_workers, **options)
    return {probes[k].run: str(error) for k, error in errors.items()}


def collect_points(folder: Path, plan: ProbePlan) -> LawPoints | None:
    """The law points of all probes, in points.jsonl: those of probes that had a file of their own are added to it.

    None where no probe came to its first one.
    """
    path = folder / "points.jsonl"
    for probe in plan.probes:
        own = _own_points(folder, probe)
        if own.exists():
            rows = read_law_points(own).to_rows()
            known = read_law_points(path).to_rows() if path.exists() else []
            append_law_points(path, [row for row in rows if row not in known])
    return read_law_points(path) if path.exists() else None


def _own_points(folder: Path, probe: ProbeTarget) -> Path:
    return folder / "probes" / probe.run / "points.jsonl"


def _ended(folder: Path, probe: ProbeTarget) -> Path:
    return folder / "probes" / probe.run / "ended.json"


def load_end(path: Path) -> int:
    """How many law points a probe that had fewer than the ladder's rungs had when it ended, in its ended.json."""
    read = checked({"num_points": Number(0, 1e6, whole=True)})
    return load_json(path, kind="probe_end", version=1, read=read)["num_points"]


def _num_points(paths: Sequence[Path], probe: ProbeTarget) -> int:
    """How many points of a probe the table that has most of them holds."""
    return max((int(sum(read_law_points(path).run == probe.run)) for path in paths if path.exists()), default=0)


def _is_done(folder: Path, plan: ProbePlan, probe: ProbeTarget) -> bool:
    """Whether one of the tables holds a point of each rung, or of as many as it ended with."""
    wanted, ended = len(plan.ladder), _ended(folder, probe)
    if ended.exists():
        wanted = load_end(ended)
    return 0 < wanted <= _num_points([folder / "points.jsonl", _own_points(folder, probe)], probe)


def run_probe(
    probe: ProbeTarget,
    subset: Dataset,
    moments: list[dict[str, Any]],
    ladder: Sequence[int],
    folder: Path,
    points: Path,
    training_args: SFTConfig,
    model_args: ModelConfig,
    held_out: Mapping[str, Any],
) -> None:
    """Train one probe's rows from the base model, measuring at each rung into the table `points`."""
    from transformers import set_seed
    from trl import get_peft_config, get_quantization_config

    from trainer_callbacks import ScalingLawCallback, TokensPerSecondCallback
    from training.cpu_trainer import in_order, sft_trainer_class

    args = copy.deepcopy(training_args)
    args.output_dir = str(folder / "probes" / probe.run)
    args.run_name = probe.run
    args.packing = False
    args.push_to_hub = False  # which is of the law
    args.include_num_input_tokens_seen = "non_padding"
    if hasattr(args, "shuffle_dataset"):
        args.shuffle_dataset = False  # before the order of the rows, which decides each rung's landscape
    asked = {"dtype": model_args.dtype, "revision": model_args.model_revision}
    asked["attn_implementation"] = model_args.attn_implementation
    args.model_init_kwargs = asked | (args.model_init_kwargs or {})
    set_seed(args.seed)  # also of the adapter's first weights, before trl 1.15
    trainer = in_order(sft_trainer_class(args))(  # which gives each prefix the landscape of the whole
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=subset.select_columns([args.dataset_text_field]),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.add_callback(ScalingLawCallback(trainer, points, probe.run, ladder=ladder, moments=moments, **held_out))
    TokensPerSecondCallback.replace_bar_of(trainer)
    try:
        trainer.train()
    finally:
        del trainer
        release_large_blocks()
    measured = _num_points([points], probe)
    if measured < len(ladder):
        warnings.warn(
            f"{probe.run} has {measured} law points of {len(ladder)} rungs: several fell into one training step. "
            "Smaller batches, or a longer ladder, measure them all.",
            stacklevel=2,
        )
        save_json(_ended(folder, probe), {"num_points": measured}, kind="probe_end", version=1)
