"""Every recipe, disturbed at any moment and run again by the same command, ends as if nothing had happened.

Killed, told to end, interrupted; the disk full, the folder read-only; twice at once; files of an earlier run damaged.
FAULT_TRIALS=10 makes ten times as many random trials as `make test-long`.
"""

import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

import pytest
from faults.commands import COMMANDS, make_inputs
from faults.disturbance import Running, mount, remount, unmount

MORE = float(os.environ.get("FAULT_TRIALS", 1))
SEED = int(os.environ.get("FAULT_SEED", 0))
AT_ONCE = 2  # processes
LAST_LINES = {signal.SIGTERM: "terminated.", signal.SIGINT: "interrupted."}


@dataclass
class Bench:
    """Inputs and a place for trials; what undisturbed runs left, and where they came by."""

    folder: object
    inputs: object
    known: dict = field(default_factory=dict)

    def place(self, name):
        return self.folder / f"{name.replace(' ', '')}-{time.monotonic_ns()}"

    def start(self, name, place, **options):
        command = COMMANDS[name]
        return Running(place, command.script, command.words(self.inputs, place), **options)

    def undisturbed(self, name):
        """Its results, the places it came by, its seconds, and the bytes of its output."""
        if name not in self.known:
            place, began = self.place(name), time.monotonic()
            done = self.start(name, place).end()
            assert done.returncode == 0 and not done.survivors, done.stderr[-3000:]
            results = COMMANDS[name].results(place)
            size = sum(path.stat().st_size for path in (place / "here").rglob("*") if path.is_file())
            self.known[name] = results, done.places, time.monotonic() - began, size
        return self.known[name]

    def check_again(self, name, place):
        """The same command once more gives what an undisturbed run gives, and leaves nothing half written."""
        done = self.start(name, place).end()
        assert done.returncode == 0, f"run again: {done.stderr[-3000:]}"
        self.check_results(name, place)

    def check_results(self, name, place):
        expected, found = self.undisturbed(name)[0], COMMANDS[name].results(place)
        other = [path for path in expected | found if expected.get(path) != found.get(path)]
        assert not other, f"other results: {other[:5]}"
        assert not list(place.rglob("*.partial"))


@pytest.fixture(scope="session")
def bench(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "inputs").mkdir()
    return Bench(folder, make_inputs(folder / "inputs", tiny_tokenizer))


def check_end(name, done, action):
    """One line that says what happened, an exit code of it, no process left."""
    assert not done.survivors, "processes go on"
    if done.returncode == 0:
        return "was quicker"
    if action == signal.SIGKILL:
        assert done.returncode == -action
        return "killed"
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    if action in LAST_LINES:
        assert done.returncode == 128 + action, (done.returncode, done.stderr[-2000:])
        last = f"{COMMANDS[name].script}.py: {LAST_LINES[action]}"  # behind a bar, perhaps
        assert done.last_line.endswith(last), done.stderr[-2000:]
    else:
        said = {"full": "the disk is full", "read-only": "read-only"}[action]
        assert done.returncode == 2 and f"{COMMANDS[name].script}.py: error: " in done.last_line, done.stderr[-3000:]
        assert said in done.last_line or "cannot be written" in done.last_line, done.last_line
    return done.last_line


def disturb(bench, name, action, at=None, seconds=None):
    """One trial, at the n-th place that it writes to, or after some seconds; in words."""
    place = bench.place(name)
    on_disk = action in ("full", "read-only")
    try:
        if on_disk:
            mount(place / "here", "64m")
        if action == "full":  # the bytes of its output and of what is written aside; then there is room
            remount(place / "here", f"size={at}")
        running = bench.start(name, place, **({} if seconds or action == "full" else {"action": action, "at": at}))
        done = (running.send(action, seconds) if seconds else running).end()
        said = check_end(name, done, action)
        if action not in (signal.SIGKILL, "read-only"):
            assert not list(place.rglob("*.partial")), "something half written stays"
        if on_disk:
            remount(place / "here", "rw,size=64m")
        bench.check_again(name, place)
    except AssertionError as error:
        raise AssertionError(f"{name}, {action!r} at {at or seconds}, after {done.places[-1:]}: {error}") from error
    finally:
        if on_disk:
            unmount(place / "here")
    shutil.rmtree(place)
    where = f"{len(done.places)} of {len(bench.undisturbed(name)[1])}: {done.places[-1] if done.places else 'start'}"
    return f"{name} | {getattr(action, 'name', action)} | {where} | {said}"


def in_turn(trials, at_once=AT_ONCE):
    """Run trials, some at a time; print what each came to, and fail once all are through."""
    failed = []
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(*trial) for trial in trials]
        for future in as_completed(futures):
            failed += [future.exception()] if future.exception() else []
            print(future.exception() or future.result(), flush=True)
    assert not failed, f"{len(failed)} of {len(futures)} failed: {failed[0]}"


