"""Benchmarks whose rows have a form of their own on the Hub: GPQA, DiagnosisArena, CMMLU, MMMLU."""

import json

import pytest

from hf_ppl_select.benchmarks import BENCHMARKS, read_benchmarks, resolve_benchmarks
from hf_ppl_select.benchmarks.questions import Question, load_questions
from hf_ppl_select.benchmarks.subject_names import CMMLU_SUBJECTS

GPQA = {
    "Question": "Which one?",
    "Correct Answer": " right ",
    "Incorrect Answer 1": "wrong  one",
    "Incorrect Answer 2": "wrong two",
    "Incorrect Answer 3": "wrong three",
    "High-level domain": "Biology",
}
CASE = {
    "id": "1",
    "Case Information": "A man coughs.",
    "Physical Examination": "Rales.",
    "Diagnostic Tests": "Infiltrate.",
    "Final Diagnosis": "Pneumonia",
    "Options": {"A": "Asthma", "B": "Pneumonia", "C": "Gout", "D": "Flu"},
    "Right Option": "B",
}
CMMLU = {"Question": " 哪一个？", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "Answer": "C", "subject": "anatomy"}
MMMLU = {"Question": "Was? ", "A": "a", "B": "b", "C": "c", "D": "d", "Answer": "D", "Subject": "high_school_physics"}


def questions(name, rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_questions(BENCHMARKS[name], path)


def test_gpqa_shuffles_its_answers_the_same_way_in_every_run(tmp_path):
    rows = [{**GPQA, "Question": f"Question {i}"} for i in range(200)]
    found = questions("gpqa_main", rows, tmp_path)
    assert found == questions("gpqa_main", rows, tmp_path)
    counts = [sum(question.gold == place for question in found) for place in range(4)]
    assert min(counts) > 30  # 50 expected, standard deviation 6
    for question in found:
        assert question.choices == ("(A)", "(B)", "(C)", "(D)")
        assert f"\n({'ABCD'[question.gold]}) right\n" in question.prompt
        assert sorted(question.prompt.split("\n")[2:6], key=lambda line: line[4:])[1].endswith("wrong one")
    alone = questions("gpqa_main", rows[7:8], tmp_path)[0]
    assert (alone.prompt, alone.gold) == (found[7].prompt, found[7].gold)  # whatever the other rows are
    assert found[0].prompt.startswith("What is the correct answer to this question:Question 0\nChoices:\n(A) ")


def test_gpqa_biology_keeps_its_domain(tmp_path):
    rows = [GPQA, {**GPQA, "High-level domain": "Physics"}]
    assert [question.index for question in questions("gpqa_biology", rows, tmp_path)] == [0]
    with pytest.raises(ValueError, match="row 0 .*no column 'Correct Answer'"):
        questions("gpqa_biology", [{k: v for k, v in GPQA.items() if k != "Correct Answer"}], tmp_path)


@pytest.mark.parametrize(
    "options", [CASE["Options"], "A. Asthma\nB. Pneumonia\nC. Gout\nD. Flu", dict(reversed(CASE["Options"].items()))]
)
def test_diagnosis_arena_lists_its_options(options, tmp_path):
    assert questions("diagnosis_arena", [{**CASE, "Options": options}], tmp_path) == [
        Question(
            0,
            "Case: A man coughs.\nPhysical examination: Rales.\nDiagnostic tests: Infiltrate.\n"
            "Question: What is the diagnosis?\nA. Asthma\nB. Pneumonia\nC. Gout\nD. Flu\nAnswer:",
            ("A", "B", "C", "D"),
            1,
        )
    ]


def test_diagnosis_arena_errors(tmp_path):
    with pytest.raises(ValueError, match="Options must be a text or one text per letter, not 3"):
        questions("diagnosis_arena", [{**CASE, "Options": 3}], tmp_path)
    with pytest.raises(ValueError, match="row 0 .*answer 'E'"):
        questions("diagnosis_arena", [{**CASE, "Right Option": "E"}], tmp_path)


def test_cmmlu_speaks_chinese(tmp_path):
    assert questions("cmmlu", [CMMLU], tmp_path) == [
        Question(
            0,
            "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n哪一个？\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：",
            ("A", "B", "C", "D"),
            2,
        )
    ]
    with pytest.raises(ValueError, match="row 0 .*subject 'alchemy' is none of agronomy"):
        questions("cmmlu", [{**CMMLU, "subject": "alchemy"}], tmp_path)


def test_mmmlu_names_subject_and_language(tmp_path):
    [question] = questions("mmmlu_de_de", [{**MMMLU, "locale": "DE_DE"}], tmp_path)
    assert question.prompt == (
        "The following are multiple choice questions (with answers) about high school physics (German).\n\n"
        "Was?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    )
    assert question.gold == 3


def test_several_configurations_are_read_one_after_the_other(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        row = CMMLU if args[0] == "haonan-li/cmmlu" else MMMLU
        return datasets.Dataset.from_list([{k: v for k, v in row.items() if k != "subject"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    [(_, source, found)] = read_benchmarks("cmmlu")
    assert (source, len(found)) == ("haonan-li/cmmlu", len(CMMLU_SUBJECTS))
    assert asked[1] == (
        ("haonan-li/cmmlu",),
        {"data_files": {"test": "anatomy/test/*.parquet"}, "split": "test", "revision": "refs/convert/parquet"},
    )
    assert "关于解剖学的" in found[1].prompt
    asked.clear()
    [(_, _, found)] = read_benchmarks("mmmlu")
    assert [args for args, _ in asked][:2] == [("openai/MMMLU", "AR_XY"), ("openai/MMMLU", "BN_BD")]
    assert [len(asked), len(found)] == [14, 14]
    assert "(Simplified Chinese)" in found[13].prompt


def test_a_gated_data_set_says_how_to_get_in(monkeypatch):
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    def load_dataset(*args, **kwargs):
        raise DatasetNotFoundError("Dataset is a gated dataset on the Hub. You must be authenticated to access it.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        PermissionError, match=r"gpqa_diamond: .*gated.*huggingface.co/datasets/Idavidrein/gpqa.*log in"
    ):
        read_benchmarks("gpqa_diamond")
    with pytest.raises(ConnectionError, match="medmcqa: cannot load"):
        read_benchmarks("medmcqa")

    def offline(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ConnectionError, match="gpqa_diamond: cannot load .*no route"):
        read_benchmarks("gpqa_diamond")


def test_the_groups_of_the_paper():
    assert {b.name for b in resolve_benchmarks("paper_medical")} == {
        *("medqa_4options", "medmcqa", "pubmedqa", "mmlu_medical", "gpqa_biology", "diagnosis_arena")
    }
    assert [b.name for b in resolve_benchmarks("paper_general")] == ["cmmlu", "mmmlu"]
    assert not any(b.gated for b in resolve_benchmarks(["medical", "general"]))  # they run without a token
    with pytest.raises(ValueError, match="Near names: .*gpqa_diamond"):
        resolve_benchmarks("gpqa_dimond")
