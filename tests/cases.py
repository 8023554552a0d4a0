"""What the registry-wide tests share: a tiny model of every family, and how results are compared.

A new model needs nothing here if one of the patterns below names it, and one line if not.
"""

import contextlib
import fnmatch
import functools
import os

import keras
import numpy as np

import keras_hybrid as kh

# Registered names → keywords of the builder that make the model tiny; the first match counts.
SMALL = {
    "atc_*": {
        "input_shape": (16, 16, 3),
        "dims": (8, 16),
        "depths": (1, 1),
        "num_heads": (1, 2),
        "patch_sizes": (7, 3),
        "patch_strides": (4, 2),
        "patch_paddings": (2, 1),
    },
    "cct_*": {
        "input_shape": (16, 16, 3),
        "kernel_size": 3,
        "num_convolutions": 1,
        "dim": 16,
        "depth": 2,
        "num_heads": 2,
    },
    "conformer_*": {
        "input_shape": (16, 16, 3),
        "patch_size": 8,
        "stem_channels": 8,
        "stage_channels": (8, 16),
        "depths": (2, 1),
        "dim": 16,
        "num_heads": 2,
    },
    "cvt_[12]*": {
        "input_shape": (16, 16, 3),
        "dims": (8, 16),
        "depths": (1, 1),
        "num_heads": (1, 2),
        "patch_sizes": (7, 3),
        "patch_strides": (4, 2),
        "patch_paddings": (2, 1),
    },
    "cvt_*": {"input_shape": (16, 16, 3), "dim": 16, "depth": 2, "num_heads": 2},
    "vit_lite_*": {"input_shape": (16, 16, 3), "dim": 16, "depth": 2, "num_heads": 2},
    "iresnet*": {
        "input_shape": (16, 16, 3),
        "stem_channels": 4,
        "channels": (4, 8),
        "depths": (1, 2),
        "embedding_dim": 8,
    },
    "kprpe_*": {
        "input_shape": (16, 16, 3),
        "patch_size": 4,
        "dim": 16,
        "depth": 2,
        "num_heads": 2,
        "embedding_dim": 8,
        "landmark_channels": (4, 8),
    },
    "mobilefacenet*": {
        "input_shape": (16, 16, 3),
        "stem_channels": 8,
        "stem_groups": 4,
        "stages": ((2, 8, 2, 2), (2, 12, 1, 2)),
        "head_channels": 16,
        "embedding_dim": 8,
    },
    "efficientnet_*": {
        "input_shape": (16, 16, 3),
        "stem_channels": 8,
        "stages": (("fused", 3, 1, 8, 1, 1), ("fused", 3, 2, 12, 1, 2), ("mbconv", 3, 2, 12, 2, 1)),
        "head_channels": 16,
        "embedding_dim": 8,
        "embedding_norm": True,
    },
    "efficientvit_*": {
        "input_shape": (16, 16, 3),
        "stem_channels": 8,
        "stages": (("mbconv", 3, 1, 8, 1, 1), ("mbconv", 3, 2, 8, 2, 2)),
        "patch_size": 2,
        "dim": 16,
        "depth": 2,
        "num_heads": 2,
        "head_dim": 8,
    },
    "mobilenet_v2*": {
        "input_shape": (16, 16, 3),
        "stem_channels": 8,
        "stages": ((1, 8, 1, 1), (2, 8, 2, 2)),
        "head_channels": 16,
    },
    "ensemble_*": {
        "input_shape": (16, 16, 3),
        "members": (
            (
                "efficientnet_b0_face",
                {
                    "stem_channels": 8,
                    "stages": (("mbconv", 3, 1, 8, 1, 2),),
                    "head_channels": 8,
                    "embedding_dim": 16,
                },
            ),
            ("vit_p8s8", {"dim": 16, "depth": 1, "num_heads": 2, "head_dim": 8}),
        ),
    },
    "late_fusion_*": {
        "input_shape": (16, 16, 3),
        "members": (
            (
                "efficientnet_b0_face",
                {
                    "stem_channels": 8,
                    "stages": (("mbconv", 3, 1, 8, 1, 2),),
                    "head_channels": 8,
                    "embedding_dim": 8,
                },
            ),
            ("vit_p8s8", {"dim": 16, "depth": 1, "num_heads": 2, "head_dim": 8}),
        ),
        "embedding_dim": 12,
    },
    "vit_p*": {"input_shape": (16, 16, 3), "dim": 16, "depth": 2, "num_heads": 2, "head_dim": 8},
    "vit_*": {"input_shape": (16, 16, 3), "patch_size": 8, "dim": 16, "depth": 2, "num_heads": 2},
    "convit_*": {
        "input_shape": (16, 16, 3),
        "patch_size": 4,
        "dim": 16,
        "depths": (1, 1),
        "num_heads": 4,
    },
    "coatnet_*": {
        "input_shape": (16, 16, 3),
        "stages": ("convolution", "attention"),
        "stem_width": 4,
        "dims": (8, 16),
        "depths": (1, 2),
        "head_dim": 8,
        "hidden_dim": 12,
    },
    "astroformer_*": {
        "input_shape": (16, 16, 3),
        "stages": ("convolution", "attention"),
        "stem_width": 4,
        "dims": (8, 16),
        "depths": (2, 1),
        "head_dim": 8,
        "hidden_dim": None,
    },
    "nat_*": {
        "input_shape": (16, 16, 3),
        "dim": 8,
        "depths": (1, 1),
        "num_heads": (1, 2),
        "kernel_size": 3,
        "drop_path": 0.1,
        "layer_scale": 1.0,
    },
    "swin_*": {
        "input_shape": (16, 16, 3),
        "dim": 8,
        "depths": (2, 1),
        "num_heads": (1, 2),
        "window_size": 2,
    },
    "facerec_[ms]*": {
        "input_shape": (16, 16, 3),
        "stem_channels": (4, 8),
        "stem_blocks": (0, 1),
        "dim": 16,
        "depth": 2,
        "num_heads": 2,
        "conv_dim": 8,
        "conv_head_dim": 4,
        "place_dim": 2,
        "embedding_dim": 12,
    },
    "facerec*": {
        "input_shape": (16, 16, 3),
        "patch_size": 8,
        "dim": 16,
        "depth": 2,
        "num_heads": 2,
        "conv_dim": 8,
    },
    "botnet*": {
        "input_shape": (16, 16, 3),
        "stem_channels": 4,
        "depths": (1, 1),
        "widths": (4, 8),
        "num_heads": 2,
    },
    "resnet50_fct*": {
        "input_shape": (16, 16, 3),
        "stem_channels": 4,
        "depths": (1, 1),
        "widths": (4, 8),
        "taps": (1, 2),
        "dim": 8,
        "num_heads": 2,
    },
    "san*": {
        "input_shape": (16, 16, 3),
        "stem_channels": 4,
        "depths": (1, 1),
        "widths": (8, 16),
        "kernel_sizes": (3, 3),
        "relation_reduction": 4,
        "value_reduction": 2,
        "share": 2,
    },
    # Squeeze-and-excitation is what a plain residual network has not, so it is tested here.
    "*resnet50*": {
        "input_shape": (16, 16, 3),
        "stem_channels": 4,
        "depths": (1, 1),
        "widths": (4, 8),
        "squeeze_reduction": 4,
    },
}
FAMILIES = tuple(SMALL)
# Families whose maps may have any size; the others' images must be multiples of something.
ANY_SIZE = (
    "*resnet50*",
    "atc_*",
    "botnet*",
    "cct_*",
    "cvt_[12]*",
    "efficientnet_*",
    "iresnet*",
    "mobilefacenet*",
    "mobilenet_v2*",
    "nat_*",
    "resnet50_fct*",
    "san*",
)
# Self-attention layers of a tiny model, where it is not its depth.
ATTENTION_LAYERS = {
    "astroformer_*": 1,
    "coatnet_*": 2,
    "conformer_*": 3,
    "convit_*": 2,
    "ensemble_*": 1,
    "late_fusion_*": 1,
    "nat_*": 0,
    "swin_*": 3,
}
# Further layers that the head of a tiny model reads.
READ_BESIDE_THE_LAST_MAP = {
    "conformer_*": ("norm",),
    "resnet50_fct*": ("stride01",),
    "ensemble_*": ("efficientnet_b0_face_stride04",),
    "late_fusion_*": ("efficientnet_b0_face_stride04",),
}
# What Grad-CAM explains in a full-size model, where it is not {map}, the last feature map: {block},
# the tokens that the last attention reads before a class token, or a layer of each branch.
GRAD_CAM_LAYERS = {
    "atc_*": ("{block}",),
    "conformer_*": ("{block}", "{map}"),
    "convit_*": ("{block}",),
    "cvt_[12]*": ("{block}",),
    "efficientvit_*": ("{block}",),
    "ensemble_*": ("{block}", "efficientnet_b0_face_stride32"),
    "late_fusion_*": ("{block}", "efficientnet_b0_face_stride32"),
    "resnet50_fct*": ("fct0", "fct1", "fct2"),
    "vit_*": ("{block}",),
    "vit_lite_*": ("{block}",),
    "vit_p*": ("{block}",),
}

