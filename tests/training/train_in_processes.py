"""Train as training/examples/ddp_torch.py does, with several heads; losses and weights, as JSON.

``torchrun --nproc-per-node 2 train_in_processes.py FOLDER``, or without torchrun in one process.
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np
import torch.distributed as dist

import keras_hybrid as kh
from training.examples import ddp_torch

LOSSES = {
    "cosface": (kh.losses.CosFace, 1.0),
    "curricularface": (kh.losses.CurricularFace, 1.0),
    "adaface": (kh.losses.AdaFace, 1.0),
    "sampled": (kh.losses.CosFace, 0.5),
}

rank = int(os.environ.get("RANK", "0"))
if "RANK" in os.environ:
    dist.init_process_group("gloo")
images, labels = kh.data.synthetic_identities(40, 2, image_size=16)
answer = {}
for name, (loss, rate) in LOSSES.items():
    model = ddp_torch.build_model(40, loss(scale=30.0), rate)
    losses = ddp_torch.train(model, images, labels, batch_size=16, epochs=2)
    weights = [keras.ops.convert_to_numpy(v) for v in model.weights if "seed" not in v.path]
    state = model.margin_state
    answer[name] = {
        "losses": losses,
        "weights": [float(np.abs(w).sum()) for w in weights],
        "state": {} if state is None else {k: float(v) for k, v in state.read().items()},
    }
(pathlib.Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(answer))
if dist.is_initialized():
    dist.destroy_process_group()
