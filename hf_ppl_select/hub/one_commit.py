"""A push: all files and the card in one commit on top of what was looked at, or no commit at all.

The commit names its parent, so that the Hub refuses it where somebody pushed meanwhile; then we look again. A push of
what is there already makes no commit, so one whose answer was lost can be sent again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoSibling

from ..data.saving import write_atomically
from ..data.shards import file_sha256
from .existing import existing_readme, their_files
from .repository import (
    HUB_TIMEOUT,
    check_branch,
    check_hub_access,
    full_repo_id,
    in_plain_words,
    plain_hub_errors,
    usable_token,
)
from .retries import HTTP_ERROR, bounded_silence, http_cause, patiently, pause_after

README = "README.md"
_TRIES = 4  # of one commit, each after a new look
_OTHERS = (409, 412)  # somebody else's commit is being made, or has been


@dataclass(frozen=True)
class PushedFile:
    """A file of a push: its path in the repository, bytes, and "new", "changed", "same" or "deleted"."""

    path: str
    num_bytes: int
    change: str


@dataclass(frozen=True)
class PushPlan:
    """What a push would do, as `dry_run=True` returns it.

    Attributes:
        repo_id, repo_type, revision: where to.
        private: whether the repository is, or would be made so.
        is_new: whether it would be made.
        files: in the order of their paths.
    """

    repo_id: str
    repo_type: str
    revision: str
    private: bool
    is_new: bool
    files: tuple[PushedFile, ...]

    @property
    def changes(self) -> tuple[PushedFile, ...]:
        """The files that differ from what is there."""
        return tuple(file for file in self.files if file.change != "same")

    @property
    def num_bytes(self) -> int:
        """To be uploaded, at most: the Hub knows some content already."""
        return sum(file.num_bytes for file in self.changes if file.change != "deleted")

    def __str__(self) -> str:
        head = f"Would push to the {'private' if self.private else 'public'} {self.repo_type} {self.repo_id}"
        head += (
            f"{' (new)' if self.is_new else ''}, revision {self.revision}, in one commit of {self.num_bytes:,} bytes:"
        )
        lines = [f"  {file.change:8} {file.path}, {file.num_bytes:,} bytes" for file in self.files]
        return "\n".join([head if self.changes else f"{head[:-1]}: nothing, all of it is there.", *lines])


@dataclass(frozen=True)
class _There:
    """A repository at one commit: its files, and its card."""

    sha: str | None = None
    private: bool = False
    files: Mapping[str, RepoSibling] | None = None
    readme: str | None = None


def push_in_one_commit(
    files: Mapping[str, Path],
    card: Callable[[str, str | None], str],
    repo_id: str,
    *,
    repo_type: str,
    message: str,
    private: bool | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
    dry_run: bool = False,
    replaces: Callable[[str], bool] = lambda path: False,
    finish: Callable[[str, Mapping[str, RepoSibling]], str] = lambda readme, files: readme,
) -> str | PushPlan:
    """Push files and a card, to a repository that is made if it is absent.

    Args:
        files: by path in the repository, without README.md.
        card: makes the README.md of the full id, and of the README.md that is there, or None.
        repo_id: `"user/name"`, `"organization/name"`, or `"name"` for the token's owner.
        repo_type: "dataset" or "model".
        message: of the commit.
        private: make the repository private; refused if it exists and is public.
        revision: the branch, made from main if it is absent; main by default. Or a pull request, refs/pr/1.
        overwrite: replace files of others that stand where ours go.
        token: of the Hub; by default that of `HF_TOKEN` or `hf auth login`.
        dry_run: only look, which takes no right to write, and return the plan.
        replaces: which paths of an earlier push go, if they are not written again.
        finish: makes the README.md of that one and of the files that are there.

    Returns:
        The URL; the plan for `dry_run`.

    Raises:
        ValueError: files of others in the way, also such as were pushed meanwhile; `private` for a public repository.
        ConnectionError, PermissionError: see [`check_hub_access`]; also when the Hub fails on the way.
    """
    branch = check_branch(revision)
    if dry_run:
        token = token or get_token()
        repo_id = full_repo_id(repo_id, token)
        doing = f"Cannot look at {repo_id}"
    else:
        repo_id = check_hub_access(repo_id, token, repo_type=repo_type)
        token = usable_token(token, f"Cannot push to {repo_id}")
        doing = f"The push to {repo_id} stopped, which is as it was, or has all of it"
    api = HfApi(token=token, library_name="hf_ppl_select")
    url = f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    url += "" if branch == "main" else f"/tree/{branch}"
    with tempfile.TemporaryDirectory() as folder, plain_hub_errors(doing, token):
        if not dry_run:
            _make(api, repo_id, repo_type, branch, private)
        files, before = {**files, README: Path(folder, README)}, None
        for tries in range(1, _TRIES + 1):
            there = _look(api, repo_id, repo_type, branch, token, may_be_absent=dry_run)
            if there.sha:
                _check_private(repo_id, private, there.private)
            stale = _replaced(there, files, repo_id, repo_type, token, overwrite, replaces)
            write_atomically(files[README], finish(card(repo_id, there.readme), there.files or {}))
            plan = _plan(there, files, stale, repo_id, repo_type, branch, bool(private))
            if before is not None:
                _check_nobody_else(before, there, plan)
            if dry_run:
                return plan
            if not plan.changes:
                return url
            operations, to = _upload(api, plan, files), {"repo_type": repo_type, "revision": branch}
            try:
                with bounded_silence():
                    api.create_commit(repo_id, operations, commit_message=message, parent_commit=there.sha, **to)
                return url
            except HTTP_ERROR as error:
                pause = _pause(error, tries)
                if pause is None or tries == _TRIES:
                    raise in_plain_words(doing, http_cause(error), token) from None
                time.sleep(pause)
                before = there
    raise AssertionError("the last try returns or raises")


def _make(api: HfApi, repo_id: str, repo_type: str, branch: str, private: bool | None) -> None:
    """Make the repository and the branch where they are absent."""
    options: dict[str, Any] = {"repo_type": repo_type, "exist_ok": True}
    patiently(lambda: api.create_repo(repo_id, private=private or None, **options))
    if private:
        info = patiently(lambda: api.repo_info(repo_id, repo_type=repo_type, timeout=HUB_TIMEOUT))
        _check_private(repo_id, private, bool(info.private))
    if branch != "main" and not branch.startswith("refs/"):
        patiently(lambda: api.create_branch(repo_id, branch=branch, **options))


def _check_private(repo_id: str, wanted: bool | None, found: bool) -> None:
    if wanted and not found:
        raise ValueError(f"{repo_id} exists and is public; make it private on the Hub, or choose another name.")


def _look(api: HfApi, repo_id: str, repo_type: str, branch: str, token: str | None, *, may_be_absent: bool) -> _There:
    """The newest commit of a branch. One that may be absent is, where it is, what making it would give."""
    # All files in the one answer: listing them, newer clients wait for ever where the Hub is silent
    options: dict[str, Any] = {"repo_type": repo_type, "timeout": HUB_TIMEOUT, "files_metadata": True}
    try:
        info = patiently(lambda: api.repo_info(repo_id, revision=branch, **options))
    except RepositoryNotFoundError as error:
        if not may_be_absent or error.response.status_code == 401:
            raise
        return _There()
    except RevisionNotFoundError:
        if not may_be_absent:
            raise
        info = patiently(lambda: api.repo_info(repo_id, **options))
    found = {file.rfilename: file for file in info.siblings or ()}
    readme = existing_readme(repo_id, repo_type, token, info.sha) if README in found else None
    return _There(info.sha, bool(info.private), found, readme)


def _replaced(
    there: _There,
    files: Collection[str],
    repo_id: str,
    repo_type: str,
    token: str | None,
    overwrite: bool,
    replaces: Callable[[str], bool],
) -> list[str]:
    """Files of an earlier push that this one leaves out; ValueError where files of others are in the way."""
    if there.sha is None:
        return []
    clashes, stale = their_files(repo_id, repo_type, token, there.sha, there.files, files, there.readme)
    if clashes and not overwrite:
        raise ValueError(
            f"{repo_id} holds {', '.join(clashes[:3])}, which hf_ppl_select did not write and this push would "
            "replace; push to another repository, or pass overwrite=True (--overwrite)."
        )
    left_over = stale if repo_type == "dataset" else ()  # of a law beside a model nothing else is ours to delete
    return sorted({*left_over, *filter(replaces, there.files)} - set(files))


def _plan(
    there: _There,
    files: Mapping[str, Path],
    stale: Collection[str],
    repo_id: str,
    repo_type: str,
    branch: str,
    private: bool,
) -> PushPlan:
    present, found = there.files or {}, []
    for path, local in files.items():
        change = "new" if path not in present else "same" if _is_same(local, present[path]) else "changed"
        found.append(PushedFile(path, os.stat(local).st_size, change))
    found += [PushedFile(path, present[path].size, "deleted") for path in stale]
    is_new = there.sha is None
    found.sort(key=lambda file: file.path)
    return PushPlan(repo_id, repo_type, branch, private if is_new else there.private, is_new, tuple(found))


def _is_same(local: Path, remote: RepoSibling) -> bool:
    """Whether a file is that of the repository, by git's hash of it or, of a large one, its SHA-256."""
    if (size := os.stat(local).st_size) != remote.size:
        return False
    if remote.lfs is not None:
        return file_sha256(local) == remote.lfs.sha256
    return hashlib.sha1(b"blob %d\0" % size + local.read_bytes()).hexdigest() == remote.blob_id


def _check_nobody_else(before: _There, there: _There, plan: PushPlan) -> None:
    """ValueError where a file that this push would replace has been pushed since the first look."""
    for file in plan.changes:
        was, now = ((look.files or {}).get(file.path) for look in (before, there))
        if file.path != README and (was and was.blob_id) != (now and now.blob_id):
            raise ValueError(
                f"somebody pushed {file.path} to {plan.repo_id} meanwhile, and this push would replace it; look at "
                "it, and run this again if it may go."
            )


def _upload(api: HfApi, plan: PushPlan, files: Mapping[str, Path]) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Upload what is large, which nobody sees before the commit of these operations."""
    added = [
        CommitOperationAdd(file.path, files[file.path]) for file in plan.changes if file.change in ("new", "changed")
    ]
    options: dict[str, Any] = {"repo_type": plan.repo_type, "revision": plan.revision, "free_memory": False}
    patiently(lambda: api.preupload_lfs_files(plan.repo_id, added, **options), uploads=True)
    return [*added, *(CommitOperationDelete(file.path) for file in plan.changes if file.change == "deleted")]


def _pause(error: BaseException, tries: int) -> float | None:
    """Seconds until the next look; None where it would not help."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return float(tries) if status in _OTHERS else pause_after(error, tries)
