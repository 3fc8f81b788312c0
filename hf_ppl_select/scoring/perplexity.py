"""Rows of a dataset -> perplexity, nll_sum, num_tokens, num_bytes under a causal LM. See [`PerplexityScorer`]."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..likelihood.model_identity import default_model_name, folder_stamps, own_revision, resolve_revision
from ..likelihood.start_token import check_start, start_token
from .batches import is_table, read_batch, with_columns
from .rows import TokenizedRow, tokenize_rows
from .texts import TextLikelihoods, compiling_pays, context_length, evaluate_perplexity, score_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..likelihood.engine import LikelihoodEngine

logger = logging.getLogger(__name__)

__all__ = ["PerplexityScorer", "TextLikelihoods", "context_length", "evaluate_perplexity", "score_ppl", "score_rows"]

SCORE_COLUMNS = ("perplexity", "nll_sum", "num_tokens", "num_bytes")
_IMPORTED_IN = os.getpid()  # a process forked off this one, as `map(..., num_proc=...)` does, has another id


@dataclass
class Loaded:
    """A model in memory, and what it is: the settings that it was loaded by, and the files that they led to."""

    engine: LikelihoodEngine
    tokenizer: PreTrainedTokenizerBase
    model: str
    revision: str
    dtype: str
    stamps: tuple | None  # of a folder


class PerplexityScorer:
    """Scores rows under a frozen causal LM: pass it to `dataset.map`, batched or not.

    ```python
    dataset = dataset.map(PerplexityScorer("Qwen/Qwen3-0.6B-Base"), batched=True)
    ```

    It adds the columns `perplexity` (float64, `exp(nll_sum / num_tokens)`), `nll_sum` (float64, nats), `num_tokens`
    (int32, tokens scored) and `num_bytes` (int32, UTF-8 bytes of the text whose tokens are scored). Empty texts get
    `num_tokens` 0 and a null perplexity (NaN where a whole batch, or a row alone, is empty, so that the column keeps
    its type).

    A row is a text; or `prompt` and `completion`, both texts or both messages, of which the completion counts; or
    `messages`, of which the assistant's tokens count, those that the chat template has in `{% generation %}` blocks.
    The columns `tools` and `chat_template_kwargs` go to the chat template. So the tokens are those that TRL's
    `SFTTrainer` trains on, but for the EOS that it writes behind a text: write it there to have it scored. A token
    that crosses from the prompt into the completion counts. A special token's name in a text (`<|im_end|>`) is that
    token, as in training; see `split_special_tokens`.

    Rows come as a dict, in any format of `datasets` (`with_format`) or Ray Data (`batch_format`), and tables come back
    as tables with all their columns.

    Its state is its settings only, with the model's commit or a hash of its files: `datasets` finds a finished map in
    its cache, in any process, and repeats it if the model changes. Each map asks again what the model is, and scores
    with exactly that: new weights in the same folder are loaded, and weights that change in between are an error.

    Args:
        model: Hub id or local folder. Default: `HF_PPL_SELECT_MODEL` if set, else `HuggingFaceTB/SmolLM2-135M`.
        revision: Hub branch, tag or commit.
        text_column: which column holds the text.
        bos: `"auto"` prepends the token that the model saw between documents as context, so the first token is scored:
            BOS, or EOS where there is none, unless the model shows that it was another one (`<|im_start|>`, the BOS of
            some chat models, begins a turn); see [`~hf_ppl_select.likelihood.start_token.start_token`]. `"bos"` and
            `"eos"` prepend these; `"none"` leaves the first token unscored. It is never doubled and never counted.
        max_length: longest window in tokens, BOS included; default: the positions the model has, at most 4,096.
        stride: tokens of context that a longer text's window repeats from the one before; default `max_length // 2`.
        dtype: `"auto"` keeps the checkpoint's; else e.g. `"float32"`.
        max_batch_tokens: padded tokens in one forward pass; changes speed and memory only.
        compile: compile the model's layers, which takes up to a quarter of a minute and a C compiler, and then saves a
            third to a half of the time on a GPU and some 5 % on a CPU; "auto" does after four million tokens on a GPU
            and one million on a CPU, if it can. The rounding of bfloat16 changes.
        device: default: CUDA if there is one, else CPU. With `map(..., with_rank=True)`, one GPU per process.
        chat_template: for `messages`, instead of the tokenizer's own.
        split_special_tokens: in texts, take the name of a special token as the letters it is written in; not for
            messages, in which the chat template writes special tokens.
        keep_columns: return a batch's own columns too, as Ray Data's `map_batches` wants it; an empty text then has
            perplexity NaN, not null.
        trust_remote_code: run the checkpoint's own Python; off unless you say so.
    """

    _version = 3  # raise when the same settings give other numbers, so that cached results are not reused

    def __init__(
        self,
        model: str | None = None,
        *,
        revision: str | None = None,
        text_column: str = "text",
        bos: str = "auto",
        max_length: int | None = None,
        stride: int | None = None,
        dtype: str = "auto",
        max_batch_tokens: int | None = None,
        compile: bool | Literal["auto"] = False,
        device: str | None = None,
        chat_template: str | None = None,
        split_special_tokens: bool = False,
        keep_columns: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        check_start(bos)
        numbers = {"max_length": max_length, "stride": stride, "max_batch_tokens": max_batch_tokens}
        for name, value in numbers.items():
            if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
                raise TypeError(f"{name}={value!r} must be a whole number, not {type(value).__name__}.")
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length must be at least 2, not {max_length}.")
        if stride is not None and not 1 <= stride < (max_length or math.inf):
            raise ValueError(f"stride must be from 1 to max_length - 1, not {stride}.")
        if compile not in (True, False, "auto"):
            raise ValueError(f"compile must be True, False or 'auto', not {compile!r}.")
        self.model = model
        self.revision = revision
        self.text_column = text_column
        self.bos = bos
        self.max_length = max_length
        self.stride = stride
        self.dtype = dtype
        self.max_batch_tokens = max_batch_tokens
        self.compile = compile
        self.device = device
        self.chat_template = chat_template
        self.split_special_tokens = split_special_tokens
        self.keep_columns = keep_columns
        self.trust_remote_code = trust_remote_code
        self._forget()

    def __repr__(self) -> str:
        return f"PerplexityScorer({self.model_name!r})"

    @property
    def model_name(self) -> str:
        return self.model or default_model_name()

    def settings(self) -> dict[str, Any]:
        """What decides the numbers, with the model's resolved commit or the hash of its files; JSON-able.

        From now on the scorer scores with exactly this model.
        """
        name = self.model_name
        revision = resolve_revision(name, self.revision)
        self._named = name, revision
        return {
            "model": name,
            "revision": revision,
            "text_column": self.text_column,
            "bos": self.bos,
            "max_length": self.max_length,
            "stride": self.stride,
            "dtype": self.dtype,
            "chat_template": self.chat_template,
            "split_special_tokens": self.split_special_tokens,
            "version": self._version,
        }

    def __getstate__(self) -> dict[str, Any]:
        others = ("max_batch_tokens", "compile", "device", "keep_columns", "trust_remote_code")
        return self.settings() | {name: getattr(self, name) for name in others}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        del self.__dict__["version"]
        self.revision = own_revision(state["revision"])
        self._forget()
        self._named = state["model"], state["revision"]

    def _forget(self) -> None:
        self._loaded: Loaded | None = None
        self._named: tuple[str, str] | None = None  # model and revision of the latest fingerprint: they are to score
        self._num_tokens: int | None = 0  # scored with layers that are not compiled

    def __call__(
        self, rows: Any, rank: int | None = None, *, progress: Callable[[int], object] | None = None
    ) -> dict[str, Any] | Any:
        """Score one row or a batch; `progress` is called with the number of tokens done after each forward pass."""
        batch, single = read_batch(rows, self.text_column)
        columns = self.score(self.tokenize(batch, rank), rank, progress=progress)
        if single:
            columns = {name: values[0] for name, values in columns.items()}
        return with_columns(rows, columns) if self.keep_columns or is_table(rows) else columns

    def tokenize(self, batch: Mapping[str, Sequence[Any]], rank: int | None = None) -> list[TokenizedRow]:
        """The first half of a call, for a thread that works ahead (recipes/score.py). `batch` is a dict of lists."""
        return tokenize_rows(
            batch,
            self._load(rank).tokenizer,
            text_column=self.text_column,
            chat_template=self.chat_template,
            split_special_tokens=self.split_special_tokens,
        )

    def score(
        self,
        rows: Sequence[TokenizedRow],
        rank: int | None = None,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> dict[str, Any]:
        """The second half of a call: tokenized rows -> columns."""
        loaded = self._load(rank)
        engine = loaded.engine
        if self._num_tokens is not None and self.compile:
            self._num_tokens += sum(len(row.ids) for row in rows)
            if self.compile is True or (compiling_pays(self._num_tokens, engine.device.type) and engine.packs):
                logger.info("Compiling the layers of %s.", self.model_name)
                engine.compile()
                self._num_tokens = None
        max_length = context_length(engine.model, self.max_length)
        scored = score_rows(
            rows,
            engine,
            bos=start_token(engine, loaded.tokenizer, self.bos),
            max_length=max_length,
            stride=self.stride or max_length // 2,
            progress=progress,
        )
        return _columns(scored)

    def _load(self, rank: int | None) -> Loaded:
        if self._loaded is None or not self._is_current(self._loaded):
            self._num_tokens = 0
            self._loaded = self._load_now(rank)
        return self._loaded

    def _load_now(self, rank: int | None) -> Loaded:
        import torch

        from ..likelihood.engine import LikelihoodEngine, load_model

        if os.getpid() != _IMPORTED_IN:  # OpenMP threads that the parent has used would hang here
            torch.set_num_threads(1)
        if self.device != "cpu" and torch.cuda.is_available() and torch.cuda._is_in_bad_fork():
            raise RuntimeError(
                "CUDA cannot be used in a forked process. Call `multiprocess.set_start_method('spawn')` before "
                "`dataset.map(..., num_proc=..., with_rank=True)`, or leave num_proc out."
            )
        device = self.device
        if device is None and rank is not None and torch.cuda.is_available():
            device = f"cuda:{rank % torch.cuda.device_count()}"
        name, stamps, named = self.model_name, self._stamps(), self._named_revision
        asked = self.revision if named is None else own_revision(named)
        revision = self._check_same(name, asked, named)
        options = {"dtype": self.dtype, "device": device, "trust_remote_code": self.trust_remote_code}
        model, tokenizer = load_model(name, revision=own_revision(revision), **options)
        self._check_same(name, own_revision(revision), revision)
        engine = LikelihoodEngine(model, max_batch_tokens=self.max_batch_tokens)
        return Loaded(engine, tokenizer, name, revision, self.dtype, stamps)

    @staticmethod
    def _check_same(name: str, asked: str | None, expected: str | None) -> str:
        """What the model is now, which must be what is expected."""
        if (found := resolve_revision(name, asked)) != expected and expected is not None:
            raise RuntimeError(
                f"The model {name!r} has changed: {expected} was to score, but now it is {found}. Map again, which "
                "takes it as it is then."
            )
        return found

    @property
    def _named_revision(self) -> str | None:
        return self._named[1] if self._named is not None and self._named[0] == self.model_name else None

    def _stamps(self) -> tuple | None:
        return folder_stamps(self.model_name) if os.path.isdir(self.model_name) else None

    def _is_current(self, loaded: Loaded) -> bool:
        """Whether the loaded model is the one that was named; if none was, the one that its name leads to now."""
        if (loaded.model, loaded.dtype) != (self.model_name, self.dtype):
            return False
        stamps, named = self._stamps(), self._named_revision
        if named is None:
            return stamps in (None, loaded.stamps) or resolve_revision(loaded.model) == loaded.revision
        if stamps != loaded.stamps and named == loaded.revision:
            loaded.stamps = stamps  # said once
            if stamps is not None and resolve_revision(loaded.model) != loaded.revision:
                logger.warning("%s has changed; scoring goes on with what was loaded from it.", loaded.model)
        return named == loaded.revision


def _columns(scored: TextLikelihoods) -> dict[str, Any]:
    with np.errstate(over="ignore"):  # an infinite perplexity is allowed, and kept
        values = np.exp(scored.nll_sum / np.maximum(scored.num_tokens, 1))
    empty = scored.num_tokens == 0
    return {
        "perplexity": np.full(len(values), np.nan)
        if empty.all()
        else [None if nothing else value for value, nothing in zip(values.tolist(), empty)],
        "nll_sum": scored.nll_sum,
        "num_tokens": scored.num_tokens,
        "num_bytes": scored.num_bytes,
    }


score_ppl = PerplexityScorer()
