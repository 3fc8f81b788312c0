"""Four sources of unlike size and perplexity, and a law of them."""

import numpy as np
from datasets import Dataset

from hf_ppl_select.law.fit import fit_scaling_law

CHUNK = 100
SOURCES = ("gard", "ghr", "nih", "web")


def corpus(num_chunks=4000, *, ragged=False, seed=0):
    """Four sources of unlike size and perplexity."""
    rng = np.random.default_rng(seed)
    source = rng.choice(4, num_chunks, p=[0.1, 0.2, 0.3, 0.4])
    perplexity = np.exp(rng.normal(2.7 + 0.15 * source, 0.4))
    tokens = rng.integers(20, 180, num_chunks) if ragged else np.full(num_chunks, CHUNK)
    text = [f"chunk {i}" for i in range(num_chunks)]
    return {
        "text": text,
        "perplexity": perplexity,
        "num_tokens": tokens,
        "source": [SOURCES[s] for s in source],
    }


def general(num_rows=500, num_tokens=50):
    return Dataset.from_dict(
        {
            "source": ["wiki"] * num_rows,
            "text": [f"general {i}" for i in range(num_rows)],
            "perplexity": np.linspace(5, 50, num_rows),
            "num_tokens": [num_tokens] * num_rows,
            "extra": [0] * num_rows,
        }
    )


def make_law():
    """A law whose loss falls with a lower mean nll down to 2, in log space."""
    rng = np.random.default_rng(0)
    points = []
    for run, mu in enumerate((8, 12, 18, 26, 40)):
        m = np.log(mu)
        for num_tokens in (8_000, 16_000, 32_000):
            loss = 1.5 + np.exp(2.0 - 0.15 * np.log(num_tokens) - 1.2 * m + 0.18 * m**2) + rng.normal(0, 1e-3)
            moments = {"mu": mu, "sigma": 0.3 * mu, "log_mu": m, "log_sigma": 0.3}
            points.append({"run": f"r{run}", **moments, "num_tokens": num_tokens, "loss": loss})
    return fit_scaling_law(points, form="log_parabola", space="log", model="tiny")
