"""What benchmarks share that measure in processes: fresh ones, their threads, their memory."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

# The environment in which the backends find no GPU.
HIDDEN_GPUS = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}


def thread_variables(threads: int) -> dict[str, str]:
    """Return the environment in which NumPy, the backends and the runtimes take so many threads."""
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC")  # XLA
    return dict.fromkeys(names, str(threads))


def on_the_cpu(threads: int) -> dict[str, str]:
    """Return :func:`thread_variables`, and what hides GPUs from the backends."""
    return {**thread_variables(threads), **HIDDEN_GPUS}


def peak_megabytes() -> float:
    """Return the largest resident memory that this process has had."""
    import resource

    # Kilobytes on Linux, bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def fresh_processes(*modules: str) -> ProcessPoolExecutor:
    """Return a pool that runs one task at a time, each in a process of its own.

    The processes are forks of one that has imported the modules (those that there are), with the
    environment of the moment when the first task is submitted, and has done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)
