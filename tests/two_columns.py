"""A corpus with two score columns, and law points of probes that spread in both."""

import numpy as np

from hf_ppl_select.landscape.maxent import tilted

RATIO = "perplexity_ratio"
BOTH = ("perplexity", RATIO)


def corpus(num_chunks=6000, junk=1 / 6, seed=0):
    """Columns of a dataset: ln of both scores correlates, chunks are ragged, and a share is junk (`is_junk`)."""
    rng = np.random.default_rng(seed)
    m = rng.normal(3.0, 0.55, num_chunks)
    x = np.stack([np.maximum(m, 0.01), 0.25 + 0.35 * (m - 3) + rng.normal(0, 0.2, num_chunks)], axis=1)
    is_junk = rng.random(num_chunks) < junk
    x[is_junk] = rng.normal([8.1, 0.02], [0.5, 0.15], (is_junk.sum(), 2))
    return {
        "perplexity": np.exp(x[:, 0]),
        RATIO: np.exp(x[:, 1]),
        "num_tokens": rng.integers(60, 513, num_chunks),
        "is_junk": is_junk,
        "source": [f"source {k}" for k in rng.integers(0, 3, num_chunks)],
        "text": [f"chunk {i}" for i in range(num_chunks)],
    }


def valley(mu, sigma, num_tokens):
    """A loss that depends on both means, least at m = 3.2 and 0.3."""
    far = 0.8 * (mu[..., 0] - 3.2) ** 2 + (mu[..., 1] - 0.3) ** 2
    return 1.5 + 4.0 * np.exp(far) / num_tokens**0.2


def slope(mu, sigma, num_tokens):
    """A loss that depends on all four moments, and falls to the edge of what there is."""
    steep = 0.15 * mu[..., 0] - 0.1 * np.log(sigma[..., 0]) - 0.5 * mu[..., 1] + 0.2 * np.log(sigma[..., 1])
    return 1.5 + 4.0 * np.exp(steep) / num_tokens**0.2


def spread_moments(landscape, num_tokens, number):
    """(mu, sigma) `[number, 2]` of subsets without outliers, far from each other."""
    rng = np.random.default_rng(1)
    lambdas = rng.standard_normal((400, 4))
    lambdas *= np.sinh(2.5 * rng.random((400, 1))) / np.linalg.norm(lambdas, axis=1, keepdims=True)
    mu, sigma = tilted(landscape.at_most(2000).cells(outliers=False), lambdas, num_tokens)
    usual = (sigma > 0.08).all(axis=1)
    mu, sigma = mu[usual], sigma[usual]
    place = np.concatenate([mu, np.log(sigma)], axis=1)
    place = (place - place.mean(0)) / place.std(0)
    chosen = [int((place**2).sum(1).argmin())]
    while len(chosen) < number:
        chosen.append(int(np.linalg.norm(place[:, None] - place[chosen], axis=2).min(1).argmax()))
    return mu[chosen], sigma[chosen]


def law_points(landscape, loss, num_tokens, *, noise=0.001, number=16, seed=0):
    """Rows for a fit: probes at such moments, each at a quarter, a half and all of the tokens."""
    rng, rows = np.random.default_rng(seed), []
    for i, (mu, sigma) in enumerate(zip(*spread_moments(landscape, num_tokens, number))):
        for D in (num_tokens / 4, num_tokens / 2, num_tokens):
            row = {"run": f"run {i}", "num_tokens": D, "loss": loss(mu, sigma, D) + rng.normal(0, noise)}
            for end, m, s in zip(("", f"_{RATIO}"), mu.tolist(), sigma.tolist()):
                row |= {f"log_mu{end}": m, f"log_sigma{end}": s}
                row |= {f"mu{end}": np.exp(m + s**2 / 2), f"sigma{end}": np.exp(m) * s}
            rows.append(row)
    return rows
