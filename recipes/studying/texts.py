"""The texts of a draw: labelled documents, held-out and general texts, a trusted sample; none is in another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_ppl_select.data.load import load_rows
from hf_ppl_select.data.overlap import contained_in, word_runs
from quickstart_steps.dirt import add_dirt
from quickstart_steps.dirty_ontology import general_texts, read_terms, split_terms, write_corpus
from quickstart_steps.texts import write_jsonl
from studying.ontology_dirt import make_documents
from studying.plan import StudyArguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 500  # characters of a held-out text, or of an answer: some 120 tokens
_DEFINITION = 55  # tokens of a definition of the ontology, about


def write_texts(
    folder: Path, corpus: str, seed: int, args: StudyArguments, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write documents, held_out, trusted and what [`write_general`] does as .jsonl files."""
    if corpus == "ontology":
        num_clean = int(args.corpus_tokens * (1 - args.dirty) / _DEFINITION)
        sizes = {"num_held_out": 4 * args.num_held_out, "num_trusted": args.trusted_tokens // _DEFINITION}
        sizes["num_probe_held_out"] = 0
        write_corpus(folder, num_definitions=num_clean, dirty=0, seed=seed, **sizes)
        training = split_terms(read_terms(), sizes["num_held_out"], seed)[0]
        write_jsonl(folder / "documents.jsonl", make_documents(training, num_clean, args.dirty, seed))
        held_out = [row["text"] for row in load_rows(str(folder / "held_out.jsonl"))]
        write_jsonl(folder / "held_out.jsonl", [{"text": text} for text in held_out[: args.num_held_out]])
    else:
        _write_own(folder, seed, args.dirty if corpus == "dirty" else 0.0, args, tokenizer)
    write_general(folder, seed, args)


def write_general(folder: Path, seed: int, args: StudyArguments) -> None:
    """Write general and, where there is text for it, replay."""
    general = _articles(args, seed)[1]
    if len(general) < args.num_general:
        raise ValueError(
            f"{args.general_dataset} has {len(general)} paragraphs of {LONGEST} characters in every other "
            f"article, --num_general asks for {args.num_general}."
        )
    write_jsonl(folder / "general.jsonl", [{"text": text} for text in general[: args.num_general]])
    if args.replay_dataset is not None:
        replay = load_rows(args.replay_dataset)["text"][:]
        write_jsonl(folder / "replay.jsonl", [{"text": text} for text in replay])


def _articles(args: StudyArguments, seed: int) -> tuple[list[str], list[str]]:
    """Paragraphs of every other general article, for dirt; and pieces of the others, drawn by the seed."""
    if args.general_dataset is None:
        pieces = general_texts(10_000, seed, LONGEST)
        return pieces[args.num_general :], pieces[: args.num_general]
    paragraphs = [
        [part.strip() for part in article.split("\n") if len(part) > 200]
        for article in load_rows(args.general_dataset)["text"][:]
    ]
    others = [cut(part) for article in paragraphs[1::2] for part in article if len(part) > LONGEST]
    random.Random(seed).shuffle(others)
    return [part for article in paragraphs[::2] for part in article], others


def _write_own(folder: Path, seed: int, dirty: float, args: StudyArguments, tokenizer) -> None:
    documents = _documents(args, seed)
    held_out: list[str] = []
    while len(held_out) < args.num_held_out:
        topic = _next(documents, args)
        held_out += [cut(text) for text in topic if len(text) >= LONGEST]
    held_out = held_out[: args.num_held_out]
    runs = {run for text in held_out for run in word_runs(text)}
    trusted = _until(args.trusted_tokens, documents, runs, args, tokenizer)
    clean = _until(int(args.corpus_tokens * (1 - dirty)), documents, runs, args, tokenizer)
    rng, off_domain = random.Random(seed), _articles(args, seed)[0]
    rows = add_dirt(clean, off_domain, dirty, rng) if dirty else [{"text": text, "kind": "clean"} for text in clean]
    known = set(contained_in(trusted, (row["text"] for row in rows)))
    write_jsonl(folder / "held_out.jsonl", [{"text": text} for text in held_out])
    write_jsonl(folder / "trusted.jsonl", [{"text": text} for i, text in enumerate(trusted) if i not in known])
    write_jsonl(folder / "documents.jsonl", rows)


def _documents(args: StudyArguments, seed: int) -> Iterator[list[str]]:
    """Different documents topic by topic, topics in the order that the seed draws."""
    rows = load_rows(args.dataset_name)
    texts = rows[args.text_column][:]
    topics = texts if args.topic_column is None else rows[args.topic_column][:]
    by_topic: dict[str, list[str]] = {}
    seen = set()
    for topic, text in zip(topics, texts, strict=True):
        if text and text.strip() and text not in seen:
            seen.add(text)
            by_topic.setdefault(str(topic).strip().lower(), []).append(text)
    order = sorted(by_topic)
    random.Random(seed).shuffle(order)
    return iter([by_topic[topic] for topic in order])


def _until(num_tokens: int, documents: Iterator[list[str]], runs: set, args: StudyArguments, tokenizer) -> list[str]:
    """Documents, whole topics, that share no run of words with the held-out texts, until they have so many tokens."""
    taken: list[str] = []
    while num_tokens > 0:
        fitting = [text for text in _next(documents, args) if runs.isdisjoint(word_runs(text))]
        taken += fitting
        num_tokens -= sum(map(len, tokenizer(fitting, add_special_tokens=False)["input_ids"])) if fitting else 0
    return taken


def _next(documents: Iterator[list[str]], args: StudyArguments) -> list[str]:
    found = next(documents, None)
    if found is None:
        raise ValueError(
            f"{args.dataset_name} has too few documents for held-out and trusted texts and {args.corpus_tokens:,} "
            "tokens of corpus; lower --corpus_tokens."
        )
    return found


def cut(text: str) -> str:
    """Its beginning, up to the end of a word."""
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0]
