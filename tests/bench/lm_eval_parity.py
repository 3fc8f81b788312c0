"""The same questions, prompts and log-likelihoods as lm-evaluation-harness 0.4.13, item by item.

Two halves, since both are long on a CPU; each saves as it goes, and a second call goes on where the first one stopped:

    python tests/bench/lm_eval_parity.py theirs --model path/to/model --max_seconds 240
    python tests/bench/lm_eval_parity.py ours --model path/to/model --max_seconds 240
    python tests/bench/lm_eval_parity.py compare

`theirs` needs lm-eval (`pip install hf-ppl-select[bench]`) and uses its own task files; only where the rows come from
is changed, to the parquet files of `--data`. float32 throughout. `compare` prints a row per task and fails where the
chosen answers differ for more than 0.2 % of the items, acc or acc_norm differ in the third digit, or a log-likelihood
is more than 1e-3 off.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

CHUNK = 25  # items between saves
# name -> our benchmark, lm-eval's task file, the file of rows, and what differs from a plain zero-shot run
TASKS = {
    "medqa_4options": {"yaml": "medqa/medqa.yaml", "file": "medqa_4options_test"},
    "medmcqa": {"yaml": "medmcqa/medmcqa.yaml", "file": "medmcqa_validation"},
    "pubmedqa": {"yaml": "pubmedqa/pubmedqa.yaml", "file": "pubmedqa_labeled_test"},
    "commonsense_qa": {"yaml": "commonsense_qa/default.yaml", "file": "commonsense_qa_validation"},
    **{
        f"mmlu_{subject}": {"yaml": f"mmlu/default/mmlu_{subject}.yaml", "file": "mmlu_test", "subject": subject}
        for subject in ("professional_medicine", "clinical_knowledge", "moral_disputes", "high_school_psychology")
    },
    # Beyond the zero-shot letters: long choices, examples in the prompt, and prompts that must be cut.
    "commonsense_qa:texts": {"yaml": "commonsense_qa/default.yaml", "file": "commonsense_qa_validation"},
    "mmlu_anatomy:5-shot": {
        "yaml": "mmlu/default/mmlu_anatomy.yaml",
        "file": "mmlu_test",
        "subject": "anatomy",
        "num_fewshot": 5,
        "items": 40,
    },
    "pubmedqa:cut": {
        "yaml": "pubmedqa/pubmedqa.yaml",
        "file": "pubmedqa_labeled_test",
        "max_length": 200,
        "items": 40,
    },
    "commonsense_qa:cut": {
        "yaml": "commonsense_qa/default.yaml",
        "file": "commonsense_qa_validation",
        "max_length": 20,
        "items": 40,
    },
}


def items_of(name, options):
    return min(options.items, TASKS[name].get("items", options.items))


def harness_task(name, data, rows_folder):
    """lm-eval's own task, its rows from parquet files in `rows_folder`, in the shape that it expects."""
    import lm_eval.tasks
    import pyarrow.parquet as pq
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    spec = TASKS[name]
    config = dict(load_yaml(str(Path(lm_eval.tasks.__file__).parent / spec["yaml"])))
    splits = {}
    for split, file in (("test", spec["file"]), ("dev", "mmlu_dev" if "subject" in spec else spec["file"])):
        rows = pq.read_table(Path(data) / f"{file}.parquet").to_pylist()
        if "subject" in spec:
            rows = [row for row in rows if row["subject"] == spec["subject"]]
        if name.startswith("pubmedqa"):
            rows = [{**row, "CONTEXTS": row["context"]["contexts"], "QUESTION": row["question"]} for row in rows]
        path = Path(rows_folder) / f"{name.replace(':', '_')}_{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(path)
        splits[split] = str(path)
    files = {**dict.fromkeys(("train", "validation", "test"), splits["test"]), "dev": splits["dev"]}
    config.update(dataset_path="parquet", dataset_name=None, dataset_kwargs={"data_files": files})
    for key in ("tag", "task_alias"):
        config.pop(key, None)
    if name == "commonsense_qa:texts":
        config["doc_to_text"] = "Question: {{ question.strip() }}\nAnswer:"
        config["doc_to_choice"] = "{{choices.text}}"
        config["doc_to_target"] = "{{choices.label.index(answerKey)}}"
    return ConfigurableTask(config=config)


