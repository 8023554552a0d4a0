"""Train on one device and on a MirroredStrategy of two; what the test compares, as JSON.

``python train_on_replicas.py FILE``, with TensorFlow.
"""

import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_hybrid as kh

CLASSES, BATCH = 12, 12


def data():
    images, labels = kh.data.synthetic_identities(CLASSES, 4, image_size=16)
    order = np.random.default_rng(0).permutation(len(labels))
    return images[order], labels[order]


def transformer():
    return kh.create_model(
        "vit_ti16",
        input_shape=(16, 16, 3),
        patch_size=8,
        dim=16,
        depth=1,
        num_heads=2,
        drop_path=0.0,
        include_top=False,
        pooling="native",
    )


def perceptron():
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, keras.layers.Dense(16)(x))


def fit(trunk, head, loss):
    keras.utils.set_random_seed(0)
    trunk = trunk()
    model = kh.applications.MarginModel(trunk.input, head()(trunk.output))
    model.compile(keras.optimizers.AdamW(3e-3), loss=loss(scale=30.0), metrics=["accuracy"])
    images, labels = data()
    return model.fit(
        images,
        labels,
        batch_size=BATCH,
        epochs=2,
        shuffle=False,
        validation_data=(images, labels),
        verbose=0,
    ).history


def full():
    return kh.layers.CosineClassifier(CLASSES)


def sampled():
    return kh.layers.PartialCosineClassifier(4 * CLASSES, 0.5, seed=1)


CASES = {
    "arcface": (transformer, full, kh.losses.ArcFace),
    "curricularface": (perceptron, full, kh.losses.CurricularFace),
    "adaface": (perceptron, full, kh.losses.AdaFace),
    "sampled": (perceptron, sampled, kh.losses.CosFace),
}

if __name__ == "__main__":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    answer = {}
    for name, case in CASES.items():
        answer[name] = {"one": fit(*case)}
        with strategy.scope():
            answer[name]["two"] = fit(*case)
    pathlib.Path(sys.argv[1]).write_text(json.dumps(answer))
