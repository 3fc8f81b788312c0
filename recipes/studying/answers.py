"""The texts of a draw of `answers`: prompts and completions with labels, as fine-tuning has them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from hf_ppl_select.data.load import load_rows
from hf_ppl_select.data.overlap import contained_in, word_runs
from quickstart_steps.dirt import boilerplate, near_duplicate, ocr_noise
from quickstart_steps.texts import write_jsonl
from studying.plan import StudyArguments
from studying.texts import cut

_SHORTEST = 100
_TOKENS = 4  # characters of a token, about


def write_answers(folder: Path, seed: int, args: StudyArguments) -> None:
    """Write documents, held_out and trusted as .jsonl files of prompt and completion; no topic is in two of them."""
    topics, rng = _topics(args, seed), random.Random(seed)
    held_out = _until(topics, lambda rows: len(rows) >= args.num_held_out, set())[: args.num_held_out]
    runs = {run for row in held_out for run in word_runs(row["completion"])}
    trusted = _until(topics, lambda rows: _tokens(rows) >= args.trusted_tokens, runs)
    clean = _until(topics, lambda rows: _tokens(rows) >= args.corpus_tokens * (1 - args.dirty), runs)
    rows = [*({**row, "kind": "clean"} for row in clean), *_dirt(clean, args.dirty, rng)]
    rng.shuffle(rows)
    known = set(contained_in([row["completion"] for row in trusted], (row["completion"] for row in rows)))
    write_jsonl(folder / "documents.jsonl", rows)
    write_jsonl(folder / "held_out.jsonl", held_out)
    write_jsonl(folder / "trusted.jsonl", [row for i, row in enumerate(trusted) if i not in known])


def _dirt(clean: list[dict[str, str]], share: float, rng: random.Random) -> Iterator[dict[str, str]]:
    """Bad answers, a share of all characters in four equal parts: of another question, badly scanned, again, none."""
    mirrored = rng.sample(clean, max(1, len(clean) // 50))

    def mirror() -> dict[str, str]:
        row = rng.choice(mirrored)
        return {"prompt": row["prompt"], "completion": near_duplicate(row["completion"], rng)}

    makers: dict[str, Callable[[], dict[str, str]]] = {
        "mismatched": lambda: {**rng.choice(clean), "completion": rng.choice(clean)["completion"]},
        "ocr_noise": lambda: {**(row := rng.choice(clean)), "completion": ocr_noise(row["completion"], rng)},
        "near_duplicate": mirror,
        "boilerplate": lambda: {**rng.choice(clean), "completion": boilerplate(rng.randint(100, 400), rng)},
    }
    each = sum(len(row["completion"]) for row in clean) * share / (1 - share) / len(makers)
    for kind, make in makers.items():
        written = 0
        while written < each:
            row = make()
            written += len(row["completion"])
            yield {**row, "kind": kind}


def _topics(args: StudyArguments, seed: int) -> Iterator[list[dict[str, str]]]:
    rows = load_rows(args.dataset_name)
    by_topic: dict[str, list[dict[str, str]]] = {}
    seen = set()
    topics = rows[args.topic_column][:] if args.topic_column else range(len(rows))
    for topic, prompt, answer in zip(topics, rows[args.prompt_column][:], rows[args.text_column][:], strict=True):
        answer = " ".join((answer or "").split())
        if prompt and len(answer) >= _SHORTEST and answer not in seen:
            seen.add(answer)
            row = {"prompt": f"{prompt}\n", "completion": cut(answer)}
            by_topic.setdefault(str(topic).strip().lower(), []).append(row)
    order = sorted(by_topic)
    random.Random(seed).shuffle(order)
    return iter([by_topic[topic] for topic in order])


def _until(topics: Iterator[list], enough: Callable[[list], bool], runs: set) -> list[dict[str, str]]:
    """Whole topics, of whose answers those that share no run of words with the held-out ones."""
    taken: list[dict[str, str]] = []
    while not enough(taken):
        topic = next(topics, None)
        if topic is None:
            raise ValueError("--dataset_name has too few answers for this --corpus_tokens; lower it.")
        taken += [row for row in topic if runs.isdisjoint(word_runs(row["completion"]))]
    return taken


def _tokens(rows: list[dict[str, str]]) -> float:
    return sum(len(row["completion"]) for row in rows) / _TOKENS
