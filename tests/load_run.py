"""A process of its own that scores a file of texts by `dataset.map`, beside others that do the same (test_load.py)."""

import json
import sys
from pathlib import Path

from datasets import load_dataset

from hf_ppl_select import PerplexityScorer

if __name__ == "__main__":
    corpus, model, result = sys.argv[1:]
    rows = load_dataset("json", data_files=corpus, split="train")
    scored = rows.map(PerplexityScorer(model, device="cpu"), batched=True, batch_size=8)
    found = {"perplexity": scored["perplexity"][:], "num_tokens": scored["num_tokens"][:], "text": scored["text"][:]}
    Path(result).write_text(json.dumps(found | {"files": [one["filename"] for one in scored.cache_files]}))
