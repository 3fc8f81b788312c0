"""Rows per second and memory of selection, from 10^4 rows up, against what people do by hand.

    python tests/bench/bench_selection.py                                   # up to 10^7 rows, about two minutes
    python tests/bench/bench_selection.py --max_rows 1e8 --stream_rows 1e8  # the growth to 10^8; about 4 GB
    python tests/bench/bench_selection.py --dataset my-scored-corpus        # also the diversity of real subsets

Perplexities are drawn from a mixture of log-normals with the parameters of `MIXTURE`; each measurement runs in a
process of its own, which makes the column first, so that peak memory beyond the column is what the method took.
Prints Markdown tables, writes JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# Weight, mean and standard deviation of nll: two normals fitted by EM to SmolLM2-135M's scores of 2,000 MedQuAD chunks
# of 128 tokens, and a share of junk (token-shuffled text scores about 8.1 +- 0.9).
MIXTURE = ((0.207, 2.775, 0.233), (0.763, 3.024, 0.419), (0.03, 8.1, 0.9))
TARGET = (2.9, 0.3)  # of nll
SHARE = 0.1
BRUTE_FORCE_ROWS = 2_000
DICT_ROWS = 1_000_000  # `Dataset.filter` with a lambda takes seconds for these already


def draw(number, seed=0):
    """Perplexities of the mixture, float64 `[number]`, a block at a time."""
    weights, means, stds = np.array(MIXTURE).T
    edges = np.cumsum(weights)[:-1]
    perplexity = np.empty(number)
    for start in range(0, number, 1 << 20):
        rng = np.random.default_rng([seed, start])
        here = perplexity[start : start + (1 << 20)]
        part = np.searchsorted(edges, rng.random(len(here)))
        np.exp(rng.normal(means[part], stds[part]), out=here)
    return perplexity


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def maxent(nll, budget):
    return choose_maxent(nll, np.ones(len(nll)), budget, *TARGET)


def choose_maxent(nll, tokens, budget, mu, sigma):
    from hf_ppl_select.landscape.cells import Cells
    from hf_ppl_select.landscape.drawing import choose, until_full
    from hf_ppl_select.landscape.maxent import solve

    x = nll[:, None]
    tilt = solve(Cells.of_rows(x, tokens), (mu,), (sigma,), [budget])
    return choose(tilt, x, tokens, [budget], lambda late: until_full(late, tokens, budget), 0)[0]


def greedy_dos(nll, budget):
    from hf_ppl_select.selection.baselines import choose_greedy_dos

    return choose_greedy_dos(nll, np.ones(len(nll)), budget, *TARGET)


def brute_force_greedy(nll, budget):
    """The paper's algorithm as it stands: every free chunk is tried at every step, O(N K)."""
    mu, sigma = TARGET
    free, chosen = np.arange(len(nll)), []
    first = second = 0.0
    for n in range(1, int(budget) + 1):
        mean = (first + nll[free]) / n
        variance = (second + nll[free] ** 2) / n - mean**2
        best = int(np.argmin(((mean - mu) / sigma) ** 2 + (variance / sigma**2 - 1) ** 2))
        first, second = first + nll[free[best]], second + nll[free[best]] ** 2
        chosen.append(free[best])
        free = np.delete(free, best)
    return np.array(chosen)


def interval(nll, budget):
    """The interval of budget rows in the middle, in quantiles."""
    low, high = 0.5 - 0.5 * budget / len(nll), 0.5 + 0.5 * budget / len(nll)
    return low, high


def numpy_quantiles(nll, budget):
    low, high = np.quantile(nll, interval(nll, budget))
    return np.flatnonzero((nll >= low) & (nll < high))


def pandas_quantiles(nll, budget):
    import pandas as pd

    column = pd.Series(nll, copy=False)
    return np.flatnonzero(column.between(*column.quantile(interval(nll, budget))))


def dataset_lambda(nll, budget):
    from datasets import Dataset, disable_caching, disable_progress_bars

    disable_caching()
    disable_progress_bars()
    low, high = np.quantile(nll, interval(nll, budget))
    dataset = Dataset.from_dict({"nll": nll, "row": np.arange(len(nll))})
    return np.array(dataset.filter(lambda row: low <= row["nll"] < high)["row"])


def attainable(nll, budget):
    from hf_ppl_select.landscape.reach import attainable_region

    return attainable_region(nll, budget, space="log").mu


def landscape(nll, budget):
    """The landscape of the column, and the attainable region from it."""
    from hf_ppl_select.landscape.landscape import PerplexityLandscape

    return PerplexityLandscape.from_values(np.exp(nll, out=nll)).attainable_region(budget, "log").mu


