"""Training over several devices: images split between them, and the class centres, too.

At a million identities the head of a face model is a matrix of a million centres, larger than the
rest, with an optimizer's moments of the same size. `ClassParallel` splits it by classes over the
devices of one axis of a mesh, and the images of a batch over all devices, with
``keras.distribution`` on JAX; the compiler finds the sums and gathers between devices.
"""

import keras

__all__ = ["ClassParallel"]

DATA, MODEL = "data", "model"


class ClassParallel(keras.distribution.ModelParallel):
    """A trunk that is copied to every device, and a classifier that is split by classes.

    ```python
    keras.distribution.set_distribution(kh.distribution.ClassParallel(data=4, model=2))
    model = kh.create_model("facerec_small", classes=100_000)
    ```

    Set it before the model is built. What is split: ``centers`` of the layer ``predictions`` where
    it is a cosine classifier, ``kernel`` and ``bias`` where it is dense, what the optimizer keeps
    of each, and the sample that a `PartialCosineClassifier` trains against. The images of a batch
    are shared out over all devices; the embeddings of a group of ``model`` devices are gathered
    before the classifier. A batch that not all devices can share out is split over the axis "data",
    and its parts are repeated in each group; one that "data" does not divide either is copied to
    all devices. ``fit`` and ``evaluate`` of Keras lay all their batches out as the first: give them
    data whose last batch divides, too, or a batch size that "data" (where it is 1, "model") does
    not divide.

    With several processes (``keras.distribution.initialize``) each gives ``fit`` its own part of
    every batch, `batch_part`, and all of these must be of one size that divides.

    Source: An et al. 2022, https://arxiv.org/abs/2203.15565, section 3.1 (the model-parallel head).

    Args:
        data: Groups of devices; each group holds all classes.
        model: Devices of a group, over which the classes are split; must divide their number.
        devices: Names of data · model devices; by default the first ones of
            ``keras.distribution.list_devices()``.

    Raises:
        ValueError: If there are too few devices, the counts are not positive, the processes do not
            have equally many devices, or the backend is not JAX.
    """

    def __init__(self, data: int = 1, model: int = 1, devices: list[str] | None = None):
        if keras.backend.backend() != "jax":
            raise ValueError(
                "ClassParallel needs the JAX backend; keras.backend.backend() is "
                f"{keras.backend.backend()!r}."
            )
        for name, value in ((DATA, data), (MODEL, model)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        devices = keras.distribution.list_devices() if devices is None else list(devices)
        if len(devices) < data * model:
            raise ValueError(
                f"data={data} times model={model} needs {data * model} devices; there are "
                f"{len(devices)}: {', '.join(map(str, devices))}."
            )
        mesh = keras.distribution.DeviceMesh((data, model), (DATA, MODEL), devices[: data * model])
        layout = keras.distribution.LayoutMap(mesh)
        layout["predictions/centers"] = (MODEL, None)
        layout["predictions/kernel"] = (None, MODEL)
        layout["predictions/bias"] = (MODEL,)
        # What a process gives is its part already; Keras would cut a tf.data.Dataset once more.
        super().__init__(layout_map=layout, batch_dim_name=DATA, auto_shard_dataset=False)
        import jax

        processes = [device.process_index for device in self.device_mesh.backend_mesh.devices.flat]
        own = [i for i, process in enumerate(processes) if process == jax.process_index()]
        # One range of equally many devices for each process, so that its part is one slice.
        if not own or len(processes) % len(own) or own != [*range(own[0], own[0] + len(own))]:
            raise ValueError(
                f"Every process must have equally many of the {len(processes)} devices, one after "
                f"the other; process {jax.process_index()} of {jax.process_count()} has {own}."
            )
        self._part, self._parts = own[0] // len(own), len(processes) // len(own)
        self._devices = len(processes)

    def batch_part(self, batch_size: int) -> slice:
        """Return which images of a batch this process gives to ``fit``: all, if it is the only one.

        Args:
            batch_size: Images of the whole batch; a multiple of ``data`` times ``model``.
        """
        if batch_size % self._devices:
            raise ValueError(
                f"batch_size must be a multiple of the mesh's {self._devices} devices; got "
                f"{batch_size}."
            )
        part = batch_size // self._parts
        return slice(self._part * part, (self._part + 1) * part)

    @property
    def class_shards(self) -> int:
        """Devices of a group, over which the classes are split."""
        return self.device_mesh.shape[1]

    def split(self, tensor):
        """Return a tensor with its first axis split over the devices of a group, as the classes."""
        axes = [MODEL] + [None] * (len(tensor.shape) - 1)
        layout = keras.distribution.TensorLayout(axes, self.device_mesh)
        return keras.distribution.distribute_tensor(tensor, layout)

    def get_data_layout(self, data_shape):
        """Return how a tensor of a batch is split: over all devices, over "data", or not at all."""
        images, axes = data_shape[0] * self._parts, [None] * len(data_shape)
        if images % self._devices == 0:
            return _SharedOut(axes, self.device_mesh)
        if self._parts > 1:
            raise ValueError(
                f"Each of {self._parts} processes must give a part of the batch that its own "
                f"{self._devices // self._parts} devices can share out; got {data_shape[0]} images."
            )
        if images % self.num_model_replicas == 0:
            return super().get_data_layout(data_shape)
        return keras.distribution.TensorLayout(axes, self.device_mesh)


class _SharedOut(keras.distribution.TensorLayout):
    """A batch that is split over both axes; Keras's layouts split a dimension over one."""

    @property
    def backend_layout(self):
        import jax

        spec = jax.sharding.PartitionSpec((DATA, MODEL))
        return jax.sharding.NamedSharding(self.device_mesh.backend_mesh, spec)
