"""What raw crawls hold besides good text, made from good text by a seed: five kinds of dirt, labelled."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

SITES = ("health", "care", "med", "clinic", "daily", "info", "world", "guide", "news", "open", "best", "my", "the")
ENDINGS = (".com", ".org", ".net", ".info", ".co.uk", ".io")
SENTENCES = (
    "{site} uses cookies to give you the best experience; by staying on {site} you accept them.",
    "Sign in to {site} or create your free account in less than {number} minutes.",
    "Copyright {year} {site}. All rights reserved.",
    "Follow {site} on Facebook, Twitter and Instagram, and join {number},000 readers.",
    "This page was last reviewed on {number}/{day}/{year} by the {site} editorial team.",
    "Home > Topics > Page {number} of {day}00 | Next | Previous | Back to top",
    "Subscribe to the {site} newsletter and get {number} % off your first order.",
    "Advertisement. Your story continues below. Why does {site} show me this ad?",
    "We have updated our privacy policy on {day}.{number}.{year}; read what has changed at {site}/privacy.",
    "Was this page helpful? Yes ({number}) No ({day}). Share it with your friends.",
    "The content on {site} is for information only and does not replace professional advice.",
    "Showing {number} to {day} of {year} results. Sort by: newest, oldest, most relevant.",
    "Download the {site} app for iPhone and Android and never miss an update.",
    "{number} comments. Log in to reply. Report this comment to the {site} moderators.",
)
LOOKS_LIKE = {"m": "rn", "rn": "m", "l": "1", "o": "0", "e": "c", "i": "l", "s": "5", "b": "h", "u": "ii", "g": "q"}


def ocr_noise(text: str, rng: random.Random) -> str:
    """A bad scan: one letter in twelve looks like another, spaces come and go, lines break words."""
    written = []
    for letter in text:
        chance = rng.random()
        if chance < 1 / 12:
            letter = LOOKS_LIKE.get(letter.lower(), rng.choice("abcdefghijklmnopqrstuvwxyz.,'~|"))
        elif chance < 1 / 12 + 0.03:
            letter = "" if letter == " " else letter + rng.choice((" ", "-\n", " "))
        written.append(letter)
    return "".join(written)


def near_duplicate(text: str, rng: random.Random) -> str:
    """A mirror's copy: one word in forty is left out, doubled or in capitals."""
    words = text.split(" ")
    for _ in range(max(1, len(words) // 40)):
        place = rng.randrange(len(words))
        words[place] = rng.choice(("", f"{words[place]} {words[place]}", words[place].upper()))
    return " ".join(words)


def boilerplate(length: int, rng: random.Random) -> str:
    """What stands around the text of a site, each time of another site, for about `length` characters."""
    site = "".join(rng.sample(SITES, 2)) + rng.choice(ENDINGS)
    lines: list[str] = []
    while sum(map(len, lines)) < length:
        numbers = {"number": rng.randint(2, 28), "day": rng.randint(1, 30), "year": rng.randint(1998, 2025)}
        lines.append(rng.choice(SENTENCES).format(site=site, **numbers))
    return "\n".join(lines)


def code_table(text: str, length: int, rng: random.Random) -> str:
    """Rows of codes, of words of a text and of numbers, as billing tables have them."""
    words = [word for word in text.split() if word.isalpha()] or ["none"]
    lines: list[str] = []
    while sum(map(len, lines)) < length:
        code = f"{rng.choice('ABCDEFGHJKLMNQRSTZ')}{rng.randint(0, 99):02d}.{rng.randint(0, 9)}"
        old = f"{rng.randint(1, 999):03d}.{rng.randint(0, 99):02d}"
        lines.append(f"{code} | {old} | {' '.join(rng.sample(words, min(2, len(words))))} | {rng.randint(0, 9999)}")
    return "\n".join(lines)


def add_dirt(
    clean: Sequence[str], off_domain: Sequence[str], share: float, rng: random.Random
) -> list[dict[str, str]]:
    """The clean texts, and a share of all characters of dirt, in equal parts of five kinds: rows of text and kind.

    Args:
        clean: texts of the domain, kind `clean`.
        off_domain: texts of another one.
        share: of the characters, from 0 to below 1.
        rng: decides everything.
    """
    mirrored = rng.sample(clean, max(1, len(clean) // 50))
    makers: dict[str, Callable[[], str]] = {
        "ocr_noise": lambda: ocr_noise(rng.choice(clean), rng),
        "boilerplate": lambda: boilerplate(rng.randint(300, 1500), rng),
        "near_duplicate": lambda: near_duplicate(rng.choice(mirrored), rng),
        "off_domain": lambda: rng.choice(off_domain),
        "code_table": lambda: code_table(rng.choice(clean), rng.randint(300, 1500), rng),
    }
    rows = [{"text": text, "kind": "clean"} for text in clean]
    each = sum(map(len, clean)) * share / (1 - share) / len(makers)
    for kind, make in makers.items():
        rows += ({"text": text, "kind": kind} for text in _until(each, make))
    rng.shuffle(rows)
    return rows


def _until(length: float, make: Callable[[], str]) -> Iterator[str]:
    written = 0
    while written < length:
        text = make()
        written += len(text)
        yield text
