"""
Fit a perplexity-aware scaling law: short probe runs on subsets of different landscapes, one law point per rung of a
ladder of token counts, then every law form compared out of sample. Probes train with TRL's SFTTrainer, one at a time;
a finished probe is never trained twice, so a killed run continues where it was.

```bash
python recipes/fit_law.py --config recipes/configs/fit_law_medical.yaml
```

```bash
python recipes/fit_law.py \
    --dataset_name outputs/scored \
    --eval_file held_out_medical.jsonl \
    --general_eval_file held_out_general.txt \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M \
    --num_probes 8 \
    --num_tokens 2_000_000 \
    --max_length 2048 \
    --output_dir outputs/law
```

`output_dir` gets points.jsonl (the law points), law.json, comparison.json (the forms) and plots. The model must be the
one that scored the dataset. Points measured elsewhere need no probes: `--points points.jsonl --num_probes 0`.
"""

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
        default=None, metadata={"help": "Held-out domain text: the loss that the law predicts."}
    )
    general_eval_file: str | None = field(default=None, metadata={"help": "Held-out general text: adds general_loss."})
    num_probes: int = field(default=8, metadata={"help": "Probe runs, one of them random. 0: fit to --points only."})
    num_tokens: int = field(default=1_000_000, metadata={"help": "Tokens that each probe trains on."})
    ladder: list[int] | None = field(
        default=None, metadata={"help": "Token counts at which to measure. Default: 1/4, 1/2 and all of num_tokens."}
    )
    probe_space: str = field(default="log", metadata={"help": "Space in which the probes spread: log or linear."})
    form: str = field(default="auto", metadata={"help": "Law form, or auto: the best out of sample."})
    space: str = field(default="auto", metadata={"help": "Space of the law: linear, log or auto."})
    points: str | None = field(
        default=None, metadata={"help": "Law points measured elsewhere (.jsonl), added to these."}
    )


def main(script_args, training_args, model_args):
    from importlib.util import find_spec

    from datasets import disable_progress_bars

    from hf_ppl_select import PerplexityLandscape, compare_scaling_laws, fit_scaling_law
    from hf_ppl_select.law_points import read_law_points
    from hf_ppl_select.probes import design_probes
    from hf_ppl_select.saving import save_json
    from hf_ppl_select.sources import load_rows, load_texts
    from probe_runs import check_same_settings, format_comparison, plot_law, run_probe

    folder = Path(training_args.output_dir)
    rows, landscape = [], None
    if script_args.num_probes:
        for option in ("dataset_name", "eval_file"):
            if getattr(script_args, option) is None:
                raise ValueError(f"probes need --{option}; or fit to known points: --points FILE --num_probes 0.")
        dataset = load_rows(script_args.dataset_name, script_args.dataset_config, script_args.dataset_train_split)
        landscape = PerplexityLandscape.from_dataset(dataset)
        column = training_args.dataset_text_field
        held_out = {"texts": load_texts(script_args.eval_file, column)[0]}
        if script_args.general_eval_file:
            held_out["general_texts"] = load_texts(script_args.general_eval_file, column)[0]
        probes = design_probes(
            dataset["perplexity"][:],
            dataset["num_tokens"][:],
            num_runs=script_args.num_probes,
            tokens_per_run=script_args.num_tokens,
            space=script_args.probe_space,
            seed=training_args.seed,
        )
        num_tokens = script_args.num_tokens
        ladder = script_args.ladder or [num_tokens // 4, num_tokens // 2, num_tokens]
        check_same_settings(folder / "settings.json", script_args, training_args, model_args, dataset, probes)

        disable_progress_bars()
        for number, probe in enumerate(probes, 1):
            print(f"Probe {number} of {len(probes)}: {probe.run}, m {probe.mu:.3f}, s {probe.sigma:.3f}", flush=True)
            run_probe(probe, dataset, ladder, folder, training_args, model_args, held_out)
        rows += read_law_points(folder / "points.jsonl").to_rows()
    if script_args.points:
        rows += read_law_points(script_args.points).to_rows()
    if not rows:
        raise ValueError("there are no law points: let probes run (--num_probes 8), or pass --points FILE.")

    comparison = compare_scaling_laws(rows)
    law = fit_scaling_law(rows, script_args.form, script_args.space, model=model_args.model_name_or_path)
    save_json(folder / "comparison.json", {"forms": comparison}, kind="law_comparison", version=1)
    print(f"\n{format_comparison(comparison)}\n\n{law}", flush=True)
    if landscape is not None:
        optimum = law.optimum(landscape, min(script_args.num_tokens, landscape.num_tokens))
        print(optimum)
        if find_spec("matplotlib"):
            plot_law(law, landscape, optimum, folder)
    law.save(folder / "law.json")  # last: where it is, everything is
    print(f"Saved to {folder / 'law.json'}.", flush=True)


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
    from command_line import parse_options, run

    options = parse_options(make_parser())
    run(lambda: main(*options))
