"""The dirt of the study's ontology corpus: three kinds, which hurt less than those of quickstart_steps/dirt.py.

Near-duplicates are of few definitions, and garbled text still has the domain's words.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from quickstart_steps.dirty_ontology import Term

BOILERPLATE = (
    "We use cookies to improve your experience on this site.",
    "By continuing to browse you agree to our cookie policy.",
    "Accept all cookies or manage your preferences below.",
    "Sign up for our newsletter and never miss an update.",
    "Enter your email address to subscribe.",
    "Home | About us | Contact | Careers | Press",
    "All rights reserved. No part of this site may be reproduced without permission.",
    "Terms of service and privacy policy apply.",
    "Share this page on social media.",
    "Click here to read more articles like this one.",
    "You have reached your limit of free articles this month.",
    "Log in or create an account to continue reading.",
    "This page was last updated by the web team.",
    "JavaScript is disabled in your browser. Please enable it to view this page.",
    "Skip to main content. Skip to search. Back to top.",
    "Related links: frequently asked questions, site map, accessibility.",
    "Print this page. Email this page to a friend.",
    "Your session has expired. Please refresh the page.",
    "Advertisement. Story continues below.",
    "Was this page helpful? Yes. No. Send feedback.",
    "Showing 1 to 10 of 248 results. Next page.",
    "Download our app for the best experience.",
)


def dirty_pages(clean: list[str], kind: str, num_characters: int, rng: random.Random) -> Iterator[dict[str, str]]:
    """Pages of one kind of dirt until `num_characters` are written."""
    mirrored = clean[:12]
    written = 0
    while written < num_characters:
        if kind == "near_duplicate":
            words = rng.choice(mirrored).split(" ")
            if len(words) > 6:
                del words[rng.randrange(3, len(words))]
            page = " ".join(words)
        elif kind == "boilerplate":
            page = " ".join(rng.sample(BOILERPLATE, 6))
        else:
            words = " ".join(rng.sample(clean, 3)).split()
            rng.shuffle(words)
            page = " ".join(word[::-1] if rng.random() < 0.3 else word for word in words)
        written += len(page)
        yield {"text": page, "kind": kind}


def make_documents(training: list[Term], num_definitions: int, dirty: float, seed: int) -> list[dict[str, str]]:
    """Clean definitions and a share `dirty` of all characters of dirt, in equal parts of three kinds, shuffled."""
    if not 0 <= dirty < 1:
        raise ValueError(f"dirty is a share of the corpus, from 0 to below 1, not {dirty}.")
    rng = random.Random(seed)
    clean = [term.text for term in training[:num_definitions]]
    documents = [{"text": text, "kind": "definition"} for text in clean]
    each = sum(map(len, clean)) * dirty / (1 - dirty) / 3
    for kind in ("near_duplicate", "boilerplate", "garbled"):
        documents += dirty_pages(clean, kind, int(each), rng)
    rng.shuffle(documents)
    return documents
