"""Sharing a subset: its card, a folder that `load_dataset` reads, and the Hub. Folder and repository have one layout:

README.md   data/train-*.parquet   selection.json   law.json   landscape.json
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # HTTPError is that of the client's HTTP library
from huggingface_hub.utils import validate_repo_id

from .saving import write_atomically
from .subset_card import subset_card

if TYPE_CHECKING:
    from datasets import Dataset

    from .landscape import PerplexityLandscape
    from .scaling_law import ScalingLaw
    from .selection import Selection

_LAYOUT = ("README.md", "data", "selection.json", "law.json", "landscape.json")
_SHARD_BYTES = 500_000_000
_TIMEOUT = 20.0  # seconds without an answer until the Hub counts as out of reach
_TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def check_hub_access(repo_id: str, token: str | None = None) -> str:
    """Make sure, before any work, that a dataset repository can be written to.

    Args:
        repo_id: `"name"`, `"user/name"` or `"organization/name"`.
        token: of the Hub; by default that of `HF_TOKEN` or `hf auth login`.

    Returns:
        The full id, `"user/name"`.

    Raises:
        ValueError: not a repository id.
        ConnectionError: offline mode is on, or the Hub cannot be reached or fails.
        PermissionError: there is no token, it is invalid, or it may not write there.
    """
    validate_repo_id(repo_id)
    doing = f"Cannot push to {repo_id}"
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(f"{doing}: offline mode is on (HF_HUB_OFFLINE). Unset it, or save to a folder instead.")
    token = _usable_token(token, doing)
    api = HfApi(token=token)
    with _plain_hub_errors(doing, token):
        with suppress(RepositoryNotFoundError):  # it may not exist yet; this call is the one that takes a timeout
            api.dataset_info(repo_id, timeout=_TIMEOUT)
        account = api.whoami()
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise PermissionError(f"{doing}: the token may only read. Make one with write access at {_TOKENS_PAGE}.")
    namespace, _, name = repo_id.rpartition("/")
    writable = [account["name"], *(organization["name"] for organization in account.get("orgs", []))]
    if role == "write" and namespace and namespace.lower() not in map(str.lower, writable):
        raise PermissionError(f"{doing}: {account['name']}, whose token this is, may push to {', '.join(writable)}.")
    return f"{namespace or account['name']}/{name}"


def check_license(license: str | None) -> str:
    """A licence identifier as the Hub wants it, or ValueError."""
    if not license:
        raise ValueError(
            "license is missing: a subset is shared under the licence of its source. Pass the Hub's identifier of "
            "that licence, e.g. license='cc-by-4.0'; license='other' or license='unknown' if that is what it is."
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"license={license!r} is not an identifier like 'cc-by-4.0' or 'apache-2.0' (lower case, no spaces); "
            "https://huggingface.co/docs/hub/repositories-licenses lists them."
        )
    return license


def check_folder(folder: str | os.PathLike, overwrite: bool = False) -> Path:
    """Whether [`save_subset`] may write `folder`: it is new, empty, or holds a subset that may be overwritten.

    Raises:
        FileExistsError: it holds a subset and `overwrite` is False.
        ValueError: it holds something else, which is never overwritten.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the subset.")
    present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if foreign := [name for name in present if name not in _LAYOUT]:
        raise ValueError(f"{folder} holds {foreign[0]!r}, which is no part of a subset; name a new or empty folder.")
    if present and not overwrite:
        raise FileExistsError(f"{folder} already holds a subset; name another folder, or pass overwrite=True.")
    return folder


