"""A subset as a folder that `load_dataset` reads, with its card. The Hub repository has the same layout:

README.md   data/train-*.parquet   selection.json   law.json   landscape.json   (streamed also selector.json)
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.saving import path_aside, write_atomically
from ..data.shards import MANIFEST, describe_shard, load_manifest, save_manifest
from ..landscape.landscape import PerplexityLandscape
from .existing import OUR_FILES, has_our_section, is_only_ours, is_ours, join_cards, read_card
from .repository import check_license
from .subset_card import subset_card

if TYPE_CHECKING:
    from datasets import Dataset

LAYOUT = ("README.md", "data", "landscape.json", "law.json", "selector.json", "selection.json")
_SHARD_BYTES = 500_000_000


def check_folder(folder: str | os.PathLike, overwrite: bool = False) -> Path:
    """Whether [`save_subset`] may write `folder`: it is new, empty, or holds a subset that may be overwritten.

    Raises:
        FileExistsError: it holds a subset and `overwrite` is False.
        ValueError: it holds something else, which is never overwritten.
    """
    folder = Path(folder).expanduser().resolve()
    present = check_layout(folder, also=())
    if present and not overwrite:
        raise FileExistsError(f"{folder} already holds a subset; name another folder, or pass overwrite=True.")
    return folder


def check_layout(folder: Path, also: tuple[str, ...] = (".unfinished",)) -> list[str]:
    """What is in a folder; ValueError if it is a file, or holds anything that is no part of a subset.

    A scored corpus has a part of the same names: that it is a subset, its report, card or manifest must say.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the subset.")
    present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    present = [name for name in present if not (name.startswith(".") and name.endswith(".partial"))]  # a killed run's
    if os.path.ismount(folder):
        present = [name for name in present if name != "lost+found"]  # the file system's own
    others = [name for name in present if name in OUR_FILES and not is_ours(folder / name)]
    if foreign := others + [name for name in present if name not in (*LAYOUT, *also)]:
        raise ValueError(f"{folder} holds {foreign[0]!r}, which is no part of a subset; name a new or empty folder.")
    if {*present} - {"README.md"} and not _is_subset(folder, present):
        raise ValueError(f"{folder} holds data that is no subset; name another folder.")
    return present


def _is_subset(folder: Path, present: list[str]) -> bool:
    if is_ours(folder / "selection.json"):
        return True
    if "data" in present and has_our_section(read_card(folder / "README.md")):  # that of a law has no data beside it
        return True
    manifests = [path for name in ("data", ".unfinished") if (path := folder / name / MANIFEST).exists()]
    if not manifests:  # a run that was killed before it had one
        return {*present} <= {".unfinished", "README.md"}
    return "selector" in load_manifest(manifests[0])[0]  # of a streamed selection, before it has report and card


def save_subset(
    subset: Dataset,
    folder: str | os.PathLike,
    *,
    law: Any = None,
    landscape: PerplexityLandscape | None = None,
    selection: Any = None,
    license: str | None = None,
    source: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a subset with its card, so that `load_dataset(folder, split="train")` gives it back, without the Hub.

    The folder appears complete or not at all.

    Args:
        subset, law, landscape, selection, license, source: as in [`push_subset_to_hub`]; here `license` is optional.
        overwrite: replace a subset that is there. A folder that holds anything else is never touched.

    Returns:
        The folder.

    Raises:
        FileExistsError, ValueError: the folder is not free, or the subset is empty.
    """
    folder = check_folder(folder, overwrite)
    check_subset(subset, selection)
    card = subset_card(
        selection.report() if selection else describe_subset(subset),
        law=law,
        landscape=landscape,
        license=license and check_license(license),
        source=source,
        name=folder.name,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = path_aside(folder / folder.name if os.path.ismount(folder) else folder)  # on the same disk
    aside.mkdir()
    try:
        (aside / "data").mkdir()
        num_bytes = subset.data.nbytes * len(subset) / max(1, subset.data.num_rows)
        shards: dict[str, Any] = {}
        num_shards = max(1, min(len(subset), math.ceil(num_bytes / _SHARD_BYTES)))
        for index in range(num_shards):
            shard = subset.shard(num_shards, index, contiguous=True)
            path = aside / "data" / f"train-{index:05d}-of-{num_shards:05d}.parquet"
            shard.to_parquet(path, write_page_checksum=True)
            shards[path.name] = describe_shard(path)
        save_manifest(aside / "data" / MANIFEST, {}, shards)
        save_parts(aside, law, landscape, selection)
        write_atomically(aside / "README.md", join_cards(read_card(folder / "README.md"), card, new_rows=True))
        _sync(aside)
        _replace_folder(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return folder


def describe_subset(subset: Dataset) -> dict[str, Any]:
    """What the rows alone tell, named as in [`Selection.report`]."""
    if not {"perplexity", "num_tokens"} <= set(subset.column_names):
        return {"num_chunks": len(subset)}
    own = PerplexityLandscape.from_dataset(subset)
    achieved = {name: getattr(own, name) for name in ("mu", "sigma", "log_mu", "log_sigma")}
    return {"num_chunks": len(subset), "num_tokens": own.num_tokens, "achieved": achieved}


def check_subset(subset: Any, selection: Any) -> None:
    """Whether there is something to share, and the selection is that of these rows."""
    from datasets import Dataset

    if not isinstance(subset, Dataset):
        raise TypeError(f"the subset must be a Dataset, as select_subset returns, not {type(subset).__name__}.")
    if not len(subset):
        raise ValueError("the subset has no rows, so there is nothing to share.")
    if selection is not None and selection.num_rows != len(subset):
        raise ValueError(f"the selection has {selection.num_rows} rows and the subset {len(subset)}: not the same.")


def save_parts(folder: Path, law: Any, landscape: Any, selection: Any) -> None:
    """Save what is known about a subset beside it."""
    for name, part in (("law", law), ("landscape", landscape), ("selection", selection)):
        if part is not None:
            part.save(folder / f"{name}.json")


def remove_parts(folder: Path) -> None:
    """Remove what [`save_parts`] and a card say, since rows are to come; of a card what others wrote stays."""
    for name in reversed(LAYOUT[2:]):
        (folder / name).unlink(missing_ok=True)
    card = read_card(folder / "README.md")
    if is_only_ours(card):
        (folder / "README.md").unlink()
    elif has_our_section(card):
        unfinished = "This subset is not finished: run the command that writes it again.\n"
        write_atomically(folder / "README.md", join_cards(card, unfinished, new_rows=True))


def _sync(folder: Path) -> None:
    """Flush every file and folder to the disk."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there goes only once the new one is in place."""
    if not folder.exists():
        return new.rename(folder)
    if os.path.ismount(folder):  # as in containers: its entries are replaced, the report first and last
        for name in reversed(LAYOUT[1:]):  # the card stays, which says that it is a subset
            if (folder / name).exists():
                aside = (folder / name).rename(path_aside(folder / name))
                shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
        for name in LAYOUT:
            if (new / name).exists():
                (new / name).replace(folder / name)
        return new.rmdir()
    old = new.with_suffix(".replaced")
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)
