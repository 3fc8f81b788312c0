"""Documents in parts against all of them at once, and groups against joining them one by one."""

import numpy as np
import pytest
from datasets import Dataset

from hf_ppl_select import deduplicate_documents
from hf_ppl_select.deduplication import near_duplicates
from hf_ppl_select.deduplication.duplicates import DEDUPLICATE
from hf_ppl_select.deduplication.parts import batches_of, find_repetitions, hash_names, hash_part, join_equal

WORDS = [f"{start}{end}" for start in ("feb", "cou", "pai", "hear", "lun") for end in ("ril", "gh", "ne", "ty")]


def dirty_texts(seed: int = 0, families: int = 25, pages: int = 60) -> list[str | None]:
    """Families that grow apart word by word, pages of one template, copies, near copies, and hardly any text."""
    rng = np.random.default_rng(seed)
    texts: list[str | None] = []
    for family in range(families):
        words = [f"{word}{family}" for word in rng.choice(WORDS, int(rng.integers(1, 60)))]
        for _ in range(int(rng.integers(1, 10))):
            text = " ".join(words)
            texts += [text] * int(rng.integers(1, 3))
            texts += [f" {text.upper()}\n"] * int(rng.integers(0, 2))
            words[int(rng.integers(len(words)))] = str(rng.integers(10**6))
    template = " ".join(f"template{i}" for i in range(76))
    for own in rng.integers(0, pages // 2, pages):
        text = " ".join(f"own{own}-{i}" for i in range(20)) + f" {template}"
        texts.append(text if rng.random() < 0.5 else text.replace("template40 ", "other "))
    texts += [
        None,
        "",
        " \n",
        "One two",
        "one  TWO",
        "\u00c4rzte  und\u00a0\u00c4rzte",
        "\u00e4rzte und \u00e4rzte",
        "\x00",
    ] * 2
    text = "高血压是一种常见的慢性疾病，需要长期治疗和定期监测血压水平，避免严重的并发症👩‍⚕️。" * 2
    texts += [text, text.replace("长期", "长时间"), "again and again and so on " * 3, "again and again and so on " * 4]
    return [texts[i] for i in rng.permutation(len(texts))]


def in_parts(texts, how, threshold, sizes, batch_runs=300, ngram=5):
    """What [`find_repetitions`] says of texts that are cut into parts; how many batches there were."""
    ends = np.cumsum(sizes)
    assert ends[-1] == len(texts)
    parts = [texts[end - size : end] for end, size in zip(ends, sizes)]
    made = [hash_part([part[:7], part[7:]], len(part), how, threshold, ngram) for part in parts]
    hashed = dict(zip(hash_names(how, threshold), map(list, zip(*made, strict=True)), strict=True))
    seen = []

    def compare(batches):
        for number, rows in reversed(list(enumerate(batches))):

            def read(which, rows=rows):
                yield [texts[row] for row in (rows if which is None else rows[which])]

            seen.append(rows)
            yield number, near_duplicates.find_near_duplicates(read, len(rows), threshold, ngram) >= 0

    reasons = find_repetitions(
        lambda name: np.concatenate(hashed.pop(name)), compare, how, threshold, lambda runs: batch_runs
    )
    assert not hashed
    return reasons, len(seen)


@pytest.mark.parametrize(
    "how, threshold, ngram",
    [*(("near", t, 5) for t in (0.3, 0.5, 0.8, 1.0)), ("near", 0.6, 2), ("exact", 0.8, 5), ("normalized", 0.8, 5)],
)
def test_parts_drop_what_all_at_once_drop(how, threshold, ngram, monkeypatch):
    texts = dirty_texts()
    signatures, asked = near_duplicates._signatures, []
    monkeypatch.setattr(near_duplicates, "_signatures", lambda *args: asked.append(1) or signatures(*args))
    options = {"how": how, "near_threshold": threshold, "near_ngram": ngram}
    expected = deduplicate_documents(Dataset.from_dict({"text": texts}), **options)
    if (how, threshold) == ("near", 0.8):
        assert asked, "no page was compared in more than eight rounds"
    wanted = expected.reasons.tolist()
    assert {-1, *range(DEDUPLICATE.index(how) + 1)} == set(wanted)
    for sizes in ([len(texts)], [0, 3, 1, 0, len(texts) - 80, 76, 0]):
        reasons, num_batches = in_parts(texts, how, threshold, sizes, ngram=ngram)
        assert reasons.tolist() == wanted
        assert num_batches == 0 if how != "near" else num_batches > 1
    assert in_parts(texts, how, threshold, [len(texts)], 10**9, ngram)[0].tolist() == wanted


def test_nothing_to_find():
    assert in_parts([], "near", 0.8, [0])[0].tolist() == []
    assert in_parts([None, None, ""], "near", 0.8, [2, 1])[0].tolist() == [-1] * 3
    assert in_parts(["a", "b"], "near", 0.8, [1, 1]) == (pytest.approx([-1, -1]), 0)


def test_groups_are_those_of_joining_one_by_one():
    rng = np.random.default_rng(3)
    for number in (1, 5, 400):
        columns = [rng.integers(0, 3 * number, number).astype(np.uint64) * 2**40 for _ in range(4)]
        parent = list(range(number))

        def root(row, parent=parent):
            while parent[row] != row:
                row = parent[row]
            return row

        for values in columns:
            first = {}
            for row, value in enumerate(values.tolist()):
                parent[root(row)] = root(first.setdefault(value, row))
        roots = [root(row) for row in range(number)]
        groups = join_equal(iter(columns), number).tolist()
        assert len(set(zip(groups, roots))) == len(set(groups)) == len(set(roots))
        assert number != 400 or 1 < len(set(groups)) < 300


def test_batches_have_whole_groups_of_more_than_one():
    groups = np.array([0, 1, 2, 0, 3, 2, 2, 4, 4, 5])
    sizes = np.array([5, 9, 1, 5, 9, 1, 1, 2, 2, 9])
    assert [batch.tolist() for batch in batches_of(groups, sizes, lambda runs: 10)] == [[0, 3], [2, 5, 6, 7, 8]]
    asked = []
    assert [batch.tolist() for batch in batches_of(groups, sizes, lambda runs: asked.append(runs) or 1)] == [
        [0, 3],
        [2, 5, 6],
        [7, 8],
    ]
    assert asked == [17]
    assert batches_of(np.arange(3), np.ones(3), lambda runs: 1) == []
