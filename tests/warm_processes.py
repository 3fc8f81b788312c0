"""Scripts in processes of their own without seconds of imports each: forked from a server that has imported once.

    process = start("recipes/cpt.py", "--config", "cpt.yaml", cwd=tmp_path)
    done = finish(process)        # done.returncode, done.stdout, done.stderr

For tests that need a process (to kill it, to have several at once, to see its exit code). What is decided as the
libraries are imported (HF_ENDPOINT, HF_HUB_OFFLINE) is the server's: tests of that start a new interpreter.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "datasets", "evaluate", "scipy.stats", "transformers.trainer", "trl.trainer.sft_trainer", "peft"]
)


def start(script, *args, cwd=None, environment=None, before=""):
    """Start `python script *args`; `before` is Python to run first, `environment` goes over this process's own."""
    output = Path(tempfile.mkdtemp(prefix="hf_ppl_select-output-", dir=os.environ["HF_DATASETS_CACHE"]))
    options = (str(ROOT / script), list(map(str, args)), str(cwd or ROOT), before, output)
    process = _CONTEXT.Process(target=_run, args=(*options, os.environ | (environment or {})))
    process.start()
    process.output = output
    return process


def finish(process, timeout=600):
    """Wait for its end: `returncode` (negative: the signal that killed it), `stdout`, `stderr`."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"the process ran for more than {timeout} s")
    out, err = ((process.output / name).read_text() for name in ("stdout", "stderr"))
    return SimpleNamespace(returncode=process.exitcode, stdout=out, stderr=err)


def run(script, *args, **options):
    return finish(start(script, *args, **options))


def _run(script, args, cwd, before, output, environment):
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    import torch

    torch.set_num_threads(1)
    sys.argv = [script, *args]
    sys.path.insert(0, str(Path(script).parent))
    exec(before, {"__name__": "before"})
    runpy.run_path(script, run_name="__main__")
