"""Nothing that looks like a credential is written or echoed: tokens, keys, passwords in URLs."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "<hidden>"
_PATTERNS = (
    # What the Hub, GitHub, OpenAI, Slack, AWS, Google, Weights & Biases give out, by its beginning
    r"\b(?:hf|api_org)_(?:[A-Za-z0-9]{16,}|(?=[a-z0-9]*[A-Z])(?=[A-Za-z]*[0-9])[A-Za-z0-9]{8,})",
    r"\b(?:gh[opsur]_|github_pat_|glpat-|sk-|xox[abprs]-|wandb_v1_)[\w-]{16,}",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    r"\bAIza[\w-]{35}",
    r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
    # Of a URL: the name and password before its host; what it is asked with
    r"(?:(?<=://)|(?<=:/)(?!/))[^/\s@'\"\\]+(?=@)",  # paths have lost one slash
    r"(?<=[?&;])(?i:[\w-]*(?:token|secret|password|signature|api-?_?key)|sig|pwd)=[^&\s'\"\\]+",
    r"\b(?i:bearer)\s+[\w.~+/-]{8,}=*",
)
_CREDENTIAL = re.compile("|".join(_PATTERNS))
_NAMES = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)$")  # of environment variables
_SHORTEST = 8  # a value of fewer characters is found in ordinary words


_MARK = re.compile(r"[_:=-]|AKIA|ASIA|AIza|eyJ|earer", re.IGNORECASE)  # one of these is in each


def hide_credentials(text: str) -> str:
    """`text` with `<hidden>` where something looks like a credential, or is one of this process's environment."""
    for value in _of_environment():
        text = text.replace(value, HIDDEN)
    return _CREDENTIAL.sub(HIDDEN, text) if _MARK.search(text) else text


def without_credentials(value: Any) -> Any:
    """[`hide_credentials`] of every text in what JSON can hold."""
    if isinstance(value, str):
        return hide_credentials(value) if len(value) >= _SHORTEST else value
    if isinstance(value, dict):
        return {without_credentials(name): without_credentials(inside) for name, inside in value.items()}
    if isinstance(value, (list, tuple)):
        texts = not all(type(one) in (int, float) for one in value)
        return [without_credentials(one) for one in value] if texts else list(value)
    return value


def _of_environment() -> list[str]:
    names = (name for name in os.environ if _NAMES.search(name.upper()))
    return [value for name in names if len(value := os.environ[name]) >= _SHORTEST]
