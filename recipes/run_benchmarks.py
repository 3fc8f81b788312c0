"""Score a language model on medical and general multiple-choice benchmarks, with confidence intervals.

From the Hub:

    python recipes/run_benchmarks.py --model Qwen/Qwen3-0.6B-Base --benchmarks medical general --limit 500

From a YAML file; options on the command line win:

    python recipes/run_benchmarks.py --config recipes/configs/benchmarks.yaml --output outputs/base.json

Without the Hub, from a folder with files such as medqa_4options_test.parquet:

    python recipes/run_benchmarks.py --model path/to/model --benchmarks medqa_4options --data_dir path/to/files

Your own questions (columns question, choices, answer), and how they moved since an earlier run:

    python recipes/run_benchmarks.py --model path/to/adapted --benchmarks my_questions.jsonl general_questions \\
        --output outputs/adapted.json --compare_with outputs/base.json
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass
class BenchmarkOptions:
    model: str = field(metadata={"help": "Hub id or folder of a causal language model."})
    benchmarks: list[str] = field(
        default_factory=lambda: ["medical", "general"],
        metadata={"help": "Benchmarks, groups (medical, general), or files with columns question, choices, answer."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local files to read, not the Hub."})
    data_files: list[str] | None = field(
        default=None, metadata={"help": "Local files of single benchmarks, each as name=path."}
    )
    limit: int | None = field(default=None, metadata={"help": "Questions per benchmark, drawn with the seed."})
    seed: int = field(default=0, metadata={"help": "Seed of the draw and of the bootstrap."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Of the weights; auto keeps the checkpoint's own."}
    )
    max_batch_tokens: int | None = field(default=None, metadata={"help": "Tokens in one forward pass."})
    output: str = field(default="outputs/benchmarks.json", metadata={"help": "Where results and records are saved."})
    compare_with: str | None = field(
        default=None, metadata={"help": "An earlier output; prints this run minus that one, question by question."}
    )


def main(options):
    from hf_ppl_select.benchmarks import BenchmarkResults, markdown_table, read_benchmarks, run_benchmarks
    from hf_ppl_select.likelihood import LikelihoodEngine, load_model

    # What can be wrong is found before the model runs: names, files, rows, where to save, what to compare with.
    data_files = dict(entry.partition("=")[::2] for entry in options.data_files or [])
    if not all(data_files.values()):
        raise ValueError(f"data_files must be entries like medmcqa=path/to/file.parquet, not {options.data_files}.")
    chosen = {"data_dir": options.data_dir, "data_files": data_files, "limit": options.limit, "seed": options.seed}
    read_benchmarks(options.benchmarks, **chosen)
    earlier = BenchmarkResults.load(options.compare_with) if options.compare_with else None
    if Path(options.output).is_dir():
        raise IsADirectoryError(f"output must be a file, and {options.output} is a folder.")
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    engine = LikelihoodEngine(model, max_batch_tokens=options.max_batch_tokens)

    results = run_benchmarks(model, tokenizer, options.benchmarks, engine=engine, **chosen)
    results.save(options.output)
    print(results.to_markdown())
    for result in results.benchmarks.values():
        if result.num_truncated:
            print(
                f"{result.name}: {result.num_truncated} prompts were longer than {results.max_length} tokens and cut."
            )
    if earlier is not None:
        print(f"\nThis run minus {options.compare_with}, paired:\n")
        print(markdown_table(results.paired_difference(earlier)))
    print(f"\nSaved to {options.output}; intervals are 95 % bootstrap over questions.")


def make_parser():
    from trl import TrlParser

    return TrlParser(BenchmarkOptions, description=__doc__.split("\n")[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import parse_options, run

    (options,) = parse_options(make_parser())
    run(lambda: main(options))
