"""Probes as Ray tasks: each is this recipe's own command line with --probe_index, in a process with a GPU of its own.

On a cluster of several machines, `RAY_ADDRESS` names it; script, data and output_dir must lie on a shared disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def train_with_ray(script: str, arguments: Sequence[str], probes: dict[int, str]) -> None:
    """Run `script arguments --probe_index N` for each probe N, as many at once as the cluster has GPUs (or CPUs).

    Args:
        script: path of fit_law.py.
        arguments: its command line.
        probes: names by index.

    Raises:
        ImportError: Ray is not installed.
        ChildProcessError: some failed; the message ends with the last lines of each. The others are done and stay so.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError("--ray needs Ray: pip install hf-ppl-select[ray]; or use --probe_index.") from error

    def train(command: list[str], folder: str, environment: dict[str, str]) -> tuple[int, str]:
        done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
        return done.returncode, (done.stdout + done.stderr)[-4000:]

    ray.init(include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(train)
        environment = {name: value for name, value in os.environ.items() if name.startswith(("HF_", "OMP_"))}
        environment["PYTHONUNBUFFERED"] = "1"
        running = {}
        for index in probes:
            command = [sys.executable, script, *arguments, "--probe_index", str(index)]
            running[task.remote(command, os.getcwd(), environment)] = index
        print(f"{len(probes)} probes as Ray tasks, {gpus or 'no'} GPU each", flush=True)
        failed = []
        while running:
            (finished,), _ = ray.wait(list(running), num_returns=1)
            name = probes[running.pop(finished)]
            try:
                code, output = ray.get(finished)
            except ray.exceptions.RayError as error:  # the worker died
                code, output = 1, str(error)
            print(f"{name}: {'done' if code == 0 else f'failed, exit code {code}'}", flush=True)
            if code:
                failed.append(f"{name}:\n" + "\n".join(output.strip().splitlines()[-5:]))
    finally:
        ray.shutdown()
    if failed:
        raise ChildProcessError(
            f"{len(failed)} of {len(probes)} probes failed; the others are kept. " + "\n".join(failed)
        )
