"""What a model in memory was loaded from, and whether that is still what its scorer wants. Imports no torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..likelihood.model_identity import folder_stamps, own_revision, resolve_revision

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A model to score with: Hub id or folder, and the revision to ask for; `named`, the resolved one of the latest
    fingerprint, is what it must then be.
    """

    model: str
    revision: str | None
    named: str | None = None


@dataclass
class LoadedFrom:
    """Name and resolved revision of a model in memory, and of a folder the stamps of its files."""

    model: str
    revision: str
    stamps: tuple | None

    def is_current(self, wanted: Wanted) -> bool:
        """Whether it is the one that was named; if none was, the one that the name leads to now."""
        if self.model != wanted.model:
            return False
        stamps, named = _stamps(self.model), wanted.named
        if named is None:
            return stamps in (None, self.stamps) or resolve_revision(self.model) == self.revision
        if stamps != self.stamps and named == self.revision:
            self.stamps = stamps  # said once
            if stamps is not None and resolve_revision(self.model) != self.revision:
                logger.warning("%s has changed; scoring goes on with what was loaded from it.", self.model)
        return named == self.revision


def load_wanted(wanted: Wanted, load: Callable[[str], T]) -> tuple[T, LoadedFrom]:
    """What `load` makes of the resolved revision, and where that is from.

    Raises:
        RuntimeError: the model is another than was named, or has changed while it was loaded.
    """
    stamps = _stamps(wanted.model)
    asked = wanted.revision if wanted.named is None else own_revision(wanted.named)
    found = _check_same(wanted.model, asked, wanted.named)
    loaded = load(found)
    _check_same(wanted.model, own_revision(found), found)
    return loaded, LoadedFrom(wanted.model, found, stamps)


def _check_same(model: str, asked: str | None, expected: str | None) -> str:
    """What the model is now, which must be what is expected."""
    if (found := resolve_revision(model, asked)) != expected and expected is not None:
        raise RuntimeError(
            f"The model {model!r} has changed: {expected} was to score, but now it is {found}. Map again, which "
            "takes it as it is then."
        )
    return found


def _stamps(model: str) -> tuple | None:
    return folder_stamps(model) if os.path.isdir(model) else None