def our_benchmark(name):
    """Our benchmark of that name, its long-choice form where asked for."""
    from hf_ppl_select.benchmarks import BENCHMARKS

    benchmark = BENCHMARKS[name.split(":")[0]]
    if name == "commonsense_qa:texts":
        return replace(
            benchmark,
            prompt="Question: {question}\nAnswer:",
            choices="texts",
            prepare=lambda row: {**row, "question": row["question"].strip(), "texts": row["choices"]["text"]},
        )
    return benchmark


def theirs(options):
    """One JSON line per item: prompt, choices, right choice, log-likelihoods, and lm-eval's own acc and acc_norm."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    deadline = time.monotonic() + options.max_seconds
    for name in options.tasks:
        path, count = options.output / f"theirs_{name}.jsonl", items_of(name, options)
        done = len(path.read_text().splitlines()) if path.exists() else 0
        if done >= count:
            continue
        task = harness_task(name, options.data, options.output / "rows")
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=TASKS[name].get("max_length"))
        docs = list(task.test_docs() if task.has_test_docs() else task.validation_docs())[:count]
        while done < len(docs):
            if time.monotonic() > deadline:
                print(f"time is up at {name}, item {done}; call again to go on")
                return
            chunk, lines = docs[done : done + CHUNK], []
            requests = []
            for i, doc in enumerate(chunk, start=done):
                context = task.fewshot_context(doc, TASKS[name].get("num_fewshot", 0))
                requests.append(task.construct_requests(doc, context, metadata=(name, i, 1)))
            flat = [request for row in requests for request in row]
            found = iter(harness.loglikelihood(flat, disable_tqdm=True))
            for doc, row in zip(chunk, requests, strict=True):
                answers = [next(found) for _ in row]
                gold = task.doc_to_target(doc)
                gold = gold if isinstance(gold, int) else task.doc_to_choice(doc).index(gold)
                lines.append(
                    {
                        "prompt": row[0].args[0],
                        "continuations": [request.args[1] for request in row],
                        "gold": gold,
                        "log_likelihoods": [answer[0] for answer in answers],
                        "metrics": {k: float(v) for k, v in task.process_results(doc, answers).items()},
                    }
                )
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            done += len(chunk)
            print(f"{name}: {done} of {len(docs)}", flush=True)


def ours(options):
    """The same items with this package: one JSON line per item."""
    from hf_ppl_select.benchmarks.encoding import encode_questions, model_max_length
    from hf_ppl_select.benchmarks.questions import load_questions
    from hf_ppl_select.benchmarks.rows import find_source
    from hf_ppl_select.benchmarks.runner import score_requests
    from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model
    from hf_ppl_select.likelihood.shared_prefix import SharedPrefixScorer

    model, tokenizer = load_model(options.model, dtype="float32")
    scorer = SharedPrefixScorer(LikelihoodEngine(model))
    deadline = time.monotonic() + options.max_seconds
    for name in options.tasks:
        path, count = options.output / f"ours_{name}.jsonl", items_of(name, options)
        done = len(path.read_text().splitlines()) if path.exists() else 0
        if done >= count:
            continue
        benchmark, spec = our_benchmark(name), TASKS[name]
        examples = find_source(benchmark, options.data, examples=True) if "num_fewshot" in spec else None
        questions = load_questions(
            benchmark,
            find_source(benchmark, options.data),
            num_fewshot=spec.get("num_fewshot", 0),
            examples_path=examples,
        )[:count]
        max_length = spec.get("max_length", model_max_length(model.config, tokenizer))
        requests = encode_questions(questions, tokenizer, max_length, name=name)
        while done < len(questions):
            if time.monotonic() > deadline:
                print(f"time is up at {name}, item {done}; call again to go on")
                return
            stop = done + 4 * CHUNK
            scores = score_requests(scorer, requests[done:stop], title=name)
            with path.open("a", encoding="utf-8") as file:
                for question, row in zip(questions[done:stop], scores, strict=True):
                    line = {
                        "prompt": question.prompt,
                        "continuations": [f" {choice}" for choice in question.choices],
                        "gold": question.gold,
                        "log_likelihoods": row,
                    }
                    file.write(json.dumps(line) + "\n")
            done = min(stop, len(questions))
            print(f"{name}: {done} of {len(questions)}", flush=True)


def compare(options):
    """A Markdown row per task; True where every task is within the bounds."""
    print(
        "| task | items | prompts equal | answers equal | acc theirs, ours | acc_norm theirs, ours | max abs. diff |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    sound = True
    for name in options.tasks:
        paths = [options.output / f"{half}_{name}.jsonl" for half in ("theirs", "ours")]
        if not all(path.exists() for path in paths):
            print(f"| {name} | not run | | | | | |")
            sound = False
            continue
        harness, mine = ([json.loads(line) for line in path.read_text().splitlines()] for path in paths)
        if len(harness) != len(mine):
            print(f"| {name} | not done: {len(harness)} theirs, {len(mine)} ours | | | | | |")
            sound = False
            continue
        same_prompt = np.mean(
            [all(a[key] == b[key] for key in ("prompt", "continuations", "gold")) for a, b in zip(harness, mine)]
        )
        chosen = [[int(np.argmax(row["log_likelihoods"])) for row in rows] for rows in (harness, mine)]
        same_answer = np.mean([a == b for a, b in zip(*chosen)])
        acc = [np.mean([row["metrics"]["acc"] for row in harness])]
        acc.append(np.mean([choice == row["gold"] for choice, row in zip(chosen[1], mine)]))
        # Tasks that do not ask for acc_norm get it here by the harness's formula, from its own log-likelihoods.
        acc_norm = [
            np.mean([row["metrics"].get("acc_norm", right_per_char(row)) for row in harness]),
            np.mean([right_per_char(row) for row in mine]),
        ]
        difference = max(
            np.abs(np.subtract(a["log_likelihoods"], b["log_likelihoods"])).max() for a, b in zip(harness, mine)
        )
        print(
            f"| {name} | {len(mine)} | {same_prompt:.2%} | {same_answer:.2%} | {acc[0]:.4f}, {acc[1]:.4f} | "
            f"{acc_norm[0]:.4f}, {acc_norm[1]:.4f} | {difference:.1e} |"
        )
        sound &= same_prompt == 1 and same_answer >= 0.998 and difference < 1e-3
        sound &= bool(abs(acc[0] - acc[1]) < 5e-4 and abs(acc_norm[0] - acc_norm[1]) < 5e-4)
    return sound


def right_per_char(row):
    """Whether the choice with the highest log-likelihood per character, without the space before it, is right."""
    lengths = [len(continuation) - 1 for continuation in row["continuations"]]
    return float(np.argmax(np.divide(row["log_likelihoods"], lengths)) == row["gold"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=["theirs", "ours", "compare"])
    parser.add_argument("--data", default="../shared/data/benchmarks", help="folder with the parquet files")
    parser.add_argument("--model", help="Hub id or folder")
    parser.add_argument("--items", type=int, default=300, help="items per task; a task with fewer gives all of them")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--output", type=Path, default=Path("outputs/lm_eval_parity"))
    parser.add_argument("--max_seconds", type=float, default=float("inf"), help="stop after the chunk at hand")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.half == "compare":
        raise SystemExit(0 if compare(options) else 1)
    if options.model is None:
        parser.error("--model is needed")
    {"theirs": theirs, "ours": ours}[options.half](options)


if __name__ == "__main__":
    main()
