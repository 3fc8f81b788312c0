"""Documents -> the chunks that score.py scores; those too short to score are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ppl_select import chunk_documents
from hf_ppl_select.data.chunking import LEFT_OUT

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def cut_into_chunks(
    documents: Dataset, args: Any, tokenizer: PreTrainedTokenizerBase, min_length: int
) -> tuple[Dataset, dict[str, int]]:
    """The chunks, by the options of score.py, and how many documents and characters are left out as too short.

    Raises:
        ValueError: all documents are that short.
    """
    chunking = {
        "tokenizer": tokenizer,
        "max_length": args.chunk_length,
        "text_column": args.text_column,
        "separator": None if args.separator == "none" else args.separator,
        "keep_columns": args.keep_columns,
        "min_length": min_length,
        "mark_left_out": True,
    }
    chunks = documents.map(
        chunk_documents, batched=True, remove_columns=documents.column_names, fn_kwargs=chunking, desc="Chunk"
    )
    left_out = np.array(chunks[LEFT_OUT][:] if len(chunks) else [], dtype=bool)
    short = chunks.select(np.flatnonzero(left_out))
    characters = sum(len(text) for batch in short.iter(1000) for text in batch["text"])
    if len(short):
        print(
            f"{len(short)} of {len(documents)} documents have fewer than {min_length} tokens and are left out "
            f"({characters} characters); --min_length 0 keeps them.",
            flush=True,
        )
        if left_out.all():
            raise ValueError(f"All documents of {args.dataset_name} are that short; pass --min_length 0.")
        chunks = chunks.select(np.flatnonzero(~left_out))
    chunks = chunks.remove_columns([name for name in chunks.column_names if name == LEFT_OUT])
    return chunks, {"documents_left_out": len(short), "characters_left_out": characters}
