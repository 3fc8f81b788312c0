"""Questions per second against lm-evaluation-harness, on the same items, model and dtype, in one process.

    python tests/bench/bench_benchmarks.py --model HuggingFaceTB/SmolLM2-135M --data ../shared/data/benchmarks

Needs lm-eval (`pip install hf-ppl-select[bench]`) and local files of medqa_4options, medmcqa and commonsense_qa; says
so and stops where they are missing. The two sides take turns, so that a busy machine slows both; of the harness the
fastest batch size counts. Both tokenize and score; neither reads files. Prints a row per kind, writes JSON. On a CPU
that others use too, the ratio of CPU time is the one to go by.
"""

import argparse
import importlib.util
import json
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path


def question_sets(data, items):
    """Kind -> questions: letters after a listing, and long choices as texts."""
    from hf_ppl_select.benchmarks import BENCHMARKS
    from hf_ppl_select.benchmarks.questions import load_questions
    from hf_ppl_select.benchmarks.rows import find_source

    def load(benchmark, count):
        return load_questions(benchmark, find_source(benchmark, data), limit=count)

    short, long = BENCHMARKS["commonsense_qa"], BENCHMARKS["medqa_4options"]
    short_texts = replace(
        short,
        prompt="Question: {question}\nAnswer:",
        choices="texts",
        prepare=lambda row: {**row, "question": row["question"].strip(), "texts": row["choices"]["text"]},
    )
    long_texts = replace(
        long,
        prompt="Question: {sent1}\nAnswer:",
        choices="texts",
        prepare=lambda row: {**row, "texts": [row[f"ending{i}"] for i in range(4)]},
    )
    return {
        "letters (medqa, medmcqa, commonsense_qa)": [
            question
            for name in ("medqa_4options", "medmcqa", "commonsense_qa")
            for question in load(BENCHMARKS[name], items)
        ],
        "long choices, short questions (commonsense_qa)": load(short_texts, 2 * items),
        "long choices, long questions (medqa)": load(long_texts, max(2, items // 3)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M", help="Hub id or folder")
    parser.add_argument("--data", default="../shared/data/benchmarks", help="folder with the parquet files")
    parser.add_argument("--items", type=int, default=30, help="questions of each benchmark among the letters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[1, 8], help="of the harness; the fastest counts"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench_benchmarks.json"))
    options = parser.parse_args()
    if importlib.util.find_spec("lm_eval") is None:
        print("skipped: lm-eval is not installed (pip install 'hf-ppl-select[bench]')")
        return
    if not Path(options.data).is_dir():
        print(f"skipped: no folder {options.data} with the benchmarks' files")
        return

    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from hf_ppl_select.benchmarks.encoding import encode_questions, model_max_length
    from hf_ppl_select.benchmarks.runner import score_requests
    from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model
    from hf_ppl_select.likelihood.shared_prefix import SharedPrefixScorer

    model, tokenizer = load_model(options.model, dtype=options.dtype)
    max_length = model_max_length(model.config, tokenizer)
    harnesses = [HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size) for size in options.batch_sizes]
    scorer = SharedPrefixScorer(LikelihoodEngine(model))

    def ours(questions):
        rows = score_requests(scorer, encode_questions(questions, tokenizer, max_length))
        return [value for row in rows for value in row]

    def theirs(harness, questions):
        pairs = [(question.prompt, f" {choice}") for question in questions for choice in question.choices]
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)
        ]
        return [answer[0] for answer in harness.loglikelihood(requests, disable_tqdm=True)]

    def timed(run, questions):
        start, start_cpu = time.perf_counter(), time.process_time()
        values = run(questions)
        return time.perf_counter() - start, time.process_time() - start_cpu, values

    report = {"model": options.model, "dtype": options.dtype, "rounds": options.rounds, "kinds": {}}
    print(
        "| questions | number | lm-eval, questions/s | ours, questions/s | ratio | ratio of CPU time | same answers |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for kind, questions in question_sets(options.data, options.items).items():
        sides = [partial(theirs, harness) for harness in harnesses]
        for run in (*sides, ours):  # what either side does once, e.g. the check of the tree
            timed(run, questions[:4])
        rounds = []
        for _ in range(options.rounds):
            found = [timed(run, questions) for run in sides]
            wall, cpu, values = timed(ours, questions)
            best, best_cpu = (min(row[column] for row in found) for column in (0, 1))
            rounds.append(
                {"lm_eval_seconds": best, "seconds": wall, "ratio": best / wall, "cpu_ratio": best_cpu / cpu}
            )
        same = same_answers(questions, found[0][2], values)
        report["kinds"][kind] = {"questions": len(questions), "rounds": rounds, "same_answers": same}
        median = {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}
        print(
            f"| {kind} | {len(questions)} | {len(questions) / median['lm_eval_seconds']:.2f} | "
            f"{len(questions) / median['seconds']:.2f} | {median['ratio']:.2f} | {median['cpu_ratio']:.2f} | "
            f"{same:.1%} |",
            flush=True,
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nSaved to {options.output}.")


def same_answers(questions, theirs, ours):
    """Share of questions for which both choose the same answer; in bfloat16 near ties may fall either way."""
    same, start = 0, 0
    for question in questions:
        stop = start + len(question.choices)
        chosen = [max(range(stop - start), key=values[start:stop].__getitem__) for values in (theirs, ours)]
        same += chosen[0] == chosen[1]
        start = stop
    return same / len(questions)


if __name__ == "__main__":
    main()
