"""Training runs side by side on one machine's CPU, each in a process with its share of the cores.

Small models train faster so: two threads for one process wait for each other more than two processes do.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import Any

import torch
from tqdm import tqdm


def run_side_by_side(
    function: Callable[..., Any],
    tasks: Sequence[tuple],
    num_workers: int,
    *,
    sizes: Sequence[int],
    description: str,
    tolerated: type[Exception] | tuple[()] = (),
) -> dict[int, Exception]:
    """Call `function(*task)` for every task, `num_workers` at a time in processes of their own; 1: here, in turn.

    With several, a task that fails does not stop the others, whose results stay; the first error is raised at the
    end. If this process is killed, so are the others.

    Args:
        function: importable, as are what the tasks hold.
        tasks: arguments of the calls.
        num_workers: processes.
        sizes: tokens of each task, for the bar.
        description: of the bar.
        tolerated: errors that are returned, by the task's number, and not raised.
    """
    errors: dict[int, BaseException] = {}
    if num_workers == 1:
        for number, task in enumerate(tasks):
            try:
                function(*task)
            except tolerated as error:
                errors[number] = error
        return errors
    threads = max(1, torch.get_num_threads() // num_workers)
    context = multiprocessing.get_context("spawn")  # a fork of threads that have computed can hang
    options = {"max_workers": num_workers, "mp_context": context, "initializer": _begin, "initargs": (threads,)}
    with (
        tqdm(total=sum(sizes), desc=description, unit=" tokens", unit_scale=True) as bar,
        ProcessPoolExecutor(**options) as pool,
    ):
        futures = {pool.submit(function, *task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            if (error := future.exception()) is not None:
                errors[futures[future]] = error
            bar.update(sizes[futures[future]])
    for error in errors.values():
        if not isinstance(error, tolerated):
            raise error
    return errors


def _begin(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
