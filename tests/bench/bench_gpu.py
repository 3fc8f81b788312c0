"""
Is scoring right and fast on this machine's GPU? Run once by anybody who has one; eight minutes on an H100.

```bash
python tests/bench/bench_gpu.py --output gpu.json
python tests/bench/bench_gpu.py --smoke                      # tiny shapes, also on a CPU: a minute
python tests/bench/bench_gpu.py --only peak 1.7B --output gpu.json
```

First checks (gpu_checks.py): float32 and bfloat16 against plain `model(input_ids, labels=input_ids)` one text at a
time, for a dozen architectures and texts of 1 to 4,000 tokens; any batch size and order; a batch that memory does not
hold; two processes on one GPU; `map(num_proc=2, with_rank=True)`; shared prefixes; ten steps of training, full and
LoRA. Then timings (gpu_timings.py) on random weights of the shapes of Qwen3-0.6B and 1.7B, on chunks of 2,048 tokens
and on ragged texts: ours, ours compiled, a padded loop with logits, one text at a time, as shares of the rate that the
best matrix product reaches in the same run; and where the time of one batch goes. Every finding is written to
`--output` as it comes. The exit status is 1 if a check is not right.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

CHECKS = ("float32", "bfloat16", "batches_and_order", "out_of_memory", "two_processes", "map_with_rank")
CHECKS += ("shared_prefixes", "training")
TIMINGS = ("0.6B", "1.7B", "map")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="Tiny shapes, to see that everything runs.")
    parser.add_argument("--only", nargs="*", default=None, choices=CHECKS + TIMINGS, help="Only these parts.")
    parser.add_argument("--skip", nargs="*", default=[], choices=CHECKS + TIMINGS, help="Not these parts.")
    parser.add_argument("--no_ablations", action="store_true", help="Not what other batches or no kernel would cost.")
    parser.add_argument("--device", default=None, help="Default: the GPU, if there is one.")
    parser.add_argument("--output", default=None, help="A JSON file for the findings.")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    import torch
    from gpu_checks import attempt, run_checks
    from gpu_inputs import Bench
    from gpu_timings import end_to_end, run_timings

    wanted = [part for part in args.only or CHECKS + TIMINGS if part not in args.skip]
    device = torch.device(args.device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu" and not args.smoke:
        sys.exit("There is no GPU that torch sees. On a CPU only --smoke makes sense.")
    options = {name: value for name, value in vars(args).items() if name != "output"}
    findings = {"machine": machine(device), "options": options, "checks": {}, "timings": {}}
    start = time.perf_counter()

    def record(kind):
        def add(name, finding):
            findings[kind][name] = finding
            findings["seconds"] = round(time.perf_counter() - start, 1)
            print(f"[{findings['seconds']:.0f} s] {name}: {short(finding)}", flush=True)
            if args.output:
                write(args.output, findings)

        return add

    with tempfile.TemporaryDirectory(prefix="bench_gpu-") as folder:
        bench = Bench(device, args.smoke, Path(folder))
        run_checks(bench, record("checks"), wanted)
        shapes = [part for part in wanted if part in TIMINGS and part != "map"]
        if args.smoke:
            shapes = shapes[:1]  # they are all the same tiny one
        if shapes:
            failed = attempt(nothing_after(run_timings), bench, record("timings"), shapes, not args.no_ablations)
            if "error" in failed:
                record("timings")("timings", failed)
        if "map" in wanted:
            failed = attempt(nothing_after(end_to_end), bench, record("timings"), "0.6B")
            if "error" in failed:
                record("timings")("map", failed)
    print(table(findings))
    broken = [name for name, found in findings["timings"].items() if "error" in found]
    wrong = [name for name, found in findings["checks"].items() if not found["right"]]
    sys.exit(f"Not right: {', '.join(wrong + broken)}." if wrong + broken else 0)


def nothing_after(function):
    """`attempt` wants a finding; timings have recorded theirs."""
    return lambda *args: function(*args) or {}


def machine(device):
    import platform

    import torch
    import transformers

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        if device.type == "cuda"
        else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def short(finding):
    """One line: numbers with three digits, long things left out."""
    parts = []
    for name, value in finding.items():
        if isinstance(value, float):
            parts.append(f"{name} {value:,.0f}" if abs(value) >= 1000 else f"{name} {value:.3g}")
        elif not isinstance(value, dict | list) and len(str(value)) < 200 or name in ("shares", "traceback"):
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def write(path, findings):
    """Aside, then renamed: a cut run leaves the last whole file."""
    aside = Path(f"{path}.partial")
    aside.write_text(json.dumps(findings, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


def table(findings):
    """Markdown: what goes into the README."""
    lines = ["", f"{findings['machine']['device']}, torch {findings['machine']['torch']}, {findings['seconds']:.0f} s"]
    if findings["checks"]:
        lines += ["", "| check | right | largest error | seconds |", "|---|---|---|---|"]
        for name, found in findings["checks"].items():
            error = found.get("largest_relative_error", found.get("float32", ""))
            error = f"{error:.1e}" if isinstance(error, float) else ""
            lines.append(f"| {name} | {'yes' if found['right'] else 'NO'} | {error} | {found.get('seconds', '')} |")
    speeds = {name: found for name, found in findings["timings"].items() if "tokens_per_second" in found}
    if speeds:
        lines += ["", "| shape, texts, method | tokens/s | share of peak | GiB beyond weights |", "|---|---|---|---|"]
        for name, found in speeds.items():
            share, memory = found.get("share_of_peak"), found.get("memory_beyond_weights_gib")
            share = "" if share is None else f"{share:.2f}"
            memory = "" if memory is None else f"{memory:.1f}"
            lines.append(f"| {name} | {found['tokens_per_second']:,.0f} | {share} | {memory} |")
    profiles = {name: found["shares"] for name, found in findings["timings"].items() if "shares" in found}
    if profiles:
        kinds = list(next(iter(profiles.values())))
        lines += ["", f"| one batch | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
        for name, shares in profiles.items():
            lines.append(f"| {name} | {' | '.join(f'{shares[kind]:.2f}' for kind in kinds)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
