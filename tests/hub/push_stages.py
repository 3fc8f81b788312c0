"""Every push that we make, and what is checked of it when a request of it fails: for test_faults.py."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from datasets import Dataset
from loopback_hub import Repo

from hf_ppl_select.hub.push_subset import push_subset_folder_to_hub, push_subset_to_hub, save_subset
from hf_ppl_select.streaming.parquet_files import ParquetFiles
from hf_ppl_select.streaming.select import select_stream

ADVICE = re.compile(r"run it again|run this again|push to another|make another|give it the right|Check the network")
NOTES = "---\nlanguage: de\n---\n# Hearts\n\nWritten by hand.\n"
THEIRS = {  # what somebody else pushes meanwhile
    "notes.md": b"mine",
    "README.md": b"---\nlanguage: fr\n---\nWritten meanwhile.\n",
    "law.json": b'{"title": "of the land"}',
    "data/train-00000-of-00001.parquet": b"of another push",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A push to `me/name`, of which the repository holds `before` on main, or is absent."""

    name: str
    push: Callable[..., object]
    before: dict[str, bytes] | None = None
    branch: str = "main"

    def prepare(self, hub):
        hub.break_at(-1, "", 0)
        hub.repos.clear()
        hub.lfs_objects.clear()
        if self.before is not None:
            repo = hub.repos[f"me/{self.name}"] = Repo()
            repo.commits.append(("before", dict(self.before)))
            repo.lfs_paths |= {path for path in self.before if path.endswith(".parquet")}
        hub.requests.clear()

    def files(self, hub):
        """Of the branch; None where there is no repository, main's where there is no branch."""
        repo = hub.repos.get(f"me/{self.name}")
        return repo and (repo.files(self.branch) if self.branch in repo.branches else repo.files())

    def num_commits(self, hub):
        repo = hub.repos.get(f"me/{self.name}")
        return 0 if repo is None else len(repo.branches.get(self.branch, repo.commits))


def chunks(num_rows, seed=0):
    rng = np.random.default_rng(seed)
    texts = [f"text {i} ünïcode" for i in range(num_rows)]
    perplexity = np.exp(rng.normal(3, 0.4, num_rows))
    return Dataset.from_dict({"text": texts, "perplexity": perplexity, "num_tokens": [9] * num_rows})


def stages(hub, law, folder: Path) -> dict[str, Stage]:
    """All of them. The hub is only used to make what they find."""
    old = save_subset(chunks(12, seed=1), folder / "old", license="mit")
    where = f"https://me:{hub.token}@example.com/corpus?token={hub.token}"  # which is hidden
    law = dataclasses.replace(law, corpus=where)
    new = save_subset(chunks(20), folder / "new", license="mit", law=law, source=where)
    shards = folder / "scored"
    for index in range(3):
        shards.mkdir(exist_ok=True)
        chunks(60, seed=index).to_parquet(shards / f"train-{index:05d}-of-00003.parquet")
    options = {"target": (20.0, 6.0), "num_tokens": 300, "license": "mit"}
    select_stream(ParquetFiles.find(str(shards)), folder / "streamed", **options)

    found = {
        "new subset": Stage("new", lambda **more: push_subset_folder_to_hub(new, "me/new", **more)),
        "subset again": Stage("again", lambda **more: push_subset_folder_to_hub(new, "me/again", **more)),
        "subset in memory": Stage(
            "memory", lambda **more: push_subset_to_hub(chunks(20), "me/memory", law=law, license="mit", **more)
        ),
        "streamed subset": Stage(
            "streamed", lambda **more: push_subset_folder_to_hub(folder / "streamed", "me/streamed", **more)
        ),
        "subset to a branch": Stage(
            "branch", lambda **more: push_subset_folder_to_hub(new, "me/branch", revision="v2", **more), branch="v2"
        ),
        "private subset": Stage(
            "private", lambda **more: push_subset_folder_to_hub(new, "me/private", private=True, **more)
        ),
        "new law": Stage("law", lambda **more: law.push_to_hub("me/law", license="mit", **more)),
        "law again": Stage("law-again", lambda **more: law.push_to_hub("me/law-again", license="mit", **more)),
    }
    for name, first in {"subset again": old, "subset to a branch": old, "law again": None}.items():
        stage = found[name]
        found[name] = dataclasses.replace(stage, before={"README.md": NOTES.encode()})
        found[name].prepare(hub)
        if first is None:
            dataclasses.replace(law, corpus="another").push_to_hub(f"me/{stage.name}", license="mit")
        else:
            push_subset_folder_to_hub(first, f"me/{stage.name}")
        found[name] = dataclasses.replace(stage, before=stage_files(hub, stage.name) | {"theirs/notes.md": b"theirs"})
    return found


