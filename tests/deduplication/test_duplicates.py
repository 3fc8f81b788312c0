"""find_duplicates against comparisons of all pairs, on texts whose similarities are known."""

import re
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset

from hf_ppl_select.deduplication import near_duplicates, shingles
from hf_ppl_select.deduplication.duplicates import find_duplicates
from hf_ppl_select.deduplication.shingles import run_hashes

WORDS = [f"{start}{end}" for start in ("feb", "cou", "pai", "hear", "lun") for end in ("ril", "gh", "ne", "ty")]


def originals(texts, how="exact", **options):
    return find_duplicates({"text": texts}, np.arange(len(texts)), how, **options).tolist()


def repeats(texts, how="exact", **options):
    return [original >= 0 for original in originals(texts, how, **options)]


def all_runs(text, ngram=5):
    """The runs of `ngram` words of a text in their order, by Python's own means."""
    words = re.findall(r"[\u3000-\u9fff]|[^\s\x00-\x1f\u3000-\u9fff]+", (text or "").lower())
    return [tuple(words[k : k + ngram]) for k in range(max(1, len(words) - ngram + 1))] if words else []


def runs_of(text, ngram=5):
    return set(all_runs(text, ngram))


def compare_all(texts, threshold, ngram=5):
    """What `near` means: each row against all those kept before it."""
    kept, found = {}, []
    for i, runs in enumerate(runs_of(text, ngram) for text in texts):
        close = [k for k, other in kept.items() if runs and len(runs & other) / len(runs | other) >= threshold]
        found.append(close[0] if close else -1)
        if not close:
            kept[i] = runs
    return found


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
    whole = find_duplicates(dataset, np.arange(25_000), "exact")
    assert repeats(texts) == wanted == (whole >= 0).tolist()
    assert all(texts[first] == text and first == texts.index(text) for first, text in zip(whole, texts) if first >= 0)
    some = np.arange(1, 25_000, 3)
    part = find_duplicates(dataset, some, "exact")
    assert (part >= 0).tolist() == repeats([texts[i] for i in some])
    assert set(part[part >= 0]) <= set(some[part < 0])  # positions in the dataset, of rows that are kept
    shuffled = dataset.shuffle(seed=1)
    assert (find_duplicates(shuffled, np.arange(25_000), "exact") >= 0).sum() == sum(wanted)


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
    assert find_duplicates(nested, np.arange(3), "exact", text_column="messages").tolist() == [-1, 0, -1]


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
    assert not np.array(repeats(texts, "near", threshold=1.0)).any()
    assert np.array(repeats(texts, "near", threshold=0.4))[600:].mean() > 0.95


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_near_is_what_comparing_all_rows_finds(threshold):
    """Families of texts that grow apart word by word: chains, where what a row resembles may itself be dropped."""
    rng = np.random.default_rng(1)
    texts = []
    for family in range(30):
        words = [f"{word}{family}" for word in rng.choice(WORDS, int(rng.integers(1, 60)))]
        for _ in range(int(rng.integers(1, 12))):
            texts += [" ".join(words)] * int(rng.integers(1, 3))
            words = list(words)
            words[int(rng.integers(len(words)))] = str(rng.integers(10**6))
    texts += [None, "", " \n", "One two", "one  TWO", "one two three"] * 2
    texts = [texts[i] for i in rng.permutation(len(texts))]
    expected, found = np.array(compare_all(texts, threshold)), np.array(originals(texts, "near", threshold=threshold))
    sets = [runs_of(text) for text in texts]
    for row, original in enumerate(found):  # no row is taken for what it is not
        if original >= 0:
            assert found[original] < 0 and original < row
            assert len(sets[row] & sets[original]) / len(sets[row] | sets[original]) >= threshold
    missed = (expected >= 0) != (found >= 0)
    assert (expected >= 0).sum() > 20 and missed.mean() <= 0.02
    assert np.mean(expected == found) > 0.95


def test_pages_of_one_template(monkeypatch):
    """Many rows with candidates that are no repetitions, and a few that are."""
    rng = np.random.default_rng(2)
    template = " ".join(f"template{i}" for i in range(76))
    texts = [" ".join(f"own{own}-{i}" for i in range(20)) + f" {template}" for own in rng.integers(0, 250, 400)]
    texts = [text if rng.random() < 0.5 else text.replace("template40 ", "other ") for text in texts]
    expected = compare_all(texts, 0.8)
    shared = np.array(expected) >= 0
    assert 50 < shared.sum() < 300
    found = originals(texts, "near")
    assert np.mean(np.array(found) == expected) > 0.98
    for rounds in (0, 10**6):
        monkeypatch.setattr(near_duplicates, "_ROUNDS", rounds)
        assert originals(texts, "near") == found


@pytest.mark.parametrize("ngram", [1, 2, 3, 20])
def test_other_ngrams_are_compared_exactly(ngram):
    """Definitions of a dozen words, each with a word left out: runs of five do not see them, pairs of words do."""
    rng = np.random.default_rng(ngram)
    texts = []
    for definition in range(300):
        words = [f"{word}{definition}" for word in rng.choice(WORDS, int(rng.integers(1, 30)))]
        texts += [" ".join(words), " ".join(np.delete(words, rng.integers(len(words))))]
    found = originals(texts, "near", threshold=0.6, ngram=ngram)
    expected = compare_all(texts, 0.6, ngram)
    assert np.mean(np.array(found) == expected) > 0.98
    dozen = [line.split() for line in ("one two three four five six seven eight nine ten eleven twelve",) * 2]
    del dozen[1][6]
    pair = [" ".join(words) for words in dozen]
    assert repeats(pair, "near", threshold=0.6, ngram=ngram) == [False, ngram <= 2]
    assert repeats(pair, "near", threshold=0.6) == [False, False]


