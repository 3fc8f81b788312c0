"""Sharing a subset on the Hub. `hub.repository` asks whether one may, `subset_folder` has the layout."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..data.saving import write_atomically
from .existing import existing_readme, join_cards, their_files
from .repository import HUB_TIMEOUT, check_hub_access, check_license, plain_hub_errors, usable_token
from .subset_card import subset_card
from .subset_folder import check_folder, check_subset, describe_subset, save_parts, save_subset

if TYPE_CHECKING:
    from datasets import Dataset

    from ..landscape.landscape import PerplexityLandscape

__all__ = ["check_folder", "check_hub_access", "check_license", "describe_subset", "push_subset_to_hub", "save_subset"]


def push_subset_to_hub(
    subset: Dataset,
    repo_id: str,
    *,
    law: Any = None,
    landscape: PerplexityLandscape | None = None,
    selection: Any = None,
    license: str | None = None,
    source: str | None = None,
    private: bool = False,
    overwrite: bool = False,
    token: str | None = None,
) -> str:
    """Push a subset to the Hub as a dataset with the split `train` and a card that says how it was made.

    A repository that exists gets new versions of these files. What others wrote there stays: other configurations
    load as before, and of a README of theirs only our own section is ever rewritten. If the push stops half-way, the
    same call completes it.

    Args:
        subset: what [`select_subset`] returned.
        repo_id: `"user/name"`, `"organization/name"`, or `"name"` for the token's owner.
        law: a [`ScalingLaw`], saved beside the data and described in the card.
        landscape: of the corpus that was selected from; the same.
        selection: what [`plan_selection`] returned; the same. Without it the card only describes the rows.
        license: licence of the source, as the Hub writes it: `"cc-by-4.0"`, ..., `"other"`, `"unknown"`. Required.
        source: where the text comes from: a Hub dataset id, or words.
        private: make the repository private; refused if it exists and is public.
        overwrite: replace files of others that stand where ours go: a law.json of another kind, a split "train".
        token: of the Hub; by default that of `HF_TOKEN` or `hf auth login`.

    Returns:
        The URL of the dataset.

    Raises:
        ValueError: no `license`, an empty subset, `private` for a public repository, or files of others in the way.
        ConnectionError, PermissionError: see [`check_hub_access`]; also when the Hub fails on the way.
    """
    license = check_license(license)
    check_subset(subset, selection)
    repo_id = check_hub_access(repo_id, token)
    token = usable_token(token, f"Cannot push to {repo_id}")
    report = selection.report() if selection else describe_subset(subset)
    card = subset_card(report, law=law, landscape=landscape, license=license, source=source, name=repo_id)
    api = HfApi(token=token, library_name="hf_ppl_select")
    stopped = f"The push to {repo_id} stopped half-way (run it again to complete it)"
    with tempfile.TemporaryDirectory() as folder, plain_hub_errors(stopped, token):
        api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        if private and not api.dataset_info(repo_id, timeout=HUB_TIMEOUT).private:
            raise ValueError(f"{repo_id} exists and is public; make it private on the Hub, or choose another name.")
        save_parts(Path(folder), law, landscape, selection)
        readme = existing_readme(repo_id, "dataset", token)
        clashes, stale = their_files(api, repo_id, "dataset", [path.name for path in Path(folder).iterdir()], readme)
        if clashes and not overwrite:
            raise ValueError(
                f"{repo_id} holds {', '.join(clashes[:3])}, which hf_ppl_select did not write and this push would "
                "replace; push to another repository, or pass overwrite=True (--overwrite)."
            )
        write_atomically(Path(folder, "README.md"), join_cards(readme, card))
        new = [CommitOperationAdd(path.name, path) for path in sorted(Path(folder).iterdir())]
        operations = [*new, *map(CommitOperationDelete, sorted(stale))]  # nothing of an earlier push is left
        # The card goes first: pushing the data then adds to it what load_dataset needs.
        api.create_commit(repo_id, operations, commit_message="Say how the subset was made", repo_type="dataset")
        with _no_talk_of_one_process():
            subset.push_to_hub(repo_id, split="train", commit_message="Add the selected chunks", token=token)
    return f"{api.endpoint}/datasets/{repo_id}"


@contextmanager
def _no_talk_of_one_process() -> Iterator[None]:
    """Without what `datasets` warns of at each push of one file: that one process is set back to one."""

    def is_news(record: logging.LogRecord) -> bool:
        return "Setting num_proc from 1 back to 1" not in record.getMessage()

    datasets_logger = logging.getLogger("datasets.arrow_dataset")
    datasets_logger.addFilter(is_news)
    try:
        yield
    finally:
        datasets_logger.removeFilter(is_news)
