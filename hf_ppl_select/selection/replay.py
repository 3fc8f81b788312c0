"""Replay: general-domain rows mixed in against forgetting; and the order in which a subset's rows come."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .baselines import choose_ranked
from .candidates import read_columns

if TYPE_CHECKING:
    from datasets import Dataset

Order = Literal["dataset", "easy_to_hard", "hard_to_easy", "shuffled"]
ORDERS = ("dataset", "easy_to_hard", "hard_to_easy", "shuffled")


def check_replay(replay: float, replay_dataset: Any) -> None:
    if isinstance(replay, bool) or not isinstance(replay, Real) or not 0.0 <= replay < 1.0:
        raise ValueError(f"replay={replay!r} must be a share of the budget, at least 0 and below 1, like 0.05.")
    if replay and replay_dataset is None:
        raise ValueError(f"replay={replay:g} needs the rows to mix in: pass replay_dataset=.")
    if replay_dataset is not None and not replay:
        raise ValueError("replay_dataset is given, but no share of it; pass replay=0.05, say.")


def choose_replay(
    replay_dataset: Any, num_tokens: float, seed: int, num_tokens_column: str = "num_tokens"
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the general domain drawn at random until `num_tokens` are full, to less than one row.

    Args:
        replay_dataset: a `datasets.Dataset` or dict of columns that says how many tokens each row has. Rows without
            tokens, or longer than `num_tokens`, are never drawn.
        num_tokens: of the replay.
        seed: of the draw; independent of the draw from the corpus by the same seed.

    Returns:
        Rows, rising, int64; and the column of tokens, float64.

    Raises:
        KeyError: no column with the tokens.
        ValueError: not so many tokens.
    """
    try:
        (tokens,) = read_columns(replay_dataset, num_tokens_column)
    except (KeyError, ValueError, TypeError) as error:
        raise type(error)(f"replay_dataset: {error.args[0]}") from error
    rows = np.flatnonzero((tokens > 0) & (tokens <= num_tokens))
    available = float(tokens[rows].sum())
    if num_tokens > available:
        raise ValueError(
            f"The replay takes {num_tokens:,.0f} tokens, and replay_dataset has {available:,.0f} in rows that fit; "
            "lower replay, or bring more general text."
        )
    drawn = choose_ranked("random", rows, tokens[rows], num_tokens, stream_seed(seed, 1))
    return np.sort(rows[drawn]).astype(np.int64), tokens


def stream_seed(seed: int, stream: int) -> int:
    """A seed for another purpose than `seed` itself, the same for the same two numbers everywhere."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0])


def order_chosen(perplexity: np.ndarray, order: Order, seed: int) -> np.ndarray:
    """Positions `[n]` of chosen rows (in the dataset's order) in the order in which they shall come.

    Easy is low perplexity; equal ones keep the dataset's order.
    """
    check_order(order)
    if order == "easy_to_hard":
        return np.argsort(perplexity, kind="stable")
    if order == "hard_to_easy":
        return np.argsort(-perplexity, kind="stable")
    if order == "shuffled":
        return np.random.default_rng(stream_seed(seed, 2)).permutation(len(perplexity))
    return np.arange(len(perplexity))


def check_order(order: str) -> None:
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is not known; the orders are {', '.join(ORDERS)}.")


def mix_evenly(num_rows: int, num_replay: int) -> np.ndarray:
    """Bool mask `[num_rows + num_replay]`: which rows of the subset are replay, spread evenly over its length."""
    length = num_rows + num_replay
    mask = np.zeros(length, dtype=bool)
    mask[((np.arange(num_replay) + 0.5) * length / max(num_replay, 1)).astype(np.int64)] = True
    return mask


def mix_replay(rows: np.ndarray, num_rows: int, order: Order, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Where replay rows come among `num_rows` others: evenly, or anywhere in the order "shuffled".

    Returns:
        The replay rows in the order they come, and which rows of the subset are replay, bool `[num_rows + n]`.
    """
    is_replay = mix_evenly(num_rows, len(rows))
    if order != "shuffled":
        return rows, is_replay
    rng = np.random.default_rng(stream_seed(seed, 3))
    return rng.permutation(rows), rng.permutation(is_replay)


def align_columns(replay_rows: Dataset, dataset: Dataset) -> Dataset:
    """The replay rows with exactly the columns and types of the dataset; other columns are left out.

    Raises:
        ValueError: a column is missing, or has a type that cannot be turned into the dataset's.
    """
    import pyarrow as pa

    missing = [name for name in dataset.column_names if name not in replay_rows.column_names]
    if missing:
        raise ValueError(
            f"replay_dataset has no column {', '.join(map(repr, missing))}, which the dataset has; add it (score it "
            "with score_ppl, too), or drop it from the dataset with remove_columns."
        )
    rows = replay_rows.select_columns(dataset.column_names)
    if rows.features == dataset.features:
        return rows
    try:
        return rows.cast(dataset.features)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, ValueError) as error:
        differ = [name for name in rows.column_names if rows.features[name] != dataset.features[name]]
        theirs, ours = rows.features[differ[0]], dataset.features[differ[0]]
        raise ValueError(
            f"replay_dataset's column {differ[0]!r} is {theirs}, the dataset's is {ours}; "
            f"cast one to the other's type ({str(error).splitlines()[0]})."
        ) from error
