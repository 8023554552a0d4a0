"""Memory and step time of training at many identities: what is computed, and how far it holds.

    python benchmarks/scale_plan.py plan        # the tables of docs/scale.md, computed
    python benchmarks/scale_plan.py published   # beside the figures of arcface_torch
    python benchmarks/scale_plan.py measure     # on this CPU -> benchmarks/results/scale.csv
    python benchmarks/scale_plan.py measured    # that file's tables

``measure`` compiles JAX's training step, as ``fit`` runs it, for up to 64 virtual devices and asks
the compiler for its memory, for which none of it is taken; it times the step on one device, in CPU
seconds, and computes the same with the rates of a bare matrix product and a bare pass over memory,
which it measures first. ``plan`` is arithmetic: nothing of it has been run on a GPU.
"""

import argparse
import csv
import dataclasses
import os
import pathlib
import platform
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

RESULTS = ROOT / "benchmarks/results/scale.csv"
COLUMNS = (
    "quantity",
    "classes",
    "batch",
    "data",
    "model",
    "sampling_rate",
    "computed",
    "measured",
    "ratio",
    "unit",
    "hardware",
    "commit",
    "command",
)
GB = 1e9


@dataclasses.dataclass(frozen=True)
class Device:
    """What a device can do, in bytes and operations a second.

    Attributes:
        trunk_flops: Peak of matrix products of the trunk (half precision on a GPU).
        head_flops: The same of the head (float32, which is TF32 on an H100).
        bandwidth: Of its memory.
        link: To the devices of its own host, one direction.
        network: To those of other hosts, one direction.
        utilisation: Share of the peak that matrix products are taken to reach.
        efficiency: The same of memory and links.
    """

    trunk_flops: float
    head_flops: float
    bandwidth: float
    link: float = 1.0
    network: float = 1.0
    memory: float = 0.0
    utilisation: float = 0.4
    efficiency: float = 0.7


