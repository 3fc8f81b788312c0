"""What a folder or repository holds already: which files are ours, and how our card joins a README of others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import RepoCard, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ..data.credentials import hide_credentials
from ..data.load import FILE_KINDS
from ..data.strict import load_yaml, parse_json
from .repository import in_plain_words
from .retries import HTTP_ERROR, patiently

OUR_FILES = {  # what they say they are
    "law.json": ("scaling_law",),
    "landscape.json": ("landscape", "joint_landscape"),
    "selection.json": ("selection",),
    "selector.json": ("perplexity_selector",),
}
_BEGIN = "<!-- hf_ppl_select writes from here -->"
_END = "<!-- to here; text outside of these two lines is kept -->"
_DATA_SUFFIXES = {*FILE_KINDS, ".ndjson", ".tsv", ".arrow", ".tar", ".zip"}
_OF_DATASETS = ("configs", "dataset_info")  # what it adds to a card
_OF_ROWS = ("license", "license_name", "license_link", "source_datasets")


def is_ours(path: Path) -> bool:
    """Whether a file called like one of [`OUR_FILES`] says that it is one."""
    try:
        return _says_ours(path.read_bytes(), path.name)
    except OSError:
        return False


def _says_ours(content: bytes, name: str) -> bool:
    try:
        document = parse_json(content.decode("utf-8"), name)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("kind") in {f"hf_ppl_select/{k}" for k in OUR_FILES[name]}


def has_our_section(readme: str | None) -> bool:
    return readme is not None and _BEGIN in readme and _END in readme


def is_only_ours(readme: str | None) -> bool:
    """Whether a card has our section and no text around it."""
    before, _, rest = _card(readme or "").text.partition(_BEGIN)
    return has_our_section(readme) and not (before + rest.partition(_END)[2]).strip()


def join_cards(existing: str | None, ours: str, *, new_rows: bool = False) -> str:
    """A card with our text between two marks, and around it what others wrote.

    Of the metadata, theirs stays where both say something, but for the licence and what is a list, of which both
    count. In a card that is nothing but ours, ours is new, and what `datasets` added to it stays.

    Args:
        existing: the README that is there, or None.
        ours: the new card: a YAML block and Markdown.
        new_rows: ours is of other rows, or a law of them, as in a folder that is written anew: licence and source are
            its own or none, and of a card that is nothing but ours only what `datasets` added stays.

    Raises:
        ValueError: the YAML block of the existing one is broken.
    """
    new = _card(hide_credentials(ours))
    section = f"{_BEGIN}\n\n{new.text.strip()}\n\n{_END}"
    if existing is None or not existing.strip():
        return _with_metadata(new.data.to_dict(), f"{section}\n")
    old = _card(existing)
    theirs, mine = old.data.to_dict(), new.data.to_dict()
    before, after = old.text.rstrip() + "\n\n", "\n"
    if has_our_section(existing):
        before, _, rest = old.text.partition(_BEGIN)
        after = rest.partition(_END)[2]
    only_ours = is_only_ours(existing)
    if new_rows:
        theirs = {n: value for n, value in theirs.items() if (n in _OF_DATASETS if only_ours else n not in _OF_ROWS)}
    if only_ours:
        merged = theirs | mine
    else:
        merged = mine | theirs | {"license": mine["license"]} if "license" in mine else mine | theirs
        for name, value in mine.items():
            if isinstance(value, list) and isinstance(theirs.get(name), list):
                merged[name] = [*theirs[name], *(item for item in value if item not in theirs[name])]
    return _with_metadata(merged, f"{before.lstrip()}{section}{after}")


def read_card(path: Path) -> str | None:
    """A README.md, or None where there is none; ValueError where it is not text."""
    return _decoded(path.read_bytes(), str(path)) if path.exists() else None


def _decoded(card: bytes, name: str) -> str:
    try:
        return card.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 ({error.reason} at byte {error.start}); repair it.") from error


def card_to_push(local: str, title: str, theirs: str | None) -> str:
    """The card of a folder under another title; in a repository that has one, only our section of it and metadata."""
    card = _card(local)
    metadata, text = card.data.to_dict(), card.text
    if old := metadata.get("pretty_name"):
        before, mark, section = text.partition(_BEGIN)
        text = before + mark + section.replace(f"# {old}\n", f"# {title}\n", 1)
        metadata["pretty_name"] = title
    if theirs is None or not theirs.strip():
        return _with_metadata(metadata, text)
    if has_our_section(text):
        text = text.partition(_BEGIN)[2].partition(_END)[0].strip() + "\n"
    return join_cards(theirs, _with_metadata(metadata, text))


def metadata_of(readme: str) -> dict[str, Any]:
    """The YAML block of a card."""
    return _card(readme).data.to_dict()


def with_metadata(readme: str, metadata: dict[str, Any]) -> str:
    """A card with another YAML block."""
    return _with_metadata(metadata, _card(readme).text)


def existing_readme(repo_id: str, repo_type: str, token: str | None, revision: str | None = None) -> str | None:
    """The README of a repository, or None where there is no repository, no such revision, or no README.

    Raises:
        ConnectionError: the Hub cannot be asked; what its cache holds may be old.
    """
    try:
        return _decoded(_read(repo_id, "README.md", repo_type, token, revision), f"the README.md of {repo_id}")
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return None
    except HTTP_ERROR as error:
        raise in_plain_words(f"cannot read the README.md that {repo_id} may have", error, token) from None


def their_files(
    repo_id: str,
    repo_type: str,
    token: str | None,
    revision: str,
    present: Collection[str],
    writes: Iterable[str],
    readme: str | None,
) -> tuple[list[str], list[str]]:
    """What a push would overwrite though others wrote it, and which files of earlier pushes it leaves behind.

    Args:
        repo_id, repo_type, revision: a commit of a repository.
        token: of the Hub.
        present: the files of that commit.
        writes: the files that the push writes.
        readme: of that commit.
    """
    named, writes = {}, set(writes)
    for name in filter(set(present).__contains__, OUR_FILES):
        named[name] = _says_ours(_read(repo_id, name, repo_type, token, revision), name)
    clashes = [name for name, ours in named.items() if name in writes and not ours]
    stale = [name for name, ours in named.items() if name not in writes and ours]
    if repo_type == "dataset" and not has_our_section(readme) and not named.get("selection.json"):
        clashes += _default_split(set(present), _card(readme or "").data.to_dict())
    return clashes, stale


def _read(repo_id: str, name: str, repo_type: str, token: str | None, revision: str | None) -> bytes:
    """A file as it is on the Hub now; no cache, which may hold an old one, stands in where the Hub fails."""
    url, headers = hf_hub_url(repo_id, name, repo_type=repo_type, revision=revision), build_hf_headers(token=token)

    def get() -> bytes:
        response = get_session().get(url, headers=headers)
        hf_raise_for_status(response)
        return response.content

    return patiently(get)


def _default_split(present: set[str], metadata: dict[str, Any]) -> list[str]:
    """Files of others that `load_dataset(repo_id, split="train")` reads, whose place a push would take."""
    configs = metadata.get("configs") or []
    if not configs:  # then every data file is of the default configuration
        return sorted(path for path in present if _is_data(path) and path not in OUR_FILES)
    configs = [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else []
    taken = [f"the configuration {each['config_name']!r}" for each in configs if each.get("config_name") == "default"]
    return taken + sorted(path for path in present if path.startswith("data/train-"))


def _is_data(path: str) -> bool:
    """By any part of its name, as in `texts.jsonl.gz`."""
    return not _DATA_SUFFIXES.isdisjoint(suffix.lower() for suffix in PurePosixPath(path).suffixes)


def _card(text: str) -> RepoCard:
    """A README, whose YAML block may be missing."""
    text = text if text.lstrip().startswith("---") else f"---\n{{}}\n---\n{text}"
    if block := REGEX_YAML_BLOCK.search(text):  # before anything is made of it
        where = "the YAML block of the README.md that is there"
        if not isinstance(found := load_yaml(block[2], where), dict | None):
            raise ValueError(f"{where} is {type(found).__name__}, not a mapping like `license: cc-by-4.0`; repair it.")
    return RepoCard(text, ignore_metadata_errors=True)


def _with_metadata(metadata: dict[str, Any], text: str) -> str:
    card = _card("")
    card.data = type(card.data)(**metadata)
    card.text = text
    return str(card) if metadata else text
