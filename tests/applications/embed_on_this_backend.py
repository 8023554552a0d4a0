"""Embed images with every .keras file of a folder; run in a process of another backend.

Command: python embed_on_this_backend.py FOLDER, where FOLDER/images.npy holds the images.
Writes FOLDER/<backend>.npz, with one array named after each file.
"""

import pathlib
import sys

import keras
import numpy as np

import keras_hybrid as kh

folder = pathlib.Path(sys.argv[1])
images = np.load(folder / "images.npy")
embeddings = {}
for path in sorted(folder.glob("*.keras")):
    embedder = kh.applications.embedding_model(keras.saving.load_model(path))
    embeddings[path.stem] = keras.ops.convert_to_numpy(embedder(images, training=False))
np.savez(folder / f"{keras.backend.backend()}.npz", **embeddings)