METHODS = {  # name: function, most rows
    "maxent": (maxent, None),
    "greedy_dos": (greedy_dos, 10_000_000),
    "brute-force greedy": (brute_force_greedy, BRUTE_FORCE_ROWS),
    "numpy quantile cut": (numpy_quantiles, None),
    "pandas quantile cut": (pandas_quantiles, 10_000_000),
    "Dataset.filter, lambda": (dataset_lambda, DICT_ROWS),
    "attainable region, rows": (attainable, None),
    "landscape + its region": (landscape, None),
}


def measure(name, rows):
    """In this process: one method, one size."""
    function, _ = METHODS[name]
    function(np.log(draw(20_000))[:500], 50)  # imports and first calls
    nll = draw(rows)
    np.log(nll, out=nll)  # no second column, which would hide as much of the peak
    before = peak()
    start, start_cpu = time.perf_counter(), time.process_time()
    chosen = function(nll, SHARE * rows)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    result = {"method": name, "rows": rows, "seconds": seconds, "cpu_seconds": cpu, "memory_beyond": peak() - before}
    if name not in ("attainable region, rows", "landscape + its region"):
        result |= {"chosen": len(chosen), "mean": float(nll[chosen].mean()), "std": float(nll[chosen].std())}
    return result


def measure_stream(rows, block=1 << 20):
    """In this process: landscape, selector, and the selector over a stream of generated rows with integer keys."""
    from hf_ppl_select.landscape.landscape import PerplexityLandscape
    from hf_ppl_select.selection.selector import PerplexitySelector

    def blocks():
        for start in range(0, rows, block):
            number = min(block, rows - start)
            tokens = np.random.default_rng([7, start]).integers(20, 512, number)
            yield draw(number, seed=start + 1), np.arange(start, start + number), tokens

    whole, cpu = None, {"landscape": 0.0, "selector": 0.0}
    for perplexity, _, tokens in blocks():
        start = time.process_time()
        part = PerplexityLandscape.from_values(perplexity, tokens)
        whole = part if whole is None else whole.merge(part)
        cpu["landscape"] += time.process_time() - start
    selector = PerplexitySelector.from_target(
        *TARGET, landscape=whole, num_tokens=SHARE * whole.num_tokens, space="log", key_column="id", seed=1
    )
    sums, peaks = np.zeros(4), []
    for perplexity, ids, tokens in blocks():
        start = time.process_time()
        kept = np.array(selector({"perplexity": perplexity, "id": ids}))
        cpu["selector"] += time.process_time() - start
        nll = np.log(perplexity[kept])
        sums += len(nll), nll.sum(), (nll**2).sum(), tokens[kept].sum()
        peaks.append(peak())
    mu = sums[1] / sums[0]
    sigma = np.sqrt(sums[2] / sums[0] - mu**2)
    texts = ["x" * 592 + f"{i:08d}" for i in range(100_000)]
    start = time.process_time()
    selector.keep(np.full(len(texts), np.exp(TARGET[0])), texts)
    of_text = (time.process_time() - start) / len(texts)
    return {
        "rows": rows,
        "landscape_ns_per_row": cpu["landscape"] / rows * 1e9,
        "selector_ns_per_row": cpu["selector"] / rows * 1e9,
        "selector_ns_per_row_600_byte_texts": of_text * 1e9,
        "peak_after_4_blocks": peaks[min(3, len(peaks) - 1)],
        "peak_at_the_end": peaks[-1],
        "standard_deviations_off": {
            "mu": (mu - selector.expected_mu) / selector.mu_std,
            "sigma": (sigma - selector.expected_sigma) / selector.sigma_std,
            "num_tokens": (sums[3] - selector.expected_num_tokens) / selector.num_tokens_std,
        },
    }


def entropy(labels):
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-np.sum(share * np.log(share)))


