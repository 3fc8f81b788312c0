"""Sequences to score, and packing in float32."""

import numpy as np
import pytest

from hf_ppl_select.likelihood.engine import LikelihoodEngine
from tests.likelihood.tiny_architectures import VOCAB


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length).tolist() for length in (2, 3, 40, 17, 17, 64, 5, 1, 33)]


@pytest.fixture
def packing(monkeypatch):
    """Pack also in float32, where exactness shows."""
    monkeypatch.setattr(LikelihoodEngine, "_packing_pays", lambda self: True)
