import numpy as np
import pytest

from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.probes.design import design_probes, prefix_points, probe_order
from hf_ppl_select.selection.select import plan_selection

CHUNK = 128


def corpus(num_chunks=6000, junk=0.15, seed=0):
    rng = np.random.default_rng(seed)
    nll = np.where(rng.random(num_chunks) < 0.7, rng.normal(3.0, 0.4, num_chunks), rng.normal(2.5, 0.3, num_chunks))
    perplexity = np.exp(np.where(rng.random(num_chunks) < junk, rng.normal(8.1, 0.9, num_chunks), nll))
    return perplexity, np.full(num_chunks, CHUNK)


def design(perplexity, tokens, **options):
    return design_probes(PerplexityLandscape.from_values(perplexity, tokens), **options)


@pytest.mark.parametrize("space", ["log", "linear"])
@pytest.mark.parametrize("junk", [0.0, 0.15])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
@pytest.mark.filterwarnings("error")
def test_every_probe_can_be_selected(space, junk, share):
    perplexity, tokens = corpus(junk=junk)
    budget = share * tokens.sum()
    probes = design_probes(
        PerplexityLandscape.from_values(perplexity, tokens), num_runs=10, tokens_per_run=budget, space=space
    )
    assert len({(probe.mu, probe.sigma) for probe in probes}) == 10
    columns = {"perplexity": perplexity, "num_tokens": tokens}
    prefix = "log_" if space == "log" else ""
    for probe in probes[1:]:
        plan = plan_selection(columns, target=(probe.mu, probe.sigma), space=probe.space, num_tokens=budget)
        bar = max(0.01, plan.num_chunks**-0.5)  # one percent, or a random draw's error
        assert plan.maxent.reached
        assert plan.achieved[f"{prefix}mu"] == pytest.approx(probe.mu, abs=bar * probe.sigma)
        assert plan.achieved[f"{prefix}sigma"] == pytest.approx(probe.sigma, rel=bar)


def test_the_first_probe_is_random_and_names_are_counted():
    perplexity, tokens = corpus()
    probes = design(perplexity, tokens, num_runs=4, tokens_per_run=50_000)
    assert [probe.run for probe in probes] == ["random", "probe-00", "probe-01", "probe-02"]
    assert [probe.strategy for probe in probes] == ["random", "maxent", "maxent", "maxent"]
    own = PerplexityLandscape.from_values(perplexity, tokens)
    assert (probes[0].mu, probes[0].sigma) == own.moments("log")
    assert design(perplexity, tokens, num_runs=1, tokens_per_run=50_000) == probes[:1]


def test_probes_are_deterministic_and_earlier_ones_stay_when_more_are_asked():
    perplexity, tokens = corpus()
    few = design(perplexity, tokens, num_runs=5, tokens_per_run=50_000, seed=3)
    many = design_probes(
        PerplexityLandscape.from_values(perplexity, tokens), num_runs=9, tokens_per_run=50_000, seed=3
    )
    assert many[:5] == few
    assert design(perplexity, tokens, num_runs=5, tokens_per_run=50_000, seed=4)[1:] != few[1:]


def test_probes_spread_and_keep_clear_of_junk():
    perplexity, tokens = corpus()
    probes = design(perplexity, tokens, num_runs=12, tokens_per_run=50_000)[1:]
    points = np.array([(probe.mu, probe.sigma) for probe in probes])
    clean = np.log(perplexity[perplexity < 300])
    assert points[:, 0].max() < np.quantile(clean, 0.99) and points[:, 1].max() < 1.2 * clean.std()
    assert np.ptp(points[:, 0]) > 2 * clean.std() and np.ptp(points[:, 1]) > 0.5 * clean.std()
    scaled = (points - points.min(0)) / np.ptp(points, axis=0)
    distance = np.hypot(*(scaled[:, None] - scaled[None]).T) + 9 * np.eye(len(points))
    assert distance.min() > 0.12
    assert np.linalg.matrix_rank(np.stack([np.ones(11), *points.T, points[:, 0] ** 2, np.log(points[:, 1])])) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_runs": 0}, "at least 1 probe"),
        ({"tokens_per_run": 0}, "above 0"),
        ({"tokens_per_run": 10**9}, "more than the"),
        ({"tokens_per_run": 6000 * CHUNK}, "most of the corpus"),
        ({"space": "cubic"}, "space must be"),
    ],
)
def test_bad_requests(options, message):
    perplexity, tokens = corpus()
    arguments = {"num_runs": 5, "tokens_per_run": 50_000, **options}
    with pytest.raises(ValueError, match=message):
        design(perplexity, tokens, **arguments)


def test_a_corpus_of_one_perplexity_has_nothing_to_probe():
    with pytest.raises(ValueError, match="nothing to probe"):
        design_probes(
            PerplexityLandscape.from_values(np.full(100, 20.0), np.full(100, 10)), num_runs=3, tokens_per_run=100
        )


