"""Sharing a law like a model: a folder or a Hub repository with `law.json` and a card (`README.md`)."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..data.saving import write_atomically
from .existing import existing_readme, is_ours, join_cards, read_card, their_files
from .law_card import law_card
from .repository import HTTP_ERROR, HUB_TIMEOUT, check_hub_access, check_license, plain_hub_errors, usable_token

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
    write_atomically(readme, join_cards(read_card(readme), card))
    return folder


def push_law_to_hub(
    law: Any,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Add the scaling law",
) -> str:
    """Push a law and its card to the Hub as a model repository, in one commit.

    Args:
        law: a fitted [`ScalingLaw`].
        repo_id: `"user/name"`, `"organization/name"`, or `"name"` for the token's owner. A repository that exists gets
            new versions of the two files; of a README of others only our own section is ever rewritten.
        license: Hub identifier of the licence under which the law is shared.
        private: make the repository private; refused if it exists and is public.
        token: of the Hub; by default that of `HF_TOKEN` or `hf auth login`.
        commit_message: of the commit.

    Returns:
        The URL of the repository.

    Raises:
        ValueError: `private` for a public repository, a law.json of something else there, or the licence is no
            identifier.
        ConnectionError, PermissionError: see [`check_hub_access`]; also when the Hub fails on the way.
    """
    license = license and check_license(license)
    repo_id = check_hub_access(repo_id, token, repo_type="model")
    token = usable_token(token, f"Cannot push to {repo_id}")
    card = law_card(law, license=license, name=repo_id)
    api = HfApi(token=token, library_name="hf_ppl_select")
    stopped = f"The push to {repo_id} stopped (run it again)"
    with tempfile.TemporaryDirectory() as folder, plain_hub_errors(stopped, token):
        api.create_repo(repo_id, repo_type="model", private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id, timeout=HUB_TIMEOUT).private:
            raise ValueError(f"{repo_id} exists and is public; make it private on the Hub, or choose another name.")
        readme = existing_readme(repo_id, "model", token)
        if their_files(api, repo_id, "model", [LAW_FILE], readme)[0]:
            raise ValueError(f"{repo_id} holds a {LAW_FILE} of something else; push to another repository.")
        law.save(Path(folder, LAW_FILE))
        write_atomically(Path(folder, "README.md"), join_cards(readme, card))
        operations = [CommitOperationAdd(path.name, path) for path in sorted(Path(folder).iterdir())]
        api.create_commit(repo_id, operations, commit_message=commit_message, repo_type="model")
    return f"{api.endpoint}/{repo_id}"


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
    try:
        path = hf_hub_download(name, LAW_FILE, revision=revision, token=token, repo_type=repo_type)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        if isinstance(error, HFValidationError):
            raise FileNotFoundError(f"{name!r} is neither a folder nor the id of a repository on the Hub.") from error
        raise ConnectionError(
            f"{name!r} is no folder, its law is not in the Hub's cache{at}, and the Hub cannot be asked "
            "(HF_HUB_OFFLINE, no network?). Load it once online, or pass a folder."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the repository {name} has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name!r} is no folder, and the Hub has no {repo_type} {name} that this token may read; check the name, "
            "or pass token= if it is private."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"the {repo_type} {name} has no {LAW_FILE}{at}: no law was pushed there.") from error
    except HTTP_ERROR as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise PermissionError(
                f"the Hub refuses the token for {name}; check HF_TOKEN, or `hf auth login`."
            ) from None
        raise ConnectionError(
            f"cannot load the law from {name}: {error}. Check the network and HF_ENDPOINT."
        ) from error
    return Path(path)
