"""What each arm of a study trains on: chunks in training order, and what is known of them beforehand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fitting.comparison import compare_columns
from hf_ppl_select import ScalingLaw, chunk_documents, fit_scaling_law
from hf_ppl_select.landscape.scores import names_of
from hf_ppl_select.law.comparison import choose_form
from hf_ppl_select.law.intervals import check_intervals
from hf_ppl_select.law.points import moment_field, score_moments
from hf_ppl_select.selection.select import plan_selection
from quickstart_steps.runs import CLEAN
from studying.plan import LAWS, StudyArguments

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("perplexity", "perplexity_ratio", "ngram_ratio", "ifd")  # where a corpus has them
QUARTERS = {"ratio top quarter": "perplexity_ratio", "n-gram top quarter": "ngram_ratio", "ifd top quarter": "ifd"}


def fit_laws(points: Sequence[dict[str, Any]]) -> tuple[dict[str, ScalingLaw], list[dict[str, Any]], dict[str, str]]:
    """The laws by name of their arm, with "data only"; the comparison of all forms; why a law could not be fitted."""
    laws: dict[str, ScalingLaw] = {}
    problems: dict[str, str] = {}
    comparison, default = compare_columns(points, LAWS["law"][:2])
    for name, columns in LAWS.items():
        rows = [row for row in comparison if row["column"] in columns or row["form"] == "data_only"]
        try:
            chosen = default if name == "law" else choose_form(rows)
            column = chosen["column"] if chosen["column"] in columns else columns[0]
            laws[name] = fit_scaling_law(points, chosen["form"], chosen["space"], column=column)
        except ValueError as error:
            problems[name] = str(error)
    for name, form, space in (("paper", "paper", "linear"), ("data only", "data_only", "log")):
        try:
            laws[name] = fit_scaling_law(points, form, space, column="perplexity")
        except ValueError as error:
            problems[name] = str(error)
    return laws, comparison, problems


def choose_rows(
    arm: str, scored: Dataset, laws: dict[str, ScalingLaw], num_tokens: int, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Rows of the scored chunks in training order, and what the selection aimed at.

    Raises:
        ValueError: the law cannot choose.
    """
    options: dict[str, Any] = {"num_tokens": num_tokens, "seed": seed, "order": "shuffled"}
    if arm in ("random", "oracle", *QUARTERS):
        rows = np.arange(len(scored))
        if arm == "oracle":
            rows = np.flatnonzero(np.isin(scored["kind"][:], [CLEAN, "definition"]))
        elif arm in QUARTERS:
            scores = np.array(scored[QUARTERS[arm]][:], dtype=np.float64)
            if arm.startswith("ifd"):  # from 1 on the prompt is of no help: rows that IFD leaves out
                scores = np.where(scores < 1, scores, -np.inf)
            rows = np.flatnonzero(scores >= np.quantile(scores[np.isfinite(scores)], 0.75))
        part = scored.select(rows)
        return rows[plan_selection(part, strategy="random", **options).indices], {}
    if arm in ("low", "middle", "high"):
        return plan_selection(scored, strategy=arm, **options).indices, {}
    if arm not in laws:
        raise ValueError("Its law could not be fitted.")
    strategy = "greedy_dos" if arm == "paper" else "maxent"
    chosen = plan_selection(scored, law=laws[arm], strategy=strategy, **options)
    return chosen.indices, {"target": chosen.target, "kind": chosen.optimum.kind}


def with_replay(
    scored: Dataset, law: ScalingLaw, general: Sequence[str], tokenizer: Any, args: StudyArguments, seed: int
) -> Dataset:
    """The subset that the law chooses for the budget less a share of general text, which is evenly mixed in."""
    from datasets import Dataset

    chunks = chunk_documents({"text": list(general)}, tokenizer, args.chunk_length)["text"]
    counts = [len(ids) for ids in tokenizer(chunks, add_special_tokens=False)["input_ids"]]
    columns = scored.select_columns(["text", "num_tokens"])
    replay = Dataset.from_dict({"text": chunks, "num_tokens": counts}, features=columns.features)
    options = {"replay": args.replay, "replay_dataset": replay, "order": "shuffled", "seed": seed}
    chosen = plan_selection(scored, law=law, num_tokens=args.num_tokens, **options)
    return chosen.apply(columns, replay)


def describe(scored: Dataset, rows: np.ndarray) -> dict[str, Any]:
    """Moments of every score, and tokens of each kind."""
    part = scored.select(rows)
    tokens = part["num_tokens"][:]
    columns = [name for name in COLUMNS if name in scored.column_names]
    return {
        "moments": score_moments({name: np.array(part[name][:], dtype=np.float64) for name in columns}),
        "kinds": sums_by_kind(part["kind"][:], tokens),
        "num_tokens": sum(tokens),
        "num_chunks": len(rows),
    }


def sums_by_kind(kinds: Iterable[str], counts: Iterable[int]) -> dict[str, int]:
    """The counts of each kind together, in the order of their names."""
    found: Counter = Counter()
    for kind, count in zip(kinds, counts, strict=True):
        found[kind] += count
    return dict(sorted(found.items()))


def predictions(laws: dict[str, ScalingLaw], moments: dict[str, float], num_tokens: int) -> dict[str, float]:
    """Every law's loss for a subset of these moments."""
    return {name: float(law.predict(*moments_of(law, moments), num_tokens)) for name, law in laws.items()}


def moments_of(law: ScalingLaw, moments: dict[str, float]) -> tuple[Any, Any]:
    """mu and sigma of a law's columns in its space, as fields of a law point have them."""
    names = ("mu", "sigma") if law.space == "linear" else ("log_mu", "log_sigma")
    found = [tuple(moments[moment_field(name, column)] for column in names_of(law.column)) for name in names]
    return tuple(one if len(one) > 1 else one[0] for one in found)


def interval_of(law: ScalingLaw, about: dict[str, Any]) -> list[float] | None:
    """Where the law says that the loss of one new run falls 95 times in 100; None where it cannot say."""
    if check_intervals(law) is not None:
        return None
    return [float(end) for end in law.predict_interval(*moments_of(law, about["moments"]), about["num_tokens"])]
