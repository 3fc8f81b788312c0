"""
Tokens per second of fit_law.py's probes on a CPU, all together and with everything: processes, loading, measuring.

```bash
python tests/bench/bench_probes.py
```

Beside them, in the same run, before and after, a plain training loop on the same chunks: the model in float32,
bfloat16 autocast where the CPU multiplies in it, batches of as many chunks, AdamW, all threads, and nothing else; its
loading and first step are not counted.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--num_probes", type=int, default=7, help="Probes, one of them random.")
    parser.add_argument("--num_tokens", type=int, default=4096, help="That each trains on.")
    parser.add_argument("--batch_size", type=int, default=4, help="Chunks of 128 tokens in a step.")
    parser.add_argument("--num_workers", type=int, default=2, help="Probes side by side.")
    parser.add_argument("--output_dir", default="outputs/bench_probes", help="A new folder, for corpus and probes.")
    args = parser.parse_args()

    import fit_law
    import score
    from hf_ppl_select.data.load import load_rows
    from quickstart_steps.dirty_ontology import write_corpus
    from quickstart_steps.offline_model import offline_model
    from training.precision import training_precision

    folder, model = Path(args.output_dir), str(offline_model())
    write_corpus(folder / "texts", num_definitions=600, dirty=0.5, seed=0)
    run(
        score,
        dataset_name=folder / "texts" / "documents.jsonl",
        model_name_or_path=model,
        chunk_length=128,
        output_dir=folder / "scored",
    )
    texts = load_rows(str(folder / "scored"))["text"][:]

    plain = [plain_loop(model, texts, args.batch_size)]
    started = time.perf_counter()
    run(
        fit_law,
        dataset_name=folder / "scored",
        eval_file=folder / "texts" / "held_out.jsonl",
        num_probes=args.num_probes,
        num_tokens=args.num_tokens,
        num_workers=args.num_workers,
        per_device_train_batch_size=args.batch_size,
        model_name_or_path=model,
        max_length=144,
        gradient_checkpointing=False,
        dtype="float32",
        output_dir=folder / "law",
        **training_precision(),
    )
    ours = args.num_probes * args.num_tokens / (time.perf_counter() - started)
    plain.append(plain_loop(model, texts, args.batch_size))
    found = {"fit_law": ours, "plain_loop": plain, "ratio": ours / statistics.mean(plain)}
    print(
        json.dumps({"tokens_per_second": found, "options": vars(args), "threads": torch.get_num_threads()}, indent=2)
    )


def run(recipe, **options):
    from command_line import parse_options
    from quickstart_steps.runs import command_line_of

    recipe.main(*parse_options(recipe.make_parser(), command_line_of(options)))


def plain_loop(model_name, texts, batch_size, num_steps=12):
    """Tokens per second of a loop as one would write it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from training.precision import fast_bfloat16

    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    num_tokens, started = 0, None
    for step in range(num_steps + 1):
        if step == 1:
            started = time.perf_counter()
        rows = texts[step * batch_size : (step + 1) * batch_size]
        batch = tokenizer(rows, return_tensors="pt", padding=True, truncation=True, max_length=144)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_bfloat16()):
            loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += int(batch["attention_mask"].sum()) if step else 0
    return num_tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
    main()
