"""Rows of a dataset -> perplexity, nll_sum, num_tokens, num_bytes under a causal LM. See [`PerplexityScorer`]."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

from ..likelihood.model_identity import default_model_name, own_revision, resolve_revision
from ..likelihood.start_token import check_start, start_token
from .batches import check_other_scores, is_table, read_batch, with_columns
from .ifd import check_prompts
from .loaded import Loaded, check_adapter, load_now
from .loaded_from import Wanted
from .rows import TokenizedRow, tokenize_rows
from .score_columns import EVERY_COLUMN, REFERENCE_COLUMNS, SCORE_COLUMNS, score_columns
from .texts import TextLikelihoods, compiling_pays, context_length, evaluate_perplexity, score_rows

logger = logging.getLogger(__name__)

__all__ = ["PerplexityScorer", "TextLikelihoods", "context_length", "evaluate_perplexity", "score_ppl", "score_rows"]


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

    With a `reference`, most often the model itself after a moment's training on a small clean sample of a domain, it
    also adds `reference_nll_sum` (float64, nats) and `perplexity_ratio` (float64, perplexity under the model over
    perplexity under the reference, `exp((nll_sum - reference_nll_sum) / num_tokens)`): above 1 where the sample taught
    something about the text (excess loss; CoLoR-Filter, arXiv 2406.10670; RHO-1, arXiv 2404.07965). Both passes are
    over the same tokens: start token, windows and stride are the model's own.

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
        dtype: `"auto"` keeps the checkpoint's, but float32 on a CPU that is slow in it; else e.g. `"float32"`.
        max_batch_tokens: padded tokens in one forward pass; changes speed and memory only.
        compile: compile the model's layers, which takes up to a quarter of a minute and a C compiler, and then saves a
            third to a half of the time on a GPU and some 5 % on a CPU; "auto" does after four million tokens on a GPU
            and one million on a CPU, if it can. The rounding of bfloat16 changes.
        device: default: CUDA if there is one, else CPU. With `map(..., with_rank=True)`, one GPU per process.
        chat_template: for `messages`, instead of the tokenizer's own.
        split_special_tokens: in texts, take the name of a special token as the letters it is written in; not for
            messages, in which the chat template writes special tokens.
        reference: what to compare with: Hub id or local folder of a model that has the model's tokenizer, or of an
            adapter (PEFT) of this very model, which is then held once, the adapter off and on. It takes the model's
            dtype.
        reference_revision: Hub branch, tag or commit of it.
        ifd: of answers, also add `ifd` (float64): perplexity behind the prompt over perplexity without it, see
            [`hf_ppl_select.scoring.ifd`]; one more pass.
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
        reference: str | None = None,
        reference_revision: str | None = None,
        ifd: bool = False,
        keep_columns: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        check_start(bos)
        if ifd and bos == "none":
            raise ValueError(
                "ifd scores an answer's first token without its prompt: it needs a bos that is not 'none'."
            )
        if reference_revision is not None and reference is None:
            raise ValueError(f"reference_revision={reference_revision!r} is of no reference: pass reference, too.")
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
        self.reference = reference
        self.reference_revision = reference_revision
        self.ifd = ifd
        self.keep_columns = keep_columns
        self.trust_remote_code = trust_remote_code
        self._forget()

    def __repr__(self) -> str:
        reference = "" if self.reference is None else f", reference={self.reference!r}"
        return f"PerplexityScorer({self.model_name!r}{reference})"

    @property
    def model_name(self) -> str:
        return self.model or default_model_name()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it adds."""
        return SCORE_COLUMNS + REFERENCE_COLUMNS * (self.reference is not None) + ("ifd",) * self.ifd

    @property
    def num_passes(self) -> int:
        """How often it runs a model over a row."""
        return 1 + (self.reference is not None) + self.ifd

    def settings(self) -> dict[str, Any]:
        """What decides the numbers, with the model's resolved commit or the hash of its files; JSON-able.

        From now on the scorer scores with exactly this model, and with exactly this reference.

        Raises:
            OSError: one of them cannot be had.
            ValueError: the reference is an adapter of another model.
        """
        from ..likelihood.cpu import auto_is_float32

        model = Wanted(self.model_name, self.revision, resolve_revision(self.model_name, self.revision))
        reference, more = None, {"ifd": True} if self.ifd else {}
        if self.dtype == "auto" and auto_is_float32(self.device):
            more["auto"] = "float32"
        if self.reference is not None:
            found = resolve_revision(self.reference, self.reference_revision)
            check_adapter(self.reference, found, model.model, model.named)
            reference = Wanted(self.reference, self.reference_revision, found)
            more |= {"reference": self.reference, "reference_revision": found}
        self._named = model, reference
        return {
            "model": model.model,
            "revision": model.named,
            "text_column": self.text_column,
            "bos": self.bos,
            "max_length": self.max_length,
            "stride": self.stride,
            "dtype": self.dtype,
            "chat_template": self.chat_template,
            "split_special_tokens": self.split_special_tokens,
            "version": self._version,
            **more,  # nothing where there is none: what was scored before there was any keeps its fingerprint
        }

    def __getstate__(self) -> dict[str, Any]:
        others = ("max_batch_tokens", "compile", "device", "keep_columns", "trust_remote_code")
        return self.settings() | {name: getattr(self, name) for name in others}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"reference": None, "reference_revision": None, "ifd": False} | state)
        del self.__dict__["version"]
        self.__dict__.pop("auto", None)  # which is for the fingerprint: another machine's may be otherwise
        self.revision = own_revision(state["revision"])
        self._forget()
        reference = None
        if self.reference is not None:
            self.reference_revision = own_revision(state["reference_revision"])
            reference = Wanted(self.reference, self.reference_revision, state["reference_revision"])
        self._named = Wanted(state["model"], self.revision, state["revision"]), reference

    def _forget(self) -> None:
        self._loaded: Loaded | None = None
        self._named: tuple[Wanted | None, Wanted | None] = None, None  # of the latest fingerprint: they are to score
        self._num_tokens: int | None = 0  # scored with layers that are not compiled

    def __call__(
        self, rows: Any, rank: int | None = None, *, progress: Callable[[int], object] | None = None
    ) -> dict[str, Any] | Any:
        """Score one row or a batch; `progress` is called with the number of tokens done after each forward pass."""
        batch, single = read_batch(rows, self.text_column)
        check_other_scores(rows, EVERY_COLUMN, self.columns)
        columns = self.score(self.tokenize(batch, rank), rank, progress=progress)
        if single:
            columns = {name: values[0] for name, values in columns.items()}
        return with_columns(rows, columns) if self.keep_columns or is_table(rows) else columns

    def tokenize(self, batch: Mapping[str, Sequence[Any]], rank: int | None = None) -> list[TokenizedRow]:
        """The first half of a call, for a thread that works ahead (recipes/score.py). `batch` is a dict of lists."""
        if self.ifd:
            check_prompts(batch, self.text_column)
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
                loaded.compile()
                self._num_tokens = None
        max_length = context_length(engine.model, self.max_length)
        return score_columns(
            rows,
            engine,
            loaded.reference,
            bos=start_token(engine, loaded.tokenizer, self.bos),
            max_length=max_length,
            stride=self.stride or max_length // 2,
            ifd=self.ifd,
            progress=progress,
        )

    def _load(self, rank: int | None) -> Loaded:
        model, reference = self._wanted()
        if self._loaded is None or not self._loaded.is_current(model, reference, self.dtype):
            self._num_tokens = 0
            self._loaded = load_now(
                model,
                reference,
                dtype=self.dtype,
                device=self.device,
                rank=rank,
                max_batch_tokens=self.max_batch_tokens,
                trust_remote_code=self.trust_remote_code,
            )
        return self._loaded

    def _wanted(self) -> tuple[Wanted, Wanted | None]:
        """The model and the reference to score with: those that were named, while their names stay."""
        model, reference = self._named
        if model is None or model.model != self.model_name:
            model = Wanted(self.model_name, self.revision)
        if self.reference is None:
            reference = None
        elif reference is None or reference.model != self.reference:
            reference = Wanted(self.reference, self.reference_revision)
        return model, reference


score_ppl = PerplexityScorer()