def stage_files(hub, name):
    return dict(hub.repos[f"me/{name}"].files())


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """A push without faults: how many requests it makes, which is the first that looks at the branch and which the
    commit, and what it leaves."""

    num_requests: int
    first_look: int
    commit: int
    files: dict[str, bytes]


@cache
def undisturbed(hub, stage) -> Undisturbed:
    stage.prepare(hub)
    stage.push()
    requests = list(hub.requests)
    look = next(i for i, line in enumerate(requests) if f"/revision/{stage.branch}" in line)
    commit = next(i for i, line in enumerate(requests) if "/commit/" in line)
    return Undisturbed(len(requests), look, commit, dict(stage.files(hub)))


def try_push(hub, stage, error_kinds=(ConnectionError, PermissionError, ValueError)):
    """The error of a push, or None; every error is one line that names the repository and has no token in it."""
    try:
        stage.push()
    except error_kinds as error:
        said = str(error)
        assert f"me/{stage.name}" in said and "\n" not in said and hub.token not in said, said
        assert re.search(
            r"run it again|run this again|push to another|make another|give it the right|Check the", said
        ) or (re.search(r"the Hub answered \d+", said)), said
        return error
    finally:
        hub.break_at(-1, "", 0)
    return None


def break_request(hub, stage, number: int, kind: str, times: int) -> str:
    """Push with a fault, then without: what came of the first, after checks of both."""
    right = undisturbed(hub, stage)
    stage.prepare(hub)
    hub.break_at(number, kind, times)
    error = try_push(hub, stage)
    found = stage.files(hub)
    assert found in (None, {}, stage.before, right.files), sorted(found)  # whole, or as it was
    assert stage.num_commits(hub) <= 2 + (stage.before is not None)
    commits = [commit for repo in hub.repos.values() for branch in repo.branches.values() for commit in branch]
    assert not any(hub.token.encode() in content for _, files in commits for content in files.values())
    outcome = "new" if found == right.files else "old"
    stage.push()
    assert stage.files(hub) == right.files
    assert stage.num_commits(hub) == 2 + (stage.before is not None)  # nothing twice
    return f"{'done' if error is None else 'said'}, {outcome}"


def push_between(hub, stage, number: int, path: str) -> str:
    """Push while somebody else pushes a file just before one request: what came of it, after checks."""
    right = undisturbed(hub, stage)
    stage.prepare(hub)
    content = THEIRS[path]

    def meanwhile():
        repo = hub.repos.setdefault(f"me/{stage.name}", Repo(private=stage.name == "private"))
        commits = repo.branches.setdefault(stage.branch, list(repo.commits))
        now = commits[-1][1]
        theirs = content + now.get(path, b"").rpartition(b"---\n")[2] if path == "README.md" else content
        commits.append(("theirs", {**now, path: theirs}))

    hub.meanwhile = meanwhile
    hub.break_at(number, "meanwhile")
    error = try_push(hub, stage)
    found = stage.files(hub)
    before = stage.before or {}
    is_ours = all(found.get(name) == data for name, data in right.files.items() if name not in (path, "README.md"))
    if path == "README.md":  # only our section is rewritten
        assert error is None and is_ours and b"Written meanwhile." in found[path] and b"hf_ppl_select" in found[path]
        outcome = "done, both"
    elif path not in right.files and not path.startswith("data/train-"):  # which is where ours goes
        assert error is None and is_ours and found[path] == content
        outcome = "done, both"
    elif error is not None:
        assert found == {**before, path: content} and path in str(error), (error, sorted(found), stage.name, number)
        outcome = "said, theirs"
    elif found[path] == content:
        assert is_ours  # beside a law, say
        outcome = "done, both"
    else:
        assert number <= right.first_look and path.startswith("data/") and stage.before  # an earlier version of ours
        outcome = "done, replaced"
    return outcome
