"""The n-gram score: counts against a counter, sums in any order, every way rows come, and what it tells apart."""

import math
import os
import pickle
import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher

from hf_ppl_select import NgramCounts, NgramScorer, PerplexityLandscape, select_subset
from hf_ppl_select.scoring.ngrams import words as words_module
from hf_ppl_select.scoring.ngrams.words import hash_ngrams, hash_words

TRUSTED = [
    "The patient has fever, cough and a rash.",
    "Fever of the patient is treated with rest.",
    "A rash may be a sign of infection; the patient should see a doctor.",
]
CORPUS = [
    *TRUSTED,
    "Cough and fever are signs of an infection of the lung.",
    "Accept all cookies! Sign up for our newsletter.",
    "We use cookies. Click here to sign up.",
    "",
    None,
    "Größe: 37,5 °C – “erhöht”",
    "患者は発熱しています。",
    "   \n\t ",
]
ODD = ["a", "A b", "x_1 -- y?!", "ÉTÉ été", "π ≠ Π", "“q” ’s", "发热 fever", "👩‍⚕️"]
ODD += ["\ud800 lone", "a\u00a0b", "\x00", "İ"]


def split(text):
    """The words of a text, one character after the other: what `hash_words` says it does."""
    found, before = [], None
    for character in (text or "").lower():
        first = character.encode("utf-8", "surrogatepass")[0]
        if first <= 0x20:
            kind = None
        elif first >= 0xE0 or first == 0xC2:
            kind = "alone"
        else:
            kind = "word" if first >= 0x80 or re.match(r"\w", character, re.ASCII) else "sign"
        if kind is not None and kind == before != "alone":
            found[-1] += character
        elif kind is not None:
            found.append(character)
        before = kind
    return found


def hash_of(*words):
    """The hash of a word, or of a pair of them, in Python's whole numbers."""

    def mixed(number):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            number = (number ^ number >> shift) * factor % 2**64
        return number

    def hash_word(word):
        code = word.encode("utf-8", "surrogatepass")
        values = (mixed((byte + 1) * 0x9E3779B97F4A7C15 % 2**64) for byte in code)
        return mixed(sum(value * pow(0x9E3779B97F4A7C15, i, 2**64) for i, value in enumerate(values)) % 2**64)

    first, *second = map(hash_word, words)
    return mixed((first * 0xD6E8FEB86659FD93 + second[0]) % 2**64) if second else first


def ngrams(text):
    words = split(text)
    return [*((word,) for word in words), *zip(words, words[1:])]


def count(texts, num_buckets):
    return Counter((hash_of(*ngram) >> 32) * num_buckets >> 32 for text in texts for ngram in ngrams(text))


def scorer(**options):
    return NgramScorer.fit(TRUSTED, CORPUS, **options)


def values(column):
    return np.array([math.nan if value is None else value for value in column], dtype=float)


def test_words_are_hashed_as_one_by_one():
    hashes, num_words = hash_words([text or "" for text in CORPUS + ODD])
    assert num_words.tolist() == [len(split(text)) for text in CORPUS + ODD]
    assert hashes.tolist() == [hash_of(word) for text in CORPUS + ODD for word in split(text)]


def test_words_are_those_of_the_usual_pattern():
    text = "The X-ray (2.5 mg/d) showed: no_change!? It's 37,5..."
    assert split(text) == re.findall(r"\w+|[^\w\s]+", text.lower())
    assert split("発熱 does") == ["発", "熱", "does"]


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_blocks_do_not_matter(monkeypatch, block):
    texts = [text or "" for text in CORPUS + ODD] + ["x" * 500 + " ü" * 300 + "発" * 100]
    whole, num_words = hash_words(texts)
    monkeypatch.setattr(words_module, "_BLOCK", block)
    cut, also = hash_words(texts)
    assert (cut == whole).all() and (also == num_words).all()
    assert [len(part) for part in hash_words([])] == [0, 0]


@pytest.mark.parametrize("num_buckets", [1, 97, 1 << 18])
def test_counts_are_those_of_a_counter(num_buckets):
    counts = NgramCounts.of(CORPUS + ODD, num_buckets=num_buckets)
    expected = count(CORPUS + ODD, num_buckets)
    assert dict(zip(np.flatnonzero(counts.counts).tolist(), counts.counts[counts.counts > 0].tolist())) == expected
    assert counts.num_ngrams == expected.total()


