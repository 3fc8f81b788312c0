"""A scorer's models in memory: the one that scores, and the reference of a perplexity ratio.

A reference is a second model, or the first one with an adapter switched on. Imports torch only to load them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..likelihood.model_identity import adapter_base, own_revision
from ..likelihood.start_token import SENTENCES
from .loaded_from import LoadedFrom, Wanted, load_wanted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..likelihood.engine import LikelihoodEngine

_IMPORTED_IN = os.getpid()  # a process forked off this one, as `map(..., num_proc=...)` does, has another id


@dataclass
class Reference:
    """A reference in memory. An adapter's has the weights of the model that scores; only in `on` it is another."""

    engine: LikelihoodEngine
    source: LoadedFrom
    is_adapter: bool

    @contextmanager
    def on(self) -> Iterator[LikelihoodEngine]:
        """Its engine, which runs the reference in here."""
        from ..likelihood.models import switch_adapters

        if not self.is_adapter:
            yield self.engine
            return
        switch_adapters(self.engine.model, on=True)
        try:
            yield self.engine
        finally:
            switch_adapters(self.engine.model, on=False)


@dataclass
class Loaded:
    """The model that scores, where it is from, and the reference that goes with it."""

    engine: LikelihoodEngine
    tokenizer: PreTrainedTokenizerBase
    source: LoadedFrom
    dtype: str
    reference: Reference | None

    def is_current(self, model: Wanted, reference: Wanted | None, dtype: str) -> bool:
        """Whether it is what is wanted now."""
        if self.dtype != dtype or not self.source.is_current(model):
            return False
        if self.reference is None or reference is None:
            return self.reference is None and reference is None
        return self.reference.source.is_current(reference)

    def compile(self) -> None:
        """Compile the layers of all."""
        self.engine.compile()
        if self.reference is not None:
            with self.reference.on() as engine:
                engine.compile()


def load_now(
    model: Wanted,
    reference: Wanted | None,
    *,
    dtype: str,
    device: str | None,
    rank: int | None,
    max_batch_tokens: int | None,
    trust_remote_code: bool,
) -> Loaded:
    """Load what is wanted; `rank` is that of the process, for one of several GPUs where no `device` is given.

    Raises:
        RuntimeError: it is not what was named; or CUDA, in a forked process.
        OSError, ValueError: it cannot be had, or the two do not go together.
    """
    import torch

    from ..likelihood.engine import LikelihoodEngine, load_model

    if os.getpid() != _IMPORTED_IN:  # OpenMP threads that the parent has used would hang here
        torch.set_num_threads(1)
    if device != "cpu" and torch.cuda.is_available() and torch.cuda._is_in_bad_fork():
        raise RuntimeError(
            "CUDA cannot be used in a forked process. Call `multiprocess.set_start_method('spawn')` before "
            "`dataset.map(..., num_proc=..., with_rank=True)`, or leave num_proc out."
        )
    if device is None and rank is not None and torch.cuda.is_available():
        device = f"cuda:{rank % torch.cuda.device_count()}"
    options = {"device": device, "trust_remote_code": trust_remote_code}
    (causal_lm, tokenizer), source = load_wanted(
        model, lambda found: load_model(model.model, revision=own_revision(found), dtype=dtype, **options)
    )
    compared = reference and load_reference(reference, causal_lm, tokenizer, source, max_batch_tokens, **options)
    engine = LikelihoodEngine(causal_lm, max_batch_tokens=max_batch_tokens)
    return Loaded(engine, tokenizer, source, dtype, compared)


def load_reference(
    wanted: Wanted,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: LoadedFrom,
    max_batch_tokens: int | None = None,
    *,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Reference:
    """Load the reference of `model`; an adapter goes into the model itself, switched off.

    A whole model takes the dtype of `model`, whatever it was saved in: both passes compute alike.

    Args:
        wanted: a model, or an adapter of `model`.
        model: what scores.
        tokenizer: its tokenizer.
        source: where it is from.
        max_batch_tokens: of the engine.
        device, trust_remote_code: as [`~hf_ppl_select.likelihood.models.load_model`] takes them.

    Raises:
        ValueError: an adapter of another model, one that cannot be switched off, or a tokenizer of other tokens.
        OSError, RuntimeError: it cannot be had, or is not what was named.
    """
    from ..likelihood.engine import LikelihoodEngine
    from ..likelihood.models import load_adapter, load_model, switch_adapters

    name = wanted.model

    def load(found: str) -> tuple[PreTrainedModel, bool]:
        own = own_revision(found)
        check_adapter(name, found, source.model, source.revision)
        check_tokenizers(name, own, source.model, tokenizer, trust_remote_code)
        if adapter_base(name, own) is None:
            options = {"dtype": model.dtype, "device": device, "trust_remote_code": trust_remote_code}
            return load_model(name, revision=own, **options)[0], False
        load_adapter(model, name, revision=own)
        switch_adapters(model, on=False)
        return model, True

    (loaded, is_adapter), loaded_from = load_wanted(wanted, load)
    return Reference(LikelihoodEngine(loaded, max_batch_tokens=max_batch_tokens), loaded_from, is_adapter)


def check_adapter(reference: str, reference_revision: str, model: str, model_revision: str) -> None:
    """ValueError where the reference is an adapter, but not of exactly this model; revisions are resolved ones."""
    own, on, base_revision = reference_revision.partition(" on ")
    if on and base_revision != model_revision.partition(" on ")[0]:
        base, _ = adapter_base(reference, own)
        raise ValueError(
            f"The reference {reference!r} is an adapter of {base!r} ({base_revision}), and the model that scores is "
            f"{model!r} ({model_revision}): score with the adapter's own model, or merge the adapter into it and pass "
            "the merged model."
        )


def check_tokenizers(
    reference: str,
    revision: str | None,
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    trust_remote_code: bool = False,
) -> None:
    """ValueError where the reference was trained on other tokens than the model's, which both passes are over.

    Which of them pads may differ: training chooses one where there is none.
    """
    from ..likelihood.models import load_tokenizer

    theirs = load_tokenizer(reference, revision=revision, trust_remote_code=trust_remote_code)
    padding = {theirs.pad_token_id, tokenizer.pad_token_id}
    compared: dict[str, Callable[[PreTrainedTokenizerBase], object]] = {
        "vocabulary": lambda each: each.get_vocab(),
        "BOS or EOS token": lambda each: (each.bos_token_id, each.eos_token_id),
        "special tokens": lambda each: _special_ids(each) - padding,
        "way of cutting a text into tokens": lambda each: [
            each.encode(text, add_special_tokens=False) for text in SENTENCES
        ],
    }
    for what, value in compared.items():
        if value(theirs) != value(tokenizer):
            raise ValueError(
                f"The tokenizers of the reference {reference!r} and of the model {model!r} differ in their {what}, so "
                "their perplexities do not compare: take a reference that was trained from this model, with its "
                "tokenizer."
            )


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that their names in a text stand for."""
    return {index for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
