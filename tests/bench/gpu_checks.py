"""Is scoring right on this device? Checks of bench_gpu.py against plain `model(input_ids, labels=input_ids)`.

Each check is a function of a [`Bench`] that returns what it found, with `"right": bool`.
"""

import copy
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import transformers
from gpu_inputs import ARCHITECTURES, VOCABULARY, all_but_first, english, save_small

from hf_ppl_select import PerplexityScorer
from hf_ppl_select.likelihood.engine import LikelihoodEngine
from hf_ppl_select.likelihood.shared_prefix import SharedPrefixScorer

ROOT = Path(__file__).resolve().parents[2]


def plain_nll(model, texts):
    """The definition: one text at a time, the model's own mean loss times the tokens it is the mean of."""
    device = model.get_input_embeddings().weight.device
    sums = []
    with torch.inference_mode():
        for ids in texts:
            row = torch.tensor([ids], device=device)
            loss = model(input_ids=row, labels=row).loss.double() if len(ids) > 1 else torch.zeros((), device=device)
            sums.append(loss.item() * (len(ids) - 1))
    return np.array(sums)


def largest_error(found, expected):
    """Relative, of texts that count anything."""
    counts = expected != 0
    return float(np.abs(found[counts] / expected[counts] - 1).max())


def float32(bench):
    texts = bench.texts(bench.lengths)
    errors = {}
    for name in ARCHITECTURES:
        model = bench.model(name)
        found = LikelihoodEngine(model).nll(texts, all_but_first(texts))
        errors[name] = largest_error(found, plain_nll(model, texts))
    return {"right": max(errors.values()) < 1e-5, "largest_relative_error": max(errors.values()), "errors": errors}


def bfloat16(bench):
    """Both against the same weights in float32: ours may not be further off than the model's own loss."""
    texts = bench.texts(bench.lengths)
    num_tokens = np.maximum([len(ids) - 1 for ids in texts], 1)
    rows, right = {}, True
    for name in ARCHITECTURES:
        model = bench.model(name, torch.bfloat16)
        truth = plain_nll(copy.deepcopy(model).float(), texts)
        engine = LikelihoodEngine(model)
        ours, plain = (
            float(np.sqrt(np.mean(((nll - truth) / num_tokens) ** 2)))
            for nll in (engine.nll(texts, all_but_first(texts)), plain_nll(model, texts))
        )
        rows[name] = {"ours": ours, "plain": plain, "packs": bool(engine.packs)}
        right &= ours <= 1.5 * plain + 1e-3
    worst = max(rows, key=lambda name: rows[name]["ours"])
    return {"right": bool(right), "worst": worst, "rms_nats_per_token": rows}


def batches_and_order(bench):
    texts = bench.texts(bench.lengths * 3)
    order = np.random.default_rng(1).permutation(len(texts))
    found = {}
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 5e-3)):
        model = bench.model("qwen3", dtype)
        first = None
        for size in (1, 500, 4096, 65536):
            engine = LikelihoodEngine(model, max_batch_tokens=size)
            nll = np.empty(len(texts))
            nll[order] = engine.nll([texts[i] for i in order], all_but_first([texts[i] for i in order]))
            straight = engine.nll(texts, all_but_first(texts))
            first = straight if first is None else first
            error = max(largest_error(nll, first), largest_error(straight, first))
            key = str(dtype).removeprefix("torch.")
            found[key] = max(found.get(key, 0.0), error)
        if found[key] > bound:
            return {"right": False} | found
    return {"right": True} | found


def out_of_memory(bench):
    """A batch far too large ends with the same numbers. Without a GPU the shortage is played."""
    texts = bench.texts([200] * 30 if bench.smoke else [1000] * 600)
    model = bench.model("qwen3")
    expected = LikelihoodEngine(model).nll(texts, all_but_first(texts))
    engine = LikelihoodEngine(model, max_batch_tokens=2**24)
    before = engine.max_batch_tokens
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 1.5 * 2**30 / total), bench.device)
    else:
        outputs = engine.outputs

        def small_memory(input_ids, **inputs):
            if input_ids.numel() > 1000:
                raise torch.OutOfMemoryError("played")
            return outputs(input_ids, **inputs)

        engine.outputs = small_memory
    try:
        found = engine.nll(texts, all_but_first(texts))
    finally:
        if bench.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
    error = largest_error(found, expected)
    fell = engine.max_batch_tokens < before
    return {"right": fell and error < 1e-5, "largest_relative_error": error, "batch_tokens": engine.max_batch_tokens}


def score_in_process(folder, device, texts):
    engine = LikelihoodEngine(
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    )
    for _ in range(3):
        nll = engine.nll(texts, all_but_first(texts))
    return nll


def two_processes(bench):
    texts = bench.texts(bench.lengths * 3)
    folder = str(save_small(bench))
    expected = score_in_process(folder, bench.device, texts)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = [pool.submit(score_in_process, folder, str(bench.device), texts) for _ in range(2)]
        errors = [largest_error(future.result(), expected) for future in found]
    return {"right": max(errors) < 1e-5, "largest_relative_error": max(errors)}


