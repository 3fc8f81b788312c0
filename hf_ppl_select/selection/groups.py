"""Budgets of groups (sources, languages, ...), and choosing each group alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..landscape.scores import as_moment


@dataclass(frozen=True, eq=False)
class Groups:
    """Which group each row belongs to.

    Attributes:
        names: of the groups, sorted; None stands for rows without one, and comes first.
        codes: index into `names` of each row, int32 `[n]`.
    """

    names: tuple[Any, ...]
    codes: np.ndarray

    @classmethod
    def read(cls, dataset: Any, column: str) -> Groups:
        """The groups of a dataset (or dict of columns): the distinct values of a column of texts, integers or bools.

        Raises:
            KeyError: no such column.
            TypeError: values of another type.
        """
        import pyarrow as pa

        present = getattr(dataset, "column_names", None)
        present = list(dataset) if present is None else present
        if column not in present:
            raise KeyError(f"The dataset has no column {column!r} to group by, it has {', '.join(present)}.")
        if hasattr(dataset, "select_columns"):
            values = dataset.select_columns([column]).with_format("arrow")[:][column]
        else:
            try:
                values = pa.chunked_array([pa.array(dataset[column])])
            except (pa.ArrowInvalid, UnicodeEncodeError) as error:
                raise TypeError(f"Column {column!r} mixes types or holds invalid text: {error}") from error
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        is_one = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
        if not any(test(kind) for test in is_one) and not pa.types.is_null(kind):
            raise TypeError(f"Column {column!r} holds {kind}; group by texts, integers or bools.")
        encoded = values.cast(pa.string() if pa.types.is_null(kind) else kind).combine_chunks().dictionary_encode()
        found = encoded.dictionary.to_pylist()
        order = sorted(range(len(found)), key=found.__getitem__)
        rank = np.empty(len(found) + 1, dtype=np.int32)
        rank[order] = np.arange(len(found))
        rank[-1] = -1
        codes = rank[encoded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)]
        if (codes < 0).any():
            return cls((None, *(found[i] for i in order)), codes + 1)
        return cls(tuple(found[i] for i in order), codes)

    def take(self, rows: np.ndarray) -> Groups:
        """The groups of some rows; those without any of them stay in `names`."""
        return Groups(self.names, self.codes[rows])

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of `values` `[n]` in each group."""
        return np.bincount(self.codes, values, len(self.names))


@dataclass(frozen=True, eq=False)
class GroupBudgets:
    """Tokens to take of each group. What `flexible` groups leave of theirs (less than a chunk) passes to the next."""

    budgets: np.ndarray
    flexible: np.ndarray


def split_budget(
    groups: Groups,
    tokens: np.ndarray,
    num_tokens: float,
    *,
    group_num_tokens: Mapping[Any, float] | None = None,
    min_group_tokens: float | Mapping[Any, float] | None = None,
) -> GroupBudgets:
    """Split a budget over groups, by default in proportion to the tokens they have.

    Args:
        groups: of the chunks that can be chosen.
        tokens: of those chunks `[n]`.
        num_tokens: to split; at most the sum of `tokens`.
        group_num_tokens: budgets of the groups it names. The others share the rest in proportion; if it names all,
            they must add up to `num_tokens`.
        min_group_tokens: floors: one for every group, or of the groups it names. A group below its floor is raised
            to it (and to whole chunks), the others share the rest in proportion. A group that has less gives all.

    Raises:
        KeyError: a group that does not exist.
        ValueError: both, numbers below 0, budgets a group cannot fill, or more tokens than `num_tokens`.
    """
    available = groups.sum(tokens)
    if group_num_tokens is not None and min_group_tokens is not None:
        raise ValueError("pass group_num_tokens or min_group_tokens, not both.")
    fixed = _by_name(groups, group_num_tokens, "group_num_tokens")
    floors = _by_name(groups, min_group_tokens, "min_group_tokens")
    for k in np.flatnonzero(fixed > available):  # NaN where not named
        raise ValueError(
            f"group_num_tokens asks for {fixed[k]:,.0f} tokens of group {groups.names[k]!r}, which has "
            f"{available[k]:,.0f} to choose from; lower it."
        )
    if len(short := [groups.names[k] for k in np.flatnonzero(floors > available)]):
        some = ", ".join(map(repr, short[:5])) + (", ..." if len(short) > 5 else "")
        warnings.warn(
            f"{len(short)} groups have fewer tokens than min_group_tokens and give all they have: {some}.",
            stacklevel=5,
        )
    named = ~np.isnan(fixed)
    rest = num_tokens - fixed[named].sum()
    if rest < 0 or (named.all() and rest > 1e-9 * num_tokens):
        advice = "lower them" if rest < 0 else "leave out the groups that take the rest"
        raise ValueError(
            f"the budgets of group_num_tokens add up to {fixed[named].sum():,.0f} tokens, num_tokens is "
            f"{num_tokens:,.0f}; {advice}, or make the two equal."
        )
    if rest > available[~named].sum():
        raise ValueError(
            f"after group_num_tokens {rest:,.0f} tokens are left for the other groups, which have only "
            f"{available[~named].sum():,.0f} to choose from; lower num_tokens."
        )
    least = np.minimum(np.nan_to_num(_in_whole_chunks(groups, tokens, floors)), available)
    if least.sum() > num_tokens:
        raise ValueError(
            f"the floors of min_group_tokens take {least.sum():,.0f} tokens in whole chunks, num_tokens is "
            f"{num_tokens:,.0f}; lower them."
        )
    budgets = np.where(named, fixed, 0.0)
    raised = named.copy()
    while not raised.all():
        share = max(num_tokens - budgets[raised].sum(), 0.0) / max(available[~raised].sum(), 1e-300)
        budgets[~raised] = np.minimum(share * available[~raised], available[~raised])
        below = ~raised & (budgets < least)
        if not below.any():
            break
        budgets[below] = least[below]
        raised |= below
    return GroupBudgets(budgets, ~named)


