"""Instruction-following difficulty: how much an answer's perplexity is left once its prompt is there.

    ifd = PPL(answer | prompt) / PPL(answer) = exp((nll with the prompt - nll without it) / num_tokens)

Li et al. 2024, "From Quantity to Quality" (arXiv 2308.12032), divide the mean nll of one by that of the other; their
"Superfiltering" (arXiv 2402.00530) divides perplexities, and so does this: a difference in nats does not depend on how
hard the answer is by itself. Below 1 the prompt helps; at 1 and above it does not.

Both are over the same tokens, those that count in the row. Without the prompt they stand directly behind the start
token, one after another, and all that does not count is taken out: of messages the system's and the user's turns and
what the chat template writes around turns, so that a later answer follows the earlier ones. A token that crosses from
the prompt into the answer counts whole, and stands first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .rows import TokenizedRow, columns_to_score


def check_prompts(rows: Mapping[str, Any], text_column: str) -> None:
    """ValueError for rows that are texts, which have no prompt; `rows` is anything that has the columns as keys."""
    if columns_to_score(rows, text_column)[0] == text_column:
        raise ValueError(
            f"ifd compares answers with and without their prompt, and column {text_column!r} holds texts without: "
            "bring 'prompt' and 'completion', or 'messages', and no column of that name; or leave ifd out."
        )


def without_prompt(row: TokenizedRow, start: int) -> TokenizedRow:
    """The tokens of a row that are scored behind a `start` token, and nothing but it before them."""
    scored = [position for position in row.counted if position or row.follows(start)]
    ids = [start, *(row.ids[position] for position in scored)]
    return TokenizedRow(ids, range(1, len(ids)), row.num_bytes)
