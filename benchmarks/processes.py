"""Fresh processes for measurements, without importing Keras anew for each."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def fresh_processes() -> ProcessPoolExecutor:
    """Return a pool that runs one task at a time, each in a process of its own.

    The processes are forks of one that has imported Keras, with the backend that the environment
    names when the first task is submitted, and has done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keras"])
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)
