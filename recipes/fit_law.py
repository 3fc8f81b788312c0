r"""
Fit a perplexity-aware scaling law: short probe runs on subsets of different landscapes, one law point per rung of a
ladder of token counts, then every law form compared out of sample. Then what the law says: how sure it is, which
landscape is best for a budget, what that gains over random, and what other probes would tell. Probes train with TRL's
SFTTrainer; a finished probe is never trained twice, so a killed run continues where it was.

```bash
python recipes/fit_law.py --config recipes/configs/fit_law_medical.yaml
```

# 20 million training tokens for all probes together: their number, length and ladder are chosen
```bash
python recipes/fit_law.py \
    --dataset_name outputs/scored \
    --eval_file held_out_medical.jsonl \
    --general_eval_file held_out_general.txt \
    --max_forgetting 0.02 \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M \
    --total_tokens 20_000_000 \
    --budget 50_000_000 \
    --max_length 2048 \
    --output_dir outputs/law
```

# The probes at once: two on a CPU's cores; as Ray tasks, one GPU each; in a job array, and the fit once all are done
```bash
python recipes/fit_law.py --config recipes/configs/fit_law_medical.yaml --use_cpu --num_workers 2
python recipes/fit_law.py --config recipes/configs/fit_law_medical.yaml --ray
python recipes/fit_law.py --config recipes/configs/fit_law_medical.yaml --probe_index $SLURM_ARRAY_TASK_ID
python recipes/fit_law.py --config recipes/configs/fit_law_medical.yaml --fit_only
```

# Shared like a model; --dry_run says what that would upload, --hub_revision names a branch
```bash
python recipes/fit_law.py --config recipes/configs/fit_law_medical.yaml --push_to_hub --hub_model_id me/medical-law
```

`output_dir` gets points.jsonl (the law points), law.json, comparison.json (the forms) and plots. The model must be the
one that scored the dataset. Points measured elsewhere need no probes: `--points points.jsonl --num_probes 0`, with
`--dataset_name` for the optimum on that corpus.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class FitLawArguments:
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Scored chunks (columns text, perplexity, num_tokens), named as for the other recipes."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of the scored chunks."})
    eval_file: str | None = field(
        default=None,
        metadata={"help": "Held-out domain text: the loss that the law predicts. Report a gain on other texts."},
    )
    general_eval_file: str | None = field(default=None, metadata={"help": "Held-out general text: adds general_loss."})
    num_probes: int | None = field(
        default=None, metadata={"help": "Probe runs, one of them random. 0: fit to --points only. Default: 8."}
    )
    num_tokens: int | None = field(
        default=None, metadata={"help": "Tokens that each probe trains on. Default: the ladder's last, or 1,000,000."}
    )
    ladder: list[int] | None = field(
        default=None, metadata={"help": "Token counts at which to measure. Default: 1/4, 1/2 and all of num_tokens."}
    )
    total_tokens: int | None = field(
        default=None, metadata={"help": "Training tokens of all probes together: chooses the three options above."}
    )
    column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Score columns in which the probes spread, any positive ones; the law is of the one that predicts "
            "best, or of two together. Default: perplexity, and perplexity_ratio where the chunks have it.",
            "aliases": ["--score"],
        },
    )
    probe_space: str = field(default="log", metadata={"help": "Space in which the probes spread: log or linear."})
    probe_index: int | None = field(
        default=None, metadata={"help": "Train only this probe, 0 is the random one, and stop: for job arrays."}
    )
    ray: bool = field(default=False, metadata={"help": "Train the probes as Ray tasks, one GPU each (pip: ray)."})
    num_workers: int = field(
        default=1, metadata={"help": "Probes trained side by side on a CPU, which is faster for small models."}
    )
    fit_only: bool = field(default=False, metadata={"help": "Train none; an error lists the probes that are missing."})
    form: str = field(default="auto", metadata={"help": "Law form, or auto: the best out of sample."})
    space: str = field(default="auto", metadata={"help": "Space of the law: linear, log or auto."})
    points: str | None = field(
        default=None, metadata={"help": "Law points measured elsewhere (.jsonl), added to these."}
    )
    budget: int | None = field(
        default=None,
        metadata={"help": "Tokens you will train on: the optimum is for them. Default: a probe's."},
    )
    max_forgetting: float | None = field(
        default=None, metadata={"help": "How far the general loss may rise above the base model's, nats per token."}
    )
    base_general_loss: float | None = field(
        default=None, metadata={"help": "The base model's; measured on --general_eval_file if not given."}
    )
    license: str | None = field(default=None, metadata={"help": "Of the law that --push_to_hub shares: mit, ..."})
    dry_run: bool = field(default=False, metadata={"help": "Only say what --push_to_hub would upload."})


def main(script_args, training_args, model_args):
    from datasets import disable_progress_bars

    from fitting.comparison import compare_columns, format_comparison
    from fitting.conditions import check_same_settings
    from fitting.law_report import (
        best_landscape,
        forgetting_bound,
        plot_law,
        print_law,
        print_planning,
        remove_plots,
    )
    from fitting.options import apart, check_corpus, check_options, only_scored, score_columns
    from fitting.probe_runs import (
        choose_probes,
        collect_points,
        describe_diverged,
        design_runs,
        train_probes,
    )
    from hf_ppl_select import PerplexityLandscape, fit_scaling_law
    from hf_ppl_select.data.load import load_rows
    from hf_ppl_select.data.saving import save_json
    from hf_ppl_select.law.points import read_law_points
    from hf_ppl_select.likelihood.model_identity import resolve_revision
    from training.options import token_to_environment

    check_options(script_args, training_args, model_args)
    token_to_environment(training_args)
    if training_args.push_to_hub:
        training_args.hub_model_id = check_push(script_args, training_args)
    folder = Path(training_args.output_dir)
    rows, dataset, corpus, plan, problem = [], None, None, None, None
    if script_args.dataset_name:
        disable_progress_bars()
        dataset = load_rows(script_args.dataset_name, script_args.dataset_config, script_args.dataset_train_split)
    script_args.column = score_columns(script_args, dataset)
    if dataset is not None:
        dataset = only_scored(dataset, script_args.column)
    if script_args.num_probes != 0:
        check_corpus(dataset, script_args.budget, training_args.max_length)
        plan = design_runs(script_args, dataset, training_args.seed)
        chosen = [] if script_args.fit_only else choose_probes(plan, dataset, training_args.seed)
        corpus = check_same_settings(folder, script_args, training_args, model_args, dataset, plan)
        diverged = train_probes(plan, chosen, folder, script_args, training_args, model_args)
        if diverged:
            problem = ValueError(describe_diverged(diverged, folder))
        if script_args.probe_index is None and (points := collect_points(folder, plan)) is not None:
            rows += [row for row in points.to_rows() if row["run"] not in diverged]
        if problem is not None and (script_args.probe_index is not None or not rows):
            raise problem
        if script_args.probe_index is not None:
            return
    if script_args.points:
        rows += apart(read_law_points(script_args.points).to_rows(), rows, script_args.points)
    if not rows:
        raise ValueError("there are no law points: let probes run (--num_probes 8), or pass --points FILE.")

    comparison, chosen = compare_columns(rows, script_args.column, script_args.form, script_args.space)
    origin = {"model": model_args.model_name_or_path, "corpus": corpus}
    if plan is not None:
        with suppress(OSError):  # --fit_only where the model is not
            origin["model_revision"] = resolve_revision(origin["model"], model_args.model_revision)
    if problem is not None:
        print(f"\n{problem}\nThe law below is of the other probes.", flush=True)
    law = fit_scaling_law(rows, chosen["form"], chosen["space"], column=chosen["column"], **origin)
    save_json(folder / "comparison.json", {"forms": comparison}, kind="law_comparison", version=1)
    print(f"\n{format_comparison(comparison)}\n")
    print_law(law)
    if dataset is not None:
        landscape = PerplexityLandscape.from_dataset(dataset, column=law.column)
        remove_plots(folder)
        try:
            bound = forgetting_bound(law, rows, script_args, training_args, model_args)
            optimum = best_landscape(law, landscape, script_args.budget, bound)
            total = plan.total_tokens if plan else script_args.total_tokens or law.num_tokens_range[1] * len(law.runs)
            print_planning(law, landscape, optimum, total, bound)
            plot_law(law, landscape, optimum, folder, bound)
        except ValueError as error:  # the law is good all the same
            problem = problem or error
    law.save(folder / "law.json")  # last: where it is, everything is
    print(f"Saved to {folder / 'law.json'}.", flush=True)
    if problem is not None:
        raise problem
    if training_args.push_to_hub:
        where = {"private": training_args.hub_private_repo, "revision": training_args.hub_revision}
        options = {"license": script_args.license, "dry_run": script_args.dry_run, **where}
        pushed = law.push_to_hub(training_args.hub_model_id, **options)
        print(pushed if script_args.dry_run else f"Pushed to {pushed}.")


def check_push(script_args, training_args):
    """The repository to push the law to, after whether one may."""
    from hf_ppl_select.hub.repository import check_branch, check_hub_access, check_license, check_repo_id

    name = training_args.hub_model_id or Path(training_args.output_dir).absolute().name
    check_branch(training_args.hub_revision)
    if script_args.license is not None:
        check_license(script_args.license)
    if script_args.dry_run:
        check_repo_id(name)
        return name
    return check_hub_access(name, repo_type="model")


def make_parser():
    from trl import ModelConfig, SFTConfig, TrlParser

    parser = TrlParser(
        (FitLawArguments, SFTConfig, ModelConfig), description=__doc__.strip().partition(":")[0], allow_abbrev=False
    )
    parser.set_defaults_with_config(
        lr_scheduler_type="constant",  # so that a prefix of a run is a run of its own
        learning_rate=1.0e-4,
        num_train_epochs=1,
        save_strategy="no",
        logging_steps=50,
        max_length=2048,
    )
    return parser


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(FitLawArguments, __doc__, and_trl=True)
    run(lambda: main(*parse_options(make_parser())))
