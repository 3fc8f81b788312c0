"""Lines and sentences: split and put together, counted against Python's own counter, cut out and put back."""

import random
import re
from collections import Counter

import pytest

from hf_ppl_select.deduplication import passages
from hf_ppl_select.deduplication.passages import count_documents, cut_passages, passage_hash, split_passages

MANY = 6
PARTS = [
    "Fever.",
    "Dr. Who?",
    "No!  ",
    "e.g. tea",
    "\n",
    "\r\n",
    "  ",
    "U.S. and",
    "漢字。次",
    "“Quoted.” ",
    "x",
    "",
    "\x85",
    "é…",
]


def random_texts(number, seed=0):
    rng = random.Random(seed)
    return [
        "".join(rng.choice(PARTS) + rng.choice(["", " "]) for _ in range(rng.randrange(15))) for _ in range(number)
    ]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Fever is heat. It hurts! Does it? Yes", ["Fever is heat. ", "It hurts! ", "Does it? ", "Yes"]),
        ("Dr. Smith saw J. Doe in the U.S. and, e.g. tea.", ["Dr. Smith saw J. Doe in the U.S. and, e.g. tea."]),
        (
            "Take 1.5 mg.  Then rest.\nNo end here\n\nNext",
            ["Take 1.5 mg.  ", "Then rest.\n", "No end here\n\n", "Next"],
        ),
        ("“Go home.” (He did.) so it ended. Good", ["“Go home.” ", "(He did.) so it ended. ", "Good"]),
        ("what. is this", ["what. is this"]),
        ("発熱です。安静にして。 ", ["発熱です。", "安静にして。 "]),
        ("", []),
        ("\n", ["\n"]),
    ],
)
def test_sentences(text, sentences):
    assert split_passages(text, "sentence") == sentences


def test_lines_and_sentences_joined_are_the_text():
    for text in random_texts(500):
        lines, sentences = split_passages(text, "line"), split_passages(text, "sentence")
        assert "".join(lines) == text == "".join(sentences) and all(lines) and all(sentences)
        assert [line.rstrip("\r\n") for line in lines if line.rstrip("\r\n")] == [
            line for line in re.split("[\r\n]+", text) if line
        ]
        for sentence in sentences:  # none goes beyond its line, but for blanks
            assert not re.search(r"[\r\n]\s*\S", sentence)


def by_python(texts, split):
    counter = Counter()
    for text in texts:
        counter.update({" ".join(part.lower().split()) for part in split(text or "")} - {""})
    return counter


@pytest.mark.parametrize("many", [1, 50, 1 << 22])
def test_documents_are_counted_as_python_counts_them(monkeypatch, many):
    monkeypatch.setattr(passages, "_MANY", many)
    rng = random.Random(3)
    lines = ["Home | About", "home |  ABOUT ", "", "  ", "Fever is heat.", "漢字", "a\ud800b", "Read more!"]
    texts = [None, "", *("\n".join(rng.choices([*lines, f"line {i}"], k=rng.randrange(1, 9))) for i in range(200))]
    expected = by_python(texts, lambda text: text.split("\n"))
    for more_than in (1, 30, 1000):
        found = count_documents(texts, "line", more_than)
        assert found == {passage_hash(line): n for line, n in expected.items() if n > more_than}
    assert passage_hash(" \n") == 0 and passage_hash("Home  |\nAbout") == passage_hash("home | about") != 0


@pytest.mark.parametrize(
    ("sentence", "counts"),
    [
        *[
            (text, False)
            for text in ("else:", ")", '"""', "Status: install ok", ".", "...", "the", "Home | About", "…)")
        ],
        *[
            (text, True)
            for text in ("All rights reserved.", "Yes.", "“Go home!”", "(Really?)", "発熱です。", "漢字です")
        ],
        *[(text, True) for text in ("return the first of", "Home | About | Contact", "Status: install ok installed")],
    ],
)
def test_short_lines_of_code_and_records_are_no_sentences(sentence, counts):
    texts = [f"{sentence}\nNumber {i} is of its own." for i in range(3)]
    found = count_documents(texts, "sentence", 2)
    assert found == ({passage_hash(sentence): 3} if counts else {})
    assert count_documents(texts, "line", 2) == {passage_hash(sentence): 3}, "lines are lines"
    assert cut_passages(texts[0], {"sentence": found})[0] == texts[0][len(sentence) + 1 if counts else 0 :]


def is_no_sentence(text):
    words = re.sub("([\u3000-\u9fff])", r" \1 ", text).split()
    ends = text.strip().strip("”")[-1:] in set(".!?…。")
    return len(words) < 4 and not (ends and any(character.isalnum() for character in text))


def put_back(text, cut):
    document, done = "", 0
    for passage in cut:
        take = passage.start - len(document)
        document, done = document + text[done : done + take] + passage.text, done + take
    return document + text[done:]


def test_what_is_cut_out_is_what_stands_in_many_and_can_be_put_back():
    texts = random_texts(800, seed=1)
    repeated = {kind: count_documents(texts, kind, MANY) for kind in ("line", "sentence")}
    assert all(repeated.values())
    often = {kind: by_python(texts, lambda text, kind=kind: split_passages(text, kind)) for kind in repeated}
    kinds = Counter()
    for text in texts:
        left, cut = cut_passages(text, repeated)
        assert put_back(left, cut) == text
        kept_lines = [p for p in split_passages(text, "line") if often["line"][" ".join(p.lower().split())] <= MANY]
        kept = [s for line in kept_lines for s in split_passages(line, "sentence")]
        assert left == "".join(
            s for s in kept if is_no_sentence(s) or often["sentence"][" ".join(s.lower().split())] <= MANY
        )
        for passage in cut:
            assert passage.documents == often[passage.kind][" ".join(passage.text.lower().split())] > MANY
            assert text.startswith(passage.text, passage.start)
        kinds.update(passage.kind for passage in cut)
    assert min(kinds["line"], kinds["sentence"]) > 50
    assert cut_passages("Fever.", {}) == ("Fever.", []) == cut_passages("Fever.", {"line": {}})
