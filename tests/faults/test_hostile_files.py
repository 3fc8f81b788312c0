"""Files that somebody made up, thousands of each kind: a reader refuses them, or they mean what they say.

No exception but ours, each with the file's name in a line; no hang, no heap; what is accepted can be saved again, and
is what was written wherever the checksum was left as it was. FUZZ_CASES=20000 tries as many of each kind.
"""

import json
import os
import random
import struct
import warnings

import datasets
import pytest
from faults.foreign import CORPORA, FOREIGN, OPTIONS
from faults.hostile import changed_bytes, changed_document, changed_text, limits
from faults.kinds import KINDS

from hf_ppl_select.data.saving import checksum

ERRORS = (ValueError, KeyError, TypeError, OSError)
FUZZ_CASES = os.environ.get("FUZZ_CASES")
QUICK, LONG = 100, 500


def number_of(name, many):
    """Cases of a kind; of slow readers fewer."""
    if FUZZ_CASES:
        return int(FUZZ_CASES)
    slower = 10 if name in CORPORA or name in OPTIONS else 1
    return (LONG if many else QUICK) // slower


def try_to_read(path, read, what):
    """What is read, or None where it is refused as it should be."""
    with limits(what), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read(path)
        except ERRORS as error:
            message = str(error)
            assert path.name in message or str(path.parent) in message, f"{what}: {type(error).__name__}: {message}"
            assert len(message) < 2000 and "\n" not in message.strip(), f"{what}: {message[:3000]}"
        except BaseException as error:
            raise AssertionError(f"{what} ends in {type(error).__name__}: {str(error)[:500]}") from error
    return None


def assert_sane(found, what):
    """All numbers finite, all texts writable: so it can be saved again."""
    try:
        json.dumps(found, allow_nan=False, ensure_ascii=False, default=list).encode()
    except (ValueError, TypeError) as error:
        raise AssertionError(f"{what} is accepted as {str(found)[:500]}") from error


def keep(path, content):
    """Write a case, and where it can be looked at when it fails."""
    path.write_bytes(content)
    return f"{path.name}, case {content[:300]!r}{'...' if len(content) > 300 else ''} in {path}"


def ours_changed(content, name, rng):
    """A changed file of ours; and whether its checksum stands as it was, so that it may only mean what it did."""
    way = rng.choice(["bytes", "text", "document", "document", "document"])
    if name.endswith((".parquet", ".safetensors")):
        if way == "bytes" or name.endswith(".parquet"):
            return changed_bytes(content, rng), True
        size = struct.unpack("<Q", content[:8])[0]
        header = json.dumps(changed_document(json.loads(content[8 : 8 + size]), rng)).encode()
        return struct.pack("<Q", len(header)) + header + content[8 + size :], False
    if way == "bytes":
        return changed_bytes(content, rng), True
    text = content.decode()
    if way == "text":
        return changed_text(text, rng).encode("utf-8", "surrogatepass"), False
    rows = [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else [json.loads(text)]
    for row in rows:
        row.pop("checksum", None)
    number = rng.randrange(len(rows))
    rows[number] = changed_document(rows[number], rng)
    if rng.random() < 0.5 and name.endswith(".json") and isinstance(rows[0], dict):
        try:
            rows[0]["checksum"] = checksum(rows[0])
        except UnicodeEncodeError:
            rows[0]["checksum"] = "sha256:"
    return "".join(json.dumps(row) + "\n" for row in rows).encode(), False


def attack_ours(name, path, cases):
    write, read = KINDS[name]
    write(path)
    content, good, rng, refused = path.read_bytes(), read(path), random.Random(name), 0
    for _ in range(cases):
        changed, stands = ours_changed(content, name, rng)
        what = keep(path, changed)
        found = try_to_read(path, read, what)
        refused += found is None
        if found is not None and stands:
            assert found == good, f"{what} loads as another value"
        elif found is not None:
            assert_sane(found, what)
    return refused


def attack_foreign(name, path, cases):
    kind, rng, refused = FOREIGN[name], random.Random(name), 0
    path.write_bytes(kind.content())
    assert_sane(kind.read(path), name)
    for _ in range(cases):
        what = keep(path, kind.change(rng))
        found = try_to_read(path, kind.read, what)
        refused += found is None
        if found is not None:
            assert_sane(found, what)
    return refused


@pytest.fixture(autouse=True)
def quiet():
    before = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    yield
    datasets.enable_progress_bars()
    datasets.logging.set_verbosity(before)


def attack(name, folder, many):
    cases = number_of(name, many)
    attacked = attack_ours if name in KINDS else attack_foreign
    refused = attacked(name, folder / name, cases)
    print(f"{name}: {refused:,} of {cases:,} refused")
    assert refused or name == "corpus.txt"  # any text is one


@pytest.mark.parametrize("name", [*KINDS, *FOREIGN])
def test_hostile_files_are_refused_or_mean_what_they_say(name, tmp_path):
    attack(name, tmp_path, many=False)


@pytest.mark.long
@pytest.mark.parametrize("name", [*KINDS, *FOREIGN])
def test_many_hostile_files(name, tmp_path):
    attack(name, tmp_path, many=True)