# NVIDIA H100 Tensor Core GPU data sheet (SXM): 80 GB, 3.35 TB/s, NVLink 900 GB/s in both directions
# together, and without sparsity half of the listed 1,979 (BF16) and 989 (TF32) TFLOP/s. One
# 400 Gb/s InfiniBand adapter a GPU.
H100 = Device(990e12, 494e12, 3.35e12, 450e9, 50e9, 80e9)
# NVIDIA V100 data sheet (SXM2): 32 GB, 900 GB/s, 125 TFLOP/s in half precision, NVLink 300 GB/s in
# both directions together.
V100 = Device(125e12, 125e12, 0.9e12, 150e9, 12.5e9, 32e9)


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A model without its classifier.

    Attributes:
        activations: Numbers that all its layers put out for one image.
    """

    parameters: int
    macs: int
    dim: int
    activations: int


@dataclasses.dataclass(frozen=True)
class Setup:
    """How a step is laid out: ``data`` groups of devices, each with ``model`` parts of the classes.

    Attributes:
        batch: Images of the whole batch.
        moments: Numbers an optimizer keeps beside a weight: 2 for Adam, 1 for SGD with momentum.
        per_host: Devices of a host.
        activation_bytes: Of a number.
    """

    classes: int
    batch: int
    data: int = 1
    model: int = 1
    sampling_rate: float = 1.0
    moments: int = 2
    per_host: int = 8
    activation_bytes: int = 4

    @property
    def trunk_images(self) -> float:
        """Images that a device runs through the trunk."""
        return self.batch / (self.data * self.model)

    @property
    def seen(self) -> float:
        """Classes that a device computes cosines with."""
        return self.classes * self.sampling_rate / self.model

    @property
    def logits(self) -> float:
        """Cosines that a device computes."""
        return self.batch / self.data * self.seen


def memory(trunk: Trunk, setup: Setup) -> float:
    """Return the bytes that a training step needs on each device."""
    centers = setup.classes / setup.model * trunk.dim
    seen = setup.seen * trunk.dim
    kept = 4 * (1 + setup.moments) * (trunk.parameters + centers)
    # Beside what stays: gradients, normalised centres (of a sample also the drawn ones, and their
    # gradient before it is scattered), and three matrices of the logits' size or, later and where
    # several groups add it up, the sum of the centres' gradient.
    summed = 4 * seen if setup.data > 1 else 0
    passing = 4 * (trunk.parameters + centers + seen) + max(12 * setup.logits, summed)
    if setup.sampling_rate < 1:
        passing += 8 * seen
    return kept + passing + setup.activation_bytes * trunk.activations * setup.trunk_images


def seconds(trunk: Trunk, setup: Setup, device: Device) -> dict[str, float]:
    """Return the seconds of a training step by what they go to; nothing is taken to overlap."""
    centers = setup.classes / setup.model * trunk.dim
    seen = setup.seen * trunk.dim
    bandwidth = device.bandwidth * device.efficiency
    # Forward, and backward for inputs and for weights: three products of two operations each.
    trunk_work = 6 * trunk.macs * setup.trunk_images / (device.trunk_flops * device.utilisation)
    # Each of its numbers is written and read, forward, backward and for the weights' gradient.
    passes = 6 * setup.activation_bytes * trunk.activations * setup.trunk_images
    head_work = 6 * setup.logits * trunk.dim / (device.head_flops * device.utilisation)
    # Written and read again: three matrices of logits and, of the centres, their normalisation
    # and its gradient; the priorities of a sample are sorted in 16 passes.
    traffic = 4 * (8 * setup.logits + 6 * seen)
    if setup.sampling_rate < 1:
        traffic += 4 * (2 * centers + 32 * setup.classes / setup.model)
    # Weights, moments and gradient are read, weights and moments written.
    update = 4 * (3 + 2 * setup.moments) * (trunk.parameters + centers)
    devices = setup.data * setup.model
    link = (device.link if devices <= setup.per_host else device.network) * device.efficiency
    # Gradients: the trunk's over all devices, those of the classes seen over all groups.
    exchanged = 2 * (1 - 1 / devices) * 4 * trunk.parameters + 2 * (1 - 1 / setup.data) * 4 * seen
    if setup.model > 1:  # embeddings to all parts, and their gradients back
        exchanged += 2 * 4 * trunk.dim * setup.batch / setup.data * 2 * (1 - 1 / setup.model)
    return {
        "trunk": trunk_work + passes / bandwidth,
        "head": head_work + traffic / bandwidth,
        "optimizer": update / bandwidth,
        "exchange": exchanged / link if devices > 1 else 0.0,
    }


def trunk_of(name: str) -> Trunk:
    """Return a registered model as a `Trunk`."""
    import keras_hybrid as kh

    dim, activations = {"facerec_small": (256, 7_687_680), "iresnet50": (512, 22_724_352)}[name]
    info = kh.model_info(name)
    macs = info.macs - info.classes * dim
    return Trunk(info.parameters - info.classes * dim, macs, dim, activations)


IMAGES = 128  # of a GPU
METHODS = ("full head", "sampled 0.1", "split by classes", "both")


def setups(classes: int, gpus: int) -> dict[str, Setup]:
    """Return the layouts of a number of GPUs that the plan compares."""
    model = min(gpus, 8)
    common = {"classes": classes, "activation_bytes": 2}
    everywhere = Setup(batch=IMAGES * gpus, data=gpus, **common)
    split = Setup(batch=IMAGES * gpus, data=gpus // model, model=model, **common)
    return {
        METHODS[0]: everywhere,
        METHODS[1]: dataclasses.replace(everywhere, sampling_rate=0.1),
        METHODS[2]: split,
        METHODS[3]: dataclasses.replace(split, sampling_rate=0.1),
    }


def plan(name: str) -> str:
    """Return the plan's table for a trunk, as Markdown."""
    trunk = trunk_of(name)
    lines = [
        f"| identities | GPUs | {' | '.join(METHODS)} |",
        f"|---:|---:|{'---|' * len(METHODS)}",
    ]
    for classes in (10_000, 1_000_000, 10_000_000):
        for gpus in (1, 8, 64):
            cells = []
            for setup in setups(classes, gpus).values():
                is_repeated = gpus == 1 and len(cells) >= 2
                # A device's part of a sample must hold the whole batch.
                if is_repeated or (setup.sampling_rate < 1 and setup.batch > setup.seen):
                    cells.append("–")
                    continue
                need, time_ = memory(trunk, setup), sum(seconds(trunk, setup, H100).values())
                rate = setup.batch / time_
                fits = need < 0.9 * H100.memory
                cells.append(
                    f"{need / GB:.1f} GB, {1e3 * time_:.0f} ms, {rate:,.0f}/s"
                    if fits
                    else f"{need / GB:.0f} GB: does not fit"
                )
            lines.append(f"| {classes:,} | {gpus} | {' | '.join(cells)} |")
    return "\n".join(lines)