CLASSES = 3
LABELS = np.arange(8) % CLASSES


def _photographs() -> np.ndarray:
    """One image of coarse squares for each label, under a little noise, in [0, 255]."""
    random = np.random.default_rng(0)
    persons = np.kron(random.uniform(0, 255, (CLASSES, 4, 4, 3)), np.ones((1, 4, 4, 1)))
    images = persons[LABELS] + random.normal(0, 10, (len(LABELS), 16, 16, 3))
    return np.clip(images, 0, 255).round().astype("float32")


IMAGES = _photographs()


def family_of(name: str) -> str | None:
    """Return the pattern in ``SMALL`` that a registered model belongs to, or None."""
    return next((pattern for pattern in SMALL if fnmatch.fnmatch(name, pattern)), None)


def representative(family: str) -> str:
    """Return the first registered model of a family."""
    return next(name for name in kh.list_models(family) if family_of(name) == family)


def small_model(family: str, **overrides) -> keras.Model:
    """Build the tiny model of a family, always with the same weights."""
    keras.utils.set_random_seed(0)
    arguments = {"classes": CLASSES, **SMALL[family], **overrides}
    return kh.create_model(representative(family), **arguments)


def initial_weights(family: str) -> np.ndarray:
    """Return all weights of a family's tiny model, one after the other, as they begin."""
    weights = small_model(family).get_weights()
    return np.concatenate([weight.astype("float64").flatten() for weight in weights])


