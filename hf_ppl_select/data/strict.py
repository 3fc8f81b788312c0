"""JSON and YAML of unknown origin: what the formats tolerate and a reader would stumble over is refused."""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any

MOST_DIGITS = 40  # of a whole number: beyond all that is counted, and int() of thousands takes long
LONGEST_MESSAGE = 1500  # characters
DEEPEST_OF_ROWS = 100
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = bytes({ord("["): 1, ord("{"): 1, ord("]"): 255, ord("}"): 255}.get(i, 0) for i in range(256))  # int8
DEEPEST = 20  # brackets within brackets


def parse_json(text: str, where: str) -> Any:
    """`json.loads`, for which a key is there once, numbers are finite, and nothing lies deeper than 20 levels.

    Args:
        text: one document.
        where: how the error calls it: a file, or a line of it.

    Raises:
        ValueError: naming `where` and what is wrong.
    """

    def whole(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            raise ValueError(f"{where} has a number of {len(digits):,} digits; make the file again.")
        return int(digits)

    def finite(digits: str) -> float:
        if not math.isfinite(number := float(digits)):
            raise ValueError(f"{where} has the number {digits[:MOST_DIGITS]}, which is not finite; make it again.")
        return number

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{where} has {twice[:80]!r} twice; make the file again.")
        return found

    _check_depth(text, where)
    try:
        document = json.loads(text, parse_int=whole, parse_float=finite, parse_constant=finite, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON ({error}); was it cut off, or not written as JSON?") from error
    if re.search(r"\\u[dD][89a-fA-F]", text):
        check_text(json.dumps(document, ensure_ascii=False), where)
    return document


def check_text(text: str, where: str) -> None:
    """ValueError where `text` holds half a character (a lone surrogate), which no file and no terminal takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half a character, {text[error.start]!r}; write it anew as UTF-8.") from error


def in_a_line(message: str) -> str:
    """An error's message, of whatever it quotes, as a line that one reads."""
    message = re.sub(r"(\S{300})\S+", r"\1...", re.sub(r"\s*[\r\n\v\f\x85\u2028\u2029]+\s*", " ", message))
    return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."


def _check_depth(text: str, where: str) -> None:
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    depth = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text, re.DOTALL):
        first = text[token.start()]
        depth += (first in "[{") - (first in "]}")
        if depth > DEEPEST:
            raise ValueError(f"{where} has brackets within brackets, more than {DEEPEST} deep; make the file again.")


def load_yaml(text: str, where: str) -> Any:
    """`yaml.safe_load` of what [`check_yaml`] finds no fault with.

    Raises:
        ValueError: naming `where` and what is wrong.
    """
    import yaml

    try:
        check_yaml(text, where)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # also of dates and numbers that there are not
        if where in str(error):
            raise
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())[:300]
        raise ValueError(f"{where} cannot be read as YAML ({reason}); repair it.") from error


def check_json_rows(path: str | os.PathLike) -> None:
    """Refuse files of JSON rows that end the process in pyarrow, or fail far from here.

    These are brackets within brackets, by the thousand; null or NaN in place of a row; and what is not UTF-8.

    Raises:
        ValueError: naming the file.
    """
    import numpy as np

    depth = 0
    with open(path, "rb") as file:
        head = file.read(100)
        file.seek(0)
        # A list of rows, not of texts, by the rule of `datasets`
        of_rows = int(head.startswith(b"[") and b"{" in head.split(b'"', 1)[0])
        for number, line in enumerate(file, start=1):
            try:
                line.isascii() or line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 in line {number} ({error.reason}); write it anew.") from error
            is_row = line.startswith(b"{") and line.rstrip().endswith(b"}")
            if is_row and line.count(b"[") + line.count(b"{") <= DEEPEST_OF_ROWS:
                continue
            plain = _STRING.sub(b'""', line)
            steps = np.frombuffer(plain.translate(_BRACKETS), np.int8)
            depths = depth + np.cumsum(steps, dtype=np.int32)
            if depths.max(initial=0) > DEEPEST_OF_ROWS:
                raise ValueError(f"{path} has brackets within brackets, more than {DEEPEST_OF_ROWS} deep.")
            for nothing in re.finditer(b"null|NaN|Inf", plain):
                if depths[nothing.start()] <= of_rows:
                    raise ValueError(
                        f"{path} has {nothing[0].decode()} in place of a row in line {number}; take it out."
                    )
            depth = int(depths[-1])


def check_yaml(text: str, where: str) -> None:
    """Refuse YAML that means other than one reads: a key twice, `&anchors`, `*aliases`, `!!tags`, depths beyond 20.

    Raises:
        ValueError: it has one of these.
        yaml.YAMLError: it is not YAML.
    """
    import yaml

    check_text(text, where)
    mappings: list[set[str] | None] = []  # the open ones, innermost last: keys seen; None where it is a list
    is_key: list[bool] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = f"{where}, line {event.start_mark.line + 1}"
        if getattr(event, "anchor", None) is not None:  # of an alias, too
            raise ValueError(f"{line} has &{event.anchor} or *{event.anchor}; write out what it stands for.")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"{line} has the tag {event.tag[:80]!r}; write the value without it.")
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            mappings.pop(), is_key.pop()
        elif not isinstance(event, (yaml.ScalarEvent, yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            continue
        elif mappings and mappings[-1] is not None and is_key[-1]:
            key = getattr(event, "value", None)
            if key is None:
                raise ValueError(f"{line} has a key that is a list or mapping; a key is a name.")
            if key in mappings[-1]:
                raise ValueError(f"{line} has {key[:80]!r} a second time; keep one of them.")
            mappings[-1].add(key)
            is_key[-1] = False
            continue
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            mappings.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
            is_key.append(True)
            if len(mappings) > DEEPEST:
                raise ValueError(f"{line} is more than {DEEPEST} levels deep; options are flat.")
            continue
        if is_key:
            is_key[-1] = True
