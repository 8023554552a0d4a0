"""Embed images with every .keras file of a folder; run in a process of another backend.

Command: python embed_on_this_backend.py FOLDER, where FOLDER/images.npy holds the images.
Writes FOLDER/<backend>.npz, with one array named after each file, and FOLDER/<backend>_initial.npz,
with the initial weights of every family's tiny model.
"""

import pathlib
import sys

import keras
import numpy as np

import keras_hybrid as kh
from tests.cases import SMALL, fast_compilation, initial_weights, predict

folder = pathlib.Path(sys.argv[1])
images = np.load(folder / "images.npy")
embeddings = {}
with fast_compilation():
    for path in sorted(folder.glob("*.keras")):
        embedder = kh.applications.embedding_model(keras.saving.load_model(path, compile=False))
        embeddings[path.stem] = predict(embedder, images)
initial = {family: initial_weights(family) for family in SMALL}
np.savez(folder / f"{keras.backend.backend()}_initial.npz", **initial)
np.savez(folder / f"{keras.backend.backend()}.npz", **embeddings)
