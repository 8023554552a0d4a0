"""Fresh processes for measurements, without importing everything anew for each."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def fresh_processes(*modules: str) -> ProcessPoolExecutor:
    """Return a pool that runs one task at a time, each in a process of its own.

    The processes are forks of one that has imported the modules (those that there are), with the
    environment of the moment when the first task is submitted, and has done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)
