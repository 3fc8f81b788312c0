"""What tests ask of a card."""

import re


def assert_card_is_clean(text):
    for trace in (r"\bNone\b", r"\bnan\b", r"\binf\b", r"\{\{", r"\{%", r"np\.float", r"\|\s*\|\s*\|"):
        found = re.search(trace, text.replace("|  | chunks", ""))
        assert not found, text[max(0, found.start() - 80) : found.end() + 80]


def section(card, title):
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]
