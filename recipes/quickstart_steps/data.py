"""What the quickstart trains and evaluates on: the ontology corpus, or any dataset of documents split for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hf_ppl_select.data.saving import write_atomically
from quickstart_steps.ontology_corpus import general_texts, word_runs, write_corpus

if TYPE_CHECKING:
    from quickstart import QuickstartArguments


def prepare_texts(folder: Path, args: QuickstartArguments) -> dict[str, Path]:
    """Write documents, held-out texts, general texts and questions once; the paths of those there are, by name."""
    if not (folder / "documents.jsonl").exists():
        if args.dataset_name is None:
            write_corpus(folder, num_definitions=args.num_documents, dirty=args.dirty, seed=args.seed)
        else:
            _split_documents(folder, args)
    return {path.stem: path for path in sorted(folder.glob("*.jsonl"))}


def _split_documents(folder: Path, args: QuickstartArguments) -> None:
    """Hold out one document in twenty, at most 200; documents that share a run of words with those are left out."""
    from hf_ppl_select.data.load import load_texts

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


def training_precision() -> dict[str, bool]:
    """Options of the trainer: bfloat16 autocast where the hardware computes in it, else float32."""
    return {"bf16": fast_bfloat16(), "use_cpu": not _has_gpu()}


def fast_bfloat16() -> bool:
    import torch

    if _has_gpu():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
