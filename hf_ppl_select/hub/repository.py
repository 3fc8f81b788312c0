"""Access to the Hub: whether one may push there, with which token and licence, and its errors in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..data.credentials import hide_credentials
from .retries import HTTP_ERROR, LONGEST_SILENCE, http_cause, patiently

# Older clients only ask whether one may read; whether one may write is then said at the first commit.
_ASKS_TO_WRITE = {"write": True} if "write" in signature(HfApi.auth_check).parameters else {}
HUB_TIMEOUT = 20.0  # seconds without an answer until the Hub counts as out of reach
_TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def check_hub_access(repo_id: str, token: str | None = None, *, repo_type: str = "dataset") -> str:
    """Make sure, before any work, that a repository can be written to, or made.

    Args:
        repo_id: `"name"`, `"user/name"` or `"organization/name"`.
        token: of the Hub; by default that of `HF_TOKEN` or `hf auth login`.
        repo_type: `"dataset"` or `"model"`.

    Returns:
        The full id, `"user/name"`.

    Raises:
        ValueError: not a repository id.
        ConnectionError: offline mode is on, or the Hub cannot be reached or fails.
        PermissionError: there is no token, it is invalid, or it may not write there.
    """
    check_repo_id(repo_id)
    doing = f"Cannot push to {repo_id}"
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(f"{doing}: offline mode is on (HF_HUB_OFFLINE). Unset it, or save to a folder instead.")
    token = usable_token(token, doing)
    api = HfApi(token=token)
    with plain_hub_errors(doing, token):
        with suppress(RepositoryNotFoundError):  # whether the Hub answers at all: the call that takes a timeout
            patiently(lambda: api.repo_info(repo_id, repo_type=repo_type, timeout=HUB_TIMEOUT))
        account = patiently(api.whoami)
        role = account.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise PermissionError(f"{doing}: the token may only read. Make one with write access at {_TOKENS_PAGE}.")
        namespace, _, name = repo_id.rpartition("/")
        writable = [account["name"], *(organization["name"] for organization in account.get("orgs", []))]
        if role == "write" and namespace and namespace.lower() not in map(str.lower, writable):
            raise PermissionError(
                f"{doing}: {account['name']}, whose token this is, may push to {', '.join(writable)}."
            )
        repo_id = f"{namespace or account['name']}/{name}"
        with suppress(RepositoryNotFoundError):  # not made yet
            patiently(lambda: api.auth_check(repo_id, repo_type=repo_type, **_ASKS_TO_WRITE))
    return repo_id


def full_repo_id(repo_id: str, token: str | None) -> str:
    """`"user/name"` of a repository that is only looked at, which takes no right to write, and no token if named so.

    Raises:
        ValueError: not a repository id, or a bare name without a token to say whose.
        ConnectionError, PermissionError: the Hub cannot be reached, or refuses the token.
    """
    check_repo_id(repo_id)
    doing = f"Cannot look at {repo_id}"
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(f"{doing}: offline mode is on (HF_HUB_OFFLINE). Unset it, or look at the saved folder.")
    if "/" in repo_id:
        return repo_id
    if not token:
        raise ValueError(f"{doing}: there is no Hugging Face token to say whose it is; write user/{repo_id}.")
    with plain_hub_errors(doing, token):
        return f"{patiently(HfApi(token=token).whoami)['name']}/{repo_id}"


def check_repo_id(repo_id: str) -> None:
    """ValueError for what is no id of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no id of a repository, like user/name: {error}") from error


def check_branch(revision: str | None) -> str:
    """The branch to push to: main, if none is named.

    Raises:
        ValueError: a commit, which cannot be changed, or nothing that git takes for a name.
    """
    branch = "main" if revision is None else revision
    if re.fullmatch(r"[0-9a-f]{40}", branch):
        raise ValueError(f"the revision {branch} is a commit, and nothing can be pushed to one; name a branch.")
    if not re.fullmatch(r"[\w][\w./-]*", branch) or ".." in branch or branch.endswith(("/", ".", ".lock")):
        raise ValueError(f"the revision {branch!r} is no name of a branch, like main or v1.0.")
    return branch


def usable_token(token: str | None, doing: str) -> str:
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


@contextmanager
def plain_hub_errors(doing: str, token: str | None) -> Iterator[None]:
    """Turn what the client raises on the way to the Hub into one error: what failed, why, what to do, and no token."""
    try:
        yield
    except (HTTP_ERROR, OSError, RuntimeError) as error:
        if type(error) in (ConnectionError, PermissionError):
            raise  # in our own words
        cause = http_cause(error)  # uploads wrap it in a RuntimeError
        if cause is None and not isinstance(error, RuntimeError):
            raise  # not the Hub's: a full disk, say
        raise in_plain_words(doing, cause or error, token) from None


def in_plain_words(doing: str, error: BaseException, token: str | None) -> ConnectionError | PermissionError:
    """An error of the client, or of its HTTP library, as one sentence."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    said = said.replace(token, "<token>") if token else said
    said = hide_credentials(said).strip().splitlines()[0].rstrip(".")
    if status == 401:
        advice = f"make another at {_TOKENS_PAGE}, then run `hf auth login` or set HF_TOKEN."
        return PermissionError(f"{doing}: the Hub refuses the token (401: {said}); {advice}")
    if status == 403:
        return PermissionError(f"{doing}: the token may not do this (403: {said}); give it the right to.")
    if status == 429:
        wait = response.headers.get("Retry-After")
        when = f"in {wait} seconds" if wait else "in some minutes"
        return ConnectionError(f"{doing}: the Hub answered 429, too many requests ({said}); run it again {when}.")
    if status in (409, 412):
        return ConnectionError(f"{doing}: others push there all the time ({status}: {said}); run it again.")
    if status is not None:
        return ConnectionError(f"{doing}: the Hub answered {status} ({said}); run it again.")
    if "timeout" in type(error).__name__.lower():
        said = f"no answer within {LONGEST_SILENCE:.0f} seconds"
    return ConnectionError(
        f"{doing}: {constants.ENDPOINT} cannot be reached ({said}). Check the network, the proxy and HF_ENDPOINT, "
        "and run it again."
    )
