"""Sharing a subset on the Hub. `one_commit` pushes it, `subset_folder` has the layout."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import get_token

from ..data.shards import check_folder_of_shards
from .existing import card_to_push, metadata_of, read_card, with_metadata
from .one_commit import README, PushPlan, push_in_one_commit
from .repository import check_branch, check_hub_access, check_license, full_repo_id
from .subset_folder import LAYOUT, check_folder, check_subset, describe_subset, save_subset

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from huggingface_hub.hf_api import RepoSibling

    from ..landscape.landscape import PerplexityLandscape

__all__ = [
    "check_folder",
    "check_hub_access",
    "check_license",
    "describe_subset",
    "push_subset_folder_to_hub",
    "push_subset_to_hub",
    "save_subset",
]
_DATA = "data/train-"
_SHARD_OF_SPLIT = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5,}-of-\d{5,}(?:-[0-9a-f]+)?\.parquet")


def push_subset_to_hub(
    subset: Dataset,
    repo_id: str,
    *,
    law: Any = None,
    landscape: PerplexityLandscape | None = None,
    selection: Any = None,
    license: str | None = None,
    source: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> str | PushPlan:
    """Push a subset to the Hub as a dataset with the split `train` and a card that says how it was made.

    Data and card arrive in one commit, or nothing does; the same push again makes no commit. A repository that exists
    gets new versions of these files. What others wrote there stays: other configurations load as before, and of a
    README of theirs only our own section is ever rewritten. The subset is written to the temporary folder first
    (TMPDIR); [`push_subset_folder_to_hub`] pushes one that is saved already.

    Args:
        subset: what [`select_subset`] returned.
        repo_id: `"user/name"`, `"organization/name"`, or `"name"` for the token's owner.
        law: a [`ScalingLaw`], saved beside the data and described in the card.
        landscape: of the corpus that was selected from; the same.
        selection: what [`plan_selection`] returned; the same. Without it the card only describes the rows.
        license: licence of the source, as the Hub writes it: `"cc-by-4.0"`, ..., `"other"`, `"unknown"`. Required.
        source: where the text comes from: a Hub dataset id, or words.
        private, revision, overwrite, token, dry_run: as in [`push_subset_folder_to_hub`].

    Returns:
        The URL of the dataset; with `dry_run` a [`PushPlan`].

    Raises:
        ValueError: no `license`, an empty subset, `private` for a public repository, or files of others in the way.
        ConnectionError, PermissionError: see [`check_hub_access`]; also when the Hub fails on the way.
    """
    license = check_license(license)
    check_subset(subset, selection)
    check_branch(revision)
    repo_id = full_repo_id(repo_id, token or get_token()) if dry_run else check_hub_access(repo_id, token)
    with tempfile.TemporaryDirectory() as folder:
        parts = {"law": law, "landscape": landscape, "selection": selection, "license": license, "source": source}
        saved = save_subset(subset, Path(folder, repo_id.rpartition("/")[2]), **parts)
        options = {"private": private, "revision": revision, "overwrite": overwrite, "token": token}
        return push_subset_folder_to_hub(saved, repo_id, dry_run=dry_run, **options)


def push_subset_folder_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> str | PushPlan:
    """Push a folder of [`save_subset`], or of a streamed selection, as [`push_subset_to_hub`] pushes a subset.

    Args:
        folder: with the licence of the source in its card.
        repo_id: `"user/name"`, `"organization/name"`, or `"name"` for the token's owner.
        private: make the repository private; refused if it exists and is public.
        revision: the branch, made from main if it is absent; main by default.
        overwrite: replace files of others that stand where ours go: a law.json of another kind, a split "train".
        token: of the Hub; by default that of `HF_TOKEN` or `hf auth login`.
        dry_run: push nothing and say what a push would do. It takes no right to write.

    Returns:
        The URL of the dataset; with `dry_run` a [`PushPlan`].

    Raises:
        FileNotFoundError, ValueError: no subset there, one that lacks a shard or the licence; or see
            [`push_subset_to_hub`].
        ConnectionError, PermissionError: see [`check_hub_access`]; also when the Hub fails on the way.
    """
    import pyarrow.parquet as pq
    from datasets import Features

    folder = Path(folder).expanduser()
    found, shards = sorted(folder.glob("data/*.parquet")), sorted(folder.glob(f"{_DATA}*.parquet"))
    own = read_card(folder / README)
    if not found or own is None:
        raise FileNotFoundError(f"{folder} holds no subset; name a folder that save_subset or --output_dir wrote.")
    if others := [path for path in found if path not in shards]:
        raise ValueError(f"{others[0]} is no shard of the split train, all that a subset has; move it elsewhere.")
    check_folder_of_shards(folder / "data", [shard.name for shard in shards])
    check_license(metadata_of(own).get("license"))
    files = {f"{_DATA}{index:05d}-of-{len(shards):05d}.parquet": shard for index, shard in enumerate(shards)}
    sizes = {name: pq.read_metadata(shard) for name, shard in files.items()}
    num_bytes = sum(
        meta.row_group(group).total_byte_size for meta in sizes.values() for group in range(meta.num_row_groups)
    )
    about = {
        "features": Features.from_arrow_schema(pq.read_schema(shards[0])),
        "num_rows": sum(meta.num_rows for meta in sizes.values()),
        "num_bytes": num_bytes,
        "download_size": sum(shard.stat().st_size for shard in shards),
    }
    files |= {name: folder / name for name in LAYOUT if name != README and (folder / name).is_file()}
    return push_in_one_commit(
        files,
        lambda full_id, theirs: card_to_push(own, full_id.rpartition("/")[2], theirs),
        repo_id,
        repo_type="dataset",
        message="Add the selected chunks, and how they were selected",
        private=private,
        revision=revision,
        overwrite=overwrite,
        token=token,
        dry_run=dry_run,
        replaces=lambda path: path.startswith(_DATA),
        finish=lambda readme, there: _with_split(readme, there, **about),
    )


def _with_split(
    readme: str,
    there: Mapping[str, RepoSibling],
    features: Features,
    num_rows: int,
    num_bytes: int,
    download_size: int,
) -> str:
    """The card with what `load_dataset` needs for our split, as `Dataset.push_to_hub` writes it beside other splits.

    Raises:
        ValueError: the default configuration has another split, of other columns.
    """
    from datasets import DatasetInfo
    from datasets.data_files import sanitize_patterns
    from datasets.info import DatasetInfosDict
    from datasets.splits import SplitDict, SplitInfo
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(**metadata_of(readme))
    configs, infos = MetadataConfigs.from_dataset_card_data(data), DatasetInfosDict.from_dataset_card_data(data)
    if configs:
        patterns = sanitize_patterns(configs.get("default", {}).get("data_files") or {})
    else:  # splits are then known by their names
        named = sorted({match[1] for path in there if (match := _SHARD_OF_SPLIT.fullmatch(path))})
        patterns = {split: [f"data/{split}-*"] for split in named}
    patterns = {str(split): paths for split, paths in patterns.items()} | {"train": [f"{_DATA}*"]}
    splits = [SplitInfo(name="train", num_bytes=num_bytes, num_examples=num_rows)]
    if (known := infos.get("default")) is not None:
        others = [split for name, split in (known.splits or {}).items() if name != "train" and name in patterns]
        if others and known.features != features:
            raise ValueError(
                f"the split {others[0].name!r} that is there has other columns than this subset; push to another "
                "repository, or remove that split."
            )
        if others:
            replaced = sum(file.size for path, file in there.items() if path.startswith(_DATA))
            download_size += max(0, (known.download_size or 0) - replaced)
        splits = [*others, *splits]
    info = DatasetInfo(features=features, splits=SplitDict(), download_size=download_size)
    for split in splits:
        info.splits.add(split)
    info.dataset_size = sum(split.num_bytes for split in splits)
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = [{"split": split, "path": paths[0] if len(paths) == 1 else paths} for split, paths in patterns.items()]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    return with_metadata(readme, data.to_dict())
