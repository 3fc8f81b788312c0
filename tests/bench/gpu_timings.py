"""How fast is scoring on this device, and where does the time go? Timings of bench_gpu.py: see there."""

import gc
import time

import numpy as np
import torch
import transformers
from bench_scoring import like_evaluate, plain
from gpu_inputs import all_but_first, english, english_tokenizer

from hf_ppl_select import PerplexityScorer
from hf_ppl_select.likelihood.engine import LikelihoodEngine

QWEN3 = {  # of the published configurations
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28},
}
COMMON = {"vocab_size": 151_936, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
COMMON |= {"tie_word_embeddings": True, "max_position_embeddings": 32768}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"vocab_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
KINDS = {  # of kernels, by what their names hold; the first that fits
    "products": ("gemm", "nvjet", "cutlass_", "xmma", "aten::mm", "aten::addmm", "aten::bmm", "cublas", "splitk"),
    "attention": ("flash", "fmha", "cudnn", "attention", "softmax_warp"),
    "head": ("_forward_kernel", "softmax", "gather", "logsumexp"),
    "copies": ("memcpy", "memset", "copy", "cat"),
}


def shape(bench, name):
    """A model of a real shape with random bfloat16 weights."""
    config = transformers.Qwen3Config(**(TINY if bench.smoke else COMMON | QWEN3[name]))
    torch.manual_seed(0)
    with torch.device(bench.device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def flop(model, lengths):
    """Of the matrix products and of causal attention, over texts of these lengths; a lookup costs none."""
    config = model.config
    weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name)
    weights += config.vocab_size * config.hidden_size if config.tie_word_embeddings else 0
    lengths = np.asarray(lengths, dtype=float)
    pairs = (lengths * (lengths + 1) / 2).sum() * config.num_hidden_layers * config.num_attention_heads
    return 2 * weights * lengths.sum() + 4 * pairs * config.head_dim


def chunks(bench, num_tokens):
    length = 128 if bench.smoke else 2048
    return [length] * max(1, num_tokens // length)


def ragged(bench, num_tokens):
    """Like the answers of MedQuAD: a median of 184 tokens, some in thousands."""
    longest = 200 if bench.smoke else 2048
    lengths = np.random.default_rng(0).lognormal(np.log(184), 0.9, 10 + num_tokens // 100).astype(int).clip(8, longest)
    return lengths[: max(16, int(np.searchsorted(lengths.cumsum(), num_tokens)))].tolist()


def texts_of(model, lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(model.config.vocab_size, size=length).tolist() for length in lengths]


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(bench, function, repeats=2):
    """Seconds of the fastest run, its result, and the most GPU memory in use at a time, bytes."""
    best, result = float("inf"), None
    if bench.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    for _ in range(repeats):
        synchronize(bench.device)
        start = time.perf_counter()
        result = function()
        synchronize(bench.device)
        best = min(best, time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(bench.device) if bench.device.type == "cuda" else 0
    return best, result, peak


def peak_rate(bench):
    """FLOP/s of the best of some bfloat16 products, random data: the median of ten runs each."""
    best = 0.0
    sizes = [(256,) * 3] if bench.smoke else [(8192, 8192, 8192), (16384, 6144, 2048), (16384, 4096, 4096)]
    for m, n, k in sizes:
        a, b = (torch.randn(rows, k, device=bench.device, dtype=torch.bfloat16) for rows in (m, n))
        seconds = []
        for _ in range(13):
            synchronize(bench.device)
            start = time.perf_counter()
            for _ in range(5):
                torch.nn.functional.linear(a, b)
            synchronize(bench.device)
            seconds.append((time.perf_counter() - start) / 5)
        best = max(best, 2 * m * n * k / float(np.median(seconds[3:])))
    return best


def run_timings(bench, record, names, ablations=True):
    """Timings go to `record(name, finding)`, one by one."""
    rate = peak_rate(bench)
    record("peak", {"tflop_per_second": rate / 1e12})
    for name in names:
        model = shape(bench, name)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        engine = LikelihoodEngine(model)
        full = 4096 if bench.smoke else 2**19 if name == "0.6B" else 2**18

        def measure(method, lengths, run, name=name, model=model, weights=weights):
            texts = texts_of(model, lengths)
            try:
                seconds, nll, peak = timed(bench, lambda: run(texts))
            except Exception as error:  # the next ones are still worth having
                record(f"{name}, {method}", {"error": f"{type(error).__name__}: {error}"[:500]})
                return
            finding = {
                "tokens_per_second": sum(lengths) / seconds,
                "share_of_peak": flop(model, lengths) / seconds / rate,
                "memory_beyond_weights_gib": max(0, peak - weights) / 2**30,
                "nll_per_token": float(np.sum(nll)) / (sum(lengths) - len(lengths)),
                "num_tokens": sum(lengths),
            }
            record(f"{name}, {method}", finding)

        def ours(texts, engine=engine):
            return engine.nll(texts, all_but_first(texts))

        few = texts_of(model, ragged(bench, 2000))
        ours(few), plain(model, few[:2])  # warm
        less = full // (16 if name == "0.6B" else 8)
        for work, lengths_of in (("chunks", chunks), ("texts", ragged)):
            measure(f"{work}, ours", lengths_of(bench, full), ours)
            if engine.packs and ablations:
                engine.packs = False
                measure(f"{work}, ours, padded", lengths_of(bench, full), ours)
                engine.packs = True
            measure(f"{work}, plain loop", lengths_of(bench, less), lambda texts, m=model: plain(m, texts))
            measure(f"{work}, padded loop", lengths_of(bench, less), lambda texts, m=model: like_evaluate(m, texts))
        kernel, engine.head.kernel = engine.head.kernel, None
        if kernel is not None and ablations:
            measure("chunks, ours, plain log-softmax", chunks(bench, full), ours)
        engine.head.kernel = kernel
        record(f"{name}, profile", profile(bench, engine, chunks(bench, 1024 if bench.smoke else 2**15)))
        start = time.perf_counter()
        engine.compile()
        synchronize(bench.device)
        record(f"{name}, compiling", {"seconds": time.perf_counter() - start, "compiled": engine.compiled})
        default = engine.max_batch_tokens
        for work, lengths_of in (("chunks", chunks), ("texts", ragged)):
            ours(texts_of(model, lengths_of(bench, full // 8)))
            measure(f"{work}, ours compiled", lengths_of(bench, full), ours)
            for size in (8192, 32768, 65536) if ablations and not bench.smoke else ():
                engine.max_batch_tokens = size
                measure(f"{work}, ours compiled, batches of {size:,}", lengths_of(bench, full), ours)
            engine.max_batch_tokens = default
        record(f"{name}, profile compiled", profile(bench, engine, chunks(bench, 1024 if bench.smoke else 2**15)))
        record(f"{name}, profile of texts", profile(bench, engine, ragged(bench, 1024 if bench.smoke else 2**15)))
        del engine, model, ours, measure
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def end_to_end(bench, record, name):
    """`dataset.map(PerplexityScorer(...))` on real English, tokenization included, in rows of some 400 characters."""
    from datasets import Dataset

    folder = bench.folder / f"shape-{name}"
    shape(bench, name).save_pretrained(folder)
    english_tokenizer(2048).save_pretrained(folder)
    dataset = Dataset.from_dict({"text": english(200 if bench.smoke else 8000)})
    scorer = PerplexityScorer(str(folder), max_length=200 if bench.smoke else 2048)
    scorer({"text": dataset["text"][:64]})  # loads
    start = time.perf_counter()
    rows = scorer.tokenize({"text": dataset["text"][:]})
    tokenizing = time.perf_counter() - start
    start = time.perf_counter()
    scored = dataset.map(scorer, batched=True)
    seconds = time.perf_counter() - start
    num_tokens = int(np.sum(scored["num_tokens"]))
    finding = {"tokens_per_second": num_tokens / seconds, "num_tokens": num_tokens, "rows": len(rows)}
    record(f"{name}, dataset.map", finding | {"tokenizing_share": tokenizing / seconds})


def profile(bench, engine, lengths):
    """Shares of one batch's time by kind of kernel; in the gaps the device waits for Python."""
    from torch.profiler import ProfilerActivity

    texts = texts_of(engine.causal_lm, lengths)
    batch = next(iter(engine._batches(list(range(len(texts))), texts, bool(engine.packs))))
    texts = [texts[i] for i in batch]
    counted = all_but_first(texts)
    engine.nll(texts, counted)
    cuda = bench.device.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        engine.nll(texts, counted)
        synchronize(bench.device)
    events = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if (event.device_type == torch.autograd.DeviceType.CUDA) == cuda
        and (cuda or not event.cpu_children)  # on a CPU the innermost steps stand for kernels
    ]
    if not events:
        return {"events": 0}
    span = max(end for _, end, _ in events) - min(start for start, _, _ in events)
    shares, kernels = dict.fromkeys([*KINDS, "other"], 0.0), {}
    for start, end, name in events:
        lower = name.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), "other")
        shares[kind] += (end - start) / span
        kernels[name] = kernels.get(name, 0.0) + (end - start) / span
    shares["gaps"] = max(0.0, 1 - sum(shares.values()))
    largest = sorted(kernels, key=kernels.get, reverse=True)[:14]
    return {
        "milliseconds": span / 1000,
        "num_tokens": sum(map(len, texts)),
        "kernels": len(events),
        "shares": {kind: round(share, 4) for kind, share in shares.items()},
        "largest": {name[:90]: round(kernels[name], 4) for name in largest},
    }