def test_shards_add_up_in_any_order_and_size(monkeypatch):
    whole = NgramCounts.of(CORPUS)
    shuffled = random.Random(0).sample(CORPUS, len(CORPUS))
    shards = NgramCounts.of(shuffled[:3]) + NgramCounts.of(iter(shuffled[3:]))
    assert (shards.counts == whole.counts).all()
    monkeypatch.setattr("hf_ppl_select.scoring.ngrams.counts._CHARACTERS", 10)
    one_by_one = NgramCounts()
    for text in shuffled:
        one_by_one.update([text])
    assert (one_by_one.counts == whole.counts).all() and (NgramCounts.of(CORPUS).counts == whole.counts).all()
    with pytest.raises(ValueError, match="262,144 and in 16 buckets do not add up"):
        whole + NgramCounts(16)


def test_the_score_is_the_mean_log_ratio():
    """By hand, bucket by bucket, in a table so small that n-grams collide."""
    num_buckets, smoothing = 64, 0.3
    trusted, corpus = count(TRUSTED, num_buckets), count(CORPUS, num_buckets)
    both = trusted + corpus

    def log_ratio(ngram):
        bucket = (hash_of(*ngram) >> 32) * num_buckets >> 32
        share = trusted[bucket] / trusted.total()
        pooled = both[bucket] / both.total()
        return math.log(smoothing + (1 - smoothing) * share / pooled) if pooled else math.log(smoothing)

    rows = [text for text in CORPUS + ODD if split(text)]
    expected = [math.exp(np.mean([log_ratio(ngram) for ngram in ngrams(text)])) for text in rows]
    found = scorer(num_buckets=num_buckets, smoothing=smoothing)({"text": rows})
    np.testing.assert_allclose(found["ngram_ratio"], expected, rtol=1e-12)
    assert found["num_words"].tolist() == [len(split(text)) for text in rows]


@pytest.mark.parametrize("corpus", [TRUSTED, ["x"], TRUSTED[:1] * 1000, ["cookies"] * 100_000])
def test_ratios_stay_within_their_bounds_whatever_the_corpus(corpus):
    found = NgramScorer.fit(TRUSTED, corpus)
    share = found.trusted.num_ngrams / (found.trusted.num_ngrams + found.corpus.num_ngrams)
    ratios = values(found({"text": CORPUS + ODD})["ngram_ratio"])
    ratios = ratios[~np.isnan(ratios)]
    assert len(ratios) >= len(CORPUS) - 3 and (ratios >= 0.1 * (1 - 1e-12)).all()
    assert (ratios <= (0.1 + 0.9 / share) * (1 + 1e-12)).all()
    if corpus is TRUSTED:
        np.testing.assert_allclose(found({"text": TRUSTED})["ngram_ratio"], 1)


def test_dirt_scores_lower_than_unseen_text_of_the_domain():
    clean = ["An infection with fever and a rash.", "The patient may cough."]
    dirt = ["Sign up for cookies, click here!", "treated. sign see of Fever a rest doctor rash", "zrqx fcvcr pnt"]
    ratios = scorer()({"text": clean + dirt})["ngram_ratio"]
    assert min(ratios[:2]) > max(ratios[2:])


def test_length_does_not_rule():
    short, long = scorer()({"text": [TRUSTED[0], " ".join([TRUSTED[0]] * 50)]})["ngram_ratio"]
    assert long == pytest.approx(short, rel=0.2)


def test_empty_rows_have_no_score_and_others_are_the_same_beside_them():
    dataset = Dataset.from_dict({"text": CORPUS})
    found = dataset.map(scorer(), batched=True)
    assert [value is None for value in found["ngram_ratio"]] == [not split(text) for text in CORPUS]
    assert found["num_words"][:] == [len(split(text)) for text in CORPUS]
    assert found.features["ngram_ratio"].dtype == "float64" and found.features["num_words"].dtype == "int32"
    alone = scorer()({"text": ""})
    assert math.isnan(alone["ngram_ratio"]) and alone["num_words"] == 0
    assert [len(column) for column in scorer()({"text": []}).values()] == [0, 0]


