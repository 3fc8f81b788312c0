"""
Gather the wheels that a machine without a network lacks to run this project, from a machine that has PyPI.

```bash
pip list --format=freeze > have.txt  # on the other machine: x86_64 Linux, with its own torch
python tests/bench/gather_wheels.py --have have.txt --output .whl --extras peft  # here: Python 3.11 or newer
```

The last line it prints is what to run on the other machine, in the checkout with the folder of wheels.

What the other machine has is kept wherever it satisfies the requirement; a line of have.txt that is a bare name is a
package of unknown version, taken to satisfy anything. The rest comes at the pin of constraints.txt, or else at the
newest version that satisfies all who ask for it. Torch and its CUDA libraries are gigabytes, and never fetched. Not
checked: what else on the other machine asks for an older version of what is fetched, or the extras of what is kept.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict, deque
from email.parser import Parser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from zipfile import ZipFile

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

PLATFORMS = ["manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux2010", "manylinux1"]
TOO_LARGE = ("torch", "triton")  # and nvidia-*
MIB = 2**20


class Wheel(NamedTuple):
    path: Path
    version: str
    requirements: list


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--have", type=Path, required=True, help="`pip list --format=freeze` of the other machine.")
    parser.add_argument("--output", type=Path, default=Path(".whl"), help="Folder of wheels, written anew.")
    parser.add_argument("--extras", nargs="*", default=[], help="Extras of this project to gather for.")
    parser.add_argument("--python", default="3.12", help="Python of the other machine.")
    parser.add_argument("--limit_mib", type=float, default=60, help="The most that all the wheels may have.")
    parser.add_argument("--project", type=Path, default=Path(__file__).parents[2], help="Checkout to gather for.")
    args = parser.parse_args()

    others = [path.name for path in args.output.glob("*") if path.suffix != ".whl" or not path.is_file()]
    if others or (args.output.exists() and not args.output.is_dir()):
        raise SystemExit(f"{args.output} is not a folder of wheels only: {', '.join(sorted(others)) or 'a file'}.")
    try:
        have, pins = read_versions(args.have), read_versions(args.project / "constraints.txt")
    except OSError as error:
        raise SystemExit(f"Cannot read {error.filename}: {error.strerror}.") from None

    with TemporaryDirectory() as folder:
        wheels = gather(
            project_requirements(args.project, args.extras), have, pins, args.python, pip_download(folder, args.python)
        )
        total = sum(wheel.path.stat().st_size for wheel in wheels.values()) / MIB
        for name, wheel in sorted(wheels.items()):
            there = f"there: {have[name] or 'unknown'}" if name in have else ""
            print(f"{wheel.path.stat().st_size / MIB:6.2f} MiB  {name:20} {wheel.version:12} {there}".rstrip())
        print(f"{total:6.2f} MiB  in {len(wheels)} wheels")
        if total > args.limit_mib:
            raise SystemExit(f"The wheels have {total:.2f} MiB, more than the limit of {args.limit_mib:g} MiB.")
        args.output.mkdir(parents=True, exist_ok=True)
        for old in args.output.glob("*.whl"):
            old.unlink()
        for wheel in wheels.values():
            shutil.move(wheel.path, args.output)
    install = "python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site"
    print(f"\n{install} {shlex.quote(str(args.output))}/*.whl && export PYTHONPATH=/tmp/site:$PWD")


def read_versions(path):
    """Names and versions, or `None` for a version that the line does not have, of a file of requirements."""
    versions = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.partition(" #")[0].strip()
        if line and not line.startswith(("#", "-")):
            try:
                requirement = Requirement(line)
            except InvalidRequirement:
                raise SystemExit(f"{path} has a line that is neither `name==version` nor a name: {line!r}.") from None
            pin = next((each.version for each in requirement.specifier if each.operator == "=="), None)
            versions[canonicalize_name(requirement.name)] = pin
    return versions


def project_requirements(project, extras):
    """The requirements of the checkout and those of its `extras`, which may name other extras of its own."""
    try:
        import tomllib
    except ModuleNotFoundError:
        raise SystemExit("gather_wheels.py needs Python 3.11 or newer to read pyproject.toml.") from None

    table = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = table.get("optional-dependencies", {})
    requirements, todo, seen = list(table["dependencies"]), list(extras), set()
    while todo:
        extra = todo.pop()
        if extra not in optional:
            raise SystemExit(f"pyproject.toml has no extra {extra!r}; it has {', '.join(sorted(optional))}.")
        for requirement in optional[extra] if extra not in seen else []:
            own = canonicalize_name(Requirement(requirement).name) == canonicalize_name(table["name"])
            todo.extend(Requirement(requirement).extras) if own else requirements.append(requirement)
        seen.add(extra)
    return [Requirement(requirement) for requirement in requirements]


def gather(requirements, have, pins, python, fetch):
    """The `Wheel`s, by name, that `have` lacks to satisfy the `requirements` and those of every wheel fetched."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython"}
    environment |= {"platform_python_implementation": "CPython", "implementation_version": f"{python}.0"}
    environment |= {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"}
    environment |= {"platform_machine": "x86_64", "platform_release": "", "platform_version": ""}
    wheels, asked, walked = {}, defaultdict(list), {}
    todo = deque((requirement, "this project", {""}) for requirement in requirements)
    while todo:
        requirement, by, extras = todo.popleft()
        if requirement.marker and not any(requirement.marker.evaluate({**environment, "extra": e}) for e in extras):
            continue
        name = canonicalize_name(requirement.name)
        asked[name].append((requirement, by))
        version = wheels[name].version if name in wheels else have.get(name)
        if name not in wheels and name in have and satisfies(version, requirement):
            continue
        if name in TOO_LARGE or name.startswith("nvidia-"):
            lack = f"has {name} {version}" if version else f"lacks {name}"
            raise SystemExit(f"The other machine {lack}, {by} needs {requirement}, and it is too large to be fetched.")
        if name not in wheels or not satisfies(version, requirement):
            wheels[name] = fetch(name, specifier_of_all(name, asked[name], pins.get(name)))
            walked.pop(name, None)
        extras = {""}.union(*(each.extras for each, _ in asked[name]))
        if walked.get(name) != extras:  # a new wheel, or a new extra of it
            walked[name] = extras
            todo.extend((each, f"{name} {wheels[name].version}", extras) for each in wheels[name].requirements)
    return wheels


def satisfies(version, requirement):
    try:
        return version is None or requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        raise SystemExit(f"{version!r} of {requirement.name} is not a version.") from None


def specifier_of_all(name, asked, pin):
    for requirement, by in asked:
        if pin and not satisfies(pin, requirement):
            raise SystemExit(f"constraints.txt pins {name}=={pin}, but {by} needs {requirement}.")
    return SpecifierSet(f"=={pin}" if pin else ",".join(str(requirement.specifier) for requirement, _ in asked))


def pip_download(folder, python):
    def fetch(name, specifier):
        target = Path(folder, name)
        shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "-d", str(target)]
        command += ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
        command += [word for platform in PLATFORMS for word in ("--platform", f"{platform}_x86_64")]
        done = subprocess.run([*command, f"{name}{specifier}"], capture_output=True, text=True)
        if done.returncode:
            error = (done.stderr.strip() or "no message").splitlines()[-1].removeprefix("ERROR: ")
            raise SystemExit(f"pip got no wheel of {name}{specifier} for Python {python} on Linux: {error}")
        return read_wheel(next(target.glob("*.whl")))

    return fetch


def read_wheel(path):
    with ZipFile(path) as wheel:
        (name,) = (n for n in wheel.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(name).decode("utf-8"))
    return Wheel(path, metadata["Version"], [Requirement(each) for each in metadata.get_all("Requires-Dist", [])])


if __name__ == "__main__":
    main()
