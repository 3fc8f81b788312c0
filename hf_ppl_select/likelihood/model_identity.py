"""Which weights exactly: a Hub model's commit, or a hash of a local folder's files. Imports no torch.

Both cover all that a model's numbers come from: weights, tokenizer, chat templates, and what an adapter is based on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from functools import lru_cache
from pathlib import Path

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M"
_ENDINGS = (".safetensors", ".bin", ".pt", ".json", ".jinja", ".model", ".spm", ".tiktoken", ".bpe", ".txt", ".py")
_TEMPLATES = "additional_chat_templates"  # the folder that transformers reads further chat templates from
_LISTS = ("checkpoint.json",)  # of the other files, written after them
_SETTLED = 2.0  # seconds: a file that changed later may change once more within the same tick of its time stamp

Stamp = tuple[str, int, int, int, int]  # name, size, mtime and ctime in ns, inode


def default_model_name() -> str:
    """The model of `score_ppl`: what `HF_PPL_SELECT_MODEL` names (id or folder), else SmolLM2-135M."""
    return os.environ.get("HF_PPL_SELECT_MODEL") or DEFAULT_MODEL


def resolve_revision(model: str, revision: str | None = None) -> str:
    """The commit of a Hub model (asked online, else from the cache), or `sha256:...` of a local folder's model files.

    Of an adapter also that of the model it is based on: `"<commit or sha256> on <commit or sha256>"`.

    Raises:
        OSError: the model, or what it is based on, is neither a local folder nor known to the Hub or its cache.
    """
    found = _resolve_one(model, revision)
    base = adapter_base(model, found)
    return found if base is None else f"{found} on {resolve_revision(*base)}"


def own_revision(resolved: str) -> str | None:
    """What `from_pretrained(revision=...)` takes of a resolved revision: the commit, or None for a folder."""
    own = resolved.partition(" on ")[0]
    return None if own.startswith("sha256:") else own


def adapter_base(model: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """Name and revision of the model that an adapter is based on; None for what is no adapter.

    A folder with a whole model and an adapter beside it is based on itself, as in transformers.
    """
    if os.path.isdir(model):
        path = os.path.join(model, "adapter_config.json")
        if not os.path.isfile(path) or os.path.isfile(os.path.join(model, "config.json")):
            return None
    else:
        revision = None if revision is None or revision.startswith("sha256:") else revision
        if (path := _hub_file(model, "adapter_config.json", revision)) is None:
            return None
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (ValueError, RecursionError) as error:
        raise OSError(f"The adapter_config.json of {model!r} is not JSON ({error!s:.200}).") from error
    config = config if isinstance(config, dict) else {}
    name, base_revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise OSError(f"The adapter {model!r} names no base_model_name_or_path in its adapter_config.json.")
    if not isinstance(base_revision, str | None) or re.search("[\ud800-\udfff\0]", f"{name}{base_revision}"):
        raise OSError(f"The adapter_config.json of {model!r} has a model or revision that is no name.")
    return name, base_revision


def folder_stamps(folder: str | os.PathLike) -> tuple[Stamp, ...]:
    """Sizes, times and inodes of the files in a folder that make the model."""
    stamps = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == _TEMPLATES and entry.is_dir():
                stamps += [(f"{_TEMPLATES}/{name}", *rest) for name, *rest in folder_stamps(entry.path)]
            elif os.path.splitext(entry.name)[1] in _ENDINGS and entry.name not in _LISTS and entry.is_file():
                info = entry.stat()
                stamps.append((entry.name, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino))
    return tuple(sorted(stamps))


def _resolve_one(model: str, revision: str | None) -> str:
    if not os.path.isdir(model):
        return _hub_commit(model, revision or "main")
    stamps = folder_stamps(model)
    if not stamps:
        raise OSError(f"The folder {model!r} holds no model: no file ends in {', '.join(_ENDINGS)}.")
    folder, now = os.path.abspath(model), time.time_ns()
    settled = all(abs(now - max(stamp[2:4])) > _SETTLED * 1e9 for stamp in stamps)
    return _hash_files(folder, stamps) if settled else _hash_files.__wrapped__(folder, stamps)


@lru_cache(maxsize=32)
def _hash_files(folder: str, stamps: tuple[Stamp, ...]) -> str:
    """Content decides; the stamps only tell whether to read the files again in this process."""
    digest = hashlib.sha256()
    for name, *_ in stamps:
        digest.update(name.encode() + b"\0")
        with open(os.path.join(folder, name), "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _hub_commit(model: str, revision: str) -> str:
    for filename in ("config.json", "adapter_config.json"):
        if (path := _hub_file(model, filename, revision)) is not None:
            return Path(path).parent.name  # the Hub's cache keeps files under snapshots/<commit>/
    raise OSError(
        f"Cannot find the model {model!r} (revision {revision!r}): it is no local folder, not in the Hub's cache, and "
        "the Hub could not be asked or has no config.json there. Check the name and the network, or point the model "
        "option or HF_PPL_SELECT_MODEL to a local folder."
    )


def _hub_file(model: str, filename: str, revision: str | None) -> str | None:
    """The path in the Hub's cache, downloaded if need be; None if it cannot be had."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        known = try_to_load_from_cache(model, filename, revision=revision)
        is_commit = revision is not None and len(revision) == 40
        if is_commit and known is not None:
            return known if isinstance(known, str) else None  # or it is known that the commit has no such file
        return hf_hub_download(model, filename, revision=revision)
    except LocalEntryNotFoundError:  # the Hub could not be asked
        return known if isinstance(known, str) else None
    except (EntryNotFoundError, HFValidationError):
        return None
    except HfHubHTTPError:
        return known if isinstance(known, str) else None
