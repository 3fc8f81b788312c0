"""The push of a trained model: the output folder in one commit, once everything is saved."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub

from hf_ppl_select.hub.existing import card_to_push
from hf_ppl_select.hub.one_commit import README, push_in_one_commit

if TYPE_CHECKING:
    from trl import SFTConfig

_LEFT_OUT = ("_", ".", "checkpoint-", "merged")  # how files and folders of output_dir begin that stay here


def push_model(args: SFTConfig) -> str:
    """Push `output_dir`: model, tokenizer, card and metrics.json in one commit, which `Trainer.push_to_hub` may cut.

    Of a README.md that is there by then only our section is rewritten.

    Returns:
        The URL.

    Raises:
        ConnectionError, PermissionError: the Hub fails on the way; the folder is whole, and the message says how to
            push it.
        ValueError: somebody pushed other weights meanwhile, say; the folder is whole.
    """
    folder, repo_id = Path(args.output_dir), args.hub_model_id
    local = (folder / README).read_text(encoding="utf-8")
    try:
        return push_in_one_commit(
            files_to_push(folder),
            lambda full_id, theirs: card_to_push(local, full_id.rpartition("/")[2], theirs),
            repo_id,
            repo_type="model",
            message="End of training",
            private=args.hub_private_repo,
            revision=args.hub_revision,
            token=args.hub_token,
        )
    except ValueError as error:  # another push would meet the same, or replace what others pushed
        raise ValueError(f"{error} The model is whole in {folder}.") from None
    except (ConnectionError, PermissionError) as error:
        again = push_command(args)
        raise type(error)(f"{error} The model is whole in {folder}; `{again}` pushes it without training.") from None


def push_command(args: SFTConfig) -> str:
    """The command that pushes what [`push_model`] does."""
    words = ["hf", "upload", args.hub_model_id, str(args.output_dir), "."]
    words += ["--private"] if args.hub_private_repo else []
    words += ["--revision", args.hub_revision] if args.hub_revision else []
    one_flag = huggingface_hub.__version__.startswith("0.")  # there the last of several would count alone
    for number, name in enumerate(_LEFT_OUT):
        words += [f"{name}*"] if one_flag and number else ["--exclude", f"{name}*"]
    return shlex.join(words)


def files_to_push(folder: Path) -> dict[str, Path]:
    """Files of a run by their path in the repository, without the card, checkpoints and the merged model."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.as_posix() != README and not name.parts[0].startswith(_LEFT_OUT):
            found[name.as_posix()] = path
    return found
