"""The architecture: which folder may import which, read from the source.

Every import counts, also inside functions and under TYPE_CHECKING. A folder may import those that its row names, and
each of these it does import: whoever adds or drops an arrow changes the table. No arrows close a circle, neither
between folders nor between files.
"""

import ast
import importlib.util
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_ppl_select

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    # The package: whatever a row names stands above that row
    "data": "",
    "deduplication": "data",
    "likelihood": "",
    "version": "",
    "command": "",
    "__main__": "command",
    "scoring": "likelihood",
    "scoring/ngrams": "data scoring",
    "landscape": "data",
    "hub": "data landscape",
    "law/posterior": "",
    "law": "data hub landscape law/posterior",
    "probes": "landscape law",
    "plots": "data landscape law",
    "selection": "data deduplication landscape law version",
    "streaming": "data deduplication hub landscape law selection version",
    "benchmarks/metrics": "",
    "benchmarks": "data likelihood",
    # its __init__: the public names
    "hf_ppl_select": "benchmarks data deduplication hub landscape law scoring scoring/ngrams selection version",
    # What stands on it
    "trainer_callbacks": "benchmarks law likelihood scoring",
    "recipes/command_line": "command data",
    "recipes/training": "data hf_ppl_select hub likelihood scoring selection trainer_callbacks",
    "recipes/comparing": "benchmarks data plots recipes/training",
    "recipes/fitting": "data hf_ppl_select landscape law likelihood plots probes recipes/training scoring selection "
    "trainer_callbacks",
    "recipes/quickstart_steps": "data hf_ppl_select landscape law likelihood plots recipes/comparing recipes/fitting "
    "recipes/scoring recipes/training scoring",
    "recipes/studying": "benchmarks data hf_ppl_select landscape law likelihood plots "
    "recipes/command_line recipes/fitting recipes/quickstart_steps recipes/training selection trainer_callbacks",
    "recipes/scoring": "data hf_ppl_select likelihood recipes/training",
    "recipes": "benchmarks command data deduplication hf_ppl_select hub law likelihood plots scoring scoring/ngrams "
    "selection streaming recipes/command_line recipes/comparing recipes/fitting recipes/quickstart_steps "
    "recipes/scoring recipes/studying recipes/training",
}
MOST_LINES, MOST_MODULES = 319, 12  # of a file, of a folder; recipes/ has one for each command (test_command.py)


def module_name(path: Path) -> str:
    """What a file is imported as: recipes/ is on sys.path, the checkout too."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts[parts[0] == "recipes" :] if part != "__init__")


FILES = {
    module_name(path): path
    for top in ("hf_ppl_select", "trainer_callbacks", "recipes")
    for path in sorted((ROOT / top).rglob("*.py"))
}
OURS = {name.partition(".")[0] for name in FILES}


def folder_of(name: str) -> str:
    """The row of a module."""
    parts = FILES[name].relative_to(ROOT).parts
    if parts[0] != "hf_ppl_select":
        return "/".join(parts[:-1])
    if len(parts) == 2:
        return "hf_ppl_select" if parts[1] == "__init__.py" else Path(parts[1]).stem
    return "/".join(parts[1:-1][:2])


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


@cache
def names_in(name: str) -> set[str]:
    """What can be imported from a module: all that it binds outside functions and classes."""
    found, todo = set(), list(tree_of(name).body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        else:
            todo += ast.iter_child_nodes(node)
    return found


@cache
def imports_of(name: str) -> list[tuple[int, str, str | None]]:
    """`(line, module, name in it)` of every import in a file, with relative ones spelt out."""
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = []
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                is_module = f"{module}.{alias.name}" in FILES
                found.append((node.lineno, *((f"{module}.{alias.name}", None) if is_module else (module, alias.name))))
    return found


def imported_when_run(tree: ast.AST) -> Iterator[ast.ImportFrom]:
    """The `from` imports that are not for type checkers only, nor tried."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.Try) and not (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            yield from imported_when_run(node)


