r"""Score a language model on medical and general multiple-choice benchmarks, with confidence intervals.

From the Hub:

    python recipes/run_benchmarks.py --model Qwen/Qwen3-0.6B-Base --benchmarks medical general --limit 500

With five solved examples before each question:

    python recipes/run_benchmarks.py --model Qwen/Qwen3-0.6B-Base --benchmarks mmlu --num_fewshot 5

From a YAML file; options on the command line win:

    python recipes/run_benchmarks.py --config recipes/configs/benchmarks.yaml --output outputs/base.json

Without the Hub, from a folder with files such as medqa_4options_test.parquet:

    python recipes/run_benchmarks.py --model path/to/model --benchmarks medqa_4options --data_dir path/to/files

Your own questions (columns question, choices, answer), and how they moved since an earlier run:

    python recipes/run_benchmarks.py --model path/to/adapted --benchmarks my_questions.jsonl general_questions \
        --output outputs/adapted.json --compare_with outputs/base.json

Two saved runs, question by question, with McNemar tests:

    python recipes/run_benchmarks.py --compare outputs/adapted.parquet outputs/base.parquet
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass
class BenchmarkOptions:
    model: str | None = field(default=None, metadata={"help": "Hub id or folder of a causal language model."})
    benchmarks: list[str] = field(
        default_factory=lambda: ["medical", "general"],
        metadata={
            "help": "Benchmarks, groups (medical, general, paper_medical, paper_general), or files with columns "
            "question, choices, answer."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local files to read, not the Hub."})
    data_files: list[str] | None = field(
        default=None,
        metadata={
            "help": "Local files of single benchmarks, each as name=path; their examples as name:examples=path."
        },
    )
    limit: int | None = field(default=None, metadata={"help": "Questions per benchmark, drawn with the seed."})
    num_fewshot: int = field(
        default=0, metadata={"help": "Solved examples before each question, from the benchmark's training split."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the draws and of the bootstrap."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Of the weights; auto: its own, or float32 on a CPU slow in that."}
    )
    max_batch_tokens: int | None = field(default=None, metadata={"help": "Tokens in one forward pass."})
    output: str = field(
        default="outputs/benchmarks.json",
        metadata={"help": "Where results are saved; the records go beside it, as .parquet."},
    )
    eval_results_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of a model to push: its .eval_results/hf_ppl_select.yaml is written too."},
    )
    compare_with: str | None = field(
        default=None, metadata={"help": "An earlier output; prints this run minus that one, question by question."}
    )
    compare: list[str] | None = field(
        default=None, metadata={"help": "Two files of records: prints the first minus the second; no model runs."}
    )


def main(options):
    from hf_ppl_select.benchmarks import (
        BenchmarkResults,
        calibration_table,
        compare_records,
        read_benchmarks,
        run_benchmarks,
        save_eval_results,
    )

    if options.compare is not None:
        if len(options.compare) != 2:
            raise ValueError(f"compare takes two files of records, not {len(options.compare)}: {options.compare}.")
        print_comparison(compare_records(*options.compare, seed=options.seed))
        return

    # What can be wrong is found before the model runs: names, files, rows, where to save, what to compare with.
    if options.model is None:
        raise ValueError("model is needed: a Hub id or a folder. (Only --compare works without.)")
    data_files = dict(entry.partition("=")[::2] for entry in options.data_files or [])
    if not all(data_files.values()):
        raise ValueError(f"data_files must be entries like medmcqa=path/to/file.parquet, not {options.data_files}.")
    chosen = {"data_dir": options.data_dir, "data_files": data_files}
    chosen |= {"limit": options.limit, "num_fewshot": options.num_fewshot, "seed": options.seed}
    read_benchmarks(options.benchmarks, **chosen)
    earlier = BenchmarkResults.load(options.compare_with) if options.compare_with else None
    output, records = Path(options.output), Path(options.output).with_suffix(".parquet")
    if options.compare_with and output.resolve() == Path(options.compare_with).resolve():
        raise ValueError(f"output {output} is what --compare_with reads, and would replace it; name another --output.")
    if output.is_dir():
        raise IsADirectoryError(f"output must be a file, and {output} is a folder.")
    if output == records:
        raise ValueError(f"output must not end in .parquet, since the records are saved under that name: {output}.")

    from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model

    model, tokenizer = load_model(options.model, dtype=options.dtype)
    engine = LikelihoodEngine(model, max_batch_tokens=options.max_batch_tokens)
    results = run_benchmarks(model, tokenizer, options.benchmarks, engine=engine, **chosen)
    results.save(output)
    results.save_records(records)
    print(results.to_markdown())
    print(f"\nCalibration:\n\n{calibration_table(results)}")
    for result in results.benchmarks.values():
        if result.num_truncated:
            print(
                f"{result.name}: {result.num_truncated} prompts were longer than {results.max_length} tokens and cut."
            )
    if earlier is not None:
        print_comparison(compare_records(results, earlier, seed=options.seed))
    print(f"\nSaved to {output}, records to {records}; intervals are 95 % bootstrap over questions.")
    if options.eval_results_dir is not None:
        saved = save_eval_results(results, options.eval_results_dir)
        print(f"Entries for the Hub: {saved}" if saved else "No entries for the Hub: all benchmarks are local files.")


def print_comparison(comparison):
    print(f"\n{comparison.ours} minus {comparison.baseline}, question by question:\n\n{comparison.to_markdown()}")
    print("\nIntervals are 95 % paired bootstrap; p is exact, of one comparison, and knows nothing of training seeds.")


def make_parser():
    from trl import TrlParser

    return TrlParser(BenchmarkOptions, description=__doc__.split("\n")[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(BenchmarkOptions, __doc__)
    run(lambda: main(*parse_options(make_parser())))
