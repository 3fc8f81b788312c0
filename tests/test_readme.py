"""The README's five snippets, run as they are written, in order: a Hub cache with a tiny model, a Hub on loopback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import LoopbackHub

ROOT = Path(__file__).resolve().parents[1]
WORDS = "fever cough pain heart lung kidney acute chronic the of and in with patients treatment dose risk"


def snippets():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def test_there_are_five_snippets():
    titles = re.findall(r"^\*\*(\w+)\.\*\*", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert titles == ["Score", "Fit", "Select", "Train", "Push"] and len(snippets()) == 5


@pytest.fixture
def place(tmp_path, tiny_model, tiny_tokenizer):
    """A folder with corpus.jsonl and points.jsonl, and a Hub cache where the README's model is the tiny one."""
    from datasets import Dataset

    from hf_ppl_select import PerplexityScorer, chunk_documents
    from hf_ppl_select.landscape.landscape import PerplexityLandscape
    from hf_ppl_select.probes.design import design_probes

    snapshot = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M" / "snapshots" / ("0" * 40)
    tiny_model.save_pretrained(snapshot)
    tiny_tokenizer.save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)

    rng, words = np.random.default_rng(0), WORDS.split()
    # Words of varied rarity, so that chunks differ in perplexity
    texts = [" ".join(rng.choice(words[: rng.integers(2, len(words))], size=150)) for _ in range(150)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    chunks = Dataset.from_dict(
        chunk_documents({"text": texts}, tiny_tokenizer, 128)  # what the first snippet will make
    )
    scored = PerplexityScorer(str(snapshot))(chunks[:])
    points = []
    for probe in design_probes(
        PerplexityLandscape.from_values(scored["perplexity"], scored["num_tokens"]),
        num_runs=8,
        tokens_per_run=8000,
        space="log",
    ):
        for num_tokens in (2000, 4000, 8000):
            loss = 2 + np.exp(2 - 0.2 * np.log(num_tokens) + 0.3 * (probe.mu - 6) ** 2) + rng.normal(0, 0.002)
            moments = {"log_mu": probe.mu, "log_sigma": probe.sigma}
            moments |= {"mu": float(np.exp(probe.mu)), "sigma": float(np.exp(probe.mu) * probe.sigma)}
            points.append({"run": probe.run, **moments, "num_tokens": num_tokens, "loss": float(loss)})
    (tmp_path / "points.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return tmp_path


GO_ONLINE = """
import datasets.config, huggingface_hub.constants
datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = False
if hasattr(huggingface_hub.utils, "reset_sessions"):  # before 1.0 an open session stays offline
    huggingface_hub.utils.reset_sessions()
"""
CHECKS = """
assert set(chunks.column_names) == {"text", "perplexity", "nll_sum", "num_tokens", "num_bytes"}
assert 20_000 - 128 < sum(subset["num_tokens"][:]) <= 20_000
assert 15_000 < sum(row["num_tokens"] for row in stream) < 25_000
assert "general_forgetting" in {key for row in trainer.state.log_history for key in row}
"""


def test_the_snippets_run_as_written(place):
    *offline, push = snippets()
    script = place / "readme.py"
    script.write_text("\n".join([*offline, CHECKS, GO_ONLINE, push]), encoding="utf-8")
    with LoopbackHub() as hub:
        environment = os.environ | {
            "HF_HOME": str(place),
            "HF_HUB_CACHE": str(place / "hub"),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": hub.token,
            "CUDA_VISIBLE_DEVICES": "",
        }
        done = subprocess.run([sys.executable, script], cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        card = hub.file("me/medical-sweet-spot", "README.md").decode()
    assert "best landscape" in done.stdout
    assert "cc-by-4.0" in card and "me/corpus" in card
