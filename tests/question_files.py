"""Files of benchmark questions for tests."""

import json

OWN_ROWS = [
    {"question": "What is the capital of France?", "choices": ["Rome", "Paris", "Bern"], "answer": 1},
    {"question": "Which is a letter?", "choices": ["nine", "é"], "answer": "é"},
    {"question": "Which is a number? ", "choices": ["five", "shortness of breath", "fever", "-"], "answer": "A"},
    {"question": "What is the capital of France now?", "choices": ["Rome", "Paris"], "answer": "1"},
]
MEDQA = {
    "id": "1",
    "sent1": "Which?",
    "sent2": "",
    "ending0": "a",
    "ending1": "b",
    "ending2": "c",
    "ending3": "d",
    "label": 2,
}


def write_jsonl(path, rows):
    """Write them and return the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
