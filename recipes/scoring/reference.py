"""The reference, trained by cpt.py's own code, once: a finished one is there again, a killed one starts anew."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ppl_select import chunk_documents
from hf_ppl_select.data.saving import load_json, save_json, write_atomically
from hf_ppl_select.data.schema import Anything, Names, checked
from hf_ppl_select.likelihood.model_identity import own_revision, resolve_revision
from training.checkpoints import LIST, is_finished_run, list_files, problem_of
from training.precision import training_precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEP_TOKENS = 512  # in a training step, and the most in one sequence
ROOM = 16  # tokens that a chunk may have more of, once it is tokenized alone and ended
_TRAINED_ON = {"settings": Names(Anything()), "source": Names(Anything())}
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def cut_as_the_corpus(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, args: Any) -> list[str]:
    """Chunks of the trusted texts, joined and cut by the options of score.py, of at most `STEP_TOKENS`.

    A reference that has learned the domain but not the form of chunks tells them from junk less well: on ontology
    definitions of which a fifth was garbled, with an AUC of 0.85 and not 1.00.
    """
    separator = None if args.separator == "none" else args.separator
    length = min(args.chunk_length, STEP_TOKENS)
    return chunk_documents({"text": list(texts)}, tokenizer, length, separator=separator, min_length=0)["text"]


def reference_settings(
    texts: Sequence[str],
    model: str,
    revision: str | None,
    *,
    chunk_length: int,
    lora: bool,
    learning_rate: float | None,
    epochs: float,
) -> dict[str, Any]:
    """All that decides the reference, JSON-able: the texts by their hash, the model by its commit or hash."""
    return {
        "texts_sha256": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        "num_texts": len(texts),
        "model": model,
        "revision": resolve_revision(model, revision),
        "lora": lora,
        "learning_rate": learning_rate or (1e-3 if lora else 1e-4),
        "epochs": epochs,
        "chunked": bool(chunk_length),
        "max_length": min(chunk_length or STEP_TOKENS, STEP_TOKENS),
        "seed": 0,
    }


def start_reference(
    folder: Path, texts: Sequence[str], settings: dict[str, Any], source: dict[str, Any], *, overwrite: bool = False
) -> bool:
    """Whether it is still to train; then `folder` has only its texts, trusted.jsonl, and trained_on.json.

    `source` says where the texts are from. A reference is finished once it has `metrics.json`, which training writes
    last.

    Raises:
        ValueError: it is there, but was trained on other texts or otherwise; or something was scored without it.
    """
    if is_finished(folder, settings):
        print(f"{folder} is trained already.", flush=True)
        return False
    if damage := _damage(folder):
        print(f"{folder} is not as it was trained: {damage}.", flush=True)
    elif is_finished_run(folder) and not overwrite:
        earlier = settings_of(folder)
        names = sorted(name for name in settings | earlier if settings.get(name) != earlier.get(name))
        changed = "; ".join(f"{name} was {earlier.get(name)!r}, is {settings.get(name)!r}" for name in names)
        raise ValueError(f"{folder} was trained otherwise: {changed}. Use another output_dir, or overwrite it.")
    output = folder.parent
    if not overwrite and ((output / "data").exists() or any(output.glob(".unfinished/*.parquet"))):
        why = f"whose reference is damaged ({damage})" if damage else "without this reference"
        raise ValueError(f"{output} has data {why}. Use another output_dir, or overwrite it.")
    shutil.rmtree(folder, ignore_errors=True)
    save_json(folder / "trained_on.json", {"settings": settings, "source": source}, kind="reference", version=1)
    rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    write_atomically(folder / "trusted.jsonl", "".join(rows))
    print(f"The reference is trained first, on {len(texts)} trusted texts.", flush=True)
    return True


def finish_reference(folder: Path, revision: str | None) -> None:
    """Note what its files are; an adapter's also says which commit of the model it is of, which PEFT leaves out."""
    path = folder / "adapter_config.json"
    if revision is not None and path.exists():
        config = json.loads(path.read_text(encoding="utf-8")) | {"revision": revision}
        write_atomically(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    list_files(folder)


def is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether it is there, whole, trained with these settings."""
    return _damage(folder) is None and is_finished_run(folder) and settings_of(folder) == settings


def _damage(folder: Path) -> str | None:
    """Which file of a reference is not as it was written, if there is a list of them."""
    return problem_of(folder) if (folder / LIST).is_file() else None


def wait_for_reference(folder: Path, settings: dict[str, Any]) -> None:
    """Until the first process has trained it."""
    while not is_finished(folder, settings):
        time.sleep(0.2)


def cpt_options(folder: Path, settings: dict[str, Any]) -> list[str]:
    """The command line of cpt.py that trains it."""
    options = {
        "model_name_or_path": settings["model"],
        "dataset_name": folder / "trusted.jsonl",
        "output_dir": folder,
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant",
        "num_train_epochs": settings["epochs"],
        "max_length": settings["max_length"] + ROOM * settings["chunked"],
        "packing": not settings["chunked"],
        "per_device_train_batch_size": max(1, STEP_TOKENS // settings["max_length"]),
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "dtype": "float32",
        "seed": settings["seed"],
        **training_precision(),
    }
    if (revision := own_revision(settings["revision"])) is not None:
        options["model_revision"] = revision
    if settings["lora"]:
        options |= {"use_peft": True, "lora_target_modules": "all-linear"}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


@contextmanager
def as_one_process() -> Iterator[None]:
    """Whatever this one was launched as: the others wait for what it trains, and do not train along."""
    names = [name for name in os.environ if name in LAUNCHED or name.startswith(("ACCELERATE_", "FSDP_"))]
    before = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(before)


def settings_of(folder: Path) -> dict[str, Any]:
    """What a reference was trained on; nothing where there is none. ValueError where that was changed since."""
    path = folder / "trained_on.json"
    return load_json(path, kind="reference", version=1, read=checked(_TRAINED_ON))["settings"] if path.exists() else {}
