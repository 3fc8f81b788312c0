import sys

import numpy as np
import pytest
from datasets import Dataset

from hf_ppl_select.selection.duplicates import find_duplicates

WORDS = [f"{start}{end}" for start in ("feb", "cou", "pai", "hear", "lun") for end in ("ril", "gh", "ne", "ty")]


def repeats(texts, how="exact", **options):
    if how == "near":
        pytest.importorskip("datasketch")
    return find_duplicates({"text": texts}, np.arange(len(texts)), how, **options).tolist()


def test_exact_and_normalized_keep_the_first():
    texts = ["Fever", "cough", "Fever", "fever ", "cough", " FEVER"]
    assert repeats(texts) == [False, False, True, False, True, False]
    assert repeats(texts, "normalized") == [False, False, True, True, True, True]
    assert repeats(["Ä B", "ä  b\n"], "normalized") == [False, True]


def test_a_dataset_a_part_of_its_rows_and_dicts_agree():
    rng = np.random.default_rng(0)
    texts = [f"text {i}" for i in rng.integers(0, 4000, 25_000)]  # more than two batches
    seen, wanted = set(), []
    for text in texts:
        wanted.append(text in seen)
        seen.add(text)
    dataset = Dataset.from_dict({"other": range(25_000), "text": texts})
    assert repeats(texts) == wanted == find_duplicates(dataset, np.arange(25_000), "exact").tolist()
    some = np.arange(1, 25_000, 3)
    part = find_duplicates(dataset, some, "exact")
    assert part.tolist() == repeats([texts[i] for i in some])
    shuffled = dataset.shuffle(seed=1)
    assert find_duplicates(shuffled, np.arange(25_000), "exact").sum() == sum(wanted)


def test_missing_texts_repeat_nothing_and_all_equal_ones_leave_one():
    assert repeats([None, None, "", "", "a"]) == [False, False, False, True, False]
    for how in ("exact", "normalized", "near"):
        assert repeats(["the same six words again and again"] * 5, how) == [False] + [True] * 4
    assert repeats([], "exact") == [] == repeats([], "near")
    assert repeats([None, "", " \n"], "near") == [False] * 3


def test_surrogates_and_messages():
    odd = ["a\ud800 b", "a\ud800 b", "a\udfff b"]
    for how in ("exact", "normalized"):
        assert repeats(odd, how) == [False, True, False]
    assert repeats(odd, "near") == [False, True, False]
    chats = [[{"role": "user", "content": "hi"}], [{"content": "hi", "role": "user"}], [{"role": "user"}]]
    assert repeats(chats) == [False, True, False]
    nested = Dataset.from_dict({"messages": [[{"role": "user", "content": c}] for c in "aab"]})
    assert find_duplicates(nested, np.arange(3), "exact", text_column="messages").tolist() == [False, True, False]


def near_corpus(seed=0, num=300, length=120):
    """Texts, then copies with one word changed, then copies with eight (a Jaccard similarity near 0.55)."""
    rng = np.random.default_rng(seed)
    originals = [list(rng.choice(WORDS, length)) for _ in range(num)]
    close, far = [], []
    for words in originals:
        copy = list(words)
        copy[int(rng.integers(length))] = "changed"
        close.append(copy)
        copy = list(words)
        for k in rng.choice(length, 8, replace=False):
            copy[k] = str(rng.choice(WORDS)) + "x"
        far.append(copy)
    return [" ".join(words) for words in (*originals, *close, *far)]


def test_near_duplicates_by_minhash():
    texts = near_corpus()
    found = np.array(repeats(texts, "near"))
    assert not found[:300].any() and found[300:600].mean() > 0.99 and not found[600:].any()
    assert np.array_equal(found, repeats(texts, "near"))  # nothing random
    assert np.array(repeats(texts, "near", threshold=1.0))[300:600].mean() < 0.05  # a change in the last word, say
    assert np.array(repeats(texts, "near", threshold=0.4))[600:].mean() > 0.9


def test_errors():
    dataset = Dataset.from_dict({"body": ["a"], "perplexity": [2.0]})
    with pytest.raises(KeyError, match=r"no column 'text'.*it has body, perplexity; pass text_column="):
        find_duplicates(dataset, np.arange(1), "exact")
    with pytest.raises(ValueError, match="one of exact, normalized, near"):
        repeats(["a"], "fuzzy")
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="near_threshold"):
            find_duplicates(dataset, np.arange(1), "near", text_column="body", threshold=threshold)


def test_without_datasketch_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ImportError, match=r"hf-ppl-select\[dedup\]"):
        find_duplicates({"text": ["a"]}, np.arange(1), "near")
    assert repeats(["a", "a"]) == [False, True]
