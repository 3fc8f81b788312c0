"""deduplicate_documents: reasons, order, columns, what is cut, and that it all adds up to the input."""

import random
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, IterableDataset

from hf_ppl_select import deduplicate_documents
from hf_ppl_select.deduplication.documents import REASONS
from hf_ppl_select.deduplication.passages import split_passages

COOKIES = "We use cookies to improve your experience on this site."
LONG = "Hypertension is treated with diuretics, ACE inhibitors or calcium channel blockers {} in most of the patients."


def rows(texts):
    return Dataset.from_dict({"id": [f"d{i}" for i in range(len(texts))], "body": texts, "n": range(len(texts))})


def reasons_of(found):
    return [REASONS[reason] if reason >= 0 else "" for reason in found.reasons]


def corpus(number=300, seed=0):
    """Documents of sentences, some of them on many; copies in other case, with other blanks, with a word changed."""
    rng = random.Random(seed)
    words = [f"word{i}" for i in range(400)]
    texts = []
    for i in range(number):
        own = [
            " ".join(rng.choices(words, k=rng.randrange(3, 30))).capitalize() + "." for _ in range(rng.randrange(4))
        ]
        parts = own + rng.sample([COOKIES, "Back to top.", "Home | About 漢字👩‍⚕️.", f"Page {i}."], rng.randrange(4))
        rng.shuffle(parts)
        text = "".join(part + rng.choice([" ", "\n", "  ", "\n\n"]) for part in parts)
        texts += [
            text,
            rng.choice([None, "", text, text.upper(), text.replace(" ", "  "), text.replace("word7", "W")]),
        ]
    return texts


def test_each_row_is_dropped_for_the_first_reason_that_applies():
    texts = [LONG.format("mostly"), "x y", LONG.format("mostly"), LONG.format("MOSTLY "), LONG.format("always")]
    texts += ["x  y", None, "x y", None, "Other text", ""]
    expected = ["", "", "exact", "normalized", "near", "normalized", "", "exact", "", "", ""]
    found = deduplicate_documents(rows(texts), text_column="body", near_threshold=0.3)
    assert reasons_of(found) == expected
    assert found.repeats.tolist() == [-1, -1, 0, 0, 0, 1, -1, 1, -1, -1, -1]
    assert found.dataset[:] == rows(texts).select([0, 1, 6, 8, 9, 10])[:]
    assert found.counts()["rows"] == {"input": 11, "kept": 6, "exact": 2, "normalized": 2, "near": 1}
    exact = deduplicate_documents(rows(texts), text_column="body", how="exact")
    assert reasons_of(exact) == [reason if reason == "exact" else "" for reason in expected]
    assert not exact.cut and len(exact.cut_passages()) == 0


@pytest.mark.parametrize("options", [{}, {"how": None}, {"how": "exact", "max_line_documents": None}])
def test_what_is_kept_dropped_and_cut_adds_up_to_the_input(options):
    source = rows(corpus())
    options = {"max_line_documents": 9, "max_sentence_documents": 15} | options
    found = deduplicate_documents(source, text_column="body", **options)
    assert found.dataset.column_names == source.column_names and found.dataset.features == source.features
    dropped, cut = found.dropped_rows(), found.cut_passages()
    places = [*found.dataset["n"], *dropped["n"]]
    assert sorted(places) == list(range(len(source))) and found.dataset["n"][:] == sorted(found.dataset["n"])
    assert dropped["input_row"][:] == dropped["n"][:] == np.flatnonzero(found.reasons >= 0).tolist()
    assert dropped.select_columns(source.column_names)[:] == source.select(dropped["n"][:])[:]

    pieces = {row: [] for row in found.dataset["n"]}
    for passage in cut:
        pieces[passage["input_row"]].append(passage)
    for row, left in zip(found.dataset["n"], found.dataset["body"]):
        whole = ""
        for passage in pieces[row]:
            take = passage["start"] - len(whole)
            whole, left = whole + left[:take] + passage["text"], left[take:]
        assert source[row]["body"] == (whole + left if left is not None else None)
        assert not pieces[row] or left.strip() or whole.strip()
        assert Counter(p["kind"] for p in pieces[row]) == +Counter({k: int(n[row]) for k, n in found.cut.items()})

    counts, lengths = found.counts(), [len(text or "") for text in source["body"]]
    assert sum(counts["rows"].values()) == 2 * counts["rows"]["input"] == 2 * len(source)
    assert sum(counts["characters"].values()) == 2 * counts["characters"]["input"] == 2 * sum(lengths)
    assert counts["characters"]["cut"] == sum(len(text) for text in cut["text"]) > 500
    assert counts["characters"]["kept"] == sum(len(text or "") for text in found.dataset["body"])
    for reason, number in Counter(dropped["drop_reason"]).items():
        here = [length for length, why in zip(lengths, reasons_of(found)) if why == reason]
        assert counts["rows"][reason] == number == len(here) and counts["characters"][reason] == sum(here)
    for row, original in enumerate(found.repeats):
        assert original < 0 or (found.reasons[original] < 0 or found.reasons[original] > found.reasons[row])
        assert original < row
    assert [r for r in dropped["repeats_row"] if r is None] == [
        None for reason in dropped["drop_reason"] if reason == "nothing_left"
    ]


