"""Whatever request of a push fails: it is done whole or not at all, and pushing again ends right.

The table of the long sweep: `make test-long ARGS="-k every_request -s"`. It goes through every request of three
pushes, and through every third of the others; HUB_FAULTS=all goes through all.
"""

import dataclasses
import os
from collections import Counter
from functools import partial
from itertools import cycle, product

import pytest
from faulty_hub import LASTING, PASSING
from hub.push_stages import THEIRS, break_request, push_between, stages, undisturbed
from huggingface_hub import constants

TOKEN = "hf_ThisIsTheRightOne"

FOR_EVER = 10**6
WHOLE = ("subset again", "law again", "subset to a branch")


@pytest.fixture
def all_stages(faulty_hub, law, tmp_path):
    return stages(faulty_hub, law, tmp_path)


def requests_of(hub, stage):
    return range(undisturbed(hub, stage).num_requests)


@pytest.mark.parametrize("kind", ["cut_after", "500", "429"])
def test_the_commit_fails_once(faulty_hub, all_stages, waits, kind):
    for name in ("subset again", "law again"):
        stage = all_stages[name]
        commit = undisturbed(faulty_hub, stage).commit
        waits.clear()
        assert break_request(faulty_hub, stage, commit, kind, 1) == "done, new"
        assert waits == [7.0 if kind == "429" else 1.0]  # as the Hub asks


@pytest.mark.parametrize("path", THEIRS)
def test_somebody_pushes_just_before_our_commit(faulty_hub, all_stages, path):
    for name in ("subset again", "law again"):
        stage = all_stages[name]
        right = undisturbed(faulty_hub, stage)
        ours = path in right.files and path != "README.md"
        assert push_between(faulty_hub, stage, right.commit, path) == ("said, theirs" if ours else "done, both")


@pytest.mark.parametrize("name", ["subset again", "law again", "subset to a branch", "streamed subset"])
def test_the_same_push_again_makes_no_commit(faulty_hub, all_stages, name):
    stage = all_stages[name]
    stage.prepare(faulty_hub)
    stage.push()
    commits = stage.num_commits(faulty_hub)
    faulty_hub.requests.clear()
    stage.push()
    assert stage.num_commits(faulty_hub) == commits == (3 if stage.before else 2)
    assert not any(line.startswith("PUT") or "/commit/" in line for line in faulty_hub.requests)


@pytest.fixture
def plant(monkeypatch, tmp_path):
    """Gives the token in one of three ways, and the stage that takes it so."""

    def plant(way, stage):
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / f"token of {way}"))
        if way == "environment":
            monkeypatch.setenv("HF_TOKEN", TOKEN)
        elif way == "file":
            (tmp_path / f"token of {way}").write_text(TOKEN)
        else:
            return dataclasses.replace(stage, push=partial(stage.push, token=TOKEN))
        return stage

    return plant


@pytest.mark.long
def test_every_request_of_every_push(faulty_hub, all_stages, plant, capfd, caplog):
    total, every = 0, 1 if os.environ.get("HUB_FAULTS") == "all" else 3

    def show(name, fault, outcomes):
        with capfd.disabled():
            print(f"\n{name:20} {fault:45} {dict(sorted(Counter(outcomes).items()))}", end="", flush=True)
        return len(outcomes)

    for name, stage in all_stages.items():
        step, stage = 1 if name in WHOLE else every, plant("environment", stage)
        for path in THEIRS:
            outcomes = [push_between(faulty_hub, stage, i, path) for i in requests_of(faulty_hub, stage)[::step]]
            total += show(name, f"meanwhile {path}", outcomes)
        ways = cycle(("environment", "option", "file"))
        for kind, times in [*product(PASSING, (1, FOR_EVER)), *product(LASTING, (FOR_EVER,))]:
            if kind == "silence" and times > 1 and name not in WHOLE[:2]:
                continue  # each takes seconds
            planted, outcomes = plant(next(ways), stage), []
            for number in requests_of(faulty_hub, planted)[total % step :: step]:
                outcomes.append(break_request(faulty_hub, planted, number, kind, times))
                assert times > 1 or outcomes[-1] == "done, new", (name, kind, number)  # what passes is not seen
            total += show(name, f"{kind} {'once' if times == 1 else 'on'}", outcomes)
    said = "".join(capfd.readouterr()) + caplog.text
    assert "Retrying in" in said and TOKEN not in said  # the client's own words, too
    assert total > 500
