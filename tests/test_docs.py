"""docs/architecture.md is true: each file that it names is there, and has the function or class named after it."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:\w+/)*\w+\.(?:py|md))`(?:\s+`(\w+)(?:\.(\w+))?`)?", PAGE)))


def names_in(body):
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                yield target.id


@pytest.mark.parametrize(("file", "name", "method"), NAMED, ids=[" ".join(filter(None, named)) for named in NAMED])
def test_what_the_page_names_is_there(file, name, method):
    path = next((path for path in (ROOT / file, ROOT / "hf_ppl_select" / file) if path.is_file()), None)
    assert path is not None, f"there is no {file}"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    if name:
        assert name in names_in(body), f"{file} has no {name}"
    if method:
        assert method in names_in(next(node for node in body if getattr(node, "name", None) == name).body)


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in (ROOT / "hf_ppl_select").glob("*/__init__.py")))
def test_each_folder_has_its_row(folder):
    assert f"\n| `{folder}/` |" in PAGE


def test_constants_the_page_names_are_there():
    for name, file in re.findall(r"`([A-Z_]+)` of `([\w/]+\.py)`", PAGE):
        path = next(path for path in (ROOT / file, ROOT / "hf_ppl_select" / file) if path.is_file())
        assert name in names_in(ast.parse(path.read_text(encoding="utf-8")).body)


def pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in found}


def test_the_oldest_versions_tested_are_the_lower_bounds():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = project["dependencies"] + [each for extra in extras if extra != "bench" for each in extras[extra]]
    bounds = {
        canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, named) if r.name != project["name"]
    }
    assert bounds.pop("torch") == ">=2.6"  # whose CPU builds that old are not on PyPI
    oldest = pins("constraints-oldest.txt")
    assert bounds == {name: f">={oldest[name]}" for name in bounds}


def test_the_table_of_versions_is_true():
    rows = re.findall(r"^\| (\w+) \| ([\d.]+).* \| ([\d.]+) \|$", (ROOT / "docs" / "versions.md").read_text(), re.M)
    oldest, newest = pins("constraints-oldest.txt") | {"torch": "2.6.0"}, pins("constraints.txt")
    names = [canonicalize_name(name) for name, _, _ in rows]
    assert [(oldest[name], newest[name]) for name in names] == [row[1:] for row in rows] and len(rows) > 10


def test_the_readme_has_the_quickstart_s_numbers_as_its_page_has_them():
    readme, page = (Path(ROOT, name).read_text(encoding="utf-8") for name in ("README.md", "docs/quickstart.md"))
    rows = re.findall(r"^\| (`--(?:seed|dirty) \d`|MedQuAD) \| (.*) \|$", readme, re.M)
    whole = dict(re.findall(r"^\| (`--(?:seed|dirty) \d`|MedQuAD) \| (.*) \|$", page, re.M))
    assert len(rows) == len(whole) == 5
    for name, cells in rows:
        assert set(cells.split(" | ")) <= set(whole[name].split(" | ")), name
