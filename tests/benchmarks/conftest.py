"""Questions of one's own in a file."""

import pytest
from question_files import OWN_ROWS, write_jsonl


@pytest.fixture
def own_file(tmp_path):
    return write_jsonl(tmp_path / "mine.jsonl", OWN_ROWS)