def test_what_design_designs_of_ragged_chunks_can_be_selected():
    """Documents kept apart: 10 to 128 tokens, and a spread of nll that one-sided lengths make hard to reach."""
    rng = np.random.default_rng(0)
    for seed in range(4):
        nll = rng.normal(4.07, 1.95, 3100).clip(0.05)
        tokens = np.clip(rng.integers(10, 129, 3100) - 12 * seed * (nll - 4.07), 10, 128).astype(int)
        landscape = PerplexityLandscape.from_values(np.exp(nll), tokens)
        probes = design_probes(landscape, num_runs=8, tokens_per_run=16_384, seed=seed)
        assert len({(probe.mu, probe.sigma) for probe in probes}) == 8
        for probe in probes[1:]:
            target = {"target": (probe.mu, probe.sigma), "space": probe.space}
            plan = plan_selection({"perplexity": np.exp(nll), "num_tokens": tokens}, num_tokens=16_384, **target)
            assert 0 <= 16_384 - plan.num_tokens < 128
            assert plan.achieved["log_mu"] == pytest.approx(probe.mu, abs=probe.sigma * plan.num_chunks**-0.5)
            assert plan.achieved["log_sigma"] == pytest.approx(probe.sigma, rel=plan.num_chunks**-0.5)


def test_prefixes_of_an_ordered_probe_share_its_landscape():
    perplexity, _ = corpus(512)
    nll = np.log(perplexity)
    order = probe_order(perplexity, seed=1)
    assert sorted(order.tolist()) == list(range(512))
    assert np.array_equal(order, probe_order(perplexity, seed=1))
    assert not np.array_equal(order, probe_order(perplexity, seed=2))
    shuffles = [np.random.default_rng(seed).permutation(512) for seed in range(20)]
    for length in (64, 128, 256):
        off = abs(nll[order[:length]].mean() - nll.mean())
        assert off < 0.08 * nll.std()
        assert off < np.median([abs(nll[s[:length]].mean() - nll.mean()) for s in shuffles])


@pytest.mark.parametrize("number", [48, 96])
def test_a_quarter_of_a_short_run_is_like_the_whole(number):
    """Shuffled in stretches of 64 rows, a run of 48 chunks would be one shuffle."""
    off, shuffled = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        nll = rng.normal(3.0, 0.5, number)
        for order, found in ((probe_order(np.exp(nll), seed), off), (rng.permutation(number), shuffled)):
            quarter = nll[order[: number // 4]]
            found.append((abs(quarter.mean() - nll.mean()), abs(quarter.std() - nll.std())))
    off, shuffled = np.mean(off, axis=0), np.mean(shuffled, axis=0)
    assert off[0] < 0.5 * shuffled[0] and off[1] < 0.85 * shuffled[1]


def test_probe_order_of_few_rows():
    assert probe_order([], seed=0).tolist() == []
    assert probe_order([3.0], seed=0).tolist() == [0]


def test_prefix_points():
    perplexity = np.array([10.0, 20.0, 30.0, 40.0])
    tokens = [100, 100, 50, 100]
    scores = {"perplexity": perplexity, "ratio": perplexity / 20}
    points = prefix_points(scores, tokens, [200, 300, 350, 400])
    assert [point["num_tokens"] for point in points] == [200, 250, 350, 350]
    assert [point["num_chunks"] for point in points] == [2, 3, 4, 4]
    assert points[0]["mu"] == 15.0 and points[0]["sigma"] == 5.0
    assert points[0]["mu_ratio"] == 0.75 and points[0]["log_mu_ratio"] == pytest.approx(np.log([0.5, 1.0]).mean())
    assert points[1]["log_mu"] == pytest.approx(np.log([10, 20, 30]).mean())
    assert points[1]["log_sigma"] == pytest.approx(np.log([10, 20, 30]).std())
    assert all(type(value) in (int, float) for point in points for value in point.values())
    for rung in (99, 450):
        with pytest.raises(ValueError, match="outside the run"):
            prefix_points(scores, tokens, [rung])


def test_probes_fill_the_plane_as_quantile_bands_do_not():
    """How far the farthest reachable landscape is from a probe: of bands, one spread at each mean is never probed."""
    perplexity, tokens = corpus(junk=0.0)
    budget = 0.05 * tokens.sum()
    probes = design(perplexity, tokens, num_runs=10, tokens_per_run=budget)
    nll = np.sort(np.log(perplexity))
    size = int(0.05 * len(nll))
    starts = np.linspace(0, len(nll) - size, 9).astype(int)
    bands = np.array([(nll[s : s + size].mean(), nll[s : s + size].std()) for s in starts])
    ours = np.array([(probe.mu, probe.sigma) for probe in probes])
    low, high = ours.min(0), ours.max(0)
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 60).T), -1).reshape(-1, 2)
    region = PerplexityLandscape.from_values(perplexity, tokens).attainable_region(budget, "log")
    grid = grid[region.contains(*grid.T)]

    def farthest(points):
        apart = (grid[:, None] - points[None]) / (high - low)
        return np.hypot(*np.moveaxis(apart, -1, 0)).min(1).max()

    assert farthest(ours) < 0.75 * farthest(bands)
