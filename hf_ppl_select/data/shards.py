"""Whether the shards of a dataset are all there, each as it was written: by their names, and by our manifest.json.

Shards are called `train-00003-of-00070.parquet`. What we write has a manifest beside them that lists each with its
rows, bytes and SHA-256; shards that would have no rows are left out there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .saving import load_json, save_json
from .schema import Names, Number, Text, check, checked

MANIFEST = "manifest.json"
_NAME = re.compile(r"(.*)-(\d{5,})-of-(\d{5,})((?:-[0-9a-f]+)?\.parquet)")
_SHARD = {
    "num_rows": Number(0, 1e15, whole=True),
    "num_bytes": Number(0, 1e18, whole=True),
    "sha256": Text(longest=64),
}
_BLOCK = 1 << 20


def describe_shard(path: str | os.PathLike) -> dict[str, Any]:
    """What the manifest says of a parquet file."""
    import pyarrow.parquet as pq

    num_rows, num_bytes = pq.read_metadata(path).num_rows, os.stat(path).st_size
    return {"num_rows": num_rows, "num_bytes": num_bytes, "sha256": file_sha256(path)}


def is_as_described(path: str | os.PathLike, shard: Any) -> bool:
    """Whether a file is what [`describe_shard`] saw."""
    right_size = isinstance(shard, dict) and shard.get("num_bytes") == os.stat(path).st_size
    return right_size and shard.get("sha256") == file_sha256(path)


def file_sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of all bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def save_note(path: str | os.PathLike, shard: Mapping[str, Any]) -> None:
    """Save what [`describe_shard`] says of one shard, until there is a manifest."""
    save_json(path, dict(shard), kind="shard", version=1)


def load_note(path: str | os.PathLike) -> dict[str, Any]:
    """The reverse; ValueError where the note was cut off or changed."""
    return load_json(path, kind="shard", version=1, read=checked(_SHARD))


def save_manifest(path: str | os.PathLike, settings: Mapping[str, Any], shards: Mapping[str, Any] | None) -> None:
    """Save the settings that decided the shards, and what each is; None where they are still to be written."""
    save_json(path, {**settings, **({} if shards is None else {"shards": dict(shards)})}, kind="shards", version=1)


def load_manifest(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, dict[str, Any]] | None]:
    """The settings and the shards of a manifest; None for shards that it does not list.

    Raises:
        ValueError: it is none of ours, or was changed.
    """

    def read(payload: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]] | None]:
        shards = payload.pop("shards", None)
        if shards is not None:
            check(shards, Names(_SHARD), f"the shards of {where}")
        return payload, shards

    return load_json(path, kind="shards", version=1, read=read)


def check_whole(
    files: Mapping[str, int], manifest: str | os.PathLike | None, where: str, count: Callable[[str], int]
) -> dict[str, dict[str, Any]]:
    """Refuse a part of a dataset that passes for the whole.

    Args:
        files: name and bytes of each parquet file of one folder.
        manifest: the file beside them, if there is one. One of another program is let alone.
        where: the folder, for errors.
        count: rows of a file, asked where an old manifest only has the sum.

    Returns:
        What the manifest says of each of these files; nothing if it does not.

    Raises:
        ValueError: a shard is missing, has another size, or stands there without being listed.
    """
    settings, listed = {}, None
    if manifest is not None and re.search(rb'"hf_ppl_select/|"(shards|checksum)"', Path(manifest).read_bytes()):
        settings, listed = load_manifest(manifest)
    if listed is None:
        total = settings.get("num_chunks")
        if isinstance(total, int):  # of an earlier version, which left shards without rows out
            if (found := sum(map(count, files))) != total:
                raise ValueError(f"{where} holds {found:,} of {total:,} rows; shards are missing. {_ADVICE}")
        else:
            _check_names(files, where)
        return {}
    ours = {_prefix(name) for name in listed}
    here = {name for name in files if _prefix(name) in ours}
    lacking = sorted(listed.keys() - here)
    if lacking:
        raise ValueError(f"{where} lacks {_some(lacking)} of {len(listed):,} shards. {_ADVICE}")
    if others := sorted(here - listed.keys()):
        raise ValueError(f"{where} holds {_some(others)}, which its {MANIFEST} does not list; move it elsewhere.")
    for name, shard in listed.items():
        if shard["num_bytes"] != files[name]:
            raise ValueError(
                f"{where} has {name} of {files[name]:,} bytes, written were {shard['num_bytes']:,}. {_ADVICE}"
            )
    return listed


_ADVICE = "Get the missing files, or make the dataset again; to use a part of it, name its files."


def check_folder_of_shards(folder: Path, names: Iterable[str]) -> None:
    """[`check_whole`] of a local folder, and each file's hash where there is one.

    Raises:
        ValueError: naming the file that is missing, or is not as it was written.
    """
    import pyarrow.parquet as pq

    manifest = folder / MANIFEST
    listed = check_whole(
        {name: (folder / name).stat().st_size for name in names},
        manifest if manifest.is_file() else None,
        str(folder),
        lambda name: pq.read_metadata(folder / name).num_rows,
    )
    for name, shard in listed.items():
        if not is_as_described(folder / name, shard):
            raise ValueError(f"{folder / name} is not what was written: its SHA-256 differs. {_ADVICE}")


def _prefix(name: str) -> str:
    match = _NAME.fullmatch(name)
    return match[1] if match else name


def _check_names(names: Iterable[str], where: str) -> None:
    """ValueError where `-of-00070` says that there are more."""
    groups = defaultdict(set)
    for name in names:
        if match := _NAME.fullmatch(name):
            groups[match[1], int(match[3])].add(int(match[2]))
    for (prefix, size), found in groups.items():
        if missing := sorted(set(range(size)) - found) if size < 1_000_000 else []:
            lacking = [f"{prefix}-{index:05d}-of-{size:05d}.parquet" for index in missing]
            raise ValueError(f"{where} lacks {_some(lacking)} of {size:,} shards. {_ADVICE}")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"
