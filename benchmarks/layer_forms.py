"""Layers in the form that the zoo chose, beside the obvious one: time and memory.

    python benchmarks/layer_forms.py --backend tensorflow

Each comparison runs its two forms in turn, every time in a fresh process, so that both meet the
same machine and neither profits from the other's memory. Both forms must give the same output for
the same weights, else there is no row. One row a comparison is added to the CSV file:

- ``ratio``: how many times faster the zoo's form is (median over the processes). For
  ``nat_mini/inference`` the other form is Swin-T, and ``ratio`` is Swin-T's time per
  multiply-accumulate over NAT-Mini's.
- ``memory_ratio``: how many times more memory the other form takes beyond what the process held
  before it ran (peak resident memory; unreliable below some tens of megabytes).

Comparisons:

- ``san10_patchwise/train``, ``san10_pairwise/train``: a training step of SAN10. The obvious form
  unfolds keys and values into k² copies with ``keras.ops.image.extract_patches``, a convolution
  with an identity kernel.
- ``neighborhood_attention/inference``: one layer of NAT at 56×56, two heads of 32. The obvious form
  gathers the k² keys and values of every query.
- ``nat_mini/inference``: NAT-Mini beside Swin-T.
- ``cvt_13_32/train_depthwise`` and its like: a training step in mixed bfloat16. On a CPU the zoo
  computes depthwise convolutions with strides, wide kernels or small maps in float32, since their
  gradient in bfloat16 is slow; the other form leaves them in bfloat16.
- ``mobilefacenet/train``, ``resnet50_cifar/train``, ``efficientnet_b0_face/train`` and the same in
  ``/train_bfloat16``: a training step, mostly convolutions. The other form is
  ``keras.layers.BatchNormalization``.
- ``…/train_layout``, ``…/inference_layout`` of the same: convolutions and pooling in the layout
  that the maps have. The other form is Keras's layers, which copy the maps on PyTorch; it is the
  same one on other backends.
- ``attention/train``, ``biased_attention/inference``: multi-head attention of 196 tokens; without a
  bias in training, with one in inference. The zoo chooses ``keras.ops.dot_product_attention`` where
  the backend has a fused kernel that pays, two matrix products elsewhere; the other form is the one
  that it did not choose.
- ``remat/train``: eight layers of attention over 576 tokens in training, whose maps are computed
  again in the backward pass; the other form keeps them. No fused kernel takes part.
- ``steps_per_execution/fit``: 64 steps of ``fit`` of a ViT so small that a step takes milliseconds,
  sixteen in an execution; the other form is Keras's default of one. Both must come to the same
  weights. PyTorch has no such option.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

COLUMNS = (
    "comparison",
    "zoo",
    "other",
    "ratio",
    "zoo_milliseconds",
    "other_milliseconds",
    "memory_ratio",
    "zoo_megabytes",
    "other_megabytes",
    "batch",
    "image_size",
    "backend",
    "precision",
    "threads",
    "hardware",
    "commit",
    "command",
)


# --- the forms, each a function () → (function to time, its first output) -------------------------


def _san_training(attention: str, unfold: bool, batch: int, size: int):
    """A training step of SAN10."""
    import keras
    import numpy as np
    from keras import ops

    import keras_hybrid as kh
    from keras_hybrid.applications import san

    def shifts_by_unfolding(self, x):
        """The k² copies of the map as one tensor, cut into its places."""
        padded = san._reflect(x, self.kernel_size // 2)
        copies = ops.image.extract_patches(padded, self.kernel_size, strides=1, padding="valid")
        return ops.split(copies, self.kernel_size**2, axis=-1)

    if unfold:
        san._FootprintAttention._shifts = shifts_by_unfolding
    keras.utils.set_random_seed(0)
    model = kh.create_model(f"san10_{attention}", input_shape=(size, size, 3), classes=10)
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (batch, size, size, 3)).astype("float32")
    labels = random.integers(0, 10, batch)
    # With the batch's statistics: without them, untrained layers without a softmax overflow.
    first = ops.convert_to_numpy(model(images, training=True))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return lambda: model.train_on_batch(images, labels), first


def _depthwise_training(name: str, other: bool, batch: int, size: int):
    """A training step of a model with depthwise convolutions."""
    from keras_hybrid.layers import channels_last

    if other:
        channels_last.DepthwiseConv2D._is_slow_in_bfloat16 = lambda self, x: False
    return _image_training(name, "mixed_bfloat16", "mixed_bfloat16", batch, size)


def _normalization_training(name: str, precision: str, other: bool, batch: int, size: int):
    """A training step of a model with batch normalisation; compared in float32."""
    import keras

    from keras_hybrid.layers import BatchNormalization

    if other:
        BatchNormalization.call = keras.layers.BatchNormalization.call
    return _image_training(name, precision, "float32", batch, size)


def _layout(name: str, train: bool, other: bool, batch: int, size: int):
    """A training step or a forward pass of a model of convolutions."""
    import keras

    import keras_hybrid as kh
    from keras_hybrid import layers

    if other:
        for kind in ("Conv2D", "DepthwiseConv2D", "MaxPooling2D"):
            method = "convolution_op" if kind == "Conv2D" else "call"
            setattr(getattr(layers, kind), method, getattr(getattr(keras.layers, kind), method))
    if train:
        return _image_training(name, "float32", "float32", batch, size)
    shape = (size, size, 3)
    model = kh.create_model(name, include_top=False, input_shape=shape)
    return _inference(model, (batch, *shape))


def _image_training(name: str, precision: str, compared: str, batch: int, size: int):
    """A training step in one precision, and the outputs of the same weights in another."""
    import keras
    import numpy as np
    from keras import ops

    import keras_hybrid as kh

    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (batch, size, size, 3)).astype("float32")
    labels = random.integers(0, 100, batch)

    def build(policy):
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(policy)
        return kh.create_model(
            name,
            input_shape=(size, size, 3),
            classes=100,
            classifier="dense",
            classifier_activation=None,
        )

    first = ops.convert_to_numpy(build(compared)(images, training=True))
    model = build(precision)
    model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return lambda: model.train_on_batch(images, labels), first


def _inference(model, shape):
    import keras
    import numpy as np
    from keras import ops

    images = np.random.default_rng(0).uniform(0, 1, shape).astype("float32")
    # A standard deviation of 0.02 would leave every logit near zero, and any form would agree.
    random = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(random.normal(0, 0.1, variable.shape))
    run = _compiled(model)
    tensor = ops.convert_to_tensor(images)
    first = ops.convert_to_numpy(run(tensor))
    backend = keras.backend.backend()
    if backend == "jax":
        return lambda: run(tensor).block_until_ready(), first
    return lambda: run(tensor), first


def _compiled(model):
    """The forward pass as a user of each backend would run it for speed."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x: model(x, training=False))
    if backend == "jax":
        import jax

        state = [v.value for v in model.trainable_variables]
        rest = [v.value for v in model.non_trainable_variables]
        run = jax.jit(lambda x: model.stateless_call(state, rest, x, training=False)[0])
        return run
    import torch

    def run(x):
        with torch.no_grad():
            return model(x, training=False)

    return run


