r"""
Select the part of a scored corpus to spend training tokens on, save it with its card, and push it to the Hub.

# The landscape that a fitted law predicts to be best
```bash
python recipes/select_subset.py \
    --dataset_name outputs/scored \
    --law outputs/law/law.json \
    --num_tokens 50_000_000 \
    --output_dir outputs/subset
```

# From a YAML file; options on the command line win
```bash
python recipes/select_subset.py --config recipes/configs/select_medical.yaml --seed 1 --output_dir outputs/subset-1
```

# Any landscape, without a law: mean 22 and standard deviation 10 of perplexity
```bash
python recipes/select_subset.py --dataset_name outputs/scored --target_mu 22 --target_sigma 10 --num_tokens 50_000_000
```

# What is likest to trusted text, of rows that no model has scored (score_ngrams.py): the budget is in words
```bash
python recipes/select_subset.py --dataset_name outputs/scored_ngrams --column ngram_ratio --strategy high \
    --num_tokens_column num_words --num_tokens 5_000_000
```

# Balanced over sources, without duplicates or junk, with 5 % of general text, from easy to hard
```bash
python recipes/select_subset.py \
    --dataset_name outputs/scored \
    --law outputs/law/law.json \
    --num_tokens 50_000_000 \
    --group_by source --min_group_tokens 1_000_000 \
    --deduplicate exact --max_score 200 \
    --replay 0.05 --replay_dataset outputs/scored-general \
    --order easy_to_hard
```

# Parquet files larger than memory: a folder, a URL, or a Hub dataset; killed and started again, it goes on
```bash
python recipes/select_subset.py --streaming \
    --dataset_name data/scored --law outputs/law/law.json --num_tokens 5_000_000_000 --output_dir outputs/large
```

# Straight to the Hub; the licence is that of the corpus
```bash
python recipes/select_subset.py \
    --dataset_name outputs/scored \
    --law outputs/law/law.json \
    --num_tokens 50_000_000 \
    --push_to_hub me/medical-sweet-spot \
    --source lavita/MedQuAD \
    --license cc-by-4.0
```
`--dry_run` says what that would upload, and pushes nothing; `--hub_revision v2` pushes to a branch. A push that failed
is made again by the same command.

# The same rows again, from the report that lies beside a subset
```bash
python recipes/select_subset.py --reproduce outputs/subset/selection.json \
    --dataset_name outputs/scored --law outputs/subset/law.json --output_dir outputs/again
```

`load_dataset(output_dir, split="train")` gives the subset back; beside it: selection.json, law.json, landscape.json.
"""

import json
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path

from hf_ppl_select.data.saving import check_not_input
from training.subset import check_same_selection