def save_subset(
    subset: Dataset,
    folder: str | os.PathLike,
    *,
    law: ScalingLaw | None = None,
    landscape: PerplexityLandscape | None = None,
    selection: Selection | None = None,
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
    _check_subset(subset, selection)
    card = subset_card(
        selection.report() if selection else describe_subset(subset),
        law=law,
        landscape=landscape,
        license=license and check_license(license),
        source=source,
        name=folder.name,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    try:
        (aside / "data").mkdir()
        num_bytes = subset.data.nbytes * len(subset) / max(1, subset.data.num_rows)
        num_shards = max(1, min(len(subset), math.ceil(num_bytes / _SHARD_BYTES)))
        for index in range(num_shards):
            shard = subset.shard(num_shards, index, contiguous=True)
            shard.to_parquet(aside / "data" / f"train-{index:05d}-of-{num_shards:05d}.parquet")
        _save_parts(aside, law, landscape, selection)
        write_atomically(aside / "README.md", card)
        _sync(aside)
        _replace_folder(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return folder


def push_subset_to_hub(
    subset: Dataset,
    repo_id: str,
    *,
    law: ScalingLaw | None = None,
    landscape: PerplexityLandscape | None = None,
    selection: Selection | None = None,
    license: str | None = None,
    source: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Push a subset to the Hub as a dataset with the split `train` and a card that says how it was made.

    A repository that exists gets new versions of these files. If the push stops half-way, the same call completes it.

    Args:
        subset: what [`select_subset`] returned.
        repo_id: `"user/name"`, `"organization/name"`, or `"name"` for the token's owner.
        law: saved beside the data and described in the card.
        landscape: of the corpus that was selected from; the same.
        selection: what [`plan_selection`] returned; the same. Without it the card only describes the rows.
        license: licence of the source, as the Hub writes it: `"cc-by-4.0"`, ..., `"other"`, `"unknown"`. Required.
        source: where the text comes from: a Hub dataset id, or words.
        private: make the repository private; refused if it exists and is public.
        token: of the Hub; by default that of `HF_TOKEN` or `hf auth login`.

    Returns:
        The URL of the dataset.

    Raises:
        ValueError: no `license`, an empty subset, or `private` for a public repository.
        ConnectionError, PermissionError: see [`check_hub_access`]; also when the Hub fails on the way.
    """
    license = check_license(license)
    _check_subset(subset, selection)
    repo_id = check_hub_access(repo_id, token)
    token = _usable_token(token, f"Cannot push to {repo_id}")
    report = selection.report() if selection else describe_subset(subset)
    card = subset_card(report, law=law, landscape=landscape, license=license, source=source, name=repo_id)
    api = HfApi(token=token, library_name="hf_ppl_select")
    stopped = f"The push to {repo_id} stopped half-way (run it again to complete it)"
    with tempfile.TemporaryDirectory() as folder, _plain_hub_errors(stopped, token):
        api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        if private and not api.dataset_info(repo_id, timeout=_TIMEOUT).private:
            raise ValueError(f"{repo_id} exists and is public; make it private on the Hub, or choose another name.")
        write_atomically(Path(folder, "README.md"), card)
        _save_parts(Path(folder), law, landscape, selection)
        new = {path.name: CommitOperationAdd(path.name, path) for path in sorted(Path(folder).iterdir())}
        stale = set(_LAYOUT) & set(api.list_repo_files(repo_id, repo_type="dataset")) - set(new)
        operations = [*new.values(), *map(CommitOperationDelete, sorted(stale))]  # nothing of an earlier push is left
        # The card goes first: pushing the data then adds to it what load_dataset needs.
        api.create_commit(repo_id, operations, commit_message="Say how the subset was made", repo_type="dataset")
        subset.push_to_hub(repo_id, split="train", commit_message="Add the selected chunks", token=token)
    return f"{api.endpoint}/datasets/{repo_id}"


def describe_subset(subset: Dataset) -> dict[str, Any]:
    """What the rows alone tell, named as in [`Selection.report`]."""
    from .landscape import PerplexityLandscape

    if not {"perplexity", "num_tokens"} <= set(subset.column_names):
        return {"num_chunks": len(subset)}
    own = PerplexityLandscape.from_dataset(subset)
    achieved = {name: getattr(own, name) for name in ("mu", "sigma", "log_mu", "log_sigma")}
    return {"num_chunks": len(subset), "num_tokens": own.num_tokens, "achieved": achieved}


def _check_subset(subset: Any, selection: Any) -> None:
    from datasets import Dataset

    if not isinstance(subset, Dataset):
        raise TypeError(f"the subset must be a Dataset, as select_subset returns, not {type(subset).__name__}.")
    if not len(subset):
        raise ValueError("the subset has no rows, so there is nothing to share.")
    if selection is not None and selection.num_chunks != len(subset):
        raise ValueError(f"the selection has {selection.num_chunks} rows and the subset {len(subset)}: not the same.")


def _save_parts(folder: Path, law: Any, landscape: Any, selection: Any) -> None:
    for name, part in (("law", law), ("landscape", landscape), ("selection", selection)):
        if part is not None:
            part.save(folder / f"{name}.json")


def _sync(folder: Path) -> None:
    """Flush every file and folder to the disk, and give the folder `mkdtemp` made the mode any other folder has."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
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
    old = new.with_suffix(".replaced")
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _usable_token(token: str | None, doing: str) -> str:
    """The token to use; never part of a message."""
    token = (token or get_token() or "").strip()
    if not token:
        raise PermissionError(
            f"{doing}: there is no Hugging Face token. Run `hf auth login`, or set HF_TOKEN to one with write access "
            f"from {_TOKENS_PAGE}."
        )
    if not re.fullmatch(r"[\x21-\x7e]+", token):  # as a header it would fail, with an error that shows it
        raise PermissionError(f"{doing}: the token has spaces or signs no token has; copy it again.")
    return token


@contextmanager
def _plain_hub_errors(doing: str, token: str) -> Iterator[None]:
    """Turn what the client raises on the way to the Hub into one error: what failed, why, what to do, and no token."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        cause = error
        while cause and not isinstance(cause, (HTTPError, ConnectionError, TimeoutError)):
            cause = cause.__cause__  # uploads wrap it in a RuntimeError
        if cause is None and not isinstance(error, RuntimeError):
            raise  # not the Hub's: a full disk, say
        status = getattr(getattr(cause, "response", None), "status_code", None)
        said = getattr(cause, "server_message", None) or str(cause or error) or type(cause).__name__
        said = said.replace(token, "<token>").strip().splitlines()[0]
        if status == 401:
            advice = f"make one with write access at {_TOKENS_PAGE}, then run `hf auth login` or set HF_TOKEN."
            raise PermissionError(f"{doing}: the Hub refuses the token (401); {advice}") from None
        if status == 403:
            raise PermissionError(f"{doing}: the token may not do this (403: {said}); give it write access.") from None
        if status is not None:
            raise ConnectionError(f"{doing}: the Hub answered {status} ({said}).") from None
        raise ConnectionError(
            f"{doing}: {constants.ENDPOINT} cannot be reached ({said}). Check the network, the proxy and HF_ENDPOINT."
        ) from None
