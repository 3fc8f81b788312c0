"""Fixtures of the tests of training recipes: `pytest_plugins = ["recipe_fixtures"]`."""

import pytest
from recipe_runs import ANSWERS, CHAT_TEMPLATE, DOMAIN, QUESTIONS, TEXTS, TRAINING, write_jsonl
from transformers import AutoTokenizer


@pytest.fixture
def model_dir(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(tiny_model_dir)
    return tiny_model_dir


@pytest.fixture
def corpus(tmp_path):
    return write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in TEXTS])


@pytest.fixture
def common(model_dir, tmp_path):
    domain = write_jsonl(tmp_path / "domain.jsonl", [{"text": text} for text in DOMAIN])
    return TRAINING | {"model_name_or_path": model_dir, "eval_file": domain, "output_dir": str(tmp_path / "run")}


@pytest.fixture
def chats(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    return write_jsonl(tmp_path / "chats.jsonl", rows)
