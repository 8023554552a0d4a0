"""Runs an exported file as a stranger would: with its runtime, and without this package.

    python benchmarks/run_exported.py model.tflite images.npy answers.npz --threads 1

The file is a ``.tflite`` (LiteRT, which runs on XNNPACK), an ``.onnx`` (ONNX Runtime) or the folder
of a SavedModel (TensorFlow). It gets the images (n, height, width, channels) one at a time; its
first output for all of them and the milliseconds of each timed call are written, by the clock and
in processor time. At one thread the latter is what the call would take on a core of its own.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np

LEAST_CALLS, MOST_CALLS = 3, 200


def open_litert(path: pathlib.Path, threads: int) -> tuple[Callable, Callable]:
    """Return (image batch → output, call on that batch again) for a LiteRT file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (image,) = interpreter.get_input_details()
    output = interpreter.get_output_details()[0]["index"]

    def run(batch: np.ndarray) -> np.ndarray:
        if batch.shape != tuple(interpreter.get_input_details()[0]["shape"]):
            interpreter.resize_tensor_input(image["index"], batch.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(image["index"], batch.astype(image["dtype"]))
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return run, lambda batch: interpreter.invoke()


def open_onnx(path: pathlib.Path, threads: int) -> tuple[Callable, Callable]:
    """Return the same for an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: np.ndarray) -> np.ndarray:
        return session.run(None, {name: batch})[0]

    return run, run


def open_saved_model(path: pathlib.Path, threads: int) -> tuple[Callable, Callable]:
    """Return the same for a SavedModel."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]

    def run(batch: np.ndarray) -> np.ndarray:
        (answer, *_) = serve(**{name: tf.constant(batch)}).values()
        return answer.numpy()

    return run, run


def open_file(path: pathlib.Path, threads: int) -> tuple[Callable, Callable]:
    """Return (image batch → output, the call that is timed) for a file of any format."""
    opener = {".tflite": open_litert, ".onnx": open_onnx}.get(path.suffix, open_saved_model)
    return opener(path, threads)


def time_calls(call: Callable, batch: np.ndarray, seconds: float) -> np.ndarray:
    """Return the milliseconds of calls repeated for about as long as told.

    Returns:
        Array (calls, 2): by the clock, and in processor time of all threads.
    """
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_CALLS or (time.perf_counter() < end and len(times) < MOST_CALLS):
        start, start_cpu = time.perf_counter(), time.process_time()
        call(batch)
        times.append((time.perf_counter() - start, time.process_time() - start_cpu))
    return 1e3 * np.array(times)


def main() -> None:
    """Run and time one file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("images", type=pathlib.Path, help="an .npy file, float32")
    parser.add_argument("answers", type=pathlib.Path, help="the .npz file to write")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed calls")
    given = parser.parse_args()
    images = np.load(given.images)
    run, call = open_file(given.file, given.threads)
    outputs = np.concatenate([run(image[np.newaxis]) for image in images])
    times = time_calls(call, images[:1], given.seconds)
    assert "keras_hybrid" not in sys.modules
    np.savez(given.answers, outputs=outputs, milliseconds=times)


if __name__ == "__main__":
    main()