def _neighborhood(gather: bool, batch: int, size: int):
    import keras
    import numpy as np
    from keras import ops

    from keras_hybrid.applications.nat import NeighborhoodAttention

    class Gathered(NeighborhoodAttention):
        """The same attention with the keys and values of every query looked up."""

        def call(self, inputs, training=None):
            _, height, width, channels = inputs.shape
            kernel, heads = self.kernel_size, self.num_heads
            depth, tokens, area = channels // heads, height * width, kernel**2
            rows, columns = (
                np.clip(np.arange(n) - kernel // 2, 0, n - kernel) for n in (height, width)
            )
            near = np.arange(kernel)
            y = (rows[:, None] + near)[:, None, :, None]
            x = (columns[:, None] + near)[None, :, None, :]
            places = (y * width + x).reshape(tokens, area)
            dy = y - np.arange(height)[:, None, None, None] + kernel - 1
            dx = x - np.arange(width)[None, :, None, None] + kernel - 1
            offsets = (dy * (2 * kernel - 1) + dx).reshape(-1)
            qkv = ops.reshape(self.qkv(inputs), (-1, tokens, 3, heads, depth))
            query = ops.expand_dims(qkv[:, :, 0], 3) * depth**-0.5
            key, value = (
                ops.reshape(
                    ops.take(qkv[:, :, i], places.reshape(-1), axis=1),
                    (-1, tokens, area, heads, depth),
                )
                for i in (1, 2)
            )
            key, value = (ops.transpose(t, (0, 1, 3, 2, 4)) for t in (key, value))
            logits = ops.matmul(query, ops.transpose(key, (0, 1, 2, 4, 3)))
            bias = ops.reshape(ops.take(self.table, offsets, axis=0), (tokens, area, heads))
            logits = logits + ops.expand_dims(ops.transpose(bias, (0, 2, 1)), 2)
            out = ops.reshape(ops.matmul(ops.softmax(logits), value), (-1, height, width, channels))
            return self.projection(out)

    layer = (Gathered if gather else NeighborhoodAttention)(2, 7)
    image = keras.Input((size, size, 64))
    return _inference(keras.Model(image, layer(image)), (batch, size, size, 64))


def _zoo_model(name: str, batch: int, size: int):
    import keras_hybrid as kh

    run, _ = _inference(kh.create_model(name), (batch, size, size, 3))
    return run, None


def _attention(other: bool, train: bool, batch: int, size: int):
    import keras
    import numpy as np
    from keras import ops

    import keras_hybrid as kh
    from keras_hybrid.layers import dot_product

    if other:
        chosen = dot_product._has_fused_kernel
        dot_product._has_fused_kernel = lambda query, bias: not chosen(query, bias)
    tokens = (size // 16) ** 2
    image = keras.Input((tokens, 384))
    layer = kh.layers.MultiHeadSelfAttention(6)
    if train:
        return _token_training(keras.Model(image, layer(image)), batch)
    bias = np.random.default_rng(2).normal(size=(1, 6, tokens, tokens)).astype("float32")
    model = keras.Model(image, layer(image, attention_bias=ops.convert_to_tensor(bias)))
    return _inference(model, (batch, tokens, 384))


def _remat(again: bool, batch: int, size: int):
    import keras

    import keras_hybrid as kh
    from keras_hybrid.layers import dot_product

    dot_product._has_fused_kernel = lambda query, bias: False  # it has no map to keep
    x = image = keras.Input(((size // 16) ** 2, 384))
    for _ in range(8):
        x = x + kh.layers.MultiHeadSelfAttention(6, remat=again)(x)
    return _token_training(keras.Model(image, x), batch)


def _fit(steps_per_execution: int, batch: int, size: int):
    """An epoch of a small ViT."""
    import keras
    import numpy as np
    from keras import ops

    import keras_hybrid as kh

    keras.utils.set_random_seed(0)
    model = kh.applications.ViT(
        input_shape=(size, size, 3), patch_size=8, dim=64, depth=2, num_heads=2, classes=10
    )
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (64 * batch, size, size, 3), dtype=np.uint8)
    labels = random.integers(0, 10, len(images))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adamw", loss, steps_per_execution=steps_per_execution)

    def epoch():
        return model.fit(images, labels, batch_size=batch, shuffle=False, verbose=0)

    epoch()
    return epoch, ops.convert_to_numpy(model(images[:1]))


def _token_training(model, batch: int):
    """A training step of a model from tokens to tokens."""
    import keras
    import numpy as np
    from keras import ops

    x = np.random.default_rng(0).normal(size=(batch, *model.input_shape[1:])).astype("float32")
    keras.utils.set_random_seed(0)
    for variable in model.trainable_variables:
        variable.assign(keras.random.normal(variable.shape, stddev=0.05))
    first = ops.convert_to_numpy(model(x[:1]))
    model.compile("sgd", "mse")
    return lambda: model.train_on_batch(x, x), first


# Models with batch normalisation, and the side of the images that they are timed with.
CONVOLUTIONAL = {"mobilefacenet": 112, "resnet50_cifar": 32, "efficientnet_b0_face": 112}
# Models with strided depthwise convolutions; batch and side of the images.
DEPTHWISE = (
    ("cvt_13_32", 128, 32),
    ("atc_3", 128, 32),
    ("mobilefacenet", 16, 112),
    ("efficientnet_b0_face", 16, 112),
)
# Name → (the zoo's form, the other form, what they are, batch, image size).
COMPARISONS = {
    **{
        f"san10_{attention}/train": (
            functools.partial(_san_training, attention, False),
            functools.partial(_san_training, attention, True),
            "slices of a padded map",
            "unfolding through an identity convolution",
            2,
            128,
        )
        for attention in ("patchwise", "pairwise")
    },
    **{
        f"{name}/train_depthwise": (
            functools.partial(_depthwise_training, name, False),
            functools.partial(_depthwise_training, name, True),
            "slow depthwise convolutions in float32",
            "all in bfloat16",
            batch,
            size,
        )
        for name, batch, size in DEPTHWISE
    },
    **{
        f"{name}/{step}": (
            functools.partial(_normalization_training, name, precision, False),
            functools.partial(_normalization_training, name, precision, True),
            "one kernel for a batch normalisation",
            "keras.layers.BatchNormalization",
            16,
            size,
        )
        for name, size in CONVOLUTIONAL.items()
        for step, precision in (("train", "float32"), ("train_bfloat16", "mixed_bfloat16"))
    },
    **{
        f"{name}/{'train' if train else 'inference'}_layout": (
            functools.partial(_layout, name, train, False),
            functools.partial(_layout, name, train, True),
            "the layout that the maps have",
            "Keras's convolutions and pooling",
            16,
            size,
        )
        for name, size in CONVOLUTIONAL.items()
        for train in (True, False)
    },
    "neighborhood_attention/inference": (
        functools.partial(_neighborhood, False),
        functools.partial(_neighborhood, True),
        "tiles with hidden keys",
        "gathered keys",
        4,
        56,
    ),
    "nat_mini/inference": (
        functools.partial(_zoo_model, "nat_mini"),
        functools.partial(_zoo_model, "swin_tiny"),
        "nat_mini",
        "swin_tiny",
        4,
        224,
    ),
    **{
        name: (
            functools.partial(_attention, False, train),
            functools.partial(_attention, True, train),
            "as chosen for the backend",
            "a fused kernel where two products were chosen, and the reverse",
            16,
            224,
        )
        for name, train in (("attention/train", True), ("biased_attention/inference", False))
    },
    "remat/train": (
        functools.partial(_remat, True),
        functools.partial(_remat, False),
        "maps computed again",
        "maps that are kept",
        4,
        384,
    ),
    "steps_per_execution/fit": (
        functools.partial(_fit, 16),
        functools.partial(_fit, 1),
        "16 steps in an execution",
        "one",
        8,
        32,
    ),
}

IN_BFLOAT16 = (
    *(f"{name}/train_depthwise" for name, *_ in DEPTHWISE),
    *(f"{name}/train_bfloat16" for name in CONVOLUTIONAL),
)


# --- measuring ------------------------------------------------------------------------------------


def measure(comparison: str, side: int, out: pathlib.Path, steps: int) -> None:
    """Time one form in this process; write the seconds, the memory and the first output."""
    import numpy as np

    import keras_hybrid  # noqa: F401  (what the process holds before: libraries)
    from benchmarks.processes import peak_megabytes

    form, (batch, size) = COMPARISONS[comparison][side], COMPARISONS[comparison][4:]
    before = peak_megabytes()
    run, first = form(batch, size)
    run()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = peak_megabytes() - before
    if first is not None:
        np.save(out / f"{side}.npy", first)
    (out / f"{side}.json").write_text(json.dumps({"seconds": seconds, "megabytes": peak}))


def compare(comparison: str, given: argparse.Namespace) -> dict:
    """Run both forms in turn and return the row of the table."""
    import tempfile

    import numpy as np

    import keras_hybrid as kh

    *_, zoo, other, batch, size = COMPARISONS[comparison]
    seconds, megabytes = ([], []), ([], [])
    options = ["--backend", given.backend, "--steps", str(given.steps)]
    options += ["--threads", str(given.threads)]
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        for _ in range(given.repeats):
            for side in (0, 1):
                subprocess.run(
                    [
                        sys.executable,
                        __file__,
                        "--measure",
                        comparison,
                        str(side),
                        folder,
                        *options,
                    ],
                    check=True,
                )
                found = json.loads((out / f"{side}.json").read_text())
                seconds[side].append(statistics.median(found["seconds"]))
                megabytes[side].append(found["megabytes"])
        if (out / "0.npy").exists():
            ours, theirs = (np.load(out / f"{side}.npy") for side in (0, 1))
            error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            if not error <= 1e-4:
                raise RuntimeError(f"{comparison}: the forms differ by a relative {error:.1e}.")
    ours, theirs = (statistics.median(x) for x in seconds)
    scale = 1.0
    if zoo in kh.list_models():  # two models: their times per multiply-accumulate
        scale = kh.model_info(zoo).macs / kh.model_info(other).macs
    memory = [statistics.median(x) for x in megabytes]
    return {
        "comparison": comparison,
        "zoo": zoo,
        "other": other,
        "ratio": round(theirs / ours * scale, 2),
        "zoo_milliseconds": round(ours * 1e3, 1),
        "other_milliseconds": round(theirs * 1e3, 1),
        "memory_ratio": round(memory[1] / max(memory[0], 1e-9), 2),
        "zoo_megabytes": round(memory[0]),
        "other_megabytes": round(memory[1]),
        "batch": batch,
        "image_size": size,
    }


def main() -> None:
    """Measure the comparisons asked for and add them to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="timed steps in a process")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each form")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument("--table", default=str(ROOT / "benchmarks/results/layer_forms.csv"))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["KERAS_BACKEND"] = given.backend
    from benchmarks.processes import on_the_cpu

    os.environ |= on_the_cpu(given.threads)
    if given.measure:
        comparison, side, folder = given.measure
        measure(comparison, int(side), pathlib.Path(folder), given.steps)
        return

    from benchmarks.table import append_row
    from training.report import command, commit

    for comparison in given.only:
        row = compare(comparison, given) | {
            "backend": given.backend,
            "precision": "mixed_bfloat16" if comparison in IN_BFLOAT16 else "float32",
            "threads": given.threads,
            "hardware": given.hardware,
            "commit": commit(),
            "command": command(),
        }
        print(row, flush=True)
        append_row(pathlib.Path(given.table), COLUMNS, row)


if __name__ == "__main__":
    main()
