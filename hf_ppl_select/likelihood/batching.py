"""Texts of unequal length -> the batches that a model runs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

PADDING_SHARE = 32  # of a full batch's tokens: so much padding costs about what a forward pass costs beside its tokens


def make_batches(indices: Sequence[int], lengths: Sequence[int], most: int, packs: bool) -> list[list[int]]:
    """The indices of each batch, longest first: memory peaks at the start and not hours later.

    Padded batches take texts of like length, and end where padding would cost more than another forward pass. A packed
    row is filled up with the longest that fits.

    Args:
        indices: of the texts.
        lengths: their tokens.
        most: tokens in a batch, with padding; a longer text is one by itself.
        packs: whether texts go into one row.
    """
    order = sorted(range(len(indices)), key=lambda i: -lengths[i])
    todo = [indices[i] for i in order]
    falling = [-lengths[i] for i in order]
    batches = []
    while todo:
        batch, longest = [todo.pop(0)], -falling.pop(0)
        if packs:
            room = most - longest
            while (at := bisect_left(falling, -room)) < len(todo):
                batch.append(todo.pop(at))
                room += falling.pop(at)
        else:
            more = padding = 0
            while more < len(todo) and (more + 2) * longest <= most:
                padding += longest + falling[more]
                if padding > most // PADDING_SHARE:
                    break
                more += 1
            batch += todo[:more]
            del todo[:more], falling[:more]
        batches.append(batch)
    return batches