def diversity(folder, group_column, share=0.15):
    """Entropy (nats) of sources and of perplexity (bins of 0.1 nat) in subsets of equal moments."""
    from datasets import load_from_disk

    from hf_ppl_select.selection.baselines import choose_greedy_dos

    dataset = load_from_disk(folder).with_format("numpy")
    perplexity, tokens = np.array(dataset["perplexity"]), np.array(dataset["num_tokens"], dtype=float)
    usable = np.flatnonzero(np.isfinite(perplexity) & (tokens > 0))
    nll, tokens = np.log(perplexity[usable]), tokens[usable]
    groups = np.array(dataset[group_column])[usable] if group_column in dataset.column_names else None
    budget = share * tokens.sum()
    rows = []
    for shift, width in ((0.0, 1.0), (0.0, 0.6), (-0.5, 0.7), (0.5, 0.7)):  # in standard deviations of the corpus
        target = nll.mean() + shift * nll.std(), width * nll.std()
        chosen = {
            "maxent": choose_maxent(nll, tokens, budget, *target),
            "greedy_dos": choose_greedy_dos(nll, tokens, budget, *target),
        }
        for name, subset in chosen.items():
            bins = np.floor(nll[subset] * 10)
            row = {"target": [float(x) for x in target], "strategy": name, "chunks": len(subset)}
            row |= {"mu": float(nll[subset].mean()), "sigma": float(nll[subset].std())}
            row |= {"perplexity_entropy": entropy(bins), "bins": len(np.unique(bins))}
            if groups is not None:
                row |= {"group_entropy": entropy(groups[subset]), "corpus_group_entropy": entropy(groups)}
            rows.append(row)
    return rows


def in_process(*arguments):
    """Run this file's `arguments` in a process of its own and read its JSON."""
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--min_rows", type=float, default=1e4)
    parser.add_argument("--max_rows", type=float, default=1e7)
    parser.add_argument("--stream_rows", type=float, default=1e7, help="0: no stream")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--dataset", help="folder of a scored dataset (save_to_disk), for diversity")
    parser.add_argument("--group_column", default="source", help="of --dataset")
    parser.add_argument("--output", default=str(Path(tempfile.gettempdir()) / "bench_selection.json"))
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "ROWS"), help=argparse.SUPPRESS)
    parser.add_argument("--one_stream", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return print(json.dumps(measure(args.one[0], int(args.one[1]))))
    if args.one_stream:
        return print(json.dumps(measure_stream(args.one_stream)))

    results = {"methods": [], "stream": None, "diversity": None}
    print(f"Subsets of {SHARE:.0%}; memory is the peak beyond the column of values.\n")
    print("| method | rows | seconds (CPU) | million rows/s | memory, MiB | mean nll | std |")
    print("|---|---|---|---|---|---|---|")
    sizes = [int(10**power) for power in range(2, 10) if args.min_rows <= 10**power <= args.max_rows]
    for name in args.methods:
        most = METHODS[name][1]
        for rows in [BRUTE_FORCE_ROWS] if most == BRUTE_FORCE_ROWS else sizes:
            if most is not None and rows > most:
                continue
            one = in_process("--one", name, rows)
            results["methods"].append(one)
            moments = f"{one['mean']:.4f} | {one['std']:.4f}" if "mean" in one else " | "
            print(
                f"| {name} | {rows:,} | {one['seconds']:.3g} ({one['cpu_seconds']:.3g}) | "
                f"{rows / one['cpu_seconds'] / 1e6:.3g} | {one['memory_beyond'] / 2**20:.0f} | {moments} |",
                flush=True,
            )
    if args.stream_rows:
        stream = results["stream"] = in_process("--one_stream", int(args.stream_rows))
        off = ", ".join(f"{name} {value:+.2f}" for name, value in stream["standard_deviations_off"].items())
        per_row = [stream[f"{name}_per_row"] for name in ("landscape_ns", "selector_ns")]
        peaks = [stream[name] / 2**20 for name in ("peak_after_4_blocks", "peak_at_the_end")]
        print(f"\nA stream of {stream['rows']:,} rows with integer keys, ns of CPU a row: ", end="")
        print(f"landscape {per_row[0]:.0f}, selector {per_row[1]:.0f}; with texts of 600 bytes, all hashed, ", end="")
        print(
            f"{stream['selector_ns_per_row_600_byte_texts']:.0f}. Peak memory {peaks[0]:.0f} MiB after 4 blocks, ",
            end="",
        )
        print(f"{peaks[1]:.0f} MiB at the end. Off by {off} standard deviations.")
    if args.dataset:
        results["diversity"] = diversity(args.dataset, args.group_column)
        print("\nEntropies in nats: of perplexity in bins of 0.1 nat, and of the groups.\n")
        print("| target | strategy | chunks | mu | sigma | perplexity | groups |\n|---|---|---|---|---|---|---|")
        for row in results["diversity"]:
            groups = (
                f"{row['group_entropy']:.3f} of {row['corpus_group_entropy']:.3f}" if "group_entropy" in row else ""
            )
            target = f"{row['target'][0]:.3f}, {row['target'][1]:.3f}"
            moments = f"{row['mu']:.4f} | {row['sigma']:.4f} | {row['perplexity_entropy']:.3f}"
            print(f"| {target} | {row['strategy']} | {row['chunks']} | {moments} | {groups} |")
    Path(args.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\nWritten to {args.output}")


if __name__ == "__main__":
    main()