def test_sentences_are_counted_over_the_rows_that_are_kept():
    """The sentences of a page that was copied a hundred times stay."""
    page = "A page that was copied often. " + LONG.format("here")
    texts = (
        [page] * 100 + [f"{COOKIES} Only number {i} says {i * i}." for i in range(30)] + [COOKIES, "Last.\n" + COOKIES]
    )
    found = deduplicate_documents(rows(texts), text_column="body", how="exact", max_sentence_documents=25)
    expected = [page] + [f"Only number {i} says {i * i}." for i in range(30)] + ["Last.\n"]
    assert found.dataset["body"][:] == expected
    assert reasons_of(found)[100:] == [""] * 30 + ["nothing_left", ""]
    assert found.repeated["sentence"].keys() and [*found.repeated["sentence"].values()] == [32]
    counter = Counter(s.strip() for t in set(texts) for s in set(split_passages(t, "sentence")))
    assert counter[COOKIES] == 32
    at_the_limit = deduplicate_documents(rows(texts), text_column="body", how="exact", max_sentence_documents=32)
    assert not at_the_limit.cut["sentence"].any() and at_the_limit.dataset["body"][:] == list(dict.fromkeys(texts))


def test_rows_that_are_equal_once_cut_are_dropped():
    texts = ["Header.\nBody of it.", "Body of it.", "header.\nOther.", "BODY of it.\n HEADER. ", "Header.\n\nMore."]
    found = deduplicate_documents(rows(texts), text_column="body", how="normalized", max_line_documents=3)
    assert reasons_of(found) == ["", "exact_after_cut", "", "normalized_after_cut", ""]
    assert found.dataset["body"][:] == ["Body of it.", "Other.", "\nMore."]
    assert found.repeats.tolist() == [-1, 0, -1, 0, -1] and found.cut["line"].tolist() == [1, 0, 1, 0, 1]
    assert found.dropped_rows()["body"][:] == [texts[1], texts[3]]  # as they were


def test_counts_of_groups_add_up():
    source = rows(corpus(60)).add_column("kind", [f"k{i % 3}" if i % 7 else None for i in range(120)])
    found = deduplicate_documents(source, text_column="body", max_sentence_documents=10)
    groups = found.counts_by("kind")
    assert list(groups)[-1] == "None" and len(groups) == 4
    for name in ("input", "kept"):
        assert sum(group["rows"][name] for group in groups.values()) == found.counts()["rows"][name]
        assert sum(g["characters"][name] for g in groups.values()) == found.counts()["characters"][name]
    kinds = Counter(map(str, source["kind"]))
    assert {name: group["rows"]["input"] for name, group in groups.items()} == dict(kinds)
    many = found.counts_by("id")
    assert len(many) == 31 and many["(others)"]["rows"]["input"] == 90
    called_so = rows([f"Text number {i}." for i in range(32)]).add_column(
        "kind", ["(others)"] * 2 + [*map(str, range(30))]
    )
    groups = deduplicate_documents(called_so, text_column="body", how="exact").counts_by("kind")
    assert [groups[name]["rows"]["input"] for name in ("(others)", "((others))")] == [2, 1]
    with pytest.raises(KeyError, match="no column 'source' to count by"):
        found.counts_by("source")


def test_one_row_no_rows_and_rows_without_text():
    options = {"max_line_documents": 1, "max_sentence_documents": 1, "text_column": "body"}
    for texts in ([], ["a"], [None], [None, None, ""], ["👩‍⚕️ émigré"]):
        source = rows(texts) if texts else rows(["a"]).select([])
        found = deduplicate_documents(source, **options)
        assert found.dataset[:] == source[:] and (found.reasons < 0).all()
        assert len(found.dropped_rows()) == 0 == len(found.cut_passages())
    messages = Dataset.from_dict({"messages": [[{"role": "user", "content": c}] for c in "aab"]})
    assert len(deduplicate_documents(messages, text_column="messages", how="exact").dataset) == 2


def test_formats_stay_and_other_columns_are_not_touched():
    source = rows([f"{COOKIES} {i} and more." for i in range(9)]).with_format("numpy")
    found = deduplicate_documents(source, text_column="body", max_sentence_documents=3)
    assert found.dataset.format == source.format and found.dataset[2]["body"] == "2 and more."
    assert isinstance(found.dataset[2]["n"], np.integer) and found.cut["sentence"].tolist() == [1] * 9


@pytest.mark.parametrize(
    ("dataset", "options", "error", "message"),
    [
        (rows(["a"]), {}, KeyError, "no column 'text'; there are id, body, n. Pass text_column="),
        (rows(["a"]), {"text_column": "n", "max_line_documents": 3}, TypeError, "column 'n' holds int64, no text"),
        (
            rows(["a"]),
            {"text_column": "body", "max_line_documents": 0},
            ValueError,
            "max_line_documents must be a whole",
        ),
        (rows(["a"]), {"text_column": "body", "max_sentence_documents": 1.5}, ValueError, "max_sentence_documents"),
        (rows(["a"]), {"text_column": "body", "how": "fuzzy"}, ValueError, "one of exact, normalized, near"),
        (rows(["a"]), {"text_column": "body", "near_threshold": 0.0}, ValueError, "near_threshold"),
        (rows(["a"]), {"text_column": "body", "near_ngram": 21}, ValueError, "near_ngram=21"),
        (rows(["a"]), {"text_column": "body", "near_ngram": 2.0}, ValueError, "near_ngram=2.0"),
        (IterableDataset.from_generator(lambda: iter([{"text": "a"}])), {}, TypeError, "not a stream"),
        ({"text": ["a"]}, {}, TypeError, "dict cannot be deduplicated"),
    ],
)
def test_errors(dataset, options, error, message):
    with pytest.raises(error, match=message):
        deduplicate_documents(dataset, **options)
    taken = Dataset.from_dict({"text": ["a", "a"], "drop_reason": ["x", "y"]})
    with pytest.raises(ValueError, match="column 'drop_reason' is added to dropped rows"):
        deduplicate_documents(taken).dropped_rows()
