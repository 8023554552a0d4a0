"""Small models for the tests of explanations."""

import keras
import numpy as np

import keras_hybrid as kh

SIZE = 32
TINY_FACEREC = {
    "input_shape": (SIZE, SIZE, 3),
    "patch_size": 8,
    "dim": 32,
    "depth": 2,
    "num_heads": 4,
    "conv_dim": 16,
    "classes": 5,
}


def tiny_facerec(**arguments) -> keras.Model:
    return spread(kh.applications.FaceRec(**{**TINY_FACEREC, **arguments}))


def tiny_facerec_small(**arguments) -> keras.Model:
    arguments = {
        "input_shape": (SIZE, SIZE, 3),
        "stem_channels": (8, 8),
        "stem_blocks": (0, 0),
        "dim": 16,
        "depth": 1,
        "num_heads": 2,
        "conv_dim": 8,
        "embedding_dim": 8,
        "classes": 5,
        **arguments,
    }
    return spread(kh.applications.FaceRecSmall(**arguments))


def tiny_vit(**arguments) -> keras.Model:
    arguments = {"patch_size": 8, "dim": 16, "depth": 2, "num_heads": 2, "classes": 5, **arguments}
    return spread(kh.applications.ViT(input_shape=(SIZE, SIZE, 3), **arguments))


def tiny_cvt(stages: int = 2) -> keras.Model:
    numbers = {
        "dims": (8, 16),
        "depths": (1, 1),
        "num_heads": (1, 2),
        "patch_sizes": (7, 3),
        "patch_strides": (4, 2),
        "patch_paddings": (2, 1),
    }
    numbers = {name: values[:stages] for name, values in numbers.items()}
    return spread(kh.applications.CvT(input_shape=(SIZE, SIZE, 3), classes=5, **numbers))


def tiny_cct(**arguments) -> keras.Model:
    arguments = {"dim": 16, "depth": 1, "num_heads": 2, "classes": 5, **arguments}
    return spread(
        kh.applications.CCT(
            input_shape=(SIZE, SIZE, 3), kernel_size=3, num_convolutions=2, **arguments
        )
    )


def spread(model: keras.Model) -> keras.Model:
    """Give matrices weights of a trained model's size, so that nothing is nearly uniform."""
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            scale = 1.5 / np.sqrt(np.prod(variable.shape[:-1]))
            variable.assign(generator.normal(0, scale, variable.shape))
    return model


def photographs(count: int = 2, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3)).astype("uint8")