@functools.cache
def shared_model(family: str) -> keras.Model:
    """Return the tiny model of a family; for tests that do not change it."""
    return small_model(family)


def predict(model: keras.Model, images):
    """Return what the model answers at inference, as NumPy arrays."""
    if keras.backend.backend() == "jax":  # compiles the model faster than each operation alone
        return model.predict(images, batch_size=len(images), verbose=0)
    outputs = model(images, training=False)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Give every layer of ``target`` the weights of the layer of that name in ``source``."""
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())


def relative_error(actual, expected) -> float:
    """Return ‖actual − expected‖ / ‖expected‖."""
    actual, expected = (np.asarray(array, "float64") for array in (actual, expected))
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@contextlib.contextmanager
def dtype_policy(name: str):
    """Make a dtype policy the default within the context."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def xla_flags(devices: int) -> str:
    """XLA_FLAGS for a process with so many virtual devices that compiles as this one does."""
    given = os.environ.get("XLA_FLAGS", "")
    return f"{given} --xla_force_host_platform_device_count={devices}".strip()


@contextlib.contextmanager
def fast_compilation():
    """Compile for speed of compiling: tiny models run too seldom to earn an optimisation."""
    if keras.backend.backend() == "jax":
        import jax

        before = jax.config.values["jax_disable_most_optimizations"]
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)
    else:  # TensorFlow without its optimiser keeps a hundred megabytes for each fit
        yield


@contextlib.contextmanager
def without_weights():
    """Let models of any size be built within milliseconds: variables get a shape and no value."""
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Otherwise Keras would make up for it at the next opportunity.
        keras.utils.clear_session(free_memory=False)