def map_with_rank(bench):
    import multiprocess
    from datasets import Dataset

    texts = english(200 if bench.smoke else 2000)
    folder = str(save_small(bench))
    dataset = Dataset.from_dict({"text": texts})
    scorer = PerplexityScorer(folder, max_length=256)
    alone = np.array(scorer({"text": texts})["nll_sum"])
    before = multiprocess.get_start_method(allow_none=True)
    multiprocess.set_start_method("spawn", force=True)
    try:
        scored = dataset.map(
            PerplexityScorer(folder, max_length=256), batched=True, batch_size=50, num_proc=2, with_rank=True
        )
    finally:
        multiprocess.set_start_method(before, force=True)
    error = largest_error(np.array(scored["nll_sum"]), alone)
    return {"right": error < 1e-5, "largest_relative_error": error, "rows": len(texts)}


def shared_prefixes(bench):
    """Questions with four answers each, after common examples, as benchmarks ask them."""
    rng = np.random.default_rng(0)
    examples = rng.integers(1, VOCABULARY, 60).tolist()
    sequences, starts = [], []
    for _ in range(6 if bench.smoke else 100):
        prompt = examples + rng.integers(1, VOCABULARY, rng.integers(20, 80)).tolist()
        for _ in range(4):
            sequences.append(prompt + rng.integers(1, VOCABULARY, rng.integers(1, 20)).tolist())
            starts.append(len(prompt))
    counted = [range(start, len(ids)) for ids, start in zip(sequences, starts)]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        engine = LikelihoodEngine(bench.model("qwen3", dtype))
        scorer = SharedPrefixScorer(engine)
        tree, plain = scorer.nll(sequences, starts), engine.nll(sequences, counted)
        error = np.sqrt(np.mean(((tree - plain) / [len(c) for c in counted]) ** 2))
        found[str(dtype).removeprefix("torch.")] = float(error)
        found["branching"] = bool(scorer.branching)
    return {"right": found["float32"] < 1e-4 and found["bfloat16"] < 0.1 and found["branching"]} | found


def start_training(bench):
    """Ten steps of recipes/cpt.py, full and LoRA, in processes of their own; what they find is read at the end."""
    folder = str(save_small(bench))
    texts = english(120)
    for name, rows in (("corpus", texts[20:]), ("held_out", texts[:20])):
        lines = (json.dumps({"text": text}) + "\n" for text in rows)
        (bench.folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    options = {
        "model_name_or_path": folder,
        "dataset_name": str(bench.folder / "corpus.jsonl"),
        "eval_file": str(bench.folder / "held_out.jsonl"),
        "max_steps": 10,
        "max_length": 128,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "bf16": bench.device.type == "cuda",
        "use_cpu": bench.device.type == "cpu",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    lora = {"use_peft": True, "lora_r": 8, "lora_target_modules": ["all-linear"]}
    processes = {}
    for name, more in (("full", {}), ("lora", lora)):
        output = bench.folder / f"cpt_{name}"
        config = output.with_suffix(".yaml")  # JSON is YAML
        config.write_text(json.dumps(options | more | {"output_dir": str(output)}), encoding="utf-8")
        command = [sys.executable, str(ROOT / "recipes" / "cpt.py"), "--config", str(config)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        log = open(output.with_suffix(".log"), "w")  # noqa: SIM115
        processes[name] = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=subprocess.STDOUT
        )
    return processes


def training(bench, processes):
    found = {"right": True}
    for name, process in processes.items():
        try:
            code = process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            code = "took longer than two minutes"
        output = bench.folder / f"cpt_{name}"
        if code != 0:
            log = output.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
            found |= {"right": False, name: f"exit {code}: {log[-1500:]}"}
            continue
        metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        measured = [entry["domain_loss"] for entry in metrics["log_history"] if "domain_loss" in entry]
        found[name] = {"domain_loss": measured, "num_tokens": metrics["num_tokens"]}
        found["right"] &= bool(np.isfinite(measured).all() and measured[-1] < measured[0])
    return found


CHECKS = (float32, bfloat16, batches_and_order, out_of_memory, two_processes, map_with_rank, shared_prefixes)


def run_checks(bench, record, wanted):
    """Each check's finding goes to `record(name, finding)`, also where it ends in an error."""
    processes = start_training(bench) if "training" in wanted else {}
    for check in CHECKS:
        if check.__name__ in wanted:
            record(check.__name__, attempt(check, bench))
    if processes:
        record("training", attempt(training, bench, processes))


def attempt(check, *args):
    """A check that breaks off is not right, and the others go on."""
    start = time.perf_counter()
    try:
        found = check(*args)
    except Exception as error:
        import traceback

        found = {
            "right": False,
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc()[-2000:],
        }
    return found | {"seconds": round(time.perf_counter() - start, 1)}
