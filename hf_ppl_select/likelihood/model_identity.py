"""Which weights exactly: a Hub model's commit, or a hash of a local folder's files. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M"
_WEIGHTS_AND_TOKENIZER = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py")


def default_model_name() -> str:
    """The model of `score_ppl`: what `HF_PPL_SELECT_MODEL` names (id or folder), else SmolLM2-135M."""
    return os.environ.get("HF_PPL_SELECT_MODEL") or DEFAULT_MODEL


def resolve_revision(model: str, revision: str | None = None) -> str:
    """The commit of a Hub model (asked online, else from the cache), or `sha256:...` of a local folder's model files.

    Raises:
        OSError: the model is neither a local folder nor known to the Hub or its cache.
    """
    if os.path.isdir(model):
        files = sorted(p for p in Path(model).iterdir() if p.suffix in _WEIGHTS_AND_TOKENIZER and p.is_file())
        if not files:
            raise OSError(f"The folder {model!r} holds no model: no file ends in {', '.join(_WEIGHTS_AND_TOKENIZER)}.")
        stamps = tuple((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)
        return _hash_files(os.path.abspath(model), stamps)
    return _hub_commit(model, revision or "main")


@lru_cache(maxsize=32)
def _hash_files(folder: str, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Content decides; sizes and times only tell whether to read the files again in this process."""
    digest = hashlib.sha256()
    for name, _, _ in stamps:
        digest.update(name.encode() + b"\0")
        with open(os.path.join(folder, name), "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


@lru_cache(maxsize=32)
def _hub_commit(model: str, revision: str) -> str:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(model, "config.json", revision=revision)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        is_hub_name = not isinstance(error, HFValidationError)
        path = try_to_load_from_cache(model, "config.json", revision=revision) if is_hub_name else None
        if not isinstance(path, str):
            raise OSError(
                f"Cannot find the model {model!r} (revision {revision!r}): it is no local folder, not in the Hub's "
                "cache, and the Hub could not be asked. Check the name and the network, or point the model option or "
                "HF_PPL_SELECT_MODEL to a local folder."
            ) from error
    return Path(path).parent.name  # the Hub's cache keeps files under snapshots/<commit>/
