"""The options of a selection: which strategies there are, and what goes together."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

from ..landscape.reach import Space, check_space
from ..landscape.scores import check_counts_tokens, check_log_space, check_one_column, in_words
from .replay import check_order

Strategy = Literal["maxent", "greedy_dos", "regime", "random", "low", "high", "middle"]
STRATEGIES_WITH_TARGET = ("maxent", "greedy_dos", "regime")
STRATEGIES = (*STRATEGIES_WITH_TARGET, "random", "low", "high", "middle")
STRATEGIES_OF_TWO = ("maxent", "random")  # of two score columns
ORDERS_OF_TWO = ("dataset", "shuffled")


def check_options(law: Any, options: Mapping[str, Any]) -> Space:
    """Whether the options of `plan_selection` go together; which space they mean.

    Raises:
        ValueError: they do not.
        TypeError: one that is to be a number is none.
    """
    strategy, target, space = options["strategy"], options["target"], options["space"]
    two = not isinstance(options["column"], str)
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is not known; the strategies are {', '.join(STRATEGIES)}.")
    if two and strategy not in STRATEGIES_OF_TWO:
        check_one_column(options["column"], f"strategy={strategy!r}")
    if two and options["order"] not in ORDERS_OF_TWO:
        check_one_column(options["column"], f"order={options['order']!r}")
    if strategy in STRATEGIES_WITH_TARGET and (law is None) == (target is None):
        raise ValueError(f"strategy={strategy!r} needs a law or a target=(mu, sigma), one of the two.")
    if strategy not in STRATEGIES_WITH_TARGET and target is not None:
        raise ValueError(f"strategy={strategy!r} has no target; leave target out, or use 'maxent'.")
    if target is not None and (not isinstance(target, (tuple, list)) or len(target) != 2):
        raise ValueError(f"target={target!r} is not a pair (mu, sigma).")
    if target is not None and any(np.shape(moment) != ((2,) if two else ()) for moment in target):
        form = "((mu, mu), (sigma, sigma)), as many as columns" if two else "a pair of numbers (mu, sigma)"
        raise ValueError(f"target={target!r} of {in_words(options['column'])} is not {form}.")
    if target is not None and not all(isinstance(x, Real) for one in target for x in (one if two else (one,))):
        raise TypeError(f"target={target!r} must be two numbers (mu, sigma){', each of two' * two}.")
    for name in ("num_tokens", "seed", "near_threshold"):
        kind, called = (Integral, "whole number") if name == "seed" else (Real, "number")
        if not isinstance(options[name], kind) or isinstance(options[name], bool):
            raise TypeError(f"{name}={options[name]!r} must be a {called}, not {type(options[name]).__name__}.")
    if two and law is None and space is not None:
        check_log_space(space)
    if space is not None:
        check_space(space)
    if law is not None and options["column"] != law.column:
        raise ValueError(f"column={options['column']!r}, but the law is about {law.column!r}; leave column out.")
    if law is not None:
        check_counts_tokens(options["num_tokens_column"], "a law")
    if law is not None and space not in (None, law.space):
        raise ValueError(f"space={space!r}, but the law lives in {law.space!r} space; leave space out.")
    if law is not None and law.model and options["model"] and law.model != options["model"]:
        raise ValueError(
            f"the law is for scores of {law.model}, but {options['model']} scored the dataset; they do not "
            "compare. Score it with the law's model, or leave model out if both are names of one model."
        )
    if options["seed"] < 0:
        raise ValueError(f"seed={options['seed']} must be a whole number, 0 or more.")
    check_order(options["order"])
    for name in ("group_num_tokens", "min_group_tokens"):
        if options[name] is not None and options["group_by"] is None:
            raise ValueError(f"{name} needs group_by, the column that says which group a row belongs to.")
    return law.space if law is not None else space or ("log" if two else "linear")
