"""Training runs side by side on one machine's CPU, each in a process with its share of the cores.

Small models train faster so: two threads for one process wait for each other more than two processes do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
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
    end. If this process is killed or interrupted, so are the others.

    Args:
        function: importable, as are what the tasks hold.
        tasks: arguments of the calls.
        num_workers: processes.
        sizes: tokens of each task, for the bar.
        description: of the bar.
        tolerated: errors that are returned, by the task's number, and not raised.

    Raises:
        ChildProcessError: a process was killed from outside; tasks that were done stay done.
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
    ours, theirs = context.Pipe()  # however this process ends, `ours` closes, and the others end, too
    options = {"max_workers": num_workers, "mp_context": context, "initializer": _begin, "initargs": (threads, theirs)}
    with (
        tqdm(total=sum(sizes), desc=description, unit=" tokens", unit_scale=True) as bar,
        ProcessPoolExecutor(**options) as pool,
        ours,
    ):
        with _deaf_to_interrupts():
            futures = {pool.submit(function, *task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            if (error := future.exception()) is not None:
                errors[futures[future]] = error
            bar.update(sizes[futures[future]])
        pool.shutdown()
    for error in errors.values():
        if isinstance(error, BrokenProcessPool):
            raise ChildProcessError(
                f"{description}: a process of the {num_workers} side by side was killed, maybe for its memory. Run "
                "it again, which goes on from what is done; fewer --num_workers need less memory."
            ) from error
        if not isinstance(error, tolerated):
            raise error
    return errors


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started here leaves Ctrl-C, which a terminal sends to every process, to this one; none is lost here."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which lets them through again as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(num_threads: int, parent: Connection) -> None:
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: Connection) -> None:
    wait([parent])
    os._exit(1)