@dataclass
class SelectArguments:
    dataset_name: str = field(
        metadata={
            "help": "Scored chunks: the output of score.py, a folder of `save_to_disk`, a .parquet or .jsonl file, or "
            "a Hub dataset; with the columns perplexity and num_tokens.",
            "aliases": ["--dataset"],
        }
    )
    num_tokens: int | None = field(default=None, metadata={"help": "The budget: tokens to select."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to select from, e.g. train[1000:]."})
    law: str | None = field(default=None, metadata={"help": "law.json of fit_law.py: aim at this law's optimum."})
    target_mu: float | None = field(default=None, metadata={"help": "Without a law: the mean to aim at."})
    target_sigma: float | None = field(default=None, metadata={"help": "And the standard deviation."})
    space: str | None = field(
        default=None, metadata={"help": "Of a target: linear (of the score) or log (of its logarithm, nats)."}
    )
    column: str | None = field(
        default=None, metadata={"help": "Score column: any of positive numbers. Default: the law's, or perplexity."}
    )
    num_tokens_column: str = field(
        default="num_tokens", metadata={"help": "Tokens of each chunk; num_words: the budget is in words."}
    )
    strategy: str = field(
        default="maxent", metadata={"help": "maxent, greedy_dos, regime, random, low, high or middle."}
    )
    seed: int = field(default=0, metadata={"help": "Of the draw."})
    group_by: str | None = field(default=None, metadata={"help": "Column of groups that share the budget: source."})
    group_num_tokens: dict | str | None = field(
        default=None, metadata={"help": 'Their budgets, as JSON: {"a": 1000, ...}.'}
    )
    min_group_tokens: dict | str | int | None = field(
        default=None, metadata={"help": "Least tokens of each: a number, or JSON."}
    )
    deduplicate: str | None = field(default=None, metadata={"help": "exact, normalized or near."})
    near_threshold: float = field(default=0.8, metadata={"help": "Of near: the least Jaccard similarity."})
    min_score: float | None = field(default=None, metadata={"help": "Drop chunks of a lower score."})
    max_score: float | None = field(default=None, metadata={"help": "Drop chunks of a higher score."})
    replay: float = field(default=0.0, metadata={"help": "Share of the budget for general text, e.g. 0.05."})
    replay_dataset: str | None = field(default=None, metadata={"help": "That text, with the dataset's columns."})
    order: str = field(default="dataset", metadata={"help": "dataset, easy_to_hard, hard_to_easy or shuffled."})
    text_column: str = field(default="text", metadata={"help": "Read by deduplicate, and by streaming."})
    streaming: bool = field(default=False, metadata={"help": "Parquet files larger than memory, in two passes."})
    reproduce: str | None = field(default=None, metadata={"help": "selection.json of a subset to select again."})
    output_dir: str = field(default="outputs/subset", metadata={"help": "Folder for the subset and its card."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is in output_dir, or in the repository."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Hub repository to push to, e.g. me/my-subset."})
    hub_revision: str | None = field(default=None, metadata={"help": "Its branch, made if absent. Default: main."})
    private: bool = field(default=False, metadata={"help": "Make that repository private."})
    dry_run: bool = field(default=False, metadata={"help": "Only say what --push_to_hub would upload."})
    license: str | None = field(default=None, metadata={"help": "The source's, as on the Hub: cc-by-4.0, other, ..."})
    source: str | None = field(default=None, metadata={"help": "Where the text is from: a Hub dataset, or words."})
    model: str | None = field(default=None, metadata={"help": "That scored the chunks, if landscape.json is missing."})

    def __post_init__(self):
        if self.num_tokens is None and self.reproduce is None:
            raise ValueError("the following arguments are required: --num_tokens")
        if (self.target_mu is None) != (self.target_sigma is None):
            raise ValueError("a target has two parts: pass both --target_mu and --target_sigma.")
        for name in ("hub_revision", "private", "dry_run"):
            if getattr(self, name) and self.push_to_hub is None:
                raise ValueError(f"--{name} is about a push: add --push_to_hub, or leave it out.")
        for name in ("group_num_tokens", "min_group_tokens"):
            if isinstance(text := getattr(self, name), str):
                try:
                    setattr(self, name, json.loads(text.replace("_", "") if text[:1].isdigit() else text))
                except json.JSONDecodeError as error:
                    raise ValueError(f"--{name} {text} is not JSON ({error}).") from error


def main(args):
    from hf_ppl_select import PerplexityLandscape, ScalingLaw
    from hf_ppl_select.data.load import load_rows
    from hf_ppl_select.hub.push_subset import check_folder, check_license, push_subset_to_hub, save_subset
    from hf_ppl_select.hub.repository import check_branch, check_hub_access, check_repo_id
    from hf_ppl_select.selection.select import plan_selection, reproduce_selection

    check_not_input(args.output_dir, args.dataset_name)
    # What can be wrong is found before any work
    if args.license or args.push_to_hub:
        check_license(args.license)
    law, beside = ScalingLaw.load(args.law) if args.law else None, Path(args.dataset_name, "landscape.json")
    model = args.model or (PerplexityLandscape.load(beside).model if beside.is_file() else None)
    if args.push_to_hub:
        check_branch(args.hub_revision)
        check_repo_id(args.push_to_hub) if args.dry_run else check_hub_access(args.push_to_hub)
    if args.streaming:
        return stream(args, law, model)
    if not args.dry_run:
        # To push again what is there is no overwriting; whether it is the same is known once it is selected
        check_folder(args.output_dir, args.overwrite or bool(args.push_to_hub))
    dataset = load_rows(args.dataset_name, args.dataset_config, args.dataset_split)
    replay_dataset = load_rows(args.replay_dataset) if args.replay_dataset else None

    # Select
    if args.reproduce:
        selection = reproduce_selection(args.reproduce, dataset, law=law, replay_dataset=replay_dataset)
    else:
        shared = (signature(plan_selection).parameters.keys() & vars(args).keys()) - {"law", "replay_dataset"}
        options = {name: getattr(args, name) for name in shared} | {"law": law, "model": model}
        options["target"] = None if args.target_mu is None else (args.target_mu, args.target_sigma)
        selection = plan_selection(dataset, replay_dataset=replay_dataset, **options)
    print(selection)

    # Save, and push
    counted = selection.options["num_tokens_column"]  # of the report, with --reproduce
    about = {
        "law": law,
        "landscape": PerplexityLandscape.from_dataset(
            dataset, column=selection.column, num_tokens_column=counted, model=model or (law.model if law else None)
        ),
        "selection": selection,
        "license": args.license,
        "source": args.source or name_source(args),
    }
    subset = selection.apply(dataset, replay_dataset)
    if args.dry_run:
        print(push_subset_to_hub(subset, args.push_to_hub, dry_run=True, **push_options(args), **about))
        return selection
    if args.push_to_hub and not args.overwrite:
        check_same_report(Path(args.output_dir, "selection.json"), selection)
    folder = save_subset(subset, args.output_dir, overwrite=args.overwrite or bool(args.push_to_hub), **about)
    print(f"Saved to {folder}.", flush=True)
    push(args)
    return selection


def name_source(args):
    """The Hub dataset that was read, and which part of it; None for files here."""
    if Path(args.dataset_name).exists():
        return None
    part = {
        "configuration": args.dataset_config,
        "split": args.dataset_split if args.dataset_split != "train" else None,
    }
    said = ", ".join(f"{name} {value}" for name, value in part.items() if value)
    return f"{args.dataset_name} ({said})" if said else args.dataset_name


def push_options(args):
    return {"private": args.private, "revision": args.hub_revision, "overwrite": args.overwrite}


def push(args):
    """Push the folder that was saved, where that is asked for."""
    if args.push_to_hub:
        from hf_ppl_select.hub.push_subset import push_subset_folder_to_hub

        done = push_subset_folder_to_hub(args.output_dir, args.push_to_hub, dry_run=args.dry_run, **push_options(args))
        print(done if args.dry_run else f"Pushed to {done}.")


def check_same_report(path, selection):
    """FileExistsError where another subset is saved than this one, which a push may save again."""
    from hf_ppl_select.data.credentials import without_credentials
    from hf_ppl_select.selection.report import load_report

    if path.parent.is_dir() and any(path.parent.iterdir()):
        ours = without_credentials(json.loads(json.dumps(selection.report())))
        if not path.is_file() or load_report(path) != ours:
            raise FileExistsError(f"{path.parent} already holds another subset; name another folder, or --overwrite.")


def stream(args, law, model):
    from hf_ppl_select.streaming.parquet_files import ParquetFiles
    from hf_ppl_select.streaming.select import check_streamable, select_stream

    check_streamable(vars(args))
    options = {name: getattr(args, name) for name in ("min_score", "max_score", "num_tokens_column")}
    options["column"] = args.column or (law.column if law else "perplexity")
    files = ParquetFiles.find(args.dataset_name, args.dataset_split, **options)
    files.check_columns(files.column)
    files.check_columns(files.num_tokens_column, advice="with --num_tokens_column num_words the budget is in words")
    selection = select_stream(
        files,
        args.output_dir,
        law=law,
        target=None if args.target_mu is None else (args.target_mu, args.target_sigma),
        key_column=args.text_column,
        model=model,
        **{name: getattr(args, name) for name in ("num_tokens", "space", "seed", "overwrite", "license")},
        source=args.source or name_source(args),
    )
    print(f"{selection}\nSaved to {args.output_dir}.", flush=True)
    push(args)


def select_on_the_way_in(script_args, training_args):
    """For cpt.py and sft.py, with `num_tokens`: select a subset to train on instead. Its folder, or None.

    It is saved beside the output folder, with its card, as `<output_dir>-subset`; a resumed run takes what is there.
    """
    if script_args.num_tokens is None:
        return None
    folder = Path(f"{training_args.output_dir.rstrip('/')}-subset")
    options = SelectArguments(
        dataset_name=script_args.dataset_name,
        dataset_config=script_args.dataset_config,
        dataset_split=script_args.dataset_train_split,
        law=script_args.law,
        num_tokens=script_args.num_tokens,
        strategy=script_args.strategy,
        seed=training_args.seed,
        output_dir=str(folder),
        overwrite=True,
    )
    with training_args.main_process_first(local=False, desc="selection"):
        if training_args.process_index == 0:
            if training_args.resume_from_checkpoint is not None and (folder / "selection.json").is_file():
                check_same_selection(options)
            else:
                main(options)
    return folder


def make_parser():
    from trl import TrlParser

    return TrlParser(SelectArguments, description=__doc__.strip().splitlines()[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(SelectArguments, __doc__)
    run(lambda: main(*parse_options(make_parser())))
