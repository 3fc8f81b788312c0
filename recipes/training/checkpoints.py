"""Checkpoints with a list of what is in them: where a run goes on from is whole, or the one before is taken."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ppl_select.data.saving import load_json, save_json
from hf_ppl_select.data.schema import Anything, Names, Number, Text, checked, maybe
from hf_ppl_select.data.shards import file_sha256

if TYPE_CHECKING:
    from trl import SFTConfig

LIST = "checkpoint.json"
_SCHEMA = {"files": Names(Text(longest=64)), "total_loss": maybe(Number())}
_FOUND = Names(Anything())
_METRICS = {
    **dict.fromkeys(("model", "recipe?", "dataset?"), Text()),
    **dict.fromkeys(("seed", "num_tokens", "num_rows?", "num_empty_rows?", "num_processes?"), Number(0, 1e18)),
    "train": Names(maybe(Number())),
    "training_rows?": _FOUND,
    "selection?": maybe(_FOUND),
    "resumed_from?": maybe(Text()),
    "log_history?": [_FOUND],
}


def begin_checkpoint(folder: Path) -> None:
    """Before its first file: until all are listed, it is not whole."""
    save_json(folder / LIST, {"files": {}, "total_loss": None}, kind="checkpoint", version=1)


def list_files(folder: Path, total_loss: float | None = None) -> None:
    """Write what a checkpoint, or a model, holds: the SHA-256 of its files, and the sum of the losses of all steps."""
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != LIST}
    save_json(folder / LIST, {"files": files, "total_loss": total_loss}, kind="checkpoint", version=1)


def total_loss_of(folder: str | Path) -> float | None:
    """The sum of the losses of the steps before a checkpoint; None if it does not say."""
    path = Path(folder, LIST)
    if not path.is_file():
        return None
    return load_json(path, kind="checkpoint", version=1, read=checked(_SCHEMA))["total_loss"]


def is_finished_run(folder: str | Path) -> bool:
    """Whether a training run came to its end there; one that diverged leaves a metrics.json, too, but no model.

    Raises:
        ValueError: its metrics.json is damaged.
    """
    path = Path(folder, "metrics.json")
    return path.exists() and "diverged_at_step" not in load_metrics(path)["train"]


def load_metrics(path: str | Path) -> dict[str, Any]:
    """A run's metrics.json; ValueError where it is none, or damaged."""
    return load_json(path, kind="training_metrics", version=1, read=checked(_METRICS))


def checkpoint_to_resume(training_args: SFTConfig) -> str | None:
    """The checkpoint folder that `--resume_from_checkpoint` means: a path, or with `true` the latest whole one.

    Raises:
        ValueError: there is none. One that a kill left unfinished, or that was damaged, is passed over with a warning.
            Or a new run is meant where there are those of another: see [`check_no_other_run`].
    """
    wanted = training_args.resume_from_checkpoint
    if wanted in (None, False, "false", "False"):
        check_no_other_run(Path(training_args.output_dir))
        return None
    if wanted not in (True, "true", "True"):
        if problem := problem_of(Path(wanted)):
            raise ValueError(
                f"{wanted} is no complete checkpoint; --resume_from_checkpoint true finds the latest one ({problem})."
            )
        return str(wanted)
    for folder in _checkpoints(Path(training_args.output_dir)):
        if problem := problem_of(folder):
            warnings.warn(f"{folder} is passed over: {problem}.", stacklevel=2)
        else:
            return str(folder)
    raise ValueError(
        f"{training_args.output_dir} has no complete checkpoint; leave --resume_from_checkpoint out to start anew."
    )


def _checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, the latest first."""
    folders = [path for path in output_dir.glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(folders, key=lambda folder: -int(folder.name[11:]))


def _checkpoints_of_finished(output_dir: Path) -> list[Path]:
    """Those with our list that are no newer than the metrics.json of a run that came to its end."""
    try:
        if not is_finished_run(output_dir):
            return []
    except ValueError:  # damaged
        return []
    finished = (output_dir / "metrics.json").stat().st_mtime_ns
    lists = {folder: folder / LIST for folder in _checkpoints(output_dir)}
    return [folder for folder, path in lists.items() if path.is_file() and path.stat().st_mtime_ns <= finished]


def check_no_other_run(output_dir: Path) -> None:
    """Before a new run, which removes the checkpoints of a finished one ([`remove_checkpoints`]), but no others.

    Raises:
        ValueError: a whole checkpoint is of a run that did not finish, or of an earlier version. It cannot stay:
            `--resume_from_checkpoint true` would take it for one of the new run.
    """
    done = _checkpoints_of_finished(output_dir)
    for folder in _checkpoints(output_dir):
        if folder not in done and problem_of(folder) is None:
            raise ValueError(
                f"{folder} would be taken for one of the new run: go on from it with --resume_from_checkpoint true; "
                "or move it elsewhere, or name another --output_dir."
            )


def remove_checkpoints(output_dir: Path) -> list[str]:
    """Remove the checkpoints of a finished run, whose model is there; returns their names."""
    done = _checkpoints_of_finished(output_dir)
    for folder in done:
        (folder / "trainer_state.json").unlink(missing_ok=True)  # first: what a kill leaves must not look whole
        shutil.rmtree(folder)
    return [folder.name for folder in done]


def problem_of(folder: Path) -> str | None:
    """Why a run cannot go on from a checkpoint, or None."""
    path = folder / LIST
    if path.is_file():
        try:
            files = load_json(path, kind="checkpoint", version=1, read=checked(_SCHEMA))["files"]
        except ValueError as error:
            return str(error).rstrip(".")
        if not files:
            return "it was not finished"
        for name, digest in files.items():
            if not (folder / name).is_file():
                return f"it lacks {name}"
            if file_sha256(folder / name) != digest:
                return f"its {name} is not what was written"
        return None
    state = folder / "trainer_state.json"  # of an earlier version, or killed: the trainer writes it after all else
    try:
        found = json.loads(state.read_text(encoding="utf-8"))  # with NaN, where a loss was none
        step = found.get("global_step") if isinstance(found, dict) else None
        return None if type(step) is int and step >= 0 else f"its {state.name} has no step"
    except (OSError, ValueError, RecursionError):
        return f"its {state.name} is missing or cut off"
