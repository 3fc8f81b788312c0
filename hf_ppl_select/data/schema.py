"""What a file may hold, as plain Python: `{"name": Text(), "loss?": Number(0), "points": [{...}]}`.

A dict is a record with exactly these fields, of which those with `?` may be missing; a list of one schema is a list of
any length; a tuple says one of these; None is null. The rest are the classes below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Number:
    """A finite number from `low` to `high`; `whole` ones only, if it says so."""

    low: float = -1e300
    high: float = 1e300
    whole: bool = False

    def __str__(self) -> str:
        within = "" if (self.low, self.high) == (-1e300, 1e300) else f" from {self.low:g} to {self.high:g}"
        return f"a {'whole' if self.whole else 'finite'} number{within}"

    def fits(self, value: Any) -> bool:
        """Without bool, which Python counts as a number."""
        is_number = isinstance(value, Integral if self.whole else Real) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high  # not of NaN; of 10^400, too


@dataclass(frozen=True)
class Text:
    """A text: one of some, if any are named."""

    one_of: tuple[str, ...] = ()
    longest: int = 10_000

    def __str__(self) -> str:
        return f"one of {', '.join(self.one_of)}" if self.one_of else "a text"

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and len(value) <= self.longest and (not self.one_of or value in self.one_of)


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def __str__(self) -> str:
        return "true or false"

    def fits(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Numbers:
    """A list of numbers, checked at once: long ones take no time."""

    each: Number = Number()
    size: int | None = None

    def __str__(self) -> str:
        return f"a list of {'' if self.size is None else f'{self.size} times '}{self.each}"

    def fits(self, value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or (self.size is not None and len(value) != self.size):
            return False
        if not all(type(number) in (int, float) for number in value):
            return all(map(self.each.fits, value))
        if not value:
            return True
        if self.each.whole and not all(type(number) is int for number in value):
            return False
        return bool(self.each.low <= min(value) and max(value) <= self.each.high and not any(x != x for x in value))


@dataclass(frozen=True)
class Names:
    """A mapping from texts to values of one schema."""

    of: Any

    def __str__(self) -> str:
        return f"a mapping of names to {words(self.of)}"


@dataclass(frozen=True)
class Anything:
    """Whatever JSON can hold."""

    def __str__(self) -> str:
        return "anything"

    def fits(self, value: Any) -> bool:
        return True


def maybe(schema: Any) -> tuple:
    """That, or null."""
    return (schema, None)


def words(schema: Any) -> str:
    """How an error calls what is wanted."""
    if schema is None:
        return "null"
    if isinstance(schema, dict):
        return f"a record of {', '.join(name.rstrip('?') for name in schema)}"
    if isinstance(schema, list):
        return f"a list of {words(schema[0])}"
    if isinstance(schema, tuple):
        return " or ".join(map(words, schema))
    return str(schema)


def check(value: Any, schema: Any, where: str) -> None:
    """Compare what a file held with its schema.

    Args:
        value: as JSON gives it.
        schema: see above.
        where: the file, for the error.

    Raises:
        ValueError: naming the file, the field, what it holds and what it must be.
    """
    if problem := _problem(value, schema, ""):
        raise ValueError(f"{where} {problem[1]}.")


def checked(schema: Any) -> Callable[[Any, str], Any]:
    """A reader for [`~hf_ppl_select.data.saving.load_json`]: the payload, if it fits."""

    def read(value: Any, where: str) -> Any:
        check(value, schema, where)
        return value

    return read


Problem = tuple[str, str] | None  # the first field that does not fit, and what is wrong with it


def _problem(value: Any, schema: Any, field: str) -> Problem:
    if isinstance(schema, tuple):
        found = [_problem(value, one, field) for one in schema]
        if None in found:
            return None
        deeper = [problem for problem in found if problem[0] != field]  # it is of that kind, and wrong inside
        return deeper[0] if len(deeper) == 1 else _other(value, schema, field)
    if isinstance(schema, dict):
        return _record_problem(value, schema, field)
    if isinstance(schema, list):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return _other(value, schema, field)
        parts = ((one, schema[0], f"{field}[{i}]") for i, one in enumerate(value))
    elif isinstance(schema, Names):
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            return _other(value, schema, field)
        parts = ((one, schema.of, _inside(field, name)) for name, one in value.items())
    else:
        fits = value is None if schema is None else schema.fits(value)
        return None if fits else _other(value, schema, field)
    return next(filter(None, (_problem(*part) for part in parts)), None)


def _record_problem(value: Any, schema: dict, field: str) -> Problem:
    if not isinstance(value, Mapping):
        return _other(value, schema, field)
    names = {name.rstrip("?"): name for name in schema}
    if unknown := [name for name in value if name not in names]:
        inside = _inside(field, str(unknown[0])[:80])
        return inside, f"has {inside}, a field that is not known"
    if missing := [_inside(field, name) for name, key in names.items() if name == key and name not in value]:
        return missing[0], f"lacks {', '.join(missing)}"
    parts = ((value[name], schema[key], _inside(field, name)) for name, key in names.items() if name in value)
    return next(filter(None, (_problem(*part) for part in parts)), None)


def _other(value: Any, schema: Any, field: str) -> Problem:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return field, f"{'has ' + field if field else 'is'} {shown}; it must be {words(schema)}"


def _inside(field: str, name: str) -> str:
    return f"{field}.{name[:80]}" if field else name[:80]
