"""Questions as lm-evaluation-harness has them, from every kind of file; what is wrong with one is named."""

import csv
import json

import pytest
from question_files import MEDQA, write_jsonl

from hf_ppl_select.benchmarks import (
    BENCHMARKS,
    read_benchmarks,
)
from hf_ppl_select.benchmarks.questions import Question, load_questions
from hf_ppl_select.benchmarks.subject_names import MMLU_GENERAL, MMLU_MEDICAL

LETTERS = ("A", "B", "C", "D", "E")
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
