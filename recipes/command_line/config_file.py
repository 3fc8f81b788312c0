"""A YAML file of options: each is known, and of the type that it needs."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hf_ppl_select.data.strict import load_yaml

MOST_CHARACTERS = 1_000_000
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
_ENVIRONMENT = "env"  # TRL sets its variables


def check_config(path: str, kinds: Iterable[type]) -> None:
    """Refuse a file that a parser of these dataclasses would stumble over, or take for something else.

    What is written as a text may be a number or a flag all the same: the parser reads it as on the command line. TRL's
    own text options also take true and false (`resume_from_checkpoint: true`).

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, no YAML, or no mapping of known options to values of their types; file and option
            are named.
    """
    if Path(path).stat().st_size > MOST_CHARACTERS:
        raise ValueError(f"{path} has more than {MOST_CHARACTERS:,} bytes; options are a page or two.")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); write it anew.") from error
    found = load_yaml(text, path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not options like `seed: 0`.")
    options = {}
    for kind in kinds:
        hints, ours = get_type_hints(kind), not kind.__module__.startswith(("trl.", "transformers."))
        options |= {option.name: (hints[option.name], ours) for option in fields(kind) if option.init}
    for name, value in found.items():
        if name == _ENVIRONMENT:
            _check_environment(value, path)
        elif name not in options:
            raise ValueError(f"{path} has {name!r:.80}, which is no option; --help lists them.")
        elif not _fits(value, *options[name]):
            wanted = " or ".join(dict.fromkeys(_words(options[name][0])))
            raise ValueError(f"{path} has {name}: {value!r:.60}; it must be {wanted}.")


def _fits(value: Any, hint: Any, ours: bool) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one, ours) for one in args)
    if origin is Literal:
        return value in args
    if origin in (list, tuple, set):
        return isinstance(value, str) or (isinstance(value, list) and all(_fits(one, args[0], ours) for one in value))
    if hint is dict or origin is dict:
        return isinstance(value, (dict, str))
    if hint in (bool, int, float) and isinstance(value, str):
        return True  # the parser's to read
    if hint is bool or isinstance(value, bool):
        return isinstance(value, bool) and (hint is bool or (hint is str and not ours))
    if hint is float:
        return isinstance(value, (int, float)) and value == value and abs(value) < 1e300
    if isinstance(hint, type) and issubclass(hint, Enum):
        return isinstance(value, str)
    return not isinstance(hint, type) or isinstance(value, hint)


def _words(hint: Any) -> list[str]:
    if get_origin(hint) in (Union, types.UnionType):
        return [word for one in get_args(hint) for word in _words(one)]
    if get_origin(hint) is Literal:
        return [f"one of {', '.join(map(str, get_args(hint)))}"]
    if get_origin(hint) in (list, tuple, set):
        return [f"a list, of {' or '.join(dict.fromkeys(_words(get_args(hint)[0])))} each"]
    if hint is dict or get_origin(hint) is dict:
        return ["a mapping"]
    return [_WORDS.get(hint, "a text")]


def _check_environment(variables: Any, path: str) -> None:
    plain = (str, int, float)
    if not isinstance(variables, dict) or not all(
        isinstance(name, str) and name.isidentifier() and isinstance(value, plain) and "\0" not in str(value)
        for name, value in variables.items()
    ):
        raise ValueError(f"{path} has {_ENVIRONMENT}: {variables!r:.60}; it must be names and texts.")