def _in_whole_chunks(groups: Groups, tokens: np.ndarray, floors: np.ndarray) -> np.ndarray:
    """Budgets that, filled to less than one chunk, are at least the floors."""
    longest, shortest = np.zeros(len(floors)), np.full(len(floors), np.inf)
    np.maximum.at(longest, groups.codes, tokens)
    np.minimum.at(shortest, groups.codes, tokens)
    equal = longest == shortest
    return np.where(equal, np.ceil(floors / np.where(equal, longest, 1.0)) * longest, floors + longest - (floors > 0))


def _by_name(groups: Groups, numbers: Any, option: str) -> np.ndarray:
    """Numbers of all groups, NaN where there is none."""
    out = np.full(len(groups.names), np.nan)
    if numbers is None:
        return out
    if not isinstance(numbers, Mapping):
        numbers = dict.fromkeys(groups.names, numbers)
    for name, number in numbers.items():
        if name not in groups.names:
            some = ", ".join(map(repr, groups.names[:10])) + (", ..." if len(groups.names) > 10 else "")
            raise KeyError(f"{option} names group {name!r}; the groups are {some}.")
        if isinstance(number, bool) or not isinstance(number, Real) or not 0 <= number < float("inf"):
            raise ValueError(f"{option} of group {name!r} is {number!r}; it must be a number of tokens, 0 or more.")
        out[groups.names.index(name)] = number
    return out


def choose_in_groups(
    groups: Groups,
    tokens: np.ndarray,
    split: GroupBudgets,
    choose: Callable[[int, np.ndarray, float], np.ndarray],
) -> np.ndarray:
    """Choose in each group alone, in order of rising budget, so that the last can best take what others leave.

    Args:
        groups, tokens: of the chunks that can be chosen.
        split: the budgets.
        choose: `(group, positions, budget)` -> positions chosen; no chunk there is longer than the budget, and
            together they have more tokens than it. Where all fit it is not asked.

    Returns:
        Positions, rising.
    """
    members = np.split(np.argsort(groups.codes, kind="stable"), np.cumsum(np.bincount(groups.codes))[:-1])
    members += [np.empty(0, dtype=np.int64)] * (len(groups.names) - len(members))
    chosen, left = [], 0.0
    for k in np.lexsort((split.budgets, split.flexible)):  # those that pass nothing on first
        flexible = bool(split.flexible[k])
        budget = float(split.budgets[k]) + (left if flexible else 0.0)
        budget += 1e-9 * budget  # shares of a whole are not exact
        positions = members[k][tokens[members[k]] <= budget]
        if len(positions) and tokens[positions].sum() > budget:
            positions = choose(int(k), positions, budget)
        chosen.append(positions)
        if flexible:
            left = max(budget - float(tokens[positions].sum()), 0.0)
    return np.sort(np.concatenate(chosen))


def describe_groups(
    groups: Groups, scores: np.ndarray, tokens: np.ndarray, chosen: np.ndarray, budgets: np.ndarray
) -> list[dict[str, Any]]:
    """`groups` of a [`~hf_ppl_select.selection.report.Selection`]."""
    of_chosen = groups.take(chosen)
    ones = np.ones(len(groups.codes))
    columns = {
        "corpus_chunks": groups.sum(ones),
        "corpus_tokens": groups.sum(tokens),
        "budget": budgets,
        "num_chunks": of_chosen.sum(ones[chosen]),
        "num_tokens": of_chosen.sum(tokens[chosen]),
    }
    scores, number = scores[chosen].reshape(len(chosen), -1), np.maximum(columns["num_chunks"], 1)
    mean = np.stack([of_chosen.sum(x) / number for x in scores.T], axis=-1)
    square = np.stack([of_chosen.sum(x) / number for x in ((scores - mean[of_chosen.codes]) ** 2).T], axis=-1)
    mean, deviation = (moment[:, 0] if scores.shape[1] == 1 else moment for moment in (mean, square))
    described = []
    for k, name in enumerate(groups.names):
        row = {"group": name} | {column: round(float(values[k])) for column, values in columns.items()}
        some = row["num_chunks"] > 0
        row |= {
            "mu": as_moment(mean[k]) if some else None,
            "sigma": as_moment(np.sqrt(deviation[k])) if some else None,
        }
        described.append(row)
    return described
