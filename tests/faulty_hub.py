"""A Hub on the loopback address on which any n-th request fails, in any way that a network and a server can."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

from loopback_hub import LoopbackHub

# Those that pass: a client that asks again is served
PASSING = ("429", "500", "503", "cut", "cut_after", "silence")
LASTING = ("401", "403")
SAYS = {
    "401": 'User Access Token "mine" is expired',
    "403": "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request",
}


class FaultyHub(LoopbackHub):
    """[`LoopbackHub`] whose requests fail where [`break_at`] says so.

    "cut" drops the connection before anything is done, "cut_after" after it is done, "silence" never answers; a number
    is an HTTP status; "meanwhile" calls `meanwhile` first, as somebody else's push, and then answers.
    """

    def __init__(self, **options):
        super().__init__(**options)
        self.lock = threading.Lock()
        self.silent = threading.Event()
        self.meanwhile: Callable[[], None] = lambda: None
        self.break_at(-1, "", 0)

    def break_at(self, number: int, kind: str, times: int = 1) -> None:
        """Let the next requests fail from the `number`-th on (0 is the next one), so many times."""
        self.count, self.number, self.kind, self.times = 0, number, kind, times
        self.silent.set()
        self.silent = threading.Event()

    def go_wrong(self, handler, line):
        with self.lock:
            number, self.count = self.count, self.count + 1
        if not self.number <= number < self.number + self.times:
            return False
        if self.kind == "meanwhile":
            self.meanwhile()
            return False
        if self.kind.isdigit():
            message = SAYS.get(self.kind, f"made to fail: {line}")
            headers = {"Retry-After": "7"} if self.kind == "429" else {}
            headers |= {"X-Error-Message": message} if self.kind in SAYS else {}
            handler._send_json({"error": message}, int(self.kind), headers)
            return True
        handler.close_connection = True
        if self.kind == "cut_after":  # it is done all the same
            handler.wfile = io.BytesIO()
            return False
        if self.kind == "silence":
            self.silent.wait(20)
        handler.connection.close()
        return True

    def stop(self):
        self.silent.set()
        super().stop()
