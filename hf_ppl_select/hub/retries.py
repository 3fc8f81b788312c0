"""Requests to the Hub: none waits for ever, and what fails in passing is asked again.

`huggingface_hub` sends uploads again, but not what it asks of repositories and small files, nor a commit, which may
have been made though its answer was lost: whoever commits looks first at what is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError  # that of the client's HTTP library
from huggingface_hub.utils import get_session

T = TypeVar("T")
# Lost connections too: in httpx they derive from HTTPError; in requests, of huggingface_hub before 1.0, from its base.
HTTP_ERROR = HTTPError.__base__ if issubclass(HTTPError, OSError) else HTTPError
TRIES = 3  # of one request
LONGEST_SILENCE = 120.0  # seconds without a byte until a request counts as lost; the client itself waits for ever
LONGEST_PAUSE = 300.0  # seconds that the Hub may ask us to wait; its limits are per five minutes
# From 1.0 on the client itself sends uploads again.
_CLIENT_SENDS_AGAIN = not issubclass(HTTPError, OSError)
_PASSING = (408, 429, 500, 502, 503, 504)


def patiently(ask: Callable[[], T], *, uploads: bool = False) -> T:
    """What `ask` returns; after faults that pass it is called again, so it must do no harm twice.

    Args:
        ask: requests of the client.
        uploads: which newer clients send again for themselves.
    """
    most = 1 if uploads and _CLIENT_SENDS_AGAIN else TRIES
    for tries in range(1, most + 1):
        try:
            with bounded_silence():
                return ask()
        except HTTP_ERROR as error:
            pause = pause_after(error, tries)
            if pause is None or tries == most:
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def pause_after(error: BaseException, tries: int) -> float | None:
    """Seconds until the same may be asked again; None where that would not help."""
    if constants.HF_HUB_OFFLINE:
        return None
    response = getattr(error, "response", None)
    if response is None:
        return 2.0 ** (tries - 1)  # no answer: a lost connection
    if response.status_code not in _PASSING:
        return None
    asked = response.headers.get("Retry-After", "")
    pause = float(asked) if asked.isdigit() else 2.0 ** (tries - 1)
    return pause if pause <= LONGEST_PAUSE else None


def http_cause(error: BaseException | None) -> BaseException | None:
    """The error of the HTTP library behind `error`, or None."""
    while error is not None and not isinstance(error, HTTP_ERROR):
        error = error.__cause__
    return error


@contextmanager
def bounded_silence() -> Iterator[None]:
    """Requests of this thread fail after [`LONGEST_SILENCE`], unless the user gave the client a limit of their own."""
    session = get_session()
    if hasattr(session, "timeout"):  # httpx
        before = session.timeout
        if before == type(before)(None):
            session.timeout = LONGEST_SILENCE
        try:
            yield
        finally:
            session.timeout = before
    else:  # requests, of huggingface_hub before 1.0
        before = vars(session).get("request")
        session.request = partial(session.request, timeout=LONGEST_SILENCE)
        try:
            yield
        finally:
            vars(session).pop("request")
            if before is not None:
                session.request = before
