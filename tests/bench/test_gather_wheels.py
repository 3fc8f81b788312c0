"""Wheels for a machine without a network: what is gathered from hand-made wheels, by pip itself, without a network."""

import os
import sys
from importlib.metadata import distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

pytest.importorskip("tomllib", reason="gather_wheels.py needs Python 3.11 or newer")
if not list(distributions(name="pip")):  # looking for the module would give it distutils: layers do not compile then
    pytest.skip("gather_wheels.py runs pip", allow_module_level=True)

from tests.bench import gather_wheels

PROJECT = """
[project]
name = "my-project"
dependencies = ["torch>=2", "hub>=2"]
optional-dependencies = { more = ["extra-only>=1"], all = ["My_Project[more]"] }
"""
WHEELS = {
    ("hub", "1.0"): [],
    ("hub", "2.0"): ["files[net]<=3", "web; sys_platform == 'win32'", "old; python_version < '3.11'"],
    ("hub", "2.1"): ["unheard-of"],  # newer than the pin
    ("files", "1.0"): ["sockets>=1; extra == 'net'", "web; extra == 'other'"],
    ("files", "3.0"): ["sockets>=1; extra == 'net'", "web; extra == 'other'"],
    ("files", "4.0"): [],
    ("sockets", "1.5"): ["torch>=1"],
    ("extra-only", "1.0"): ["files", "torch>=2.9"],
    ("web", "1.0"): [],
    ("old", "1.0"): [],
}
HAVE = ["torch==2.11.0+cu128", "numpy", "# a comment", "other @ file:///other"]


@pytest.fixture
def gather(tmp_path, monkeypatch, capsys):
    def run(*options, have=HAVE, pins=("hub==2.0", "torch==2.13.0"), wheels=WHEELS):
        for (name, version), requirements in wheels.items():
            make_wheel(tmp_path / "index", name.replace("-", "_"), version, requirements)
        (tmp_path / "pyproject.toml").write_text(PROJECT)
        (tmp_path / "constraints.txt").write_text("\n".join(pins))
        (tmp_path / "have.txt").write_text("\n".join(have))
        command = ["--have", tmp_path / "have.txt", "--output", tmp_path / "out", "--project", tmp_path, *options]
        monkeypatch.setattr(sys, "argv", ["gather_wheels.py", *map(str, command)])
        gather_wheels.main()
        output = capsys.readouterr().out
        return sorted("-".join(path.name.split("-")[:2]) for path in (tmp_path / "out").iterdir()), output

    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return run


def make_wheel(folder, name, version, requirements):
    folder.mkdir(exist_ok=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {each}" for each in requirements]
    with ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        wheel.writestr(f"{name}/_vendor/web-9.dist-info/METADATA", "Metadata-Version: 2.1\nName: web\nVersion: 9\n")


def test_pins_markers_and_extras_decide_what_is_fetched(gather, tmp_path):
    names, output = gather()
    assert names == ["files-3.0", "hub-2.0", "sockets-1.5"]
    assert output.splitlines()[-1].endswith(f"{tmp_path}/out/*.whl && export PYTHONPATH=/tmp/site:$PWD")
    assert gather("--extras", "all")[0] == ["extra_only-1.0", "files-3.0", "hub-2.0", "sockets-1.5"]
    assert gather("--python", "3.10")[0] == ["files-3.0", "hub-2.0", "old-1.0", "sockets-1.5"]  # nothing of before


@pytest.mark.parametrize(
    "have, names",
    [
        (["hub==2.5"], []),
        (["hub"], []),
        (["Hub==1.0"], ["files-3.0", "hub-2.0", "sockets-1.5"]),
        (["files==2.0"], ["hub-2.0"]),  # its extras are not checked
        (["files==3.5", "sockets==1.5"], ["files-3.0", "hub-2.0"]),
    ],
)
def test_what_the_other_machine_has_is_kept_where_it_satisfies(gather, have, names):
    assert gather(have=[*HAVE, *have])[0] == names


def test_a_wheel_that_a_later_requirement_excludes_is_replaced(gather):
    wheels = {("hub", "2.0"): ["files", "last"], ("last", "1.0"): ["files[net]<2"]}
    names, _ = gather(wheels={**WHEELS, **wheels})
    assert names == ["files-1.0", "hub-2.0", "last-1.0", "sockets-1.5"]


@pytest.mark.parametrize(
    "have, pins, message",
    [
        (["torch==1.13.0"], (), r"has torch 1\.13\.0, this project needs torch>=2, and it is too large"),
        (["numpy"], (), r"lacks torch, this project needs torch>=2, and it is too large"),
        (["torch==2.5.0"], (), r"has torch 2\.5\.0, extra-only 1\.0 needs torch>=2\.9, and it is too large"),
        (HAVE, ["hub==1.0"], r"pins hub==1\.0, but this project needs hub>=2"),
        (HAVE, ["hub==2.7"], r"pip got no wheel of hub==2\.7 for Python 3\.12 on Linux: No matching distribution"),
        (["torch 2"], (), r"neither `name==version` nor a name: 'torch 2'"),
        (["torch==two"], (), r"neither `name==version` nor a name: 'torch==two'"),
    ],
)
def test_what_cannot_be_had_is_an_error(gather, tmp_path, have, pins, message):
    with pytest.raises(SystemExit, match=message):
        gather("--extras", "more", have=have, pins=["hub==2.0", *pins])
    assert not (tmp_path / "out").exists()


def test_an_unknown_extra_and_a_missing_file_are_errors(gather):
    with pytest.raises(SystemExit, match="no extra 'none'; it has all, more"):
        gather("--extras", "none")
    with pytest.raises(SystemExit, match="Cannot read nowhere: No such file"):
        gather("--have", "nowhere")


def test_above_the_limit_nothing_is_written(gather, tmp_path):
    names, _ = gather("--limit_mib", "1")
    with pytest.raises(SystemExit, match=r"MiB, more than the limit of 0\.0005 MiB"):
        gather("--limit_mib", "0.0005", "--extras", "more")
    assert len(list(Path(tmp_path, "out").iterdir())) == len(names)


def test_a_folder_with_anything_but_wheels_is_refused(gather, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(SystemExit, match=r"out is not a folder of wheels only: notes\.txt"):
        gather()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
