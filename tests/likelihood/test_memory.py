"""Memory of the engine: batches halved when it runs out, long texts over a large vocabulary, what a GPU has free."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

from hf_ppl_select.likelihood.engine import LikelihoodEngine
from hf_ppl_select.likelihood.models import default_batch_tokens
from tests.likelihood.tiny_architectures import (
    SMALL,
    all_but_first,
    make_model,
    plain_nll,
)


def test_out_of_memory_halves_the_batch_and_goes_on(sequences, monkeypatch, caplog):
    model = make_model("LlamaConfig", SMALL)
    expected = plain_nll(model, sequences)
    engine = LikelihoodEngine(model, max_batch_tokens=200)
    sequences, expected = sequences * 3, np.tile(expected, 3)  # batches of equals: padding does not end them
    run, failed = LikelihoodEngine.outputs, []

    def small_memory(self, input_ids, **inputs):
        if input_ids.numel() > 70:
            failed.append(input_ids.numel())
            raise torch.OutOfMemoryError("out of memory")
        return run(self, input_ids, **inputs)

    monkeypatch.setattr(LikelihoodEngine, "outputs", small_memory)
    with caplog.at_level(logging.WARNING):
        nll = engine.nll(sequences, all_but_first(sequences))
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    assert failed and engine.max_batch_tokens <= 100 and "Out of memory: going on with batches of" in caplog.text
    assert len(failed) == caplog.text.count("Out of memory") <= 3  # what was too much is not tried again
    with pytest.raises(torch.OutOfMemoryError):  # one sequence cannot be halved
        engine.nll([list(range(100))], [range(1, 100)])


MEMORY_OF_LONG_TEXTS = """
import resource, torch, transformers
from hf_ppl_select.likelihood.engine import LikelihoodEngine

torch.set_num_threads(4)  # texts are scored side by side
config = transformers.LlamaConfig(
    vocab_size=131_072, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=8192,
)
model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.{dtype}).eval()
engine = LikelihoodEngine(model)
engine.nll([[5, 6]], [[1]])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for length in (4096, 700):
    engine.nll([[i % 1000 for i in range(length)]] * 4, [range(1, length)] * 4)
assert engine.num_workers == 4
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_large_vocabulary_and_long_texts_take_little_memory(dtype):
    script = MEMORY_OF_LONG_TEXTS.replace("{dtype}", dtype)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 1.0  # GiB; the full logits of the longer text would take 2, of all four 8


def test_batches_on_a_gpu_fit_into_its_free_memory(monkeypatch):
    model = make_model("LlamaConfig", SMALL)
    assert default_batch_tokens(model, torch.device("cpu")) == 1024
    for free, tokens in ((2**20, 1024), (2**26, 2**25 // 4 // (16 * 32 + 4 * 48)), (2**40, 32768)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2**40))
        assert default_batch_tokens(model, torch.device("cuda")) == tokens
