"""Select the part of a corpus with a wanted perplexity landscape.

Two ways to the same subset. [`select_subset`] holds the perplexities in memory and meets the token budget to one
chunk. [`PerplexitySelector`] is three numbers and a seed: it decides about each row alone, so any engine can apply it
to shards or a stream, and it meets the budget in expectation.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..deduplication.duplicates import NEAR_THRESHOLD, Deduplicate
from ..landscape.reach import Space
from ..landscape.scores import Column, as_column, as_moment, digits
from .candidates import find_candidates, hash_columns
from .choosing import Choice
from .groups import Groups
from .options import STRATEGIES, STRATEGIES_WITH_TARGET, Strategy, check_options
from .predictions import describe_law, predict_losses
from .replay import Order, check_replay, choose_replay, mix_replay, order_chosen
from .report import Selection, describe_moments, describe_regimes, load_report
from .selector import PerplexitySelector

if TYPE_CHECKING:
    from datasets import Dataset

    from ..law.scaling_law import ScalingLaw

_CANDIDATE_OPTIONS = ("column", "num_tokens_column", "text_column", "min_score", "max_score", "model")
_CANDIDATE_OPTIONS += ("deduplicate", "near_threshold")

__all__ = ["STRATEGIES", "STRATEGIES_WITH_TARGET", "PerplexitySelector", "Selection", "plan_selection"]
__all__ += ["reproduce_selection", "select_subset"]


def select_subset(
    dataset: Dataset,
    *,
    num_tokens: float,
    law: ScalingLaw | None = None,
    target: tuple[Any, Any] | None = None,
    strategy: Strategy = "maxent",
    seed: int = 0,
    replay_dataset: Dataset | None = None,
    **options: Any,
) -> Dataset:
    """The best `num_tokens` tokens of a scored dataset: a plain `Dataset` of its rows, in their order.

    See [`plan_selection`], which has all the options and also says what was reached.
    """
    plan = plan_selection(
        dataset,
        num_tokens=num_tokens,
        law=law,
        target=target,
        strategy=strategy,
        seed=seed,
        replay_dataset=replay_dataset,
        **options,
    )
    return plan.apply(dataset, replay_dataset)


def plan_selection(
    dataset: Any,
    *,
    num_tokens: float,
    law: ScalingLaw | None = None,
    target: tuple[Any, Any] | None = None,
    space: Space | None = None,
    strategy: Strategy = "maxent",
    seed: int = 0,
    group_by: str | None = None,
    group_num_tokens: Mapping[Any, float] | None = None,
    min_group_tokens: float | Mapping[Any, float] | None = None,
    deduplicate: Deduplicate | None = None,
    near_threshold: float = NEAR_THRESHOLD,
    min_score: float | None = None,
    max_score: float | None = None,
    replay: float = 0.0,
    replay_dataset: Any = None,
    order: Order = "dataset",
    model: str | None = None,
    text_column: str = "text",
    column: Column | None = None,
    num_tokens_column: str = "num_tokens",
) -> Selection:
    """Choose rows whose tokens fill `num_tokens`, never above it and less than one chunk below.

    Strategies:
        - "maxent" (default): the most diverse subset with the target's mean and standard deviation.
        - "greedy_dos": the paper's greedy distance-to-optimum selection. It meets the target with two clumps.
        - "regime": one interval of scores; of all that fill the budget the one with the least predicted loss, or
          with moments nearest to an explicit target.
        - "random", "low", "high", "middle": drawn by the seed; the lowest scores; the highest; those around the
          median.

    Args:
        dataset: a scored `datasets.Dataset`, or a dict of columns.
        num_tokens: the budget, in tokens.
        law: aim at this law's optimum for the corpus and budget. With random, low, high, middle it only predicts.
        target: aim at this `(mu, sigma)` instead; of two columns at `((mu, mu), (sigma, sigma))`, in their order.
        space: "linear" (moments of the score) or "log" (of its logarithm, nats); the law's, "linear" with a target,
            always "log" of two columns.
        strategy: see above; the first three need a law or a target.
        seed: all randomness comes from it.
        group_by: a column (texts, integers or bools); each of its values gets a share of the budget in proportion to
            the tokens it has, or what the next two say. The target is that of all groups together.
        group_num_tokens: budgets of some groups, `{name: tokens}`, filled to less than one chunk each; the others
            share the rest. 0 leaves a group out.
        min_group_tokens: least tokens of every group, or of some (`{name: tokens}`), met in whole chunks; the others
            share the rest. A group that has less gives all it has.
        deduplicate: "exact", "normalized" or "near": rows whose text repeats an earlier one's are dropped; see
            [`~hf_ppl_select.deduplication.duplicates.find_duplicates`].
        near_threshold: of "near", the least Jaccard similarity.
        min_score, max_score: guards; rows outside are dropped.
        replay: share of the budget for rows of `replay_dataset`, drawn by the seed, against forgetting. They come
            evenly mixed in. Moments, groups and losses are those of the other rows.
        replay_dataset: general-domain rows with the dataset's columns; of them only `num_tokens` is read here.
        order: "dataset" (default), "easy_to_hard" or "hard_to_easy" (by perplexity), or "shuffled" by the seed.
        model: that scored the dataset; a law for another one is refused.
        text_column, num_tokens_column: what `deduplicate` compares; tokens of each chunk.
        column: the score: the law's own, or perplexity. Any column of positive numbers will do without a law, or two
            together, `(first, second)`, with strategy "maxent" or "random" and without guards. Rows without a score,
            with an infinite one, or with more tokens than the budget are dropped and counted.

    Raises:
        KeyError: a column or a group is missing.
        TypeError: a stream, or a dataset of several splits.
        ValueError: contradicting options, a budget that is not positive or above the corpus, a target out of reach.
    """
    options = {name: value for name, value in locals().items() if name not in ("dataset", "law", "replay_dataset")}
    options["column"] = as_column(column or (law.column if law is not None else "perplexity"))
    return _plan(dataset, law, replay_dataset, options)


def reproduce_selection(
    report: Mapping[str, Any] | str | os.PathLike,
    dataset: Any,
    *,
    law: ScalingLaw | None = None,
    replay_dataset: Any = None,
) -> Selection:
    """Choose the rows of an earlier selection again, from its report, and make sure that they are the same.

    Args:
        report: what [`Selection.report`] gave, or the file [`Selection.save`] wrote.
        dataset: the dataset it chose from, with its rows in the same order.
        law: the law it used, if any. Without it the saved target is aimed at, which gives the same rows (but predicts
            nothing); only strategy "regime" cannot do without.
        replay_dataset: if it had replay rows.

    Raises:
        ValueError: another dataset, another law, or not the same rows.
    """
    report = load_report(report) if isinstance(report, (str, os.PathLike)) else report
    if "options" not in report:
        raise ValueError("the report is of a streamed selection; its selector.json keeps the same rows again.")
    options = dict(report["options"])
    options["column"] = as_column(options["column"])
    for name in ("group_num_tokens", "min_group_tokens"):
        if isinstance(options[name], list):
            options[name] = dict(map(tuple, options[name]))
    settled = None
    if report["law"] is not None:
        if law is not None and law.params != report["law"]["params"]:
            raise ValueError(f"the selection was made with another law: {report['law']}, this one is {law.params}.")
        if law is None and options["strategy"] == "regime":
            raise ValueError('strategy "regime" asks the law for the loss of each interval; pass law=.')
        if law is None and report["target"] is not None:
            settled = tuple(map(as_moment, report["target"]))
            options |= {"target": settled, "space": report["space"]}
    again = _plan(dataset, law, replay_dataset, options, settled, report["inputs"])
    wanted, got = report["indices_sha256"], again.report()
    same = wanted == got["indices_sha256"]
    same &= all(report.get(name) == got.get(name) for name in ("replay_indices_sha256", "is_replay_sha256"))
    if not same:
        raise ValueError(
            f"The selection came out different ({got['num_chunks']:,} rows, it had {report['num_chunks']:,}); it was "
            f"made by hf_ppl_select {report['package_version']}, this is {got['package_version']}. Texts that "
            "deduplicate or groups that group_by reads may have changed too."
        )
    return again


def _plan(
    dataset: Any,
    law: ScalingLaw | None,
    replay_dataset: Any,
    options: dict[str, Any],
    settled: tuple[float, float] | None = None,
    wanted_inputs: Mapping[str, Any] | None = None,
) -> Selection:
    """`plan_selection`. A `settled` target was in reach when a law set it; `wanted_inputs` is what is to be read."""
    space = check_options(law, options)
    num_tokens, strategy, seed = options["num_tokens"], options["strategy"], int(options["seed"])
    check_replay(options["replay"], replay_dataset)
    budget, inputs, replay, replay_rows = num_tokens, {}, None, None
    if options["replay"]:
        share = options["replay"] * num_tokens
        replay_rows, replay_tokens = choose_replay(replay_dataset, share, seed, options["num_tokens_column"])
        inputs = {"replay_num_rows": len(replay_tokens), "replay_sha256": hash_columns(replay_tokens)}
        replay_sum = int(replay_tokens[replay_rows].sum())
        replay = {"share": options["replay"], "num_chunks": len(replay_rows), "num_tokens": replay_sum}
        budget = num_tokens - replay_sum
    candidates = find_candidates(dataset, budget, **{name: options[name] for name in _CANDIDATE_OPTIONS})
    inputs = {"num_rows": candidates.num_rows, "sha256": candidates.sha256, **inputs}
    if wanted_inputs is not None and dict(wanted_inputs) != inputs:
        raise ValueError(f"This is not the data that was selected from: {inputs}, but it was {dict(wanted_inputs)}.")

    groups = None
    if options["group_by"] is not None:
        groups = Groups.read(dataset, options["group_by"]).take(candidates.rows)
    limits = {name: options[name] for name in ("group_num_tokens", "min_group_tokens")}
    choice = Choice(candidates, budget, space=space, strategy=strategy, seed=seed, law=law, groups=groups, **limits)
    target, optimum, projected = options["target"], None, None
    if strategy in STRATEGIES_WITH_TARGET:
        if law is not None:
            optimum = law.optimum(candidates.landscape, budget)
            target = choice.bring_in_reach(optimum.mu, optimum.sigma)
            projected = target != (optimum.mu, optimum.sigma)
        else:
            target = tuple(map(as_moment, target))
            if strategy != "regime" and settled is None:  # the nearest interval has no need to be near
                choice.check(*target)
    chosen, tilt = choice.choose(target)

    scores, tokens = candidates.scores, candidates.tokens
    achieved = describe_moments(scores[chosen])
    mu, sigma = (achieved[name] for name in (("mu", "sigma") if space == "linear" else ("log_mu", "log_sigma")))
    if tilt is not None and tilt.off(choice.columns[chosen]) > 1:
        warnings.warn(
            f"The subset of {len(chosen)} chunks has mu {digits(mu)} and sigma {digits(sigma)}, not "
            f"{digits(target[0])} and {digits(target[1])}: single chunks weigh too much. Choose a target further from "
            "the edge, or more tokens.",
            stacklevel=3,
        )
    kept_tokens = int(tokens[chosen].sum())
    moments = [name for name in achieved if name.endswith(("mu", "sigma"))]
    order, is_replay = options["order"], None
    if replay is not None:
        replay_rows, is_replay = mix_replay(replay_rows, len(chosen), order, seed)
    return Selection(
        indices=candidates.rows[chosen[order_chosen(scores[chosen], order, seed)]],
        strategy=strategy,
        seed=seed,
        space=space,
        column=options["column"],
        target=target,
        budget=num_tokens,
        num_tokens=kept_tokens,
        num_chunks=len(chosen),
        achieved=achieved,
        corpus={name: getattr(candidates.landscape, name) for name in (*moments, "num_chunks", "num_tokens")},
        dropped=candidates.dropped,
        regimes=describe_regimes(scores, tokens, chosen, options["column"]),
        groups=choice.describe(chosen),
        replay=replay,
        replay_indices=replay_rows,
        is_replay=is_replay,
        order=order,
        projected=projected,
        maxent=tilt if groups is None else None,
        optimum=optimum,
        law=law and describe_law(law),
        options={
            name: list(value.items()) if isinstance(value, Mapping) else value for name, value in options.items()
        },
        inputs=inputs,
        **predict_losses(law, (mu, sigma), candidates.landscape.moments(space), kept_tokens),
    )
