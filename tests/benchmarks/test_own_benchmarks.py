"""Benchmarks of one's own: answers as people write them, numbers that count from 1, and what is refused."""

import pytest
from question_files import OWN_ROWS, write_jsonl

from hf_ppl_select.benchmarks import own_benchmark, read_benchmarks, run_benchmarks
from hf_ppl_select.benchmarks.benchmark import answer_index
from hf_ppl_select.benchmarks.questions import Question


def test_own_benchmark_takes_index_letter_or_text(own_file):
    [(_, _, questions)] = read_benchmarks(str(own_file))
    assert [question.gold for question in questions] == [1, 1, 0, 1]
    assert questions[2].prompt == "Question: Which is a number?\nAnswer:"
    [(_, _, questions)] = read_benchmarks(own_benchmark(own_file, letters=True))
    assert questions[0] == Question(
        0, "Question: What is the capital of France?\nA. Rome\nB. Paris\nC. Bern\nAnswer:", ("A", "B", "C"), 1
    )
    assert questions[1].gold == 1  # given as text, found among the texts and not among the letters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, "row 0 .*answer 3 is no index"),
        ({"answer": "D"}, "answer 'D' is no index .*letter or text"),
        ({"answer": True}, "answer True"),
        ({"answer": 0.5}, "answer 0.5"),
        ({"choices": ["B", "A"], "answer": "A"}, r"'A' can mean any of the choices \[0, 1\]; give the index"),
        ({"choices": ["Rome", "Rome"]}, "must differ"),
        ({"choices": ["Rome", ""]}, "choices must be a list of texts"),
        ({"choices": "Rome"}, "choices must be a list of texts"),
        ({"choices": ["Rome"], "answer": 0}, "two or more"),
        ({"question": " "}, "question must be text"),
    ],
)
def test_own_benchmark_errors(change, message, tmp_path):
    path = write_jsonl(tmp_path / "own.jsonl", [{**OWN_ROWS[0], **change}])
    with pytest.raises(ValueError, match=message):
        read_benchmarks(str(path))


def test_answer_past_the_end_that_is_a_text_is_the_text():
    assert answer_index("7", ["5", "7"]) == 1
    assert answer_index(1.0, ["x", "y"]) == 1


@pytest.mark.parametrize(
    "answer", ["b", "B", "(B)", "(b)", "B.", "B)", " B ", "[b]", "B:", "two", " two", "two ", 1, "1", " 1"]
)
def test_an_answer_as_people_write_it(answer):
    assert answer_index(answer, ["one", "two", "three"]) == 1
    assert answer_index(answer, ["one ", " two", "three"]) == 1


@pytest.mark.parametrize("answer", ["", " ", "()", "(D)", "BB", "B or C", "tw", "-1", -1, "1.0", None, [1]])
def test_what_is_no_answer(answer):
    with pytest.raises(ValueError, match="is no index"):
        answer_index(answer, ["one", "two", "three"])


@pytest.mark.parametrize(
    ("answer", "choices"), [("a", ["x", "a", "y"]), ("(A)", ["x", "(A)"]), ("1", ["1", "2", "3"])]
)
def test_an_answer_of_two_meanings_is_asked_about(answer, choices):
    with pytest.raises(ValueError, match="can mean any of the choices"):
        answer_index(answer, choices)


def own_rows(answers, choices=("v", "w", "x", "y")):
    return [{"question": f"Question {i}?", "choices": list(choices), "answer": a} for i, a in enumerate(answers)]


@pytest.mark.parametrize("as_text", [False, True])
def test_answers_that_count_from_1_are_not_read_as_the_next_choice(tmp_path, as_text):
    answers = [1, 2, 3, 3, 2, 1] * 4
    rows = own_rows(map(str, answers) if as_text else answers)
    path = write_jsonl(tmp_path / "own.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"own, .*own.jsonl: 24 answers are numbers from 1 up and none is 0.*index_base=1"
    ):
        read_benchmarks(str(path))
    for base in (0, 1):
        [(_, _, questions)] = read_benchmarks(own_benchmark(path, index_base=base))
        assert [question.gold for question in questions] == [answer - base for answer in answers]
    with pytest.warns(UserWarning, match="3 answers are numbers from 1 up.*read as counted from 0"):
        [(_, _, questions)] = read_benchmarks(str(write_jsonl(tmp_path / "few.jsonl", rows[:3])))
    assert [question.gold for question in questions] == [1, 2, 3]
    with pytest.raises(ValueError, match=r"row 1 .*answer 4 is no index \(0 to 3\).*Counted from 1\? own_benchmark"):
        read_benchmarks(str(write_jsonl(tmp_path / "last.jsonl", own_rows([0, 4]))))


def test_numbers_that_are_texts_of_choices_are_not_indices(tmp_path, recwarn):
    rows = own_rows(["7", "9"] * 20, choices=("7", "8", "9"))
    [(_, _, questions)] = read_benchmarks(str(write_jsonl(tmp_path / "own.jsonl", rows)))
    assert [question.gold for question in questions] == [0, 2] * 20 and not recwarn.list


def test_a_bad_benchmark_is_found_before_a_good_one_runs(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    """A choice that has no token of its own is only seen once it is tokenized."""
    good = write_jsonl(tmp_path / "good.jsonl", own_rows([0, 1]))
    bad = write_jsonl(tmp_path / "bad.jsonl", own_rows([0], choices=("x" * 20_000, "y")))
    ran = []
    monkeypatch.setattr("hf_ppl_select.benchmarks.runner.score_requests", lambda *a, **k: ran.append(a))
    with pytest.raises(ValueError, match="bad, row 0"):
        run_benchmarks(tiny_model, tiny_tokenizer, [str(good), str(bad)])
    assert not ran
