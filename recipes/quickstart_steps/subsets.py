"""What the quickstart's subsets hold: kinds of text, and how many chunks they have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_ppl_select.data.load import load_rows
from quickstart_steps.runs import ARMS, DRAWN

if TYPE_CHECKING:
    from datasets import Dataset


def chunks_of(folder: Path, arm: str, seed: int) -> Dataset:
    """The chunks that an arm's run of this seed is trained on."""
    place = folder / f"{arm}-{seed}"
    return load_rows(str(place / "chunks.jsonl" if arm in DRAWN else place))


def composition_table(folder: Path, seeds: Sequence[int], arms: Sequence[str], num_tokens: int) -> str:
    """Share of each kind: of the documents' characters, then of the chunks that are left and of the subsets'."""
    documents = load_rows(str(folder / "texts" / "documents.jsonl"))
    kinds = {"documents": Counter()}
    for kind, text in zip(documents["kind"][:], documents["text"][:]):
        kinds["documents"][kind] += len(text)
    scored = load_rows(str(folder / "scored"))
    kinds["deduplicated"] = Counter(scored["kind"][:])
    for arm in (*reversed(ARMS), *arms[len(ARMS) :]):
        kinds[arm.replace("-", " ", 1)] = sum(
            (Counter(chunks_of(folder, arm, seed)["kind"][:]) for seed in seeds), Counter()
        )
    note = "Shares of characters in the first column, of chunks in the others."
    if "perplexity_ratio" in scored.column_names:
        kinds["highest ratio"] = Counter(_highest(scored, "perplexity_ratio", num_tokens))
        note += (
            f" Highest ratio: the {num_tokens:,} tokens of highest perplexity_ratio, which need no law and no probes; "
            "nothing was trained on them here, and they may be narrower than is good (docs/study.md compares)."
        )
    lines = [f"| | {' | '.join(kinds)} |", "|---|" + "---:|" * len(kinds)]
    for kind in sorted(kinds["documents"]):
        lines.append(f"| {kind} | {' | '.join(f'{one[kind] / one.total():.1%}' for one in kinds.values())} |")
    return "\n".join([*lines, "", note])


def _highest(scored: Dataset, column: str, num_tokens: int) -> list[str]:
    """Kinds of the chunks of highest score that fill the budget."""
    order = np.argsort(-np.asarray(scored[column][:], dtype=float), kind="stable")
    counts = np.asarray(scored["num_tokens"][:])[order]
    kinds = scored["kind"][:]
    return [kinds[row] for row in order[: np.searchsorted(np.cumsum(counts), num_tokens, side="right")]]


def in_common(folder: Path, seeds: Sequence[int], arms: Sequence[str]) -> str:
    """How many chunks of an arm's subsets are in all of them: few draws of much, or one subset trained on often."""
    if len(seeds) < 2:
        return ""
    found = []
    for arm in arms:
        subsets = [Counter(chunks_of(folder, arm, seed)["text"][:]) for seed in seeds]
        shared, least = subsets[0], min(subset.total() for subset in subsets)
        for subset in subsets[1:]:
            shared = shared & subset
        found.append(f"{arm.replace('-', ' ', 1)} {shared.total()} of {least}")
    return (
        f"Chunks that the {len(seeds)} subsets have in common: {', '.join(found)}. Where that is most of them, the "
        "intervals are of training on one choice several times, not of choosing anew."
    )
