"""Benchmarks: prompts as lm-evaluation-harness has them, loading, its errors, log-likelihoods, results, the recipe."""

import csv
import json
import math
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from question_files import OWN_ROWS, write_jsonl

from hf_ppl_select.benchmarks import (
    BENCHMARKS,
    GROUPS,
    METRICS,
    BenchmarkResults,
    Record,
    load_metric,
    own_benchmark,
    read_benchmarks,
    resolve_benchmarks,
    run_benchmarks,
)
from hf_ppl_select.benchmarks.encoding import encode_questions, model_max_length, special_prefix
from hf_ppl_select.benchmarks.loading import Question, load_questions
from hf_ppl_select.benchmarks.subject_names import MMLU_GENERAL, MMLU_MEDICAL

ROOT = Path(__file__).resolve().parents[2]
LETTERS = ("A", "B", "C", "D", "E")
MEDQA = {
    "id": "1",
    "sent1": "Which?",
    "sent2": "",
    "ending0": "a",
    "ending1": "b",
    "ending2": "c",
    "ending3": "d",
    "label": 2,
}
MMLU = {"question": " Where is it? ", "subject": "medical_genetics", "choices": ["w", "x", "y", "z"], "answer": 3}
ARC = {
    "id": "7",
    "question": "What is ice?",
    "choices": {"text": ["water", "stone", "air"], "label": ["1", "2", "3"]},
    "answerKey": "1",
}
# name, a row as the data set has it, and the prompt, choices and right choice that lm-evaluation-harness makes of it
CASES = [
    ("medqa_4options", MEDQA, "Question: Which?\nA. a\nB. b\nC. c\nD. d\nAnswer:", LETTERS[:4], 2),
    (
        "medmcqa",
        {"question": "Which nerve?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 0, "exp": None},
        "Question: Which nerve?\nChoices:\nA. a\nB. b\nC. c\nD. d\nAnswer:",
        LETTERS[:4],
        0,
    ),
    (
        "pubmedqa",
        {
            "pubid": 1,
            "question": "Does it work?",
            "context": {"contexts": ["First part.", "Second part."], "labels": ["AIM", "RESULTS"], "meshes": []},
            "long_answer": "Perhaps.",
            "final_decision": "maybe",
        },
        "Abstract: First part.\nSecond part.\nQuestion: Does it work?\nAnswer:",
        ("yes", "no", "maybe"),
        2,
    ),
    (
        "mmlu_medical_genetics",
        MMLU,
        "The following are multiple choice questions (with answers) about medical genetics.\n\nWhere is it?\n"
        "A. w\nB. x\nC. y\nD. z\nAnswer:",
        LETTERS[:4],
        3,
    ),
    (
        "commonsense_qa",
        {
            "id": "x",
            "question": "Where do you read? ",
            "question_concept": "reading",
            "choices": {"label": list(LETTERS), "text": ["bank", "library", "mall", "sea", "new york"]},
            "answerKey": "B",
        },
        "Question: Where do you read?\nA. bank\nB. library\nC. mall\nD. sea\nE. new york\nAnswer:",
        LETTERS,
        1,
    ),
    (
        "hellaswag",
        {
            "activity_label": "Baking",
            "ctx_a": "A woman stands. [header] How to bake [title] Mix it. [step] Stir  well.",
            "ctx_b": "she Then",
            "endings": [" bakes [substeps] bread.", "eats. [title] Done.", "runs", "sleeps"],
            "label": "1",
        },
        "Baking: A woman stands. How to bake. Mix it. Stir well. She then",
        ("bakes bread.", "eats.. Done.", "runs", "sleeps"),
        1,
    ),
    ("arc_easy", ARC, "Question: What is ice?\nAnswer:", ("water", "stone", "air"), 0),
    (
        "arc_challenge",
        {**ARC, "choices": {**ARC["choices"], "label": ["A", "B", "C"]}, "answerKey": "C"},
        "Question: What is ice?\nAnswer:",
        ("water", "stone", "air"),
        2,
    ),
]


def write_parquet(path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})
    return path


# Prompts and loading