@pytest.mark.parametrize("kind", ["python", "arrow", "pandas", "numpy"])
@pytest.mark.parametrize("batched", [True, False])
def test_the_same_numbers_in_every_format_batch_and_stream(kind, batched):
    texts = [text or "" for text in CORPUS + TRUSTED * 3]
    expected = [scorer()({"text": text})["ngram_ratio"] for text in texts]
    dataset = Dataset.from_dict({"text": texts, "id": list(range(len(texts)))}).with_format(kind)
    for batch_size in (1, 4) if batched else (1,):
        found = dataset.map(scorer(), batched=batched, batch_size=batch_size).with_format(None)
        assert found.column_names == ["text", "id", "ngram_ratio", "num_words"]
        np.testing.assert_array_equal(values(found["ngram_ratio"]), expected)
    stream = dataset.to_iterable_dataset().with_format(None if kind == "python" else kind)
    taken = list(stream.map(scorer(), batched=batched).with_format(None))
    np.testing.assert_array_equal(values([row["ngram_ratio"] for row in taken]), expected)


def test_tables_and_kept_columns():
    table = pa.table({"text": ["fever", ""], "id": [1, 2]})
    assert scorer()(table).to_pydict().keys() == {"text", "id", "ngram_ratio", "num_words"}
    assert scorer()(table)["ngram_ratio"].null_count == 1
    found = scorer(keep_columns=True)({"text": np.array(["fever", ""], dtype=object), "id": np.array([1, 2])})
    assert found["id"].tolist() == [1, 2] and np.isnan(found["ngram_ratio"]).tolist() == [False, True]


@pytest.mark.slow
def test_ray_batches():
    ray = pytest.importorskip("ray")
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=1, include_dashboard=False)
    try:
        rows = ray.data.from_items([{"text": text, "id": i} for i, text in enumerate(TRUSTED)])
        taken = rows.map_batches(scorer(keep_columns=True), batch_size=2).take_all()
    finally:
        if started:
            ray.shutdown()
    expected = scorer()({"text": TRUSTED})["ngram_ratio"]
    assert [row["ngram_ratio"] for row in sorted(taken, key=lambda row: row["id"])] == expected.tolist()


def test_several_processes():
    dataset = Dataset.from_dict({"text": CORPUS * 20})
    found = dataset.map(scorer(), batched=True, batch_size=7, num_proc=2)
    np.testing.assert_array_equal(values(found["ngram_ratio"]), values(scorer()({"text": CORPUS * 20})["ngram_ratio"]))


def test_prompts_and_messages_count_whole():
    prompt, completion = "What is fever?", "A sign of infection."
    found = scorer()
    expected = found({"text": f"{prompt}\n{completion}"})["ngram_ratio"]
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    in_parts = [turns[0], {"role": "assistant", "content": [{"type": "text", "text": completion}]}]
    assert found({"prompt": prompt, "completion": f" {completion}"})["ngram_ratio"] == expected
    assert found({"prompt": turns[:1], "completion": turns[1:]})["ngram_ratio"] == expected
    assert found({"messages": [turns, in_parts, None, []]})["ngram_ratio"] == [expected, expected, None, None]
    counts = NgramCounts.of(Dataset.from_dict({"messages": [turns], "id": [1]}))
    assert (counts.counts == NgramCounts.of([f"{prompt} {completion}"]).counts).all()