def test_the_share_of_pairs_that_is_found_is_as_stated():
    """3,000 pairs each of a similarity of exactly 0.8, 0.9 and just below 0.8."""
    bands, orders = near_duplicates.bands_and_orders(0.8)
    for shared, whole in ((80, 100), (90, 100), (79, 99)):
        words = [[f"w{pair}-{k}" for k in range(whole + 4)] for pair in range(3000)]
        texts = [" ".join(line) for line in words] + [" ".join(line[: shared + 4]) for line in words]
        assert len(runs_of(texts[0]) & runs_of(texts[3000])) == shared and len(runs_of(texts[0])) == whole
        found = np.array(originals(texts, "near"))
        assert not (found[:3000] >= 0).any()
        if shared / whole < 0.8:
            assert not (found >= 0).any()  # compared exactly
            continue
        assert set(found[3000:] - np.arange(3000)) <= {0} | set(-1 - np.arange(3000))
        expected = 1 - (1 - (shared / whole) ** orders) ** bands
        error = np.sqrt(expected * (1 - expected) / 3000)
        assert abs((found[3000:] >= 0).mean() - expected) < 4 * error + 1 / 3000


@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.2, 0.5, 0.75, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_what_they_promise(threshold):
    bands, orders = near_duplicates.bands_and_orders(threshold)
    assert bands * orders <= 128
    assert 1 - (1 - threshold**orders) ** bands >= (0.98 if threshold > 0.03 else 0.9)
    assert threshold < 0.7 or 1 - (1 - (threshold / 2) ** orders) ** bands <= 0.1
    assert near_duplicates.bands_and_orders(0.8) == (10, 5)  # as stated


def test_chinese_and_japanese_characters_are_words():
    text = "高血压是一种常见的慢性疾病，需要长期治疗和定期监测血压水平，避免严重的并发症。" * 2
    texts = [
        text,
        text.replace("长期", "长时间"),
        "完全不同的另一段中文文本，讲的是火车和车站的时刻表。",
        text + " Fever and 発熱",
    ]
    assert [len(runs_of(t)) for t in texts] == [len(np.unique(run_hashes([t])[0])) for t in texts]
    assert originals(texts, "near", threshold=0.6) == compare_all(texts, 0.6) == [-1, 0, -1, 0]


def test_equal_runs_have_equal_hashes_and_others_have_not(monkeypatch):
    monkeypatch.setattr(shingles, "_PIECE", 64)  # summed in pieces; and words of more bytes are several
    shingles._tables.cache_clear()
    rng = np.random.default_rng(0)
    alphabet = ["a", "b", "é", "漢", "👩‍⚕️", "\x00", "x" * 40]
    texts = [None, "", " ", "a", "a b c d e"]
    for _ in range(300):
        parts = rng.choice([*alphabet, " ", " ", "\n", "\t ", "\u00a0"], int(rng.integers(0, 60)))
        texts.append("".join(parts))
    hashes, numbers = run_hashes(texts)
    ends = np.cumsum(numbers)
    run_of, hash_of = {}, {}
    for text, start, end in zip(texts, ends - numbers, ends):
        here = hashes[start:end].tolist()
        assert run_hashes([text])[0].tolist() == here  # whatever stands beside it
        runs = all_runs(text)
        if max([len(word.encode()) for run in runs for word in run], default=0) <= 64:
            assert len(here) == len(runs)
            for run, value in zip(runs, here):
                assert run_of.setdefault(value, run) == run and hash_of.setdefault(run, value) == value
    shingles._tables.cache_clear()
    assert len(run_of) > 1000


def test_long_words_and_long_texts():
    long = " ".join(f"word{i}" for i in range(1_200_000))  # 13 MB
    cut = long[: int(len(long) * 0.9)]
    word = "x" * 600_000
    texts = [long, cut, word + " tail", word + "  TAIL", word[:-1] + "y tail", "short"]
    assert originals(texts, "near") == [-1, 0, -1, 2, -1, -1]
    assert originals(texts, "normalized") == [-1, -1, -1, 2, -1, -1]


def test_near_does_not_depend_on_the_process_or_on_threads(monkeypatch):
    texts = near_corpus(num=40)
    found = originals(texts, "near")
    monkeypatch.setattr(near_duplicates.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(near_duplicates, "_CHARACTERS", 1000)
    monkeypatch.setattr(near_duplicates, "_RUNS", 500)
    assert originals(texts, "near") == found
    code = (
        "import hf_ppl_select.deduplication.shingles as s\n"
        "h, n = s.run_hashes(['Fever and cough, é 漢 👩 x', 'a b'])\n"
        "print(*h, *n)"
    )
    for seed in ("0", "17"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        hashes, numbers = run_hashes(["Fever and cough, é 漢 👩 x", "a b"])
        assert done.stdout.split() == [*map(str, hashes), *map(str, numbers)]


def test_errors():
    dataset = Dataset.from_dict({"body": ["a"], "perplexity": [2.0]})
    with pytest.raises(KeyError, match=r"no column 'text'.*it has body, perplexity; pass text_column="):
        find_duplicates(dataset, np.arange(1), "exact")
    with pytest.raises(ValueError, match="one of exact, normalized, near"):
        repeats(["a"], "fuzzy")
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="near_threshold"):
            find_duplicates(dataset, np.arange(1), "near", text_column="body", threshold=threshold)
