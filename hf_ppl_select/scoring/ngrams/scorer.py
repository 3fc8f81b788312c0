"""How much likelier are a row's words in trusted text than in the corpus? A score without a model."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...data.saving import checksum, written_aside
from ...data.schema import Number, Text, check
from ...data.strict import parse_json
from ..batches import is_table, nullable, read_batch, with_columns
from .counts import NUM_BUCKETS, NgramCounts, whole_texts
from .words import hash_ngrams

NGRAM_COLUMNS = ("ngram_ratio", "num_words")
_KIND, _SCHEMA = "hf_ppl_select/ngram_scorer", "1"
_FIELDS_WITHOUT_CHECKSUM = 3  # of earlier versions: kind, schema_version, settings
_SETTINGS = {
    "text_column": Text(),
    "smoothing": Number(0, 1),
    "counts_sha256": Text(longest=64),
    "version": Number(0, 1e6, whole=True),
}


class NgramScorer:
    """Scores rows by the words and pairs of words that trusted text has more often than the corpus. For `dataset.map`.

    ```python
    scorer = NgramScorer.fit(trusted_texts, dataset)
    dataset = dataset.map(scorer, batched=True)
    ```

    It adds the columns `ngram_ratio` (float64, above 0; null where a row has no word) and `num_words` (int32), which
    landscapes and selections of rows that no model has scored take as their `num_tokens_column`.

        ngram_ratio = exp(mean over the row's words and pairs of neighbours g of log r(g))
        r(g) = s + (1 - s) p(g) / q(g)

    The mean is in nats per n-gram. p(g) is the share of bucket g among all n-grams of the trusted texts, q(g) that
    among those of trusted texts and corpus together, and `smoothing` s the weight of q in the model of trusted text
    (Jelinek-Mercer). So r is at least s, for n-grams that trusted text lacks, and at most s + (1 - s) / (trusted
    text's share of all n-grams), also where the corpus is tiny, or holds the trusted texts. 1: as likely in either.

    The features are DSIR's (Xie et al. 2023, arXiv:2302.03169), hashed words and pairs; a difference of two n-gram
    models' cross-entropies ranks text since Moore and Lewis (2010). Other than DSIR, this takes the mean over n-grams,
    not the sum, so that length does not rule; has 262,144 buckets, not 10,000; and smooths by the corpus, where DSIR
    adds 1e-8 to both shares. On two corpora of half dirt, with 16,000 trusted tokens, clean chunks beat all dirt but
    near-duplicates, which it cannot see, with an AUC of 1.000 and 0.998 [0.997, 0.999]; with DSIR's buckets and
    smoothing it is 0.984 [0.976, 0.992] and 0.992 [0.987, 0.996] (tests/bench/bench_scores_on_dirt.py).

    Of rows with `prompt` and `completion`, or `messages`, all text counts, of every turn. Rows come in every format
    that [`PerplexityScorer`] takes. The state is options and counts: `datasets` finds a finished map again.

    Args:
        trusted, corpus: counts of both, of the same number of buckets.
        text_column: which column holds the text.
        smoothing: s above, between 0 and 1. A small one punishes n-grams that trusted text lacks, most of all where
            there is little trusted text.
        keep_columns: return a batch's own columns too, as Ray Data's `map_batches` wants it.

    Raises:
        ValueError: there is no word in the trusted texts or in the corpus, or an option is out of range.
    """

    _version = 1  # raise when the same counts and settings give other numbers, so that cached results are not reused

    def __init__(
        self,
        trusted: NgramCounts,
        corpus: NgramCounts,
        *,
        text_column: str = "text",
        smoothing: float = 0.1,
        keep_columns: bool = False,
    ) -> None:
        if not 0 < smoothing < 1:
            raise ValueError(f"smoothing must be between 0 and 1, not {smoothing!r}.")
        for name, counts in (("trusted texts", trusted), ("corpus", corpus)):
            if not counts.num_ngrams:
                raise ValueError(f"there is no word in the {name}; fit NgramScorer to texts that have some.")
        self.trusted = trusted
        self.corpus = corpus
        self.text_column = text_column
        self.smoothing = float(smoothing)
        self.keep_columns = keep_columns
        both = trusted + corpus
        ratios = trusted.counts / trusted.num_ngrams * (both.num_ngrams / np.maximum(both.counts, 1))
        self._log_ratios = np.log(self.smoothing + (1 - self.smoothing) * ratios)

    @classmethod
    def fit(
        cls,
        trusted: Any,
        corpus: Any,
        *,
        text_column: str = "text",
        num_buckets: int = NUM_BUCKETS,
        **options: Any,
    ) -> NgramScorer:
        """Count trusted texts and the corpus.

        Args:
            trusted: a small clean sample of the domain, some 10,000 words: a dataset or stream, an iterable of
                strings, or [`NgramCounts`] of them. Nothing of what you evaluate on should be in it.
            corpus: the same of what is to be scored, or of a random sample of it.
            text_column: of datasets, and of the rows to score.
            num_buckets: that n-grams are hashed into, of 16 bytes each; more for corpora of billions of words.
            options: further ones of [`NgramScorer`].

        Raises:
            KeyError, TypeError, ValueError: as [`NgramCounts.of`] and [`NgramScorer`].
        """
        trusted, corpus = (
            given
            if isinstance(given, NgramCounts)
            else NgramCounts.of(given, text_column=text_column, num_buckets=num_buckets)
            for given in (trusted, corpus)
        )
        return cls(trusted, corpus, text_column=text_column, **options)

    def __repr__(self) -> str:
        return f"NgramScorer(trusted={self.trusted}, corpus={self.corpus}, smoothing={self.smoothing:g})"

    def settings(self) -> dict[str, Any]:
        """What decides the numbers, with a hash of the counts; JSON-able."""
        return {
            "text_column": self.text_column,
            "smoothing": self.smoothing,
            "counts_sha256": _sha256(self.trusted.counts, self.corpus.counts),
            "version": self._version,
        }

    def __getstate__(self) -> dict[str, Any]:
        counts = {name: getattr(self, name).counts.tobytes() for name in ("trusted", "corpus")}
        options = {name: getattr(self, name) for name in ("text_column", "smoothing", "keep_columns")}
        return {"options": options, "counts": counts, "version": self._version}

    def __setstate__(self, state: dict[str, Any]) -> None:
        counts = {name: _read(content) for name, content in state["counts"].items()}
        self.__init__(**counts, **state["options"])

    def __call__(self, rows: Any, rank: int | None = None) -> dict[str, Any] | Any:
        """Score one row or a batch; `rank`, of `map(..., with_rank=True)`, changes nothing."""
        batch, single = read_batch(rows, self.text_column)
        ratio, num_words = self.score(whole_texts(batch, self.text_column))
        columns = {"ngram_ratio": nullable(ratio), "num_words": num_words}
        if single:
            columns = {name: values[0] for name, values in columns.items()}
        return with_columns(rows, columns) if self.keep_columns or is_table(rows) else columns

    def score(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> ratios, float64 `[num_texts]`, NaN where there is no word, and words, int32 `[num_texts]`."""
        words, pairs, num_words = hash_ngrams(texts, self.trusted.num_buckets)
        num_pairs = np.maximum(num_words - 1, 0)
        sums = _sums(self._log_ratios[words], num_words) + _sums(self._log_ratios[pairs], num_pairs)
        with np.errstate(invalid="ignore"):  # 0 / 0
            return np.exp(sums / (num_words + num_pairs)), num_words.astype(np.int32)

    def save(self, path: str | os.PathLike) -> None:
        """Save as safetensors, all of it or nothing: the counts, and the options as metadata."""
        from safetensors.numpy import save

        tensors = {"trusted": self.trusted.counts, "corpus": self.corpus.counts}
        settings = self.settings()
        metadata = {"kind": _KIND, "schema_version": _SCHEMA, "checksum": checksum(settings)}
        metadata["settings"] = json.dumps(settings)
        with written_aside(path) as aside:
            aside.write_bytes(save(tensors, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike, **options: Any) -> NgramScorer:
        """Load what [`~NgramScorer.save`] wrote.

        Args:
            path: the file.
            options: of [`NgramScorer`], instead of those that were saved.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is not whole, of another kind, or of a version that this one does not read.
        """
        from safetensors import SafetensorError, safe_open

        path = os.fspath(path)
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("kind") != _KIND:
                    found = metadata.get("kind")
                    raise ValueError(
                        f"{path} holds {found!r:.80}, not {_KIND!r}; pass a file that NgramScorer.save wrote."
                    )
                counts = {name: file.get_tensor(name) for name in ("trusted", "corpus")}
        except SafetensorError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} is not a whole safetensors file ({reason}); fit and save it again.") from error
        settings = parse_json(metadata.get("settings", "null"), f"the settings of {path}")
        check(settings, _SETTINGS, f"the settings of {path}")
        found = metadata.get("schema_version"), settings["version"]
        if found != (_SCHEMA, cls._version):
            raise ValueError(
                f"{path} has schema version {found[0]!r:.80} and counts of version {found[1]}, "
                f"this hf_ppl_select reads {_SCHEMA} and {cls._version}; fit and save it again."
            )
        written = metadata.get("checksum")
        if written is None and len(metadata) == _FIELDS_WITHOUT_CHECKSUM:
            warnings.warn(f"{path} has no checksum, as earlier versions wrote it; save it again.", stacklevel=2)
        elif written != checksum(settings):
            raise ValueError(f"{path} holds other settings than were saved; fit and save it again.")
        if _sha256(*counts.values()) != settings["counts_sha256"]:
            raise ValueError(f"{path} holds other counts than were saved; fit and save it again.")
        saved = {"text_column": settings["text_column"], "smoothing": settings["smoothing"]}
        try:
            counts = {name: NgramCounts.from_array(found) for name, found in counts.items()}
            return cls(**counts, **(saved | options))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _sums(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sums of runs of `lengths` values, float64; each as if it were alone."""
    sums = np.zeros(len(lengths))
    some = lengths > 0
    if some.any():
        sums[some] = np.add.reduceat(values, (np.cumsum(lengths) - lengths)[some])
    return sums


def _read(content: bytes) -> NgramCounts:
    return NgramCounts.from_array(np.frombuffer(content, dtype=np.int64))


def _sha256(trusted: np.ndarray, corpus: np.ndarray) -> str:
    return hashlib.sha256(trusted.tobytes() + corpus.tobytes()).hexdigest()
