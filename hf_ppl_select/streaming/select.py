"""A selection from parquet files larger than memory: landscape, selector, filter; and what was kept of the promise."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.saving import save_json, write_atomically
from ..hub.existing import join_cards, read_card
from ..hub.subset_card import subset_card
from ..hub.subset_folder import check_layout, remove_parts
from ..landscape.landscape import PerplexityLandscape
from ..landscape.reach import check_budget
from ..landscape.scores import check_counts_tokens, check_one_column, counted_in
from ..selection.predictions import describe_law, predict_losses, say_gain
from ..selection.report import SELECTION_VERSION, plain_number, summarize
from ..selection.selector import PerplexitySelector
from ..version import __version__
from .parquet_files import ParquetFiles
from .sharded_output import ShardedOutput

if TYPE_CHECKING:
    from ..law.optimum import Optimum
    from ..law.scaling_law import ScalingLaw

_GROUPS = "shares the budget out over all rows; run once for each group's files"
_REPLAY = "mixes rows to one length; interleave the two streams when you train"
_NOT_STREAMABLE = {
    "strategy": ("maxent", "compares all rows with each other; the streamed one is maxent"),
    **dict.fromkeys(("group_by", "group_num_tokens", "min_group_tokens"), (None, _GROUPS)),
    "deduplicate": (None, "compares each row with all before it; remove duplicates first"),
    "replay": (0.0, _REPLAY),
    "replay_dataset": (None, _REPLAY),
    "order": ("dataset", "sorts all rows; shuffle when you train"),
    "reproduce": (None, "is not needed: the same --streaming command, or selector.json, keeps the same rows"),
    "dataset_config": (None, "names no files; name their folder, like hf://datasets/user/name/folder"),
}
_NAMES = ("mu", "sigma", "log_mu", "log_sigma")
_PROMISED = ("expected_num_tokens", "num_tokens_std", "expected_mu", "mu_std", "expected_sigma", "sigma_std")


@dataclass(frozen=True, eq=False)
class StreamedSelection:
    """What a stateless selector promised and what it kept.

    Attributes:
        selector: that decided about each row.
        corpus: landscape of the rows it decided about.
        kept: landscape of the rows it kept.
        budget: tokens asked for.
        dropped: rows it was not asked about, counted by reason.
        law: that gave the target, or None.
        optimum: of the law, for this corpus and budget.
        num_tokens_column: what the budget counts in.
    """

    selector: PerplexitySelector
    corpus: PerplexityLandscape
    kept: PerplexityLandscape
    budget: float
    dropped: dict[str, int]
    law: ScalingLaw | None = None
    optimum: Optimum | None = None
    num_tokens_column: str = "num_tokens"

    @property
    def deviations(self) -> dict[str, float]:
        """How far tokens, mu and sigma are from what was promised, in standard deviations."""
        mu, sigma = self.kept.moments(self.selector.space)
        kept = {"num_tokens": self.kept.num_tokens, "mu": mu, "sigma": sigma}
        promised = {name: getattr(self.selector, f"expected_{name}") for name in kept}
        return {
            name: (value - promised[name]) / max(getattr(self.selector, f"{name}_std"), 1e-9 * promised[name])
            for name, value in kept.items()
        }

    def report(self) -> dict[str, Any]:
        """JSON-able, named as in [`~hf_ppl_select.selection.report.Selection.report`]."""
        report = {
            "strategy": "maxent",
            "streaming": True,
            "seed": self.selector.seed,
            "space": self.selector.space,
            "column": self.selector.column,
            "key_column": self.selector.key_column,
            "target": [self.selector.centre, self.selector.scale],
            "num_tokens_column": self.num_tokens_column,
            "budget": self.budget,
            "num_tokens": self.kept.num_tokens,
            "num_chunks": self.kept.num_chunks,
            "promised": {name: getattr(self.selector, name) for name in _PROMISED},
            "achieved": {name: getattr(self.kept, name) for name in _NAMES},
            "corpus": self.corpus.summary,
            "dropped": self.dropped,
            "package_version": __version__,
        }
        if (law := self.law) is not None:
            report["law"] = describe_law(law)
            moments = (landscape.moments(law.space) for landscape in (self.kept, self.corpus))
            report |= predict_losses(law, *moments, self.kept.num_tokens)
        if (optimum := self.optimum) is not None:
            report["optimum"] = asdict(optimum)
            report["projected"] = (self.selector.centre, self.selector.scale) != (optimum.mu, optimum.sigma)
        return json.loads(json.dumps(report, allow_nan=False, default=plain_number))

    def __str__(self) -> str:
        promised, off, report = self.selector, self.deviations, self.report()
        unit, gain = counted_in(report), f"\n{say_gain(self.optimum)}" if self.optimum is not None else ""
        return (
            f"{summarize(report)}{gain}\nPromised {promised.expected_num_tokens:,.0f} {unit} with a standard "
            f"deviation of {promised.num_tokens_std:,.0f}. Kept, in standard deviations from the promise: {unit} "
            f"{off['num_tokens']:+.2f}, mean {off['mu']:+.2f}, standard deviation {off['sigma']:+.2f}."
        )

    def save(self, path: str | os.PathLike) -> None:
        """Save the report as JSON (kind "selection")."""
        save_json(path, self.report(), kind="selection", version=SELECTION_VERSION)


def check_streamable(options: Mapping[str, Any]) -> None:
    """Refuse what cannot be done one row at a time, with the reason.

    Raises:
        ValueError: such an option is set.
    """
    for name, (default, reason) in _NOT_STREAMABLE.items():
        if (value := options.get(name, default)) != default:
            raise ValueError(f"{name}={value!r} cannot be streamed: it {reason}.")
    if "[" in (split := str(options.get("dataset_split", ""))):
        raise ValueError(f"dataset_split={split!r} cannot be streamed: name whole splits or files.")


def select_stream(
    files: ParquetFiles,
    folder: str | os.PathLike,
    *,
    num_tokens: float,
    law: ScalingLaw | None = None,
    target: tuple[float, float] | None = None,
    space: str | None = None,
    seed: int = 0,
    key_column: str = "text",
    model: str | None = None,
    overwrite: bool = False,
    license: str | None = None,
    source: str | None = None,
) -> StreamedSelection:
    """Select from parquet files into a folder that `load_dataset` reads. Killed and started again, it goes on.

    Beside `data/` lie the card, selection.json, selector.json, the corpus's landscape.json, and law.json.

    Args:
        files: scored chunks, and the guards.
        folder: new, or of the same selection.
        num_tokens: expected tokens.
        law, target, space: what to aim at, as in `plan_selection`: a law, or a target.
        seed: of the draw.
        key_column: what the draw hashes; rows equal in it share one fate.
        model: that scored the files.
        overwrite: replace another selection that is there; of other data nothing is.
        license, source: for the card.

    Raises:
        ValueError, KeyError, FileExistsError: options that do not go together, a target out of reach, a column that
            is missing, a folder with other things in it, or nothing kept.
    """
    if law is not None:
        check_one_column(law.column, "a streamed selection")
        check_counts_tokens(files.num_tokens_column, "a law")
    if (law is None) == (target is None):
        raise ValueError("a streamed selection needs a law or a target=(mu, sigma), one of the two.")
    if law is not None and space not in (None, law.space):
        raise ValueError(f"space={space!r}, but the law lives in {law.space!r} space; leave space out.")
    folder = Path(folder).expanduser().resolve()
    check_layout(folder)
    files.check_columns(files.column, files.num_tokens_column, key_column)
    corpus, dropped = files.landscape(model)
    optimum = None
    if law is not None:
        check_budget(num_tokens, corpus.num_tokens)
        optimum = law.optimum(corpus, num_tokens)
        selector = PerplexitySelector.from_optimum(optimum, corpus, seed=seed, key_column=key_column)
    else:
        selector = PerplexitySelector.from_target(
            *target,
            landscape=corpus,
            num_tokens=num_tokens,
            space=space or "linear",
            seed=seed,
            key_column=key_column,
        )
    selector = replace(selector, min_score=files.min_score, max_score=files.max_score)
    settings = {
        "selector": {name: value for name, value in asdict(selector).items() if name[0] != "_"},
        "files": [list(entry) for entry in files.describe()],
    }
    output = ShardedOutput.open(folder, len(files.paths), settings, overwrite=overwrite)
    if not output.published:
        remove_parts(folder)  # of an earlier selection
    try:
        files.write_selected(selector, output)
    except OSError:
        if not output.published:  # another process with the same settings was quicker
            raise
    output.publish()

    from fsspec.implementations.local import LocalFileSystem

    written = ParquetFiles(LocalFileSystem(), tuple(map(str, output.paths)), files.column, files.num_tokens_column)
    kept, _ = written.landscape(model)
    selection = StreamedSelection(selector, corpus, kept, num_tokens, dropped, law, optimum, files.num_tokens_column)
    for name, part in (("selector", selector), ("selection", selection), ("landscape", corpus), ("law", law)):
        path = folder / f"{name}.json"
        path.unlink(missing_ok=True) if part is None else part.save(path)
    about = {"law": law, "landscape": corpus, "license": license, "source": source, "name": folder.name}
    readme = folder / "README.md"
    write_atomically(readme, join_cards(read_card(readme), subset_card(selection.report(), **about), new_rows=True))
    off = selection.deviations["num_tokens"]
    if abs(off) > 6:
        warnings.warn(
            f"{kept.num_tokens:,} {files.counted_in} were kept, {off:+.1f} standard deviations from the "
            f"promise: are the values of {key_column!r} distinct? Rows equal in it share one fate.",
            stacklevel=2,
        )
    return selection
