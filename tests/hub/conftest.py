"""A law, and the client pointed at a Hub on the loopback address."""

import huggingface_hub
import numpy as np
import pytest
from datasets import Dataset, config
from faulty_hub import FaultyHub
from huggingface_hub import constants
from loopback_hub import LoopbackHub

from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.selection.select import plan_selection

TOKEN = "hf_ThisIsTheRightOne"
MODEL = "HuggingFaceTB/SmolLM2-135M"


def make_points(num_runs=8):
    """Points of a known law with a little noise: some runs of 3 points."""
    rng = np.random.default_rng(0)
    points = []
    for run, mu in enumerate(np.linspace(8, 40, num_runs)):
        m, s = float(np.log(mu)), float(0.1 + 0.05 * (run % 4))
        for num_tokens in (8_000, 16_000, 32_000):
            loss = 1.5 + np.exp(2.0 - 0.15 * np.log(num_tokens) - 1.2 * m + 0.18 * m**2) + rng.normal(0, 2e-3)
            moments = {"mu": mu, "sigma": mu * s, "log_mu": m, "log_sigma": s}
            points.append({"run": f"r{run}", **moments, "num_tokens": num_tokens, "loss": loss})
    return points


@pytest.fixture(scope="session")
def law_points():
    return make_points


@pytest.fixture(scope="session")
def law():
    origin = {"model": MODEL, "model_revision": "93efa2f", "corpus": "me/medical@0a1b"}
    return fit_scaling_law(make_points(), form="log_parabola", space="log", **origin)


@pytest.fixture(scope="module")
def corpus():
    """1,500 scored chunks of 100 tokens; the first three are empty texts."""
    perplexity = np.exp(np.random.default_rng(1).normal(3.0, 0.4, 1500)).tolist()
    texts = [f'chunk {i} | says “ünïcode”, 中文, "quotes"\nand lines' for i in range(1500)]
    rows = {"text": ["", "", "", *texts[3:]], "perplexity": [None, None, None, *perplexity[3:]]}
    return Dataset.from_dict({**rows, "num_tokens": [0, 0, 0, *[100] * 1497]})


@pytest.fixture(scope="module")
def landscape(corpus):
    return PerplexityLandscape.from_dataset(corpus, model=MODEL)


@pytest.fixture(scope="module")
def selection(corpus, law):
    return plan_selection(corpus, law=law, num_tokens=20_000, seed=3)


@pytest.fixture(scope="module")
def subset(corpus, selection):
    return corpus.select(selection.indices)


@pytest.fixture
def use_hub(monkeypatch, tmp_path):
    """Point the client, which read the environment when it was imported, at an endpoint."""

    def use(endpoint, token):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        url = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        before_1_0 = "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE"
        monkeypatch.setattr(before_1_0, url, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        if hasattr(huggingface_hub.utils, "reset_sessions"):  # before 1.0 an open session stays offline
            huggingface_hub.utils.reset_sessions()
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # of another endpoint
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint)  # by which transformers 4 pushes
        monkeypatch.setattr(config, "HF_ENDPOINT", endpoint)
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)

    return use


class Waits:
    """`time` of the client and of our retries: nobody waits, and how long one would have is added up."""

    def __init__(self):
        self.seconds = []

    def sleep(self, seconds):
        self.seconds.append(seconds)


@pytest.fixture
def waits(monkeypatch):
    """Seconds that a push would have waited before it asked again."""
    waits = Waits()
    for module in ("huggingface_hub.utils._http", "hf_ppl_select.hub.retries", "hf_ppl_select.hub.one_commit"):
        monkeypatch.setattr(f"{module}.time", waits)
    return waits.seconds


@pytest.fixture
def hub(use_hub, waits):
    with LoopbackHub(token=TOKEN) as hub:
        use_hub(hub.endpoint, TOKEN)
        yield hub


@pytest.fixture
def faulty_hub(use_hub, waits, monkeypatch):
    monkeypatch.setattr("hf_ppl_select.hub.retries.LONGEST_SILENCE", 0.2)
    for module in ("repository", "one_commit"):
        monkeypatch.setattr(f"hf_ppl_select.hub.{module}.HUB_TIMEOUT", 0.2)
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.2)
    with FaultyHub(token=TOKEN) as hub:
        use_hub(hub.endpoint, TOKEN)
        yield hub
