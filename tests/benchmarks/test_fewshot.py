"""Solved examples before a question: where they come from, their form, their draw, and what is refused."""

import json

import pytest
from question_files import write_jsonl

from hf_ppl_select.benchmarks import BENCHMARKS, own_benchmark, read_benchmarks, run_benchmarks
from hf_ppl_select.benchmarks.questions import load_questions

HEAD = "The following are multiple choice questions (with answers) about {}.\n\n"


def mmlu_rows(subject, questions, answer=0):
    return [
        {"question": question, "subject": subject, "choices": ["w", "x", "y", "z"], "answer": answer}
        for question in questions
    ]


@pytest.fixture
def mmlu(tmp_path):
    """Two subjects with two questions and three examples each."""
    subjects = ("anatomy", "college_biology")
    write_jsonl(
        tmp_path / "mmlu_test.jsonl",
        [row for subject in subjects for row in mmlu_rows(subject, [f"{subject} {i}?" for i in range(2)])],
    )
    write_jsonl(
        tmp_path / "mmlu_dev.jsonl",
        [row for i in range(3) for subject in subjects for row in mmlu_rows(subject, [f"{subject} example {i}?"], i)],
    )
    return tmp_path


def test_examples_stand_between_description_and_question_as_in_the_harness(mmlu):
    [(_, _, questions)] = read_benchmarks("mmlu_medical", data_dir=mmlu, num_fewshot=3)
    listing = "\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert questions[0].prompt == (
        HEAD.format("anatomy")
        + f"anatomy example 0?{listing} A\n\nanatomy example 1?{listing} B\n\nanatomy example 2?{listing} C\n\n"
        + f"anatomy 0?{listing}"
    )
    assert questions[3].prompt.startswith(HEAD.format("college biology") + "college_biology example 0?")
    assert "anatomy" not in questions[3].prompt
    [(_, _, plain)] = read_benchmarks("mmlu_medical", data_dir=mmlu)
    assert [q.digest for q in questions] == [q.digest for q in plain]  # the same questions
    assert len({q.digest for q in plain}) == 4


