"""Runs of words that two sets of texts share, against all pairs compared by hand."""

import random

import pytest

from hf_ppl_select.data.overlap import contained_in, sharing_runs, split_apart, word_runs

WORDS = [f"w{i}" for i in range(40)]


def naive_runs(text):
    words = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in text.lower()).split()
    return {tuple(words[i : i + 8]) for i in range(max(1, len(words) - 7))}


@pytest.fixture
def texts():
    """Random texts, some of which take over a piece of another one, of 6 to 12 words."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 30))) for _ in range(60)]
    for position in range(0, 60, 4):
        words = texts[rng.randrange(60)].split()
        begin = rng.randrange(max(1, len(words) - 6))
        texts[position] += " " + " ".join(words[begin : begin + rng.randint(6, 12)])
    return texts


def test_runs_are_of_eight_words_in_small_letters():
    assert list(word_runs("One, two; THREE")) == [("one", "two", "three")]
    assert len(list(word_runs(" ".join(WORDS)))) == 33
    assert set(word_runs("É-tude 3.5 " * 4)) == naive_runs("é tude 3 5 " * 4)


def test_chinese_and_japanese_characters_are_words():
    assert list(word_runs("第3章：Das Fieber")) == [("第", "3", "章", "das", "fieber")]
    sentence = "患者は昨夜から高熱と咳が続いている"
    assert list(word_runs(sentence)) == [tuple(sentence[i : i + 8]) for i in range(len(sentence) - 7)]
    texts = [f"今天我们要讲的是，{'患者昨夜开始高烧不退'}。", "另一篇完全不同的文章", "어젯밤부터 열이 있다"]
    others = ["病历记录患者昨夜开始高烧不退，伴有咳嗽", "어젯밤부터 열이 없다"]
    assert sharing_runs(texts, others) == [0]
    assert contained_in(texts, [f"开头{texts[0]}结尾"]) == [0]
    with pytest.raises(ValueError, match="2 texts cannot be split in two"):
        split_apart([texts[0], others[0]], 0.5)


def test_texts_without_words_share_nothing():
    assert list(word_runs("")) == list(word_runs("* * *")) == list(word_runs("。、")) == []
    assert sharing_runs(["***", "fever"], ["---", "", "fever"]) == [1]
    assert contained_in(["***"], ["***"]) == []
    assert sorted(split_apart(["***", "---"], 0.5)) == [[0], [1]]


def test_texts_that_share_a_run_are_found(texts):
    mine, others = texts[:30], texts[30:]
    expected = [i for i, text in enumerate(mine) if any(naive_runs(text) & naive_runs(other) for other in others)]
    assert sharing_runs(mine, others) == expected and 0 < len(expected) < 30
    assert sharing_runs(mine, []) == []


def test_texts_that_a_corpus_holds_cut_or_whole_are_found():
    rng = random.Random(1)
    texts = [" ".join(f"t{i}x{rng.randrange(10**6)}" for _ in range(40)) for i in range(6)]
    near = texts[2].split()
    near[20] = "changed"
    phrase = " ".join(texts[3].split()[:12])
    cut = texts[4].split()
    corpus = [
        f"before {texts[0]} after",
        texts[1].upper(),
        " ".join(near),  # one word of forty changed: near enough
        f"{phrase} and then something else",  # a sentence of it
        " ".join(cut[:20]),  # chunks
        " ".join(cut[20:]),
    ]
    assert contained_in(texts, iter(corpus)) == [0, 1, 2, 4]
    assert contained_in(["fever"], ["fever", "a high fever"]) == [0] and contained_in(["fever"], ["a fever"]) == []


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_split_shares_no_run_loses_nothing_and_has_its_share(texts, share):
    first, second = split_apart(texts, share, seed=3)
    assert sorted(first + second) == list(range(60)) and first == sorted(first)
    for mine in first:
        for other in second:
            assert not naive_runs(texts[mine]) & naive_runs(texts[other])
    got = sum(len(texts[position]) for position in first) / sum(map(len, texts))
    assert share - 0.2 < got <= share
    assert split_apart(texts, share, seed=3) == (first, second) != split_apart(texts, share, seed=4)


def test_texts_that_all_share_a_run_cannot_be_split():
    page = "we use cookies to improve your experience here"
    with pytest.raises(ValueError, match="5 texts cannot be split in two.* 1 groups.*deduplicate them first"):
        split_apart([f"{page} {i}" for i in range(5)], 0.5)
