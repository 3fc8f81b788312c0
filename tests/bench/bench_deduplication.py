"""Near-duplicates of a million short documents: rate, memory and what is found, against datasketch and rensa.

    python tests/bench/bench_deduplication.py                      # a million documents; minutes
    python tests/bench/bench_deduplication.py --documents 100_000

Documents of 100 words drawn by Zipf's law; about one in ten is an earlier one with words changed or cut off, of a
known Jaccard similarity of 5-word runs. Each way runs in a process of its own, one after the other: wall and
processor time of all its threads, and the most anonymous memory beyond that of the texts. datasketch and rensa are
left out where they are not installed (`pip install --target FOLDER rensa` and `PYTHONPATH=FOLDER` will do). Prints a
Markdown table of the others' times and memory as multiples of ours, writes JSON.
"""

import argparse
import json
import multiprocessing
import threading
import time
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

THRESHOLD = 0.8
WORDS, VOCABULARY, RUN = 100, 20_000, 5
CUT = (2, 5, 10, 15, 19, 20, 25, 40)  # words cut off the end: (96 - n) / 96 of the runs remain
CHANGED = (1, 2, 3, 4)  # words changed, far from each other: 5 runs each


def make_documents(number, seed=0):
    """Texts, and for each the position of the one it was made of (or -1) and their exact similarity."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(["".join(rng.choice(letters, length)) for length in rng.integers(2, 11, VOCABULARY)])
    weights = 1 / np.arange(1, VOCABULARY + 1)
    texts, made_of, similarity = [], np.full(number, -1), np.zeros(number)
    while len(texts) < number:
        rows = rng.choice(VOCABULARY, (min(10_000, number - len(texts)), WORDS), p=weights / weights.sum())
        block = [" ".join(vocabulary[row]) for row in rows]
        for place in range(len(block) // 10, len(block)) if texts else ():
            if rng.random() > 1 / 9:
                continue
            here = len(texts) + place
            source = int(rng.integers(len(texts)))
            while made_of[source] >= 0 or similarity[source] < 0:
                source = int(rng.integers(len(texts)))
            similarity[source] = -1  # each is copied once
            words = texts[source].split(" ")
            if rng.random() < 0.5:
                words = words[: WORDS - int(rng.choice(CUT))]
            else:
                for k in range(int(rng.choice(CHANGED))):
                    words[10 + 20 * k] = f"changed{here}"
            block[place] = " ".join(words)
            made_of[here], similarity[here] = source, jaccard(texts[source], block[place])
        texts += block
    return texts, made_of, np.maximum(similarity, 0)


def runs_of(text):
    words = text.split(" ")
    return {tuple(words[k : k + RUN]) for k in range(len(words) - RUN + 1)}


def jaccard(first, second):
    first, second = runs_of(first), runs_of(second)
    return len(first & second) / len(first | second)


def hf_ppl_select(texts):
    from hf_ppl_select.deduplication.duplicates import find_duplicates

    return find_duplicates({"text": texts}, np.arange(len(texts)), "near", threshold=THRESHOLD) >= 0


def byte_runs(text):
    words = text.lower().encode().split()
    return list({b" ".join(words[k : k + RUN]) for k in range(len(words) - RUN + 1)})


def datasketch(texts):
    """Its MinHash with 128 permutations in the fastest of its schemes, and its LSH index of the rows kept."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=128, weights=(0.1, 0.9))
    empty = MinHash(num_perm=128, seed=1, scheme="affine32", hashfunc=zlib.crc32)
    kept, repeats = {}, np.zeros(len(texts), dtype=bool)
    for i, text in enumerate(texts):
        sketch = empty.copy()
        sketch.update_batch(byte_runs(text))
        values = sketch.hashvalues
        if any(np.mean(kept[key] == values) >= THRESHOLD for key in index.query(sketch)):
            repeats[i] = True
        else:
            index.insert(i, sketch, check_duplication=False)
            kept[i] = values
    return repeats


def rensa(texts):
    """Its streaming deduplicator, a batch at a time."""
    from rensa import RMinHashDeduplicator

    finder = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=128, use_lsh=True)
    kept = []
    for start in range(0, len(texts), 10_000):
        kept += finder.add_pairs((str(i), byte_runs(texts[i])) for i in range(start, min(start + 10_000, len(texts))))
    return ~np.array(kept)


WAYS = {function.__name__: function for function in (hf_ppl_select, datasketch, rensa)}


def anonymous_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(way, texts, answers):
    """In a process of its own: `texts` are there already."""
    before = most = anonymous_memory()
    ended = threading.Event()

    def watch():
        nonlocal most
        while not ended.wait(0.02):
            most = max(most, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, processor = time.perf_counter(), time.process_time()
    repeats = WAYS[way](texts)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    ended.set()
    watcher.join()
    answers.put((wall, processor, most - before, np.packbits(repeats)))


def judge(repeats, made_of, similarity):
    """Share found of the pairs in three bands of similarity at the threshold and above, and rows wrongly taken."""
    copies = made_of >= 0
    found = {}
    for low, high in ((0.8, 0.82), (0.82, 0.95), (0.95, 1.01)):
        here = copies & (similarity >= low) & (similarity < high)
        found[f"found_{low}"] = float(repeats[here].mean())
    below = ~copies | (similarity < THRESHOLD)
    return found | {"wrong": int(repeats[below].sum()), "wrong_of": int(below.sum())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--output", default="bench_deduplication.json")
    args = parser.parse_args()
    texts, made_of, similarity = make_documents(args.documents)
    characters = sum(map(len, texts)) / len(texts)
    print(f"{len(texts):,} documents of {characters:.0f} characters, {(made_of >= 0).sum():,} of them copies")
    context = multiprocessing.get_context("fork")  # shares the texts
    results = {}
    for way in args.ways:
        if find_spec(way) is None:
            print(f"{way} is not installed.")
            continue
        answers = context.Queue()
        process = context.Process(target=measure, args=(way, texts, answers))
        process.start()
        wall, processor, memory, packed = answers.get()
        process.join()
        repeats = np.unpackbits(packed, count=len(texts)).astype(bool)
        results[way] = {"wall_s": wall, "processor_s": processor, "bytes_a_row": memory / len(texts)}
        results[way] |= judge(repeats, made_of, similarity)
        print(way, results[way], flush=True)
    Path(args.output).write_text(json.dumps({"documents": len(texts), "ways": results}, indent=2))
    ours = results["hf_ppl_select"]
    print("\n| | wall | processor | memory | found at 0.80 | at 0.82 to 0.95 | above | wrong |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for way, row in results.items():
        ratios = " | ".join(f"{row[name] / ours[name]:.1f} x" for name in ("wall_s", "processor_s", "bytes_a_row"))
        found = " | ".join(f"{row[name]:.2%}" for name in row if name.startswith("found"))
        print(f"| {way} | {ratios} | {found} | {row['wrong']} |")


if __name__ == "__main__":
    main()
