"""Access to the Hub: whether one may push there, with which token and licence, and its errors in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (  # HTTPError is that of the client's HTTP library
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

# Lost connections too: in httpx they derive from HTTPError; in requests, of huggingface_hub before 1.0, from its base.
HTTP_ERROR = HTTPError.__base__ if issubclass(HTTPError, OSError) else HTTPError
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
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no id of a repository, like user/name: {error}") from error
    doing = f"Cannot push to {repo_id}"
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(f"{doing}: offline mode is on (HF_HUB_OFFLINE). Unset it, or save to a folder instead.")
    token = usable_token(token, doing)
    api = HfApi(token=token)
    with plain_hub_errors(doing, token):
        with suppress(RepositoryNotFoundError):  # whether the Hub answers at all: the call that takes a timeout
            api.repo_info(repo_id, repo_type=repo_type, timeout=HUB_TIMEOUT)
        account = api.whoami()
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
            api.auth_check(repo_id, repo_type=repo_type, **_ASKS_TO_WRITE)
    return repo_id


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
def plain_hub_errors(doing: str, token: str) -> Iterator[None]:
    """Turn what the client raises on the way to the Hub into one error: what failed, why, what to do, and no token."""
    try:
        yield
    except (HTTP_ERROR, OSError, RuntimeError) as error:
        cause = error
        while cause and not isinstance(cause, (HTTP_ERROR, ConnectionError, TimeoutError)):
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
