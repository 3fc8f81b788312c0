"""Sharing a law like a model: a folder or a Hub repository with `law.json` and a card (`README.md`)."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..data.saving import write_atomically
from .existing import is_ours, join_cards, read_card
from .law_card import law_card
from .one_commit import PushPlan, push_in_one_commit
from .repository import check_license, in_plain_words
from .retries import HTTP_ERROR, patiently

LAW_FILE = "law.json"


def save_law(law: Any, folder: str | os.PathLike, *, license: str | None = None) -> Path:
    """Save a law and its card, so that `ScalingLaw.from_pretrained(folder)` gives it back without the Hub.

    Args:
        law: a fitted [`ScalingLaw`].
        folder: made if absent. A law that is there is replaced, with its section of the README.md; no other file is.
        license: Hub identifier of the licence under which the law is shared.

    Returns:
        The folder.

    Raises:
        ValueError: the folder is a file, holds a README.md or law.json of something else, or the licence is no
            identifier.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the law.")
    readme = folder / "README.md"
    if (folder / LAW_FILE).exists() and not is_ours(folder / LAW_FILE):
        raise ValueError(f"{folder} holds a {LAW_FILE} of something else; name a new or empty folder.")
    if readme.exists() and not (folder / LAW_FILE).exists():
        raise ValueError(f"{folder} holds a README.md of something else; name a new or empty folder.")
    card = law_card(law, license=license and check_license(license), name=folder.resolve().name)
    law.save(folder / LAW_FILE)
    write_atomically(readme, join_cards(read_card(readme), card, new_rows=True))
    return folder


def push_law_to_hub(
    law: Any,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
    commit_message: str = "Add the scaling law",
    dry_run: bool = False,
) -> str | PushPlan:
    """Push a law and its card to the Hub as a model repository, in one commit; none if it is there already.

    Args:
        law: a fitted [`ScalingLaw`].
        repo_id: `"user/name"`, `"organization/name"`, or `"name"` for the token's owner. A repository that exists gets
            new versions of the two files; of a README of others only our own section is ever rewritten.
        license: Hub identifier of the licence under which the law is shared.
        private: make the repository private; refused if it exists and is public.
        revision: the branch, made from main if it is absent; main by default.
        overwrite: replace a law.json of something else.
        token: of the Hub; by default that of `HF_TOKEN` or `hf auth login`.
        commit_message: of the commit.
        dry_run: push nothing and say what a push would do. It takes no right to write.

    Returns:
        The URL of the repository; with `dry_run` a [`PushPlan`].

    Raises:
        ValueError: `private` for a public repository, a law.json of something else there, or the licence is no
            identifier.
        ConnectionError, PermissionError: see [`check_hub_access`]; also when the Hub fails on the way.
    """
    license = license and check_license(license)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, LAW_FILE)
        law.save(path)
        return push_in_one_commit(
            {LAW_FILE: path},
            lambda full_id, theirs: join_cards(theirs, law_card(law, license=license, name=full_id)),
            repo_id,
            repo_type="model",
            message=commit_message,
            private=private,
            revision=revision,
            overwrite=overwrite,
            token=token,
            dry_run=dry_run,
        )


def find_law(
    name: str | os.PathLike, *, revision: str | None = None, token: str | None = None, repo_type: str = "model"
) -> Path:
    """The file of a law in a folder, or from the Hub through its cache (which is all it needs offline).

    Args:
        name: a folder with `law.json`, or a repository id.
        revision: branch, tag or commit on the Hub.
        token: of the Hub, for private repositories; by default that of `HF_TOKEN` or `hf auth login`.
        repo_type: `"dataset"` finds the law that was pushed along with a subset.

    Raises:
        FileNotFoundError: no such folder, repository or revision, or no law in it.
        ConnectionError: the Hub cannot be asked and its cache does not have the law.
        PermissionError: a gated repository, or a token that the Hub refuses.
        ValueError: `repo_type` is neither of the two.
    """
    if os.path.isdir(name):
        path = Path(name, LAW_FILE)
        if not path.is_file():
            raise FileNotFoundError(
                f"the folder {os.fspath(name)!r} has no {LAW_FILE}; save one with save_pretrained."
            )
        return path
    if repo_type not in ("model", "dataset"):
        raise ValueError(f"repo_type must be 'model' or 'dataset', got {repo_type!r}.")
    name, at = os.fspath(name), f" at revision {revision!r}" if revision else ""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise FileNotFoundError(f"{name!r} is neither a folder nor the id of a repository on the Hub (user/name).")
    page = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{name}"
    try:
        options = {"revision": revision, "token": token, "repo_type": repo_type}
        path = patiently(lambda: hf_hub_download(name, LAW_FILE, **options))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        if isinstance(error, HFValidationError):
            raise FileNotFoundError(f"{name!r} is neither a folder nor the id of a repository on the Hub.") from error
        raise ConnectionError(
            f"{name!r} is no folder, its law is not in the Hub's cache{at}, and the Hub cannot be asked "
            "(HF_HUB_OFFLINE, no network?). Load it once online, or pass a folder."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the repository {name} has no revision {revision!r}.") from error
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError
        raise PermissionError(
            f"the {repo_type} {name} is gated: ask for access at {page}, then load with a token of that account."
        ) from error
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401 and "token" in str(error.server_message).lower():  # an expired one
            raise in_plain_words(f"cannot load the law from {name}", error, token or get_token()) from None
        raise FileNotFoundError(
            f"{name!r} is no folder, and the Hub has no {repo_type} {name} that this token may read; check the name, "
            "or pass token= if it is private."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"the {repo_type} {name} has no {LAW_FILE}{at}: no law was pushed there.") from error
    except HTTP_ERROR as error:
        raise in_plain_words(f"cannot load the law from {name}", error, token or get_token()) from None
    return Path(path)
