"""Log-likelihoods of many continuations of one beginning, each shared token run once.

Sequences that begin alike are merged into a tree of tokens. Written depth first into one row, with the depth as
position and a mask that lets a token see its ancestors only, the tree costs one pass over its tokens: a question with
four long choices is read once and not four times, and so are examples that many questions share. Where one sequence
only continues another one (four letters after one prompt: they differ in the last token, which is never fed) the tree
is a plain row and needs no mask.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from .batching import PADDING_SHARE
from .engine import LikelihoodEngine, NotANumberError
from .models import has_experts, mixes_beside_attention, to_device
from .packed_attention import packed
from .self_checks import REFUSALS, takes_positions
from .token_tree import TokenTree, TreeLayout

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

ROW_TOKENS = 1024  # a tree may grow so long; attention over a row costs its length squared
TOLERANCE = {torch.float32: 2e-3}  # nats per token, between the tree and plain scoring; other dtypes: 0.1


class SharedPrefixScorer:
    """Summed -log p of the ends of token sequences, as `LikelihoodEngine.nll` gives them, at the cost of a tree.

    Whether a model can read a tree is found out once, by a comparison with plain scoring: models with a recurrent
    state, without a say over positions, or with another kind of attention cannot, and are scored row by row.

    Args:
        engine: of the model.
        branching: `False` scores row by row without asking; `None` decides by the comparison.
    """

    def __init__(self, engine: LikelihoodEngine, *, branching: bool | None = None) -> None:
        self.engine = engine
        self.branching = branching
        self.window = engine.window  # a mask of our own replaces the model's, so such rows must fit into it

    def nll(self, sequences: Sequence[Sequence[int]], starts: Sequence[int], *, bar: tqdm | None = None) -> np.ndarray:
        """Sum -log p(token | tokens before it) over `sequence[start:]`, for each sequence.

        A sequence's last token is predicted and never fed, so a sequence may be one token longer than the model reads.

        Args:
            sequences: token ids, ragged; they may repeat.
            starts: for each sequence where counting starts, from 1 to its length less one.
            bar: a progress bar; its total becomes the number of tokens to run.

        Returns:
            float64 array `[len(sequences)]`, nats, in input order.

        Raises:
            ValueError: nothing to count in a sequence, a sequence or token id beyond the model's, or it gives NaN.
        """
        if len(sequences) != len(starts):
            raise ValueError(f"{len(sequences)} sequences but {len(starts)} starts.")
        for i, (ids, start) in enumerate(zip(sequences, starts)):
            if not 1 <= start < len(ids):
                raise ValueError(f"Sequence {i}: start {start} must be from 1 to {len(ids) - 1}, its length less one.")
        if not len(sequences):
            return np.zeros(0)
        self.engine.check_lengths([len(ids) - 1 for ids in sequences])  # the last token is not read
        rows = self._rows(sequences, starts, branching=self.branching is not False)
        if self.branching is None and any(row.branches for row in rows):
            self.branching = self._branching_agrees()
            if not self.branching:
                rows = self._rows(sequences, starts, branching=False)
        if bar is not None:
            bar.total = sum(len(row.tokens) for row in rows)
            bar.refresh()
        return self._run(rows, len(sequences), bar)

    def _rows(self, sequences: Sequence[Sequence[int]], starts: Sequence[int], branching: bool) -> list[TokenTree]:
        """Sorted by their tokens, so that what begins alike is neighbours; a tree ends where little is shared."""
        rows: list[TokenTree] = []
        for i in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i][:-1])):
            ids = list(sequences[i])
            fed = len(ids) - 1
            shared = rows[-1].shared(ids[:-1]) if rows else 0
            joins = bool(rows) and self._joins(rows[-1], fed, shared, branching)
            if not joins:
                rows.append(TokenTree())
                shared = 0
            rows[-1].add(i, ids, starts[i], shared)
        for row in rows:
            row.close()
        return rows

    def _joins(self, row: TokenTree, fed: int, shared: int, branching: bool) -> bool:
        """Whether a sequence of `fed` tokens, `shared` of them as in the row's last one, goes into that row."""
        if max(row.longest, fed) > self.engine.shared_length:
            return False
        branches = shared < len(row.path)
        if not branches and not row.branches:
            return True  # it only continues the last one
        fits = max(row.longest, fed) <= self.window
        size = len(row.tokens) + fed - shared
        return branching and fits and 2 * shared >= fed and size <= max(ROW_TOKENS, 2 * fed)

    def _run(self, rows: list[TokenTree], num_sequences: int, bar: tqdm | None = None) -> np.ndarray:
        owners, losses = [], []
        with self.engine.measuring():
            for batch in self._batches(rows):
                losses += self._batch_losses(batch)  # on the device: a GPU need not wait for them
                owners += [owner for row in batch for owner in row.owners]
                if bar is not None:
                    bar.update(sum(len(row.tokens) for row in batch))
            found = torch.cat(losses).double().cpu().numpy()
        totals = np.bincount(owners, weights=found, minlength=num_sequences)
        if np.isnan(totals).any():
            raise NotANumberError(
                f"{type(self.engine.causal_lm).__name__} gives NaN for sequence {np.isnan(totals).argmax()}: its "
                f"weights hold NaN, or its activations overflow {self.engine.causal_lm.dtype}; load it with "
                "dtype='float32'."
            )
        return totals

    def _batches(self, rows: list[TokenTree]) -> Iterator[list[TokenTree]]:
        """Rows of like length, longest first; trees and plain rows apart, since only trees take a mask.

        A batch ends where it is full, or where its padding would cost more than another forward pass does. Packed
        rows have no padding, and take trees and plain rows alike.
        """
        kinds: dict[str, list[TokenTree]] = {}
        for row in rows:
            if row.longest > self.engine.shared_length:
                yield [row]
                continue
            kinds.setdefault("packed" if self._packs(row) else "tree" if row.branches else "plain", []).append(row)
        for kind, members in kinds.items():
            batch: list[TokenTree] = []
            size = padding = 0
            for row in sorted(members, key=lambda row: -len(row.tokens)):
                most, length = self.engine.max_batch_tokens, len(row.tokens)
                longest = len(batch[0].tokens) if batch and kind != "packed" else length
                padding += longest - length
                size += longest
                if batch and (size > most or padding > most // PADDING_SHARE):
                    yield batch
                    batch, size, padding = [], length, 0
                batch.append(row)
            yield batch

    def _packs(self, row: TokenTree) -> bool:
        return self.engine.packs_trees and row.longest <= self.window

    def _batch_losses(self, rows: list[TokenTree]) -> list[torch.Tensor]:
        """-log p of each target of the rows, in their order, on the device; halves what memory does not hold."""
        num_tokens = sum(len(row.tokens) for row in rows)
        targets = np.concatenate([np.asarray(row.targets, dtype=np.int64) for row in rows])
        self.engine.check_ids(np.concatenate([np.asarray(row.tokens) for row in rows]), targets)
        if len(rows) == 1 or num_tokens <= self.engine.max_batch_tokens:
            try:
                outputs, places = self._packed_outputs(rows) if self._packs(rows[0]) else self._padded_outputs(rows)
                return [self.engine.losses(outputs.flatten(0, 1)[self._to_device(places)], self._to_device(targets))]
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
            self.engine.lower_batch_tokens(num_tokens)  # out of the handler, as in the engine
        half = len(rows) // 2
        return self._batch_losses(rows[:half]) + self._batch_losses(rows[half:])

    def _packed_outputs(self, rows: list[TokenTree]) -> tuple[torch.Tensor, np.ndarray]:
        """Outputs `[1, tokens, ...]` of the rows one behind the other, and the place of each target's node."""
        layout = TreeLayout(rows, self.engine.device)
        tokens = np.concatenate([np.asarray(row.tokens, dtype=np.int64) for row in rows])[None]
        with packed(self.engine.causal_lm, layout):
            outputs = self.engine.outputs(self._to_device(tokens), position_ids=layout.position_ids)
        return outputs, np.concatenate([np.asarray(row.nodes) + at for row, at in zip(rows, layout.starts)])

    def _padded_outputs(self, rows: list[TokenTree]) -> tuple[torch.Tensor, np.ndarray]:
        """Outputs `[rows, width, ...]`, and the place of each target's node in them, flattened."""
        width = max(len(row.tokens) for row in rows)
        tokens = np.zeros((len(rows), width), dtype=np.int64)  # padding: any valid id, no real token looks at it
        depths = np.zeros((len(rows), width), dtype=np.int64)
        ends = np.tile(np.arange(1, width + 1), (len(rows), 1))  # padding sees itself, so that no row is empty
        for i, row in enumerate(rows):
            tokens[i, : len(row.tokens)] = row.tokens
            depths[i, : len(row.tokens)] = row.depths
            ends[i, : len(row.tokens)] = row.ends
        inputs = {}
        if any(row.branches for row in rows):
            inputs["attention_mask"] = self._mask(self._to_device(ends))
            inputs["position_ids"] = self._to_device(depths)
        outputs = self.engine.outputs(self._to_device(tokens), **inputs)
        return outputs, np.concatenate([np.asarray(row.nodes) + i * width for i, row in enumerate(rows)])

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        return to_device(torch.from_numpy(values), self.engine.device)

    def _mask(self, ends: torch.Tensor) -> torch.Tensor:
        """Node i sees node j where j is i or an ancestor of it: j <= i < ends[j]. Shape `[batch, 1, i, j]`."""
        places = torch.arange(ends.shape[1], device=ends.device)
        seen = (places[None, :] <= places[:, None]) & (places[None, :, None] < ends[:, None, :])
        if self._attention() == "sdpa":
            return seen[:, None]
        dtype = self.engine.causal_lm.dtype  # eager attention adds the mask to the scores
        return torch.zeros(seen.shape, dtype=dtype, device=ends.device).masked_fill(~seen, torch.finfo(dtype).min)[
            :, None
        ]

    def _attention(self) -> str:
        return getattr(self.engine.causal_lm.config.get_text_config(), "_attn_implementation", "")

    def _branching_agrees(self) -> bool:
        """Whether a small tree gives what its sequences give one by one, and no branch sees what another says."""
        name = type(self.engine.causal_lm).__name__
        if getattr(self.engine.causal_lm, "_is_stateful", False) or mixes_beside_attention(self.engine.causal_lm):
            logger.info("%s carries a state from token to token: scoring without shared prefixes.", name)
            return False
        if not takes_positions(self.engine):
            logger.info("%s counts positions for itself: scoring without shared prefixes.", name)
            return False
        if self._attention() not in ("sdpa", "eager"):
            logger.info("%s uses %s attention: scoring without shared prefixes.", name, self._attention() or "its own")
            return False
        longest = int(min(64, self.window, self.engine.positions))
        shared = max(1, 3 * longest // 8)
        half = self.engine.vocabulary // 2
        draw = np.random.default_rng(0).integers(half, size=(3, longest))
        draw[1:, :shared] = draw[0, :shared]
        draw[2, shared:] += half  # it branches off where the others begin, whatever they say
        others = np.where(np.arange(longest) < shared, draw[:2], half - 1 - draw[:2])
        lengths = [longest - i * (longest - shared) // 3 for i in range(3)]
        sequences, changed = (
            [ids[:length].tolist() for ids, length in zip(rows, lengths)] for rows in (draw, [*others, draw[2]])
        )
        starts = [shared] * len(sequences)
        plain = self.engine.nll(sequences, [range(shared, len(ids)) for ids in sequences])
        try:
            tree, again = (self._run(self._one_tree(rows, starts), len(rows)) for rows in (sequences, changed))
        except REFUSALS as error:
            logger.info("%s cannot read a tree of tokens (%s): scoring without shared prefixes.", name, error)
            return False
        if tree[2] != again[2] and not has_experts(self.engine.causal_lm):  # exactly, as for packed rows
            logger.info("%s lets the branches of a tree see each other: scoring without shared prefixes.", name)
            return False
        error = (np.abs(tree - plain) / [len(ids) - shared for ids in sequences]).max()
        reduced = self.engine.causal_lm.dtype if self.engine.autocast_dtype is None else self.engine.autocast_dtype
        agrees = bool(error <= TOLERANCE.get(reduced, 0.1))
        if not agrees:
            logger.info("%s reads a tree of tokens otherwise (%.2g nats): no shared prefixes.", name, error)
        return agrees

    @staticmethod
    def _one_tree(sequences: list[list[int]], starts: list[int]) -> list[TokenTree]:
        row = TokenTree()
        for i, ids in enumerate(sequences):
            row.add(i, ids, starts[i], row.shared(ids[:-1]))
        row.close()
        return [row]
