"""
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

`load_dataset(output_dir, split="train")` gives the subset back; beside it: selection.json, law.json, landscape.json.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class SelectArguments:
    dataset_name: str = field(
        metadata={
            "help": "Scored chunks: the output of score.py, a folder of `save_to_disk`, a .parquet or .jsonl file, or "
            "a Hub dataset; with the columns perplexity and num_tokens.",
            "aliases": ["--dataset"],
        }
    )
    num_tokens: int = field(metadata={"help": "The budget: tokens to select."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to select from, e.g. train[1000:]."})
    law: str | None = field(default=None, metadata={"help": "law.json of fit_law.py: aim at this law's optimum."})
    target_mu: float | None = field(default=None, metadata={"help": "Without a law: the mean to aim at."})
    target_sigma: float | None = field(default=None, metadata={"help": "And the standard deviation."})
    space: str | None = field(default=None, metadata={"help": "Of a target: linear (perplexity) or log (nll, nats)."})
    strategy: str = field(default="maxent", metadata={"help": "maxent, greedy_dos, regime, random, low or high."})
    seed: int = field(default=0, metadata={"help": "Of the draw."})
    output_dir: str = field(default="outputs/subset", metadata={"help": "Folder for the subset and its card."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a subset that is in output_dir."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Hub repository to push to, e.g. me/my-subset."})
    private: bool = field(default=False, metadata={"help": "Make that repository private."})
    license: str | None = field(default=None, metadata={"help": "The source's, as on the Hub: cc-by-4.0, other, ..."})
    source: str | None = field(default=None, metadata={"help": "Where the text is from: a Hub dataset, or words."})
    model: str | None = field(default=None, metadata={"help": "That scored the chunks, if landscape.json is missing."})


def main(args):
    from hf_ppl_select import PerplexityLandscape, ScalingLaw
    from hf_ppl_select.hub import check_folder, check_hub_access, check_license, push_subset_to_hub, save_subset
    from hf_ppl_select.selection import plan_selection
    from hf_ppl_select.sources import load_rows

    # What can be wrong is found before any work
    if (args.target_mu is None) != (args.target_sigma is None):
        raise ValueError("a target has two parts: pass both --target_mu and --target_sigma.")
    target = None if args.target_mu is None else (args.target_mu, args.target_sigma)
    if args.license or args.push_to_hub:
        check_license(args.license)
    check_folder(args.output_dir, args.overwrite)
    if args.push_to_hub:
        check_hub_access(args.push_to_hub)
    law = ScalingLaw.load(args.law) if args.law else None
    dataset = load_rows(args.dataset_name, args.dataset_config, args.dataset_split)
    beside = Path(args.dataset_name, "landscape.json")
    model = args.model or (PerplexityLandscape.load(beside).model if beside.is_file() else None)
    if law is not None and law.model and model and law.model != model:
        raise ValueError(
            f"{args.law} is a law for perplexities of {law.model}, but {model} scored {args.dataset_name}; score it "
            "with the law's model, or pass --model if both are names of one model."
        )

    # Select
    options = {"law": law, "target": target, "space": args.space, "strategy": args.strategy, "seed": args.seed}
    selection = plan_selection(dataset, num_tokens=args.num_tokens, **options)
    print(summarize(selection))

    # Save, and push
    about = {
        "law": law,
        "landscape": PerplexityLandscape.from_dataset(dataset, model=model or (law.model if law else None)),
        "selection": selection,
        "license": args.license,
        "source": args.source or (None if Path(args.dataset_name).exists() else args.dataset_name),
    }
    subset = dataset.select(selection.indices)
    folder = save_subset(subset, args.output_dir, overwrite=args.overwrite, **about)
    print(f"Saved to {folder}.", flush=True)
    if args.push_to_hub:
        print(f"Pushed to {push_subset_to_hub(subset, args.push_to_hub, private=args.private, **about)}.")
    return selection


def summarize(selection) -> str:
    """What was aimed at, what was reached and what the law predicts, in a few lines."""
    names, unit = (
        (("log_mu", "log_sigma"), "nll (nats)") if selection.space == "log" else (("mu", "sigma"), "perplexity")
    )
    lines = [
        f"Selected {selection.num_chunks:,} of {selection.corpus['num_chunks']:,} chunks, {selection.num_tokens:,} of "
        f"{selection.budget:,} tokens asked for (strategy {selection.strategy}, seed {selection.seed}).",
        f"{unit + ':':<14}mean      standard deviation",
    ]
    rows = {"corpus": [selection.corpus[n] for n in names], "target": selection.target}
    rows["subset"] = [selection.achieved[n] for n in names]
    lines += [f"  {name:<12}{row[0]:<10.4g}{row[1]:.4g}" for name, row in rows.items() if row]
    if selection.predicted_loss is not None and selection.random_loss is not None:
        loss, random = selection.predicted_loss, selection.random_loss
        lines.append(
            f"Predicted loss {loss:.4f} nats per token; random subset {random:.4f}: gain {random - loss:.4f}."
        )
    if (optimum := selection.optimum) is not None:
        low, high = optimum.gain_interval
        verdict = "within the noise: a random subset may do as well" if optimum.within_noise else "beyond the noise"
        lines.append(f"Gain at the law's optimum, 95 % interval: {low:.4f} to {high:.4f}, {verdict}.")
    return "\n".join(lines)


def make_parser():
    from trl import TrlParser

    return TrlParser(SelectArguments, description=__doc__.strip().splitlines()[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import parse_options, run

    options = parse_options(make_parser())
    run(lambda: main(*options))