def arrows() -> list[tuple[str, str, str]]:
    """`(where, from, to)` for every import of one of our modules by another."""
    return [
        (f"{FILES[name].relative_to(ROOT)}:{line}", name, module)
        for name in FILES
        for line, module, _ in imports_of(name)
        if module in FILES and module != name
    ]


def test_what_is_imported_of_ours_exists():
    missing = [
        f"{FILES[name].relative_to(ROOT)}:{line} imports {wanted or ''} from {module}, which does not have it"
        for name in FILES
        for line, module, wanted in imports_of(name)
        if module.partition(".")[0] in OURS
        and (module not in FILES or (wanted is not None and wanted not in names_in(module)))
    ]
    assert not missing, "\n".join(missing)


def test_what_is_imported_late_from_libraries_exists():
    """With the oldest versions, too, whose names are other ones, and where no test may come by."""
    needed = (
        "accelerate",
        "datasets",
        "evaluate",
        "huggingface_hub",
        "numpy",
        "pyarrow",
        "scipy",
        "torch",
        "transformers",
    )
    missing = []
    for name in FILES:
        for statement in imported_when_run(tree_of(name)):
            if statement.level or statement.module.partition(".")[0] not in needed:
                continue
            module = importlib.import_module(statement.module)
            for alias in statement.names:
                submodule = f"{statement.module}.{alias.name}"
                has_it = (
                    hasattr(module, alias.name) or hasattr(module, "__path__") and importlib.util.find_spec(submodule)
                )
                if not has_it:
                    missing.append(f"{FILES[name].relative_to(ROOT)}:{statement.lineno} imports {submodule}")
    assert not missing, "\n".join(missing)


def test_lazy_public_names_are_those_that_type_checkers_see():
    lazy = {(f"hf_ppl_select.{module}", name) for name, module in hf_ppl_select._MODULE_OF.items()}
    seen = {(module, name) for _, module, name in imports_of("hf_ppl_select") if module in FILES}
    assert seen == lazy | {("hf_ppl_select.version", "__version__")}


def test_folders_import_what_the_table_says():
    assert {folder_of(name) for name in FILES} == set(MAY_IMPORT), "a folder without a row, or a row without a folder"
    unused = {folder: set(others.split()) for folder, others in MAY_IMPORT.items()}
    wrong = []
    for where, name, other in arrows():
        here, there = folder_of(name), folder_of(other)
        if here != there and there not in MAY_IMPORT[here].split():
            wrong.append(f"{where} imports {other}: {here} may import {MAY_IMPORT[here] or 'nothing'}, not {there}")
        unused[here].discard(there)
    wrong += [
        f"{here} imports nothing of {there}: take it out of its row" for here in unused for there in unused[here]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_between_folders():
    TopologicalSorter({folder: others.split() for folder, others in MAY_IMPORT.items()}).prepare()


def test_no_circle_between_files():
    imported = defaultdict(set)
    for _, name, other in arrows():
        imported[name].add(other)
    TopologicalSorter(imported).prepare()


def test_files_and_folders_stay_small():
    long = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES.values()}
    assert not {path: lines for path, lines in long.items() if lines > MOST_LINES}
    modules = defaultdict(list)
    for path in FILES.values():
        if path.name != "__init__.py":
            modules[str(path.parent)].append(path.name)
    del modules[str(ROOT / "recipes")]
    assert not {folder: names for folder, names in modules.items() if len(names) > MOST_MODULES}


def test_the_package_needs_no_optional_library_of_the_recipes():
    wrong = [
        f"{FILES[name]}:{line} imports {module}"
        for name in FILES
        for line, module, _ in imports_of(name)
        if name.startswith("hf_ppl_select") and module.partition(".")[0] in ("peft", "ray")
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("module", "libraries"),
    [
        ("hf_ppl_select", "torch transformers datasets huggingface_hub scipy numpy"),
        ("hf_ppl_select.law.fit", "torch transformers datasets huggingface_hub"),
        ("hf_ppl_select.selection.select", "torch transformers datasets huggingface_hub"),
    ],
)
def test_importing_is_cheap(module, libraries):
    code = f"import sys, {module}; print(*set({libraries.split()}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