# arcface_torch's README, "Speed Benchmark": ResNet-50, 8 V100 of 32 GB; images a second and MB a
# GPU for data parallel, model parallel and Partial FC 0.1 (model parallel, too). 128 images a GPU,
# SGD, half precision: its speed_benchmark.md.
PUBLISHED = {
    125_000: ((4681, 7358), (4824, 5306), (5004, 4868)),
    1_400_000: ((1672, 32252), (3043, 11178), (4738, 6056)),
    5_500_000: (None, (1389, 32188), (3975, 9854)),
    29_000_000: (None, None, (1855, 32324)),
}


def published() -> str:
    """Return the published figures beside the computed ones, as Markdown."""
    trunk = trunk_of("iresnet50")
    names = ("data parallel", "model parallel", "Partial FC 0.1")
    lines = [
        "| identities | method | images/s published | computed | GB published | computed |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for classes, row in PUBLISHED.items():
        common = {"classes": classes, "batch": 1024, "moments": 1, "activation_bytes": 2}
        split = Setup(model=8, **common)
        layouts = (Setup(data=8, **common), split, dataclasses.replace(split, sampling_rate=0.1))
        for name, setup, found in zip(names, layouts, row, strict=True):
            if found is not None:
                rate = setup.batch / sum(seconds(trunk, setup, V100).values())
                lines.append(
                    f"| {classes:,} | {name} | {found[0]:,} | {rate:,.0f} | {found[1] / 1e3:.1f} | "
                    f"{memory(trunk, setup) / GB:.1f} |"
                )
    return "\n".join(lines)


def measured(quantity: str) -> str:
    """Return the rows of the table of results with a quantity, as Markdown."""
    with RESULTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["quantity"].startswith(quantity)]
    unit = rows[0]["unit"]
    lines = [
        f"| identities | images | mesh | sampled | computed ({unit}) | measured | ratio |",
        "|---:|---:|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        mesh = f"data={row['data']},model={row['model']}"
        cells = [
            f"{int(row['classes']):,}{row['quantity'].removeprefix(quantity)}",
            row["batch"],
            "–" if mesh == "data=1,model=1" else mesh,
            row["sampling_rate"],
            row["computed"],
            row["measured"],
            row["ratio"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compiled_step(setup: Setup, trunk_name: str | None = None):
    """Return (executable, state, batch, trunk) of a JAX training step with CosFace and AdamW.

    State and batch are shapes: neither the centres nor their moments are ever made.
    """
    import jax
    import keras

    import keras_hybrid as kh

    keras.utils.clear_session()
    is_alone = setup.data * setup.model == 1
    mesh = None if is_alone else kh.distribution.ClassParallel(setup.data, setup.model)
    keras.distribution.set_distribution(mesh)
    if trunk_name is None:
        inputs = keras.Input((16, 16, 3))
        embedding = keras.layers.Dense(512)(keras.layers.Flatten()(inputs))
        trunk = Trunk(769 * 512, 768 * 512, 512, 768 + 512)
    else:
        network = kh.create_model(trunk_name, include_top=False, pooling="native")
        inputs, embedding, trunk = network.input, network.output, trunk_of(trunk_name)
    head = kh.layers.PartialCosineClassifier(setup.classes, setup.sampling_rate, name="predictions")
    optimizer = keras.optimizers.AdamW(1e-3)
    with keras.StatelessScope(initialize_variables=False):
        outputs = head(embedding)
    model = kh.applications.MarginModel(inputs, outputs)
    model.compile(optimizer, loss=kh.losses.CosFace())

    def shaped(shape, dtype, layout):
        sharding = None if layout is None else layout.backend_layout
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def variable(v):
        # Moments of centres that are not there do not know that they lie as these do.
        laid_out_as = head.centers if v.shape == head.centers.shape else v
        return shaped(v.shape, v.dtype, mesh and mesh.get_variable_layout(laid_out_as))

    def data(shape, dtype):
        return shaped(shape, dtype, mesh and mesh.get_data_layout(shape))

    with keras.StatelessScope(initialize_variables=False):
        model.optimizer.build(model.trainable_variables)
        variables = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        state = tuple([variable(v) for v in each] for each in variables)
        batch = data((setup.batch, *inputs.shape[1:]), "float32"), data((setup.batch,), "int32")
        step = jax.jit(model.train_step, donate_argnums=0).lower(state, batch).compile()
    return step, state, batch, trunk


def measured_memory(step) -> float:
    """Return the bytes that a compiled step needs on each device."""
    found = step.memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return kept + found.temp_size_in_bytes


def cpu_seconds(action, repeats: int = 3) -> float:
    """Return the least CPU time of an action: other processes on the core do not count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


def this_cpu() -> Device:
    """Return this machine as a `Device`, by a matrix product and a pass over memory."""
    import jax
    import jax.numpy as jnp

    x, centers = jnp.ones((64, 512)), jnp.ones((20_000, 512))
    product = jax.jit(lambda a, b: a @ b.T)
    product(x, centers).block_until_ready()
    flops = 2 * 64 * 512 * 20_000 / cpu_seconds(lambda: product(x, centers).block_until_ready(), 9)
    a, b = jnp.ones(25_000_000), jnp.ones(25_000_000)
    total = jax.jit(lambda a, b: a + 2 * b)
    total(a, b).block_until_ready()
    bandwidth = 12 * 25_000_000 / cpu_seconds(lambda: total(a, b).block_until_ready(), 9)
    return Device(flops, flops, bandwidth, utilisation=1.0, efficiency=1.0)


def measure(hardware: str, table: pathlib.Path) -> None:
    """Add computed and measured memory and time to the table of results."""
    import jax
    import jax.numpy as jnp

    from benchmarks.table import append_row
    from training.report import command, commit

    def write(quantity, setup, computed, measured, unit):
        row = dataclasses.asdict(setup) | {
            "quantity": quantity,
            "computed": f"{computed:.4g}",
            "measured": f"{measured:.4g}",
            "ratio": f"{computed / measured:.2f}",
            "unit": unit,
            "hardware": hardware,
            "commit": commit(),
            "command": command(),
        }
        append_row(table, COLUMNS, row)
        print(*(row[c] for c in COLUMNS[:10]), flush=True)

    device = this_cpu()
    layouts = [
        *(Setup(classes, batch) for classes in (10_000, 50_000, 200_000) for batch in (32, 256)),
        *(Setup(classes, 256, sampling_rate=0.1) for classes in (10_000, 50_000, 200_000)),
    ]
    for classes in (200_000, 1_000_000, 10_000_000):
        for mesh in ((8, 1), (4, 2), (1, 8), (8, 8)):
            batch = IMAGES * mesh[0] * mesh[1]
            layouts += [
                Setup(classes, batch, *mesh, sampling_rate=rate)
                for rate in (1.0, 0.1)
                if rate == 1 or batch <= rate * classes / mesh[1]  # its part of a sample holds it
            ]
    for setup in layouts:
        step, state, batch, trunk = compiled_step(setup)
        write("memory", setup, memory(trunk, setup) / GB, measured_memory(step) / GB, "GB")
        if setup.data * setup.model > 1 or (setup.batch, setup.sampling_rate) == (256, 1.0):
            continue
        # Nothing is divided by, so any numbers do; labels are all of the first class.
        state, batch = jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype), (state, batch))

        def run(step=step, batch=batch):
            nonlocal state
            _, state = step(state, batch)
            jax.block_until_ready(state)

        run()
        found = cpu_seconds(run)
        write("time", setup, sum(seconds(trunk, setup, device).values()), found, "CPU s")
    for setup in (Setup(1000, 8), Setup(1_000_000, 64, 1, 8, sampling_rate=0.1)):
        step, _, _, trunk = compiled_step(setup, "facerec_small")
        computed, found = memory(trunk, setup) / GB, measured_memory(step) / GB
        write("memory with facerec_small", setup, computed, found, "GB")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("plan", "published", "measure", "measured"))
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    given = parser.parse_args()
    if given.what == "measure":
        os.environ["KERAS_BACKEND"] = "jax"
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=64"
        measure(given.hardware, given.out)
    elif given.what == "published":
        print(published())
    elif given.what == "measured":
        print(measured("memory"), measured("time"), sep="\n\n")
    else:
        for name in ("facerec_small", "iresnet50"):
            print(f"{name}\n\n{plan(name)}\n")


if __name__ == "__main__":
    main()