def some(number, rng):
    """So many commands, times FAULT_TRIALS: all of them before one comes again."""
    number, names = round(number * MORE), []
    while len(names) < number:
        names += rng.sample(list(COMMANDS), len(COMMANDS))
    return names[:number]


@pytest.fixture
def disks(tmp_path):
    """Where disks can be mounted."""
    try:
        mount(tmp_path / "disk")
    except PermissionError as error:
        pytest.skip(str(error))
    unmount(tmp_path / "disk")


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("score_ngrams", signal.SIGKILL),
        ("deduplicate", signal.SIGTERM),
        ("select_subset --streaming", signal.SIGINT),
    ],
)
def test_told_to_end_once(bench, name, action):
    disturb(bench, name, action, at=2 * len(bench.undisturbed(name)[1]) // 3)


@pytest.mark.parametrize(("name", "action"), [("deduplicate", "read-only"), ("score_ngrams", "full")])
def test_a_disk_that_takes_no_more_once(bench, name, action, disks):
    _, places, _, size = bench.undisturbed(name)
    disturb(bench, name, action, at=size // 2 if action == "full" else 2 * len(places) // 3)


def test_two_copies_at_once_once(bench):
    twice_at_once(bench, "score_ngrams")


@pytest.mark.long
def test_signals_at_random_moments(bench):
    print(f"seed {SEED}")
    rng, trials = random.Random(SEED), []
    for name in some(12, rng):
        _, places, seconds, _ = bench.undisturbed(name)
        action = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        if rng.random() < 0.5:
            trials.append((disturb, bench, name, action, rng.randint(1, len(places))))
        else:
            trials.append((disturb, bench, name, action, None, rng.uniform(0.1, 0.9 * seconds)))
    in_turn(trials)


@pytest.mark.long
@pytest.mark.parametrize("action", ["full", "read-only"])
def test_a_disk_that_takes_no_more_anywhere(bench, action, disks):
    print(f"seed {SEED}")
    rng, trials = random.Random(SEED), []
    for name in some(6, rng):
        _, places, _, size = bench.undisturbed(name)
        at = 4096 * rng.randint(1, size // 4096) if action == "full" else rng.randint(1, len(places))
        trials.append((disturb, bench, name, action, at))
    in_turn(trials)


def twice_at_once(bench, name):
    """Both end well, or one says in a line why not; the results are those of one."""
    place = bench.place(name)
    both = [bench.start(name, place) for _ in range(2)]
    ends = [running.end() for running in both]
    said = ["done" if end.returncode == 0 else check_end_of_two(name, end) for end in ends]
    if not any(end.returncode for end in ends):
        bench.check_results(name, place)
    bench.check_again(name, place)
    return f"{name} | twice at once | {' | '.join(said)}"


def check_end_of_two(name, end):
    assert end.returncode == 2 and "Traceback" not in end.stderr, f"{name}: {end.stderr[-3000:]}"
    return end.last_line


@pytest.mark.long
def test_two_copies_at_once(bench):
    names = some(6, random.Random(SEED))
    for name in names:
        bench.undisturbed(name)
    in_turn([(twice_at_once, bench, name) for name in names], at_once=1)


def damage(path, how, rng):
    content = path.read_bytes()
    if how == "flipped" and content:
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
    else:
        path.write_bytes(b"" if how == "emptied" else content[: len(content) // 2])


def damaged(bench, name, seed):
    """A run killed on its way, one of its files damaged: the same command again ends the same, or names the file."""
    rng, place = random.Random(seed), bench.place(name)
    _, places, _, _ = bench.undisturbed(name)
    for at in (rng.randint(len(places) // 3, len(places)), len(places)):  # the latter where nothing is whole before
        done = bench.start(name, place, action=signal.SIGKILL, at=at).end()
        every = sorted((place / "here").rglob("*"))
        files = [path for path in every if path.is_file() and ".partial" not in path.name]
        if files:
            break
        shutil.rmtree(place)
    else:
        return f"{name} | killed at its last place it leaves no whole file (seed {seed})"
    kinds = {path.parent.name + path.suffix: path for path in rng.sample(files, len(files))}
    path, how = rng.choice(list(kinds.values())), rng.choice(["cut", "emptied", "flipped"])
    damage(path, how, rng)
    what = f"{name} | {path.relative_to(place / 'here')} {how} after {len(done.places)} of {len(places)} (seed {seed})"
    done = bench.start(name, place).end()
    try:
        if done.returncode == 0:
            bench.check_results(name, place)
        else:
            assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
            assert path.name in done.last_line or path.parent.name in done.last_line, done.last_line
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error
    shutil.rmtree(place)
    return f"{what} | {done.last_line if done.returncode else 'the same'}"


@pytest.mark.long
def test_damaged_files_of_an_earlier_run(bench):
    print(f"seed {SEED}")
    names = some(10, random.Random(SEED))
    for name in names:
        bench.undisturbed(name)
    in_turn([(damaged, bench, name, 1000 * SEED + k) for k, name in enumerate(names)])