def test_datasets_and_streams_are_counted():
    expected = NgramCounts.of(CORPUS).counts
    dataset = Dataset.from_dict({"body": CORPUS, "id": list(range(len(CORPUS)))})
    for texts in (dataset, dataset.with_format("arrow"), dataset.to_iterable_dataset()):
        assert (NgramCounts.of(texts, text_column="body").counts == expected).all()
    fitted = NgramScorer.fit(NgramCounts.of(TRUSTED), dataset, text_column="body")
    assert fitted.settings() == NgramScorer.fit(TRUSTED, CORPUS, text_column="body").settings()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    saved = scorer(smoothing=0.2, num_buckets=1000)
    saved.save(tmp_path / "ngrams.safetensors")
    loaded = NgramScorer.load(tmp_path / "ngrams.safetensors")
    assert loaded.settings() == saved.settings() and Hasher.hash(loaded) == Hasher.hash(saved)
    for name in ("ngram_ratio", "num_words"):
        np.testing.assert_array_equal(
            values(loaded({"text": CORPUS})[name]), values(saved({"text": CORPUS})[name]), strict=True
        )
    other = NgramScorer.load(tmp_path / "ngrams.safetensors", text_column="body", smoothing=0.5)
    assert (other.text_column, other.smoothing) == ("body", 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["ngrams.safetensors"]


def test_files_that_are_not_whole_or_not_ours_are_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "ngrams.safetensors"
    with pytest.raises(FileNotFoundError, match="ngrams.safetensors"):
        NgramScorer.load(path)
    scorer(num_buckets=1000).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="ngrams.safetensors is not a whole safetensors file"):
        NgramScorer.load(path)
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(ValueError, match="holds other counts than were saved"):
        NgramScorer.load(path)
    path.write_bytes(whole.replace(b'"schema_version":"1"', b'"schema_version":"9"'))
    with pytest.raises(ValueError, match="schema version '9' .* reads 1"):
        NgramScorer.load(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="holds None, not 'hf_ppl_select/ngram_scorer'"):
        NgramScorer.load(path)


def test_the_fingerprint_is_that_of_the_content():
    """In a process with other string hashes, and after a pickle: the same; with other counts or settings: another."""
    found = scorer()
    code = (
        "from datasets.fingerprint import Hasher; from hf_ppl_select import NgramScorer\n"
        f"scorer = NgramScorer.fit({TRUSTED!r}, {CORPUS!r})\nprint(Hasher.hash(scorer), scorer.settings())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split(" ", 1) == [Hasher.hash(found), f"{found.settings()}\n"]
    assert Hasher.hash(pickle.loads(pickle.dumps(found))) == Hasher.hash(found)
    others = [scorer(smoothing=0.2), scorer(text_column="body"), NgramScorer.fit(TRUSTED, CORPUS[1:])]
    assert len({Hasher.hash(one) for one in (found, *others)}) == 4


def test_what_is_wrong_is_said():
    for trusted, corpus, name in (([""], CORPUS, "trusted texts"), (TRUSTED, [" ", None], "corpus")):
        with pytest.raises(ValueError, match=f"there is no word in the {name}"):
            NgramScorer.fit(trusted, corpus)
    with pytest.raises(KeyError, match=r"No column 'text' to score; the columns are \['body'\]. Pass text_column"):
        Dataset.from_dict({"body": TRUSTED}).map(scorer(), batched=True)
    with pytest.raises(KeyError, match=r"No column 'text' to score; the columns are \['body'\]"):
        NgramScorer.fit(TRUSTED, Dataset.from_dict({"body": CORPUS}))
    with pytest.raises(TypeError, match="Row 1 of the batch: column 'text' holds int, not a string"):
        scorer()({"text": ["fever", 3]})
    with pytest.raises(TypeError, match="Row 0 of the batch holds int, where a text or messages must be"):
        scorer()({"messages": [[3]]})
    with pytest.raises(TypeError, match="not of one text"):
        NgramScorer.fit("fever", CORPUS)
    with pytest.raises(ValueError, match="smoothing must be between 0 and 1, not 0"):
        scorer(smoothing=0)
    with pytest.raises(ValueError, match="num_buckets must be a whole number"):
        scorer(num_buckets=0.5)


def test_landscape_and_selection_take_the_column():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(" ".join(filter(None, CORPUS)).split(), k=12)) for _ in range(200)]
    scored = Dataset.from_dict({"text": texts}).map(scorer(), batched=True)
    landscape = PerplexityLandscape.from_dataset(scored, column="ngram_ratio", num_tokens_column="num_words")
    assert landscape.num_tokens == sum(scored["num_words"]) and landscape.column == "ngram_ratio"
    subset = select_subset(
        scored,
        column="ngram_ratio",
        num_tokens_column="num_words",
        target=(landscape.quantile(0.8), 0.6 * landscape.sigma),
        space="linear",
        num_tokens=landscape.num_tokens // 5,
    )
    assert np.mean(subset["ngram_ratio"]) == pytest.approx(landscape.quantile(0.8), rel=0.05)
    assert len(hash_ngrams(subset["text"][:], 10)[0]) == sum(subset["num_words"])