@pytest.mark.parametrize(("name", "row", "prompt", "choices", "gold"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize(
    ("suffix", "write"), [(".jsonl", write_jsonl), (".parquet", write_parquet), (".csv", write_csv)]
)
def test_prompt_choices_and_answer_are_the_harness_ones(name, row, prompt, choices, gold, suffix, write, tmp_path):
    path = write(tmp_path / f"rows{suffix}", [row])
    assert load_questions(BENCHMARKS[name], path) == [Question(0, prompt, choices, gold)]


def test_json_array_is_read_like_json_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([MEDQA]), encoding="utf-8")
    assert load_questions(BENCHMARKS["medqa_4options"], path)[0].gold == 2


def test_mmlu_splits_into_medical_and_general(tmp_path):
    subjects = ["anatomy", "virology", "college_biology"]
    path = write_jsonl(tmp_path / "mmlu_test.jsonl", [{**MMLU, "subject": subject} for subject in subjects])
    assert [question.index for question in load_questions(BENCHMARKS["mmlu_medical"], path)] == [0, 2]
    assert [question.index for question in load_questions(BENCHMARKS["mmlu_general"], path)] == [1]
    assert (len(MMLU_MEDICAL), len(MMLU_GENERAL), len({*MMLU_MEDICAL, *MMLU_GENERAL})) == (6, 51, 57)


def test_every_real_file_loads_whole(shared_data):
    names = ["medical", "commonsense_qa", "mmlu_general", "mmlu_anatomy"]
    loaded = read_benchmarks(names, data_dir=shared_data / "benchmarks")
    counts = {benchmark.name: len(questions) for benchmark, _, questions in loaded}
    assert counts == {
        "medqa_4options": 1273,
        "medmcqa": 4183,
        "pubmedqa": 500,
        "mmlu_medical": 1089,
        "commonsense_qa": 1221,
        "mmlu_general": 14042 - 1089,
        "mmlu_anatomy": 135,
    }


def test_data_files_come_before_data_dir(tmp_path):
    write_jsonl(tmp_path / "medqa_4options_test.jsonl", [MEDQA, MEDQA])
    other = write_jsonl(tmp_path / "other.jsonl", [MEDQA])
    [(_, source, questions)] = read_benchmarks("medqa_4options", data_dir=tmp_path)
    assert (source, len(questions)) == ("medqa_4options_test.jsonl", 2)
    [(_, source, questions)] = read_benchmarks(
        "medqa_4options", data_dir=tmp_path, data_files={"medqa_4options": other}
    )
    assert (source, len(questions)) == ("other.jsonl", 1)


def test_hub_benchmarks_ask_for_the_right_split_and_no_remote_code(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([CASES[2][1]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    [(_, source, questions)] = read_benchmarks("pubmedqa")
    assert asked == [(("qiaojin/PubMedQA", "pqa_labeled"), {"split": "train"})]
    assert source == "qiaojin/PubMedQA"
    assert questions[0].gold == 2


def test_unreachable_hub_says_how_to_go_on_without(monkeypatch):
    import datasets

    def load_dataset(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError, match="medmcqa.*data_dir="):
        read_benchmarks("medmcqa")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("medqa_4options", {"label": 4}, r"medqa_4options, row 1 of .*rows.jsonl: answer 4 is no index \(0 to 3\)"),
        ("medqa_4options", {"label": -1}, "row 1 .*answer -1"),
        ("medqa_4options", {"label": None}, "row 1 .*answer None"),
        ("medqa_4options", {"ending3": None}, "row 1 .*column 'ending3' is null"),
        ("medqa_4options", {"sent1": ...}, "row 1 .*no column 'sent1'; there are .*ending0"),
        ("mmlu_medical", {"choices": ["x", "y", "z"]}, "row 1 .*out of range"),
        ("mmlu_medical", {"question": None}, "row 1 .*NoneType"),
        ("arc_easy", {"answerKey": "4"}, "row 1 .*answerKey '4' is none of the labels"),
        ("arc_easy", {"choices": {"text": ["water"], "label": ["1"]}}, "row 1 .*two or more choices"),
    ],
)
def test_bad_row_is_named(name, change, message, tmp_path):
    good = {"medqa_4options": MEDQA, "mmlu_medical": MMLU, "arc_easy": ARC}[name]
    bad = {key: value for key, value in {**good, **change}.items() if value is not ...}
    path = write_jsonl(tmp_path / "rows.jsonl", [good, bad])
    with pytest.raises(ValueError, match=message):
        load_questions(BENCHMARKS[name], path)


def test_bad_files_are_named(tmp_path):
    torn = tmp_path / "torn.jsonl"
    torn.write_text(json.dumps(MEDQA) + '\n{"sent1": ', encoding="utf-8")
    with pytest.raises(ValueError, match="torn.jsonl, line 2 is not valid JSON"):
        read_benchmarks("medqa_4options", data_files={"medqa_4options": torn})
    with pytest.raises(FileNotFoundError, match="no file .*absent.csv"):
        read_benchmarks("medqa_4options", data_files={"medqa_4options": "absent.csv"})
    with pytest.raises(ValueError, match="does not end in .parquet"):
        read_benchmarks("medqa_4options", data_files={"medqa_4options": tmp_path / "rows.txt"})
    with pytest.raises(FileNotFoundError, match="has no medqa_4options_test or medqa_4options"):
        read_benchmarks("medqa_4options", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        read_benchmarks("medqa_4options", data_dir=tmp_path / "absent")
    with pytest.raises(ValueError, match="data_files names medmcqa"):
        read_benchmarks("medqa_4options", data_files={"medmcqa": torn})
    listing = tmp_path / "listing.csv"
    listing.write_text('question,choices,answer\nOne?,"[""a"", ""b""]",0\nTwo?,"[a, b]",0\n', encoding="utf-8")
    with pytest.raises(ValueError, match="listing.csv, row 1: column 'choices' must be JSON"):
        read_benchmarks(str(listing))
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match="no rows"):
        read_benchmarks(str(empty))
    other = write_jsonl(
        tmp_path / "mmlu.jsonl", [{"question": "?", "subject": "x", "choices": ["a", "b", "c", "d"], "answer": 0}]
    )
    with pytest.raises(ValueError, match="no rows with 'subject'"):
        read_benchmarks("mmlu_anatomy", data_files={"mmlu_anatomy": other})


# Names and own benchmarks


def test_names_groups_and_files_resolve_once_each(own_file):
    names = [benchmark.name for benchmark in resolve_benchmarks(["medical", "medmcqa", str(own_file), "general"])]
    assert names == [*GROUPS["medical"], "mine", *GROUPS["general"]]
    assert all(
        BENCHMARKS[name].group == group.removeprefix("paper_") for group, names in GROUPS.items() for name in names
    )
    with pytest.raises(ValueError, match="No benchmarks to run"):
        resolve_benchmarks([])
    with pytest.raises(ValueError, match="Two benchmarks are called 'medmcqa'"):
        resolve_benchmarks(["medmcqa", own_benchmark(own_file, name="medmcqa")])


@pytest.mark.parametrize(
    ("typo", "near"), [("medqa", "medqa_4options"), ("pubmed_qa", "pubmedqa"), ("genral", "general")]
)
def test_typo_lists_near_names(typo, near):
    with pytest.raises(ValueError, match=f"no benchmark '{typo}'. Near names: .*{near}"):
        resolve_benchmarks([typo])


def test_limit_draws_with_the_seed_and_nests(tmp_path):
    rows = [{**MEDQA, "sent1": str(i)} for i in range(50)]
    write_jsonl(tmp_path / "medqa_4options.jsonl", rows)

    def drawn(limit, seed=0):
        [(_, _, questions)] = read_benchmarks("medqa_4options", data_dir=tmp_path, limit=limit, seed=seed)
        assert all(question.prompt.startswith(f"Question: {question.index}\n") for question in questions)
        return [question.index for question in questions]

    assert drawn(10) == drawn(10) == sorted(drawn(10))
    assert drawn(10) != drawn(10, seed=1)
    assert set(drawn(10)) < set(drawn(20))
    assert drawn(500) == drawn(None) == list(range(50))
    with pytest.raises(ValueError, match="limit must be a whole number"):
        drawn(0)


# Tokens


def harness_pair(tokenizer, context, continuation):
    """`TemplateLM._encode_pair` and `HFLM.tok_encode` of lm-evaluation-harness 0.4.13, for causal models."""
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces > 0:
        continuation, context = context[-n_spaces:] + continuation, context[:-n_spaces]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    plain = {"add_special_tokens": False} if context.startswith(tokenizer.decode(first)) else {}
    whole, before = tokenizer.encode(context + continuation, **plain), tokenizer.encode(context, **plain)
    return tuple(before + whole[len(before) :]), len(before)


def with_bos(tokenizer):
    """A copy that puts BOS before every text, as Llama's and Gemma's tokenizers do."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    bos = tokenizer.bos_token
    backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=bos)


@pytest.mark.parametrize("bos", [False, True])
def test_tokens_are_the_harness_ones(bos, tiny_tokenizer):
    tokenizer = with_bos(tiny_tokenizer) if bos else tiny_tokenizer
    assert special_prefix(tokenizer) == ([tokenizer.bos_token_id] if bos else [])
    questions = [
        Question(0, "Question: what is the capital?\nAnswer:", ("Paris", "new york"), 0),
        Question(1, "A prompt that ends in spaces  ", ("breath", "shortness of breath"), 0),
        Question(2, "and in a newline\n", ("é", "x"), 0),
        Question(3, "<|endoftext|>Question: fever", ("A", "B"), 0),
    ]
    for question, requests in zip(questions, encode_questions(questions, tokenizer, 512), strict=True):
        for choice, request in zip(question.choices, requests, strict=True):
            assert (request.ids, request.start) == harness_pair(tokenizer, question.prompt, f" {choice}")
            assert request.ids.count(tokenizer.bos_token_id) == (bos or question.index == 3)
            assert request.num_truncated == 0


def test_an_eos_that_the_tokenizer_appends_is_left_out(tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer = with_bos(tiny_tokenizer)
    special = [("<|endoftext|>", tokenizer.bos_token_id), ("<|pad|>", tiny_tokenizer.pad_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|pad|>", special_tokens=special
    )
    [[request, _]] = encode_questions([Question(0, "Question:", ("A", "B"), 0)], tokenizer, 64)
    assert request.ids[0] == tokenizer.bos_token_id
    assert tiny_tokenizer.pad_token_id not in request.ids


def test_long_prompts_lose_their_left_end_and_are_counted(tiny_model, tiny_tokenizer, tmp_path):
    long = {**OWN_ROWS[0], "question": "breath " * 600}
    path = write_jsonl(tmp_path / "long.jsonl", [long, OWN_ROWS[1]])
    result = run_benchmarks(tiny_model, tiny_tokenizer, str(path), max_length=64, progress=False).benchmarks["long"]
    assert result.num_truncated == 1
    assert result.records[0].num_truncated > 0
    [question, _] = read_benchmarks(str(path))[0][2]
    [requests] = encode_questions([question], tiny_tokenizer, 64)
    full, start = harness_pair(tiny_tokenizer, question.prompt, " Paris")
    assert requests[1].ids == full[-65:]  # the harness feeds the last 65 but one, and so do we
    assert requests[1].num_truncated == len(full) - 65
    assert requests[1].ids[requests[1].start :] == full[start:]


def test_cut_prompts_are_scored_on_what_the_harness_feeds(tiny_model, tiny_tokenizer, tmp_path):
    """Choices of different lengths leave different contexts, and the last token is predicted but never fed."""
    row = {**OWN_ROWS[0], "question": "breath " * 60, "choices": ["Rome", "shortness of breath", "fever, cough"]}
    path = write_jsonl(tmp_path / "long.jsonl", [row])
    found = run_benchmarks(tiny_model, tiny_tokenizer, str(path), max_length=30, progress=False)
    [(_, _, [question])] = read_benchmarks(str(path))
    expected = []
    for choice in question.choices:
        ids, start = harness_pair(tiny_tokenizer, question.prompt, f" {choice}")
        continuation, fed = ids[start:], ids[-31:][:-1]
        with torch.no_grad():
            log_probs = torch.log_softmax(tiny_model(input_ids=torch.tensor([fed])).logits[0].double(), dim=-1)
        rows = log_probs[-len(continuation) :]
        expected.append(sum(rows[i, token].item() for i, token in enumerate(continuation)))
    assert found.benchmarks["long"].records[0].log_likelihoods == pytest.approx(expected, rel=1e-5)


def test_choice_that_does_not_fit_is_an_error(tiny_tokenizer):
    with pytest.raises(ValueError, match="my, row 3: the choice .* has .* tokens"):
        encode_questions([Question(3, "Question:", ("A", "breath " * 40), 0)], tiny_tokenizer, 32, name="my")


def test_max_length_comes_from_the_model_then_the_tokenizer(tiny_model, tiny_tokenizer):
    from transformers import GPT2Config

    assert model_max_length(tiny_model.config, tiny_tokenizer) == 1024
    assert model_max_length(GPT2Config(n_positions=77), tiny_tokenizer) == 77


# Log-likelihoods


def test_log_likelihoods_are_those_of_full_logits(tiny_model, tiny_tokenizer, own_file):
    results = run_benchmarks(tiny_model, tiny_tokenizer, [str(own_file)], progress=False)
    [(_, _, questions)] = read_benchmarks(str(own_file))
    for question, record in zip(questions, results.benchmarks["mine"].records, strict=True):
        expected = []
        for choice in question.choices:
            ids, start = harness_pair(tiny_tokenizer, question.prompt, f" {choice}")
            with torch.no_grad():
                logits = tiny_model(input_ids=torch.tensor([ids])).logits[0].double()
            log_probs = torch.log_softmax(logits, dim=-1)
            expected.append(sum(log_probs[t - 1, ids[t]].item() for t in range(start, len(ids))))
        assert record.log_likelihoods == pytest.approx(expected, rel=1e-5)
        assert record.predicted == int(np.argmax(expected))
        assert record.num_chars == tuple(len(choice) for choice in question.choices)
    assert results.benchmarks["mine"].records[1].num_bytes == (4, 2)  # é has two bytes
    assert results.benchmarks["mine"].records[1].num_chars == (4, 1)


def test_model_with_learned_positions_can_fill_them(tiny_tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_positions=48, n_embd=16, n_layer=1, n_head=2)
    path = write_jsonl(tmp_path / "long.jsonl", [{**OWN_ROWS[0], "question": "fever " * 200}])
    results = run_benchmarks(GPT2LMHeadModel(config), tiny_tokenizer, str(path), progress=False)
    assert results.max_length == 48
    assert results.benchmarks["long"].num_truncated == 1


def test_same_tokens_run_once(tiny_model, tiny_tokenizer, tmp_path):
    from hf_ppl_select.likelihood.engine import LikelihoodEngine

    class CountingEngine(LikelihoodEngine):
        shapes = ()

        def outputs(self, input_ids, **inputs):
            self.shapes += (tuple(input_ids.shape),)
            return super().outputs(input_ids, **inputs)

    path = write_jsonl(tmp_path / "twice.jsonl", [OWN_ROWS[0], OWN_ROWS[0]])
    engine = CountingEngine(tiny_model)
    records = run_benchmarks(tiny_model, tiny_tokenizer, str(path), engine=engine, progress=False)
    records = records.benchmarks["twice"].records
    [(_, _, [question, _])] = read_benchmarks(str(path))
    encoded = [harness_pair(tiny_tokenizer, question.prompt, f" {choice}") for choice in question.choices]
    # The prompt once, and each choice's tokens but the last, for both copies of the question together.
    assert engine.shapes[-1] == (1, encoded[0][1] + sum(len(ids) - start - 1 for ids, start in encoded))
    assert records[0].log_likelihoods == records[1].log_likelihoods


def test_a_broken_model_is_an_error(tiny_model, tiny_tokenizer, own_file):
    with torch.no_grad():
        tiny_model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        run_benchmarks(tiny_model, tiny_tokenizer, str(own_file), progress=False)


# Results


@pytest.fixture
def results(tiny_model, tiny_tokenizer, own_file, tmp_path):
    write_jsonl(
        tmp_path / "medqa_4options.jsonl", [{**MEDQA, "label": i % 4, "sent1": f"fever {i}"} for i in range(12)]
    )
    benchmarks = [own_benchmark(own_file, group="medical"), "medqa_4options", "general_questions"]
    return run_benchmarks(tiny_model, tiny_tokenizer, benchmarks, data_dir=tmp_path, limit=12, seed=3, progress=False)


def test_metrics_are_those_of_the_modules(results):
    for result in results.benchmarks.values():
        hits = [record.gold == record.predicted for record in result.records]
        assert result.metrics["choice_accuracy"].value == pytest.approx(np.mean(hits))
        nats = -sum(record.log_likelihoods[record.gold] for record in result.records)
        num_bytes = sum(record.num_bytes[record.gold] for record in result.records)
        assert result.metrics["choice_bits_per_byte"].value == pytest.approx(nats / math.log(2) / num_bytes)
        found = load_metric("multiple_choice").compute(
            predictions=[record.log_likelihoods for record in result.records],
            references=[record.gold for record in result.records],
            num_chars=[record.num_chars for record in result.records],
            seed=3,
        )
        estimate = result.metrics["choice_accuracy_norm"]
        assert [estimate.value, estimate.low, estimate.high] == [
            found[f"choice_accuracy_norm{end}"] for end in ("", "_low", "_high")
        ]


def test_group_average_counts_each_benchmark_once(results):
    for metric in METRICS:
        mine, medqa = (results.benchmarks[name].metrics[metric] for name in ("mine", "medqa_4options"))
        average = results.groups["medical"][metric]
        assert average.value == pytest.approx((mine.value + medqa.value) / 2)
        assert average.low <= average.value <= average.high
        assert average.n == mine.n + medqa.n == 16
        assert results.groups["general"][metric].value == results.benchmarks["general_questions"].metrics[metric].value


def test_markdown_has_a_row_for_each_benchmark_and_true_group(results):
    lines = results.to_markdown().splitlines()
    assert lines[0] == "| benchmark | questions | acc | acc_norm | bits per byte |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| mine",
        "| medqa_4options",
        "| general_questions",
        "| average of medical",
    ]
    accuracy = results.benchmarks["mine"].metrics["choice_accuracy"]
    assert f"| mine | 4 | {accuracy.value:.4f} [{accuracy.low:.4f}, {accuracy.high:.4f}] |" in lines[2]


def test_results_survive_saving(results, tmp_path):
    results.save(tmp_path / "out" / "results.json")
    assert BenchmarkResults.load(tmp_path / "out" / "results.json") == results
    assert json.loads(json.dumps(results.to_dict()))["benchmarks"]["mine"]["records"][0]["gold"] == 1
    (tmp_path / "other.json").write_text('{"kind": "hf_ppl_select/scaling_law"}', encoding="utf-8")
    with pytest.raises(ValueError, match="benchmark_results"):
        BenchmarkResults.load(tmp_path / "other.json")


def test_paired_difference_sees_what_two_intervals_do_not(results):
    """Of 60 questions this run has 36 right; the other has the same right but for 5: the intervals overlap."""

    def run(num_right):
        records = []
        for i in range(60):
            predicted = 0 if i < num_right else 1
            log_likelihoods = tuple(-1.0 if choice == predicted else -2.0 for choice in range(4))
            records.append(Record(i, 0, predicted, log_likelihoods, (1,) * 4, (1,) * 4))
        return replace(results, benchmarks={"mine": replace(results.benchmarks["mine"], records=tuple(records))})

    ours, theirs = run(36), run(31)
    difference = ours.paired_difference(theirs)["mine"]["choice_accuracy"]
    assert difference.value == pytest.approx(5 / 60)
    assert 0 < difference.low < difference.value < difference.high < 0.2
    apart = [
        load_metric("multiple_choice").compute(
            predictions=[r.log_likelihoods for r in run.benchmarks["mine"].records], references=[0] * 60
        )
        for run in (ours, theirs)
    ]
    assert apart[0]["choice_accuracy_low"] < apart[1]["choice_accuracy_high"]
    back = theirs.paired_difference(ours)["mine"]["choice_accuracy"]
    assert (back.value, back.low, back.high) == pytest.approx((-difference.value, -difference.high, -difference.low))
    same = ours.paired_difference(ours)["mine"]["choice_bits_per_byte"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_paired_difference_averages_groups_and_checks_the_questions(results):
    rows = results.paired_difference(results)
    assert list(rows) == ["mine", "medqa_4options", "general_questions", "average of medical"]
    mine = results.benchmarks["mine"]
    fewer = replace(results, benchmarks={"mine": replace(mine, records=mine.records[1:])})
    with pytest.raises(ValueError, match="mine: the two runs did not answer the same questions"):
        results.paired_difference(fewer)
    with pytest.raises(ValueError, match="No benchmark in common"):
        results.paired_difference(replace(results, benchmarks={}))


def test_same_seed_same_results(tiny_model, tiny_tokenizer, results, own_file, tmp_path):
    benchmarks = [own_benchmark(own_file, group="medical"), "medqa_4options", "general_questions"]
    again = run_benchmarks(tiny_model, tiny_tokenizer, benchmarks, data_dir=tmp_path, limit=12, seed=3, progress=False)
    assert again == results


# The recipe


def test_recipe_runs_from_yaml_saves_and_compares(run_recipe, tiny_model_dir, own_file, tmp_path):
    base, config = tmp_path / "out" / "base.json", tmp_path / "config.yaml"
    config.write_text(
        f"model: {tiny_model_dir}\nbenchmarks: ['{own_file}', general_questions]\n"
        f"limit: 8\ndtype: float32\noutput: {base}\n"
    )
    code, stdout, stderr = run_recipe("run_benchmarks", "--config", config)
    assert code == 0 and "| general_questions | 8 |" in stdout, stderr
    assert BenchmarkResults.load(base).limit == 8
    second = ("--output", tmp_path / "second.json", "--compare_with", base)
    _, stdout, _ = run_recipe("run_benchmarks", "--config", config, *second)
    compared = stdout.split("question by question")[1]
    assert re.search(r"\| mine \| 4 \| (0\.\d+) → \1 \| \+0.0000 \[\+0.0000, \+0.0000\] \|.*\| 0, 0 \| 1 \|", compared)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "MODEL", "--benchmarks", "medqqa"], "no benchmark 'medqqa'. Near names: .*medqa_4options"),
        (["--model", "MODEL", "--benchmarks", "absent.jsonl"], "no file absent.jsonl"),
        (["--model", "absent-folder/model", "--benchmarks", "general_questions"], "absent-folder/model"),
        (
            ["--model", "MODEL", "--benchmarks", "general_questions", "--data_files", "x"],
            "data_files must be entries like",
        ),
        (["--model", "MODEL", "--benchmarks", "general_questions", "--limit", "0"], "limit must be"),
        (["--model", "MODEL", "--benchmarks", "general_questions", "--compare_with", "gone.json"], "gone.json"),
    ],
)
def test_recipe_errors_are_one_line_and_write_nothing(arguments, message, run_recipe, tiny_model_dir, tmp_path):
    output = tmp_path / "out" / "results.json"
    arguments = [tiny_model_dir if argument == "MODEL" else argument for argument in arguments]
    code, _, stderr = run_recipe("run_benchmarks", *arguments, "--output", output)
    assert code == 2 and re.search(message, stderr)
    assert not output.parent.exists()


def test_shipped_config_has_only_known_options():
    from trl import TrlParser

    options_class = runpy.run_path(str(ROOT / "recipes" / "run_benchmarks.py"))["BenchmarkOptions"]
    config = ROOT / "recipes" / "configs" / "benchmarks.yaml"
    (options,) = TrlParser(options_class).parse_args_and_config(["--config", str(config)])
    assert [benchmark.group for benchmark in resolve_benchmarks(options.benchmarks)].count("medical") == 4
