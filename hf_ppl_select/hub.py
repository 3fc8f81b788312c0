"""Sharing a subset on the Hub: whether one may, and the push. `subset_folder` has the layout."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # HTTPError is that of the client's HTTP library
from huggingface_hub.utils import validate_repo_id

from .saving import write_atomically
from .subset_card import subset_card
from .subset_folder import LAYOUT, check_folder, check_license, check_subset, describe_subset, save_parts, save_subset

if TYPE_CHECKING:
    from datasets import Dataset

    from .landscape import PerplexityLandscape
    from .scaling_law import ScalingLaw
    from .selection import Selection

__all__ = ["check_folder", "check_hub_access", "check_license", "describe_subset", "push_subset_to_hub", "save_subset"]

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
    check_subset(subset, selection)
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
        save_parts(Path(folder), law, landscape, selection)
        new = {path.name: CommitOperationAdd(path.name, path) for path in sorted(Path(folder).iterdir())}
        stale = set(LAYOUT) & set(api.list_repo_files(repo_id, repo_type="dataset")) - set(new)
        operations = [*new.values(), *map(CommitOperationDelete, sorted(stale))]  # nothing of an earlier push is left
        # The card goes first: pushing the data then adds to it what load_dataset needs.
        api.create_commit(repo_id, operations, commit_message="Say how the subset was made", repo_type="dataset")
        subset.push_to_hub(repo_id, split="train", commit_message="Add the selected chunks", token=token)
    return f"{api.endpoint}/datasets/{repo_id}"


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
