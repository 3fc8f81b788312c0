"""Sequences that begin alike as one tree of tokens, written depth first into one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from .packed_attention import PackedLayout


@dataclass
class TokenTree:
    """A tree written depth first: token, depth and end (the first place after its descendants) of each node.

    `nodes`, `targets` and `owners` say which losses to sum: -log p(target) after that node, for that sequence. A tree
    without branches is a plain row.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)  # the nodes of the sequence added last
    branches: bool = False
    longest: int = 0

    def shared(self, fed: Sequence[int]) -> int:
        """How many tokens `fed` begins with that the last sequence has too."""
        count = 0
        for node, token in zip(self.path, fed):
            if self.tokens[node] != token:
                break
            count += 1
        return count

    def add(self, owner: int, ids: Sequence[int], start: int, shared: int) -> None:
        """Add the sequence `ids`, of which the first `shared` tokens are there; count from `start`."""
        if shared < len(self.path):
            self.branches = True
            for node in self.path[shared:]:
                self.ends[node] = len(self.tokens)
            del self.path[shared:]
        for depth in range(shared, len(ids) - 1):
            self.path.append(len(self.tokens))
            self.tokens.append(ids[depth])
            self.depths.append(depth)
            self.ends.append(-1)  # open
        self.longest = max(self.longest, len(self.path))
        self.nodes += self.path[start - 1 : len(ids) - 1]
        self.targets += ids[start:]
        self.owners += [owner] * (len(ids) - start)

    def close(self) -> None:
        """Nothing is added any more."""
        for node in self.path:
            self.ends[node] = len(self.tokens)


class TreeLayout(PackedLayout):
    """Several trees in one row: a token sees its ancestors in its own tree."""

    def __init__(self, rows: Sequence[TokenTree], device: torch.device) -> None:
        super().__init__([len(row.tokens) for row in rows], device)
        self.position_ids = torch.tensor([depth for row in rows for depth in row.depths], device=device)[None]
        self._ends = torch.tensor([at + end for row, at in zip(rows, self.starts) for end in row.ends], device=device)

    @cached_property
    def _tiles(self) -> list[tuple[slice, slice, torch.Tensor]]:
        places = torch.arange(len(self._ends), device=self._ends.device)
        return [
            (query, key, hidden | (places[query, None] >= self._ends[key])) for query, key, hidden in super()._tiles
        ]
