"""A face model on several PyTorch processes, with DistributedDataParallel.

    torchrun --nproc-per-node 2 training/examples/ddp_torch.py
    torchrun --nproc-per-node 8 training/examples/ddp_torch.py --batch-size 1024  # 8 GPUs

Keras's ``fit`` does not know PyTorch's processes, so the loop is written out: DDP wraps a module
whose forward pass ends in the loss, averages the gradients of all processes, and Keras's optimizer
applies them. Started with plain ``python`` it trains alone, on the whole batches. A GPU is taken
for each process where there are GPUs, else the CPU with gloo.
"""

import argparse
import json
import os
import pathlib

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
import torch.distributed as dist

import keras_hybrid as kh


class LossOf(torch.nn.Module):
    """The model up to its loss: what DDP must see of a step."""

    def __init__(self, model: kh.applications.MarginModel):
        super().__init__()
        self.model = model

    def forward(self, images, labels):
        """Return the loss, a scalar."""
        return self.model.training_loss(images, labels)


def build_model(classes: int, loss, sampling_rate: float = 1.0) -> kh.applications.MarginModel:
    """Return a tiny model with a margin loss, compiled.

    Without batch normalisation, whose statistics would be those of each process's images.
    """
    keras.utils.set_random_seed(0)  # the same first weights everywhere
    architecture = {"patch_size": 8, "dim": 16, "depth": 1, "num_heads": 2, "drop_path": 0.0}
    trunk = kh.create_model(
        "vit_ti16", input_shape=(16, 16, 3), include_top=False, pooling="native", **architecture
    )
    head = kh.layers.PartialCosineClassifier(classes, sampling_rate, seed=0, name="predictions")
    model = kh.applications.MarginModel(trunk.input, head(trunk.output))
    model.compile(keras.optimizers.AdamW(3e-3, global_clipnorm=2.0), loss=loss)
    model.optimizer.build(model.trainable_variables)
    return model


def train(model, images, labels, batch_size: int, epochs: int) -> list[float]:
    """Train on every process's part of each batch.

    Returns:
        The loss of each step, the mean over the processes.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    step = LossOf(model)
    if processes > 1:
        step = torch.nn.parallel.DistributedDataParallel(step)
    losses = []
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(labels))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            part = order[start : start + batch_size][rank::processes]
            loss = step(
                keras.ops.convert_to_tensor(images[part], "float32"),
                keras.ops.convert_to_tensor(labels[part], "int32"),
            )
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                gradients = [v.value.grad for v in model.trainable_variables]
                model.optimizer.apply(gradients, model.trainable_variables)
            shared = [loss.detach().clone()]
            if model.margin_state is not None:  # each process has seen its own images only
                shared += [v.value for v in model.margin_state.variables]
            for value in shared if processes > 1 else []:
                dist.all_reduce(value)
                value /= processes
            losses.append(float(shared[0]))
    return losses


def main() -> None:
    """Train, and let the first process write down how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/ddp_torch"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16, help="of all processes together")
    given = parser.parse_args()
    several = "LOCAL_RANK" in os.environ  # set by torchrun
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if given.batch_size % processes:  # the mean over the processes would not be that over images
        parser.error(
            f"--batch-size must be a multiple of the number of processes, {processes}; got "
            f"{given.batch_size}."
        )
    if several:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    images, labels = kh.data.synthetic_identities(12, given.batch_size // 2, image_size=16)
    model = build_model(12, kh.losses.CosFace(scale=30.0))
    losses = train(model, images, labels, given.batch_size, given.epochs)
    if not several or dist.get_rank() == 0:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "losses.json").write_text(json.dumps(losses))
        model.save(given.out / "model.keras")
        print(f"Loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last.")
    if several:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
