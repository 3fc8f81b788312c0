"""The 60 general questions that come with the package."""

import re
from collections import Counter

from hf_ppl_select.benchmarks import BENCHMARKS
from hf_ppl_select.benchmarks.questions import find_source, load_questions

MEDICAL = re.compile(
    r"\b(medic|doctor|nurse|hospital|patient|disease|drug|dose|symptom|blood|cancer|virus|bacteri|infect|heart|lung|liver|"
    r"kidney|brain|bone|muscle|skin|vaccin|surg|pain\b|fever|cells?\b|genes?\b|protein|vitamin|hormone|clinic|therap|health)",
    re.IGNORECASE,
)


def questions():
    benchmark = BENCHMARKS["general_questions"]
    return load_questions(benchmark, find_source(benchmark))


def test_sixty_questions_with_answers_spread_evenly():
    assert len(questions()) == 60
    assert {len(question.choices) for question in questions()} == {4}
    assert Counter(question.gold for question in questions()) == {0: 15, 1: 15, 2: 15, 3: 15}


def test_no_question_twice():
    assert len({question.prompt for question in questions()}) == 60
    assert all(len({choice.lower() for choice in question.choices}) == 4 for question in questions())


def test_no_medical_terms():
    texts = [" ".join([question.prompt, *question.choices]) for question in questions()]
    assert [text for text in texts if MEDICAL.search(text)] == []


def test_the_right_answer_is_not_the_longest_too_often():
    longest = sum(max(q.choices, key=len) == q.choices[q.gold] for q in questions())
    assert longest <= 25  # 15 by chance
