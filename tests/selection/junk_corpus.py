"""Perplexities with a far tail of junk, and a law of them."""

import numpy as np
import pytest

from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.law.fit import fit_scaling_law

CHUNK = 128


def perplexities(num_chunks=5000, seed=0, junk=0.15):
    """A log-normal mixture with a far tail of junk."""
    rng = np.random.default_rng(seed)
    nll = np.where(rng.random(num_chunks) < 0.7, rng.normal(3.0, 0.4, num_chunks), rng.normal(2.5, 0.3, num_chunks))
    return np.exp(np.where(rng.random(num_chunks) < junk, rng.normal(8.1, 0.9, num_chunks), nll))


def lengths(num_chunks, ragged, seed=3):
    if not ragged:
        return np.full(num_chunks, CHUNK)
    return np.clip(np.random.default_rng(seed).lognormal(4.5, 0.7, num_chunks), 5, 512).astype(int)


def corpus(num_chunks=5000, *, junk=0.15, ragged=False):
    perplexity = perplexities(num_chunks, junk=junk)
    text = [f"chunk {i}" for i in range(num_chunks)]
    return {"perplexity": perplexity, "num_tokens": lengths(num_chunks, ragged), "text": text}


def make_law():
    """A law whose best mean perplexity is 20, fitted to probes around the corpus and to the corpus itself."""
    own = PerplexityLandscape.from_values(perplexities())
    moments = [(mu, sigma) for mu in (9.0, 14.0, 20.0, 27.0, 34.0) for sigma in (4.0, 9.0)] + [own.moments("linear")]
    points = []
    for i, (mu, sigma) in enumerate(moments):
        for num_tokens in (8_000, 32_000, 128_000):
            height = 0.3 * (np.log(mu) - np.log(20)) ** 2 - 0.02 * np.log(sigma)
            loss = 1.5 + 4.0 * num_tokens**-0.15 * np.exp(height)
            points.append({"run": f"run-{i}", "mu": mu, "sigma": sigma, "num_tokens": num_tokens, "loss": loss})
    with pytest.warns(UserWarning, match="heavy-tailed"):  # the corpus itself, which is junk in part
        return fit_scaling_law(points, form="log_parabola", space="linear")