def test_examples_are_drawn_with_the_seed_and_shared_by_all_questions(tmp_path):
    rows = [{"question": f"train {i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(40)]
    examples = write_jsonl(tmp_path / "train.jsonl", rows)
    asked = [{"question": f"test {i}?", "choices": ["a", "b"], "answer": 0} for i in range(6)]
    benchmark = own_benchmark(write_jsonl(tmp_path / "test.jsonl", asked), examples=examples)

    def drawn(seed, num_fewshot=3):
        [(_, _, questions)] = read_benchmarks(benchmark, num_fewshot=num_fewshot, seed=seed)
        heads = {question.prompt[: question.prompt.index("Question: test")] for question in questions}
        assert len(heads) == 1
        return heads.pop()

    head = drawn(0)
    assert head == drawn(0) != drawn(1)
    assert head.count("Question: train") == 3
    numbers = [int(part.split("?")[0]) for part in head.split("train ")[1:]]
    assert numbers == sorted(numbers)
    assert head.startswith(f"Question: train {numbers[0]}?\nAnswer: {'ab'[numbers[0] % 2]}\n\n")
    assert set(drawn(0, 2).split("\n\n")) < set(head.split("\n\n"))


def test_a_question_is_never_its_own_example(tmp_path):
    rows = [{"question": f"q{i}?", "choices": ["a", "b"], "answer": 0} for i in range(5)]
    path = write_jsonl(tmp_path / "all.jsonl", rows)
    questions = write_jsonl(tmp_path / "some.jsonl", rows[:3])
    [(_, _, found)] = read_benchmarks(own_benchmark(questions, examples=path), num_fewshot=2)
    assert all("Question: q3?" in question.prompt and "Question: q4?" in question.prompt for question in found)
    with pytest.raises(ValueError, match="all.jsonl has 2 rows that are not questions themselves; num_fewshot=6"):
        read_benchmarks(own_benchmark(questions, examples=path), num_fewshot=6)
    with pytest.raises(ValueError, match="has 0 rows"):
        read_benchmarks(own_benchmark(path, examples=path), num_fewshot=1)


def test_an_example_that_is_a_question_too_is_a_last_resort_and_never_stands_before_itself(mmlu, caplog):
    asked = [json.loads(line) for line in (mmlu / "mmlu_test.jsonl").read_text().splitlines()]
    write_jsonl(mmlu / "mmlu_dev.jsonl", [asked[0], *mmlu_rows("anatomy", ["other 0?", "other 1?"])])
    [(_, _, questions)] = read_benchmarks("mmlu_anatomy", data_dir=mmlu, num_fewshot=2)
    assert all(question.prompt.count("other") == 2 and "0?\nA. w" in question.prompt for question in questions)
    [(_, _, questions)] = read_benchmarks("mmlu_anatomy", data_dir=mmlu, num_fewshot=3)
    assert [question.prompt.count("anatomy 0?") for question in questions] == [1, 1]  # as a question; as an example
    assert [question.prompt.count("Answer:") for question in questions] == [3, 4]
    assert "mmlu_anatomy: 1 of 3 examples with subject 'anatomy' are questions too" in caplog.text


def test_limit_does_not_make_examples_of_the_questions_left_out(tmp_path):
    rows = [{"question": f"q{i}?", "choices": ["a", "b"], "answer": 0} for i in range(5)]
    path = write_jsonl(tmp_path / "all.jsonl", rows)
    with pytest.raises(ValueError, match="has 0 rows"):
        read_benchmarks(own_benchmark(path, examples=path), limit=1, num_fewshot=1)


def test_too_few_examples_of_a_subject(mmlu):
    with pytest.raises(ValueError, match="mmlu_dev.jsonl has 3 rows with subject 'anatomy' .* num_fewshot=5"):
        read_benchmarks("mmlu_anatomy", data_dir=mmlu, num_fewshot=5)


def test_where_there_is_nothing_to_draw_from(tmp_path, mmlu):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "q?", "choices": ["a", "b"], "answer": 0}])
    with pytest.raises(ValueError, match="mine has no rows beside its questions .*data_files\\['mine:examples'\\]"):
        read_benchmarks(str(path), num_fewshot=1)
    with pytest.raises(ValueError, match="pubmedqa has no rows beside its questions"):
        read_benchmarks("pubmedqa", num_fewshot=1, data_files={"pubmedqa": path})
    (mmlu / "mmlu_dev.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="mmlu_anatomy:examples: .* has no mmlu_dev or mmlu_anatomy_dev"):
        read_benchmarks("mmlu_anatomy", data_dir=mmlu, num_fewshot=1)
    for bad in (-1, 1.5):
        with pytest.raises(ValueError, match="num_fewshot must be a whole number"):
            read_benchmarks("mmlu_anatomy", data_dir=mmlu, num_fewshot=bad)


def test_a_file_of_examples_can_be_named(tmp_path):
    rows = [{"question": f"{i}?", "choices": ["a", "b"], "answer": 0} for i in range(2)]
    mine = write_jsonl(tmp_path / "mine.jsonl", rows[:1])
    other = write_jsonl(tmp_path / "other.jsonl", rows[1:])
    [(_, _, [question])] = read_benchmarks(str(mine), num_fewshot=1, data_files={"mine:examples": other})
    assert question.prompt == "Question: 1?\nAnswer: a\n\nQuestion: 0?\nAnswer:"
    with pytest.raises(ValueError, match="data_files names"):
        read_benchmarks(str(mine), num_fewshot=1, data_files={"yours:examples": other})


def test_a_bad_example_is_named(mmlu):
    write_jsonl(mmlu / "mmlu_dev.jsonl", mmlu_rows("anatomy", ["a?", "b?"], answer=9))
    with pytest.raises(ValueError, match=r"row [01] of .*mmlu_dev.jsonl: answer 9"):
        read_benchmarks("mmlu_anatomy", data_dir=mmlu, num_fewshot=1)


def test_examples_come_from_the_hub_split_of_their_own(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        name = "train" if kwargs["split"] == "train" else "test"
        row = {"sent1": f"{name}?", "label": 1} | {f"ending{i}": "abcd"[i] for i in range(4)}
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    [(_, _, [question])] = read_benchmarks("medqa_4options", num_fewshot=1)
    assert [kwargs["split"] for _, kwargs in asked] == ["test", "train"]
    body = "?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    assert question.prompt == f"Question: train{body} B\n\nQuestion: test{body}"


def test_every_benchmark_draws_from_another_split():
    for benchmark in BENCHMARKS.values():
        assert benchmark.examples_split != benchmark.split


def test_examples_change_the_answers_and_are_saved_as_a_setting(tiny_model, tiny_tokenizer, mmlu, tmp_path):
    plain, shown = (
        run_benchmarks(tiny_model, tiny_tokenizer, "mmlu_medical", data_dir=mmlu, num_fewshot=n, progress=False)
        for n in (0, 3)
    )
    assert (plain.num_fewshot, shown.num_fewshot) == (0, 3)
    first, second = (run.benchmarks["mmlu_medical"].records for run in (plain, shown))
    assert [r.log_likelihoods for r in first] != [r.log_likelihoods for r in second]
    assert shown.paired_difference(plain)["mmlu_medical"]["choice_accuracy"].n == 4


def test_the_real_files_give_the_harness_five_examples(shared_data):
    folder = shared_data / "benchmarks"
    path, examples = folder / "mmlu_test.parquet", folder / "mmlu_dev.parquet"
    questions = load_questions(BENCHMARKS["mmlu"], path, num_fewshot=5, examples_path=examples)
    assert len(questions) == 14042
    assert all(question.prompt.count("\nAnswer:") >= 6 for question in questions)
