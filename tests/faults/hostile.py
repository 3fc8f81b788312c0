"""Changes that no writer makes, drawn by a seed: to bytes, to texts, to documents. And limits of time and memory."""

import copy
import json
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

VALUES = [
    None, True, False, "", "123", "/etc/passwd", "../x", "\ud800", "\0", "\n", -1, 0, 1, 5, 10**400, -(10**400),
    2**63, -(2**63), 0.5, [0] * 5000, 1e308, -1e308, 1e-320, float("nan"), float("inf"), [], {}, [[]], [None], [{}],
    ["1", "2", "3"], [1e308, 1e308, 1e308], {"a": {}}, {"role": "x"}, "x" * 20_000,
    [[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]],
]  # fmt: skip
PIECES = [
    "\0", "\ufeff", "\\ud800", "{", "}", "[", "]", ",", ":", '"', "'", "\n", "\r", "\t", "\\", "NaN", "null",
    "1" * 5000, "1e999", "[" * 3000, '{"a":' * 3000, "&a ", "*a", "!!int ", "!!python/object:os.system ", "---\n",
    "...\n", "#", "%", "é", "\u2028", "- ", "? ", "<<: ", "0b_", "2024-99-99", "12:99:99", "=", "~", "|", ">",
    "x" * 20_000, "{% for %}", "{{ 1/0 }}", "<|im_end|>",
]  # fmt: skip
SECONDS, MEGABYTES = 20, 1500


@contextmanager
def limits(what):
    """A TimeoutError after some seconds, a MemoryError beyond some memory more than there is now."""

    def stop(*_):
        raise TimeoutError(f"{what} takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (MEGABYTES << 20), memory[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.signal(signal.SIGALRM, before)


def changed_bytes(content, rng):
    """A few bits, bytes or stretches other than they were; never the same."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(changed)) if changed else 0
        size = rng.choice([1, 1, 2, 8, 100])
        action = rng.choice(["flip", "flip", "flip", "cut", "drop", "zero", "random", "double", "swap"])
        if action == "flip" and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif action == "cut":
            del changed[at:]
        elif action == "drop":
            del changed[at : at + size]
        elif action == "zero":
            changed[at : at + size] = bytes(len(changed[at : at + size]))
        elif action == "random":
            changed[at : at + size] = rng.randbytes(len(changed[at : at + size]))
        elif action == "double":
            changed[at:at] = changed[at : at + size]
        elif changed:
            other = rng.randrange(len(changed))
            changed[at], changed[other] = changed[other], changed[at]
    return bytes(changed) if changed != content else content[:-1]


def changed_text(text, rng):
    """Lines lost, doubled or in another order; words put in that a parser may stumble over."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        lines = text.split("\n")
        at, line = rng.randrange(len(text) + 1), rng.randrange(len(lines))
        action = rng.choice(["put", "put", "put", "over", "lose", "double", "swap", "cut"])
        if action == "put":
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif action == "over":
            text = text[:at] + rng.choice(PIECES) + text[at + rng.choice([1, 3, 10]) :]
        elif action == "cut":
            text = text[:at]
        else:
            if action == "lose":
                del lines[line]
            elif action == "double":
                lines.insert(rng.randrange(len(lines)), lines[line])
            else:
                other = rng.randrange(len(lines))
                lines[line], lines[other] = lines[other], lines[line]
            text = "\n".join(lines)
    return text


def places(value, at=()):
    """The paths to all values in a document."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*at, key))


def changed_document(document, rng):
    """Values set, taken out, put in, moved and doubled; `document` itself stays as it is."""
    document = json.loads(json.dumps(document))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        every = [at for at in places(document) if at]
        if not every:
            return _any(rng)
        *inner, last = rng.choice(every)
        holder = document
        for key in inner:
            holder = holder[key]
        action = rng.choice(["set", "set", "set", "near", "near", "delete", "add", "copy"])
        if action == "near":
            holder[last] = _near(holder[last], rng)
        elif action == "set":
            holder[last] = _any(rng)
        elif action == "delete":
            del holder[last]
        elif action == "copy":
            value = document
            for key in rng.choice(every):
                value = value[key]
            holder[last] = json.loads(json.dumps(value))
        elif isinstance(holder, dict):
            holder[rng.choice(["extra", "checksum", "kind", "", "x" * 5000, str(last)])] = copy.deepcopy(
                rng.choice(VALUES)
            )
        else:
            holder.insert(last, _any(rng))
    return document


def _any(rng):
    return copy.deepcopy(rng.choice(VALUES))


def _near(value, rng):
    """A value of the same type, but another one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        if not abs(value) < 1e300:
            return 1
        more = [value * 2, value / 3, value * 1e6, value * 1e30, int(value), str(value)]
        return rng.choice([value + 1, value - 1, -value, *more])
    if isinstance(value, str):
        more = [value.upper(), f" {value}", [value], f"{value}\0"]
        return rng.choice([value[::-1], value[:-1], value + value, *more])
    if isinstance(value, list):
        return rng.choice([value[::-1], value[:-1], value + value, value[:1], [value]])
    return (
        [value]
        if value is None
        else rng.choice([[value], dict(list(value.items())[1:]), list(map(list, value.items()))])
    )
