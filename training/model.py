"""The model of a recipe: its network, loss and optimizer, and what it begins with."""

import logging
import pathlib
import warnings

from training.recipe import Recipe

LOG = logging.getLogger(__name__)
_OF_THE_START = 0.05  # share of the initial weights that an average at the end is better without

# Names of the variables that decay: matrices, convolutions and the centres of a margin head. All
# others are vectors, slopes, tokens or tables.
DECAYED = ("kernel", "centers")
# Parts of variable paths. Muon is for matrices and convolutions, and takes nothing but kernels;
# classifiers, pooling and what projects coordinates keep AdamW.
NOT_ORTHOGONALISED = ["predictions", "pooling", "position"]
# Images of a class, where it has so many, whose mean embedding its centre begins with.
IMPRINTED = 16


def build_loss(recipe: Recipe):
    """Return the recipe's loss."""
    import keras

    from keras_hybrid import losses

    if recipe.loss == "cross_entropy":
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=recipe.label_smoothing
        )
    if recipe.loss == "softmax":
        return losses.CosFace(margin=0.0, scale=recipe.scale)
    kind = {
        "arcface": losses.ArcFace,
        "cosface": losses.CosFace,
        "sphereface": losses.SphereFace,
        "curricularface": losses.CurricularFace,
        "adaface": losses.AdaFace,
    }[recipe.loss]
    margin = {} if recipe.margin is None else {"margin": recipe.margin}
    return kind(scale=recipe.scale, **margin)


def build_optimizer(recipe: Recipe, steps_per_epoch: int):
    """Return the recipe's optimizer with its learning-rate schedule."""
    import keras

    from keras_hybrid.optimizers import Muon

    _note_what_does_not_end(recipe, recipe.epochs * steps_per_epoch)
    # Muon's own rate is the matrices'; what AdamW updates beside it has a share of that rate.
    is_muon = recipe.optimizer == "muon"
    peak = recipe.matrix_learning_rate if is_muon else recipe.learning_rate
    if recipe.schedule == "cosine":
        total = recipe.epochs * steps_per_epoch
        warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total - 1)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else peak,
            total - warmup,
            warmup_target=peak if warmup else None,
            warmup_steps=warmup,
        )
    elif recipe.schedule == "one_cycle":
        total = recipe.epochs * steps_per_epoch
        warmup = min(round(0.3 * total), total - 1)
        rate = keras.optimizers.schedules.CosineDecay(
            peak / 25, total - warmup, alpha=4e-6, warmup_target=peak, warmup_steps=warmup
        )
    elif recipe.schedule == "cosine_restarts":
        rate = keras.optimizers.schedules.CosineDecayRestarts(
            peak, recipe.restart_steps, t_mul=recipe.restart_factor
        )
    else:
        rate = peak
    common = {
        "learning_rate": rate,
        "weight_decay": recipe.weight_decay or None,
        "global_clipnorm": recipe.clip_norm,
    }
    if recipe.gradient_accumulation_steps > 1:
        batches = recipe.epochs * steps_per_epoch
        if recipe.gradient_accumulation_steps > batches:
            raise ValueError(
                f"gradient_accumulation_steps={recipe.gradient_accumulation_steps} is more than "
                f"the run's {batches} batches: there would be no update."
            )
        common["gradient_accumulation_steps"] = recipe.gradient_accumulation_steps
    if recipe.ema_momentum is not None:
        common |= {"use_ema": True, "ema_momentum": recipe.ema_momentum}
    if is_muon:
        share = recipe.learning_rate / recipe.matrix_learning_rate
        common["weight_decay"] = recipe.matrix_weight_decay
        return Muon(
            adam_beta_2=recipe.beta_2,
            adam_lr_ratio=share,
            adam_weight_decay=recipe.weight_decay * share,
            exclude_layers=NOT_ORTHOGONALISED,
            exclude_embeddings=False,  # Keras means tables; ours is the projection of a face
            **common,
        )
    if recipe.optimizer == "sgd":
        return keras.optimizers.SGD(momentum=recipe.momentum, **common)
    kind = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[recipe.optimizer]
    if recipe.optimizer == "adamw":
        common["weight_decay"] = recipe.weight_decay
    return kind(beta_2=recipe.beta_2, **common)


def _note_what_does_not_end(recipe: Recipe, steps: int) -> None:
    """Say where a run is too short for what its recipe begins with."""
    if recipe.schedule == "cosine" and recipe.warmup_epochs >= recipe.epochs:
        LOG.warning(
            "warmup_epochs=%g is all of the run's %d epochs: it ends at the highest learning rate. "
            "Give fewer --warmup-epochs.",
            recipe.warmup_epochs,
            recipe.epochs,
        )
    if recipe.ema_momentum is not None and recipe.ema_momentum**steps > _OF_THE_START:
        LOG.warning(
            "ema_momentum=%g over %d steps: %.0f %% of the average that is validated and kept are "
            "the initial weights. Give a lower --ema-momentum, such as %.3g, or none.",
            recipe.ema_momentum,
            steps,
            100 * recipe.ema_momentum**steps,
            0.01 ** (1 / steps),
        )


def without_weight_decay(model) -> list:
    """Return the variables that must not decay, such as biases, class tokens and tables."""
    return [v for v in model.trainable_variables if v.name not in DECAYED]


def build_model(recipe: Recipe, classes: int, steps_per_epoch: int):
    """Return the recipe's compiled model.

    Raises:
        ValueError: If the recipe does not fit the model or the number of classes.
    """
    import keras

    import keras_hybrid as kh

    check_classes(recipe, classes)
    is_margin = recipe.loss != "cross_entropy"
    arguments = {
        "classes": classes,
        "input_shape": (recipe.image_size, recipe.image_size, 3),
        "classifier": "cosine" if is_margin else "dense",
        "classifier_activation": None,
        "remat": recipe.remat,
        **recipe.model_arguments,
    }
    try:
        if recipe.sampling_rate < 1:
            model = _with_sampled_classes(recipe, arguments)
        else:
            model = kh.create_model(recipe.model, **arguments)
    except TypeError as error:
        if not recipe.model_arguments:
            raise
        raise ValueError(
            f"model_arguments={recipe.model_arguments} do not fit {recipe.model}: {error}"
        ) from error
    optimizer = build_optimizer(recipe, steps_per_epoch)
    if recipe.weight_decay:
        optimizer.exclude_from_weight_decay(var_list=without_weight_decay(model))
    metrics = ["accuracy"]
    if is_margin:
        metrics.append(kh.metrics.MeanTargetCosine(name="target_cosine"))
    elif classes > 5:
        metrics.append(keras.metrics.TopKCategoricalAccuracy(5, name="top5"))
    model.compile(optimizer, loss=build_loss(recipe), metrics=metrics)
    # Not by `compile`, whose arguments go into the file: PyTorch would refuse to predict with it.
    model.steps_per_execution = recipe.steps_per_execution
    return model


def begin_with_trained(recipe: Recipe, model, train) -> None:
    """Give a model the recipe's initial weights, if it has any, and say which layers have none.

    Centres of classes that are not the file's begin with the mean embedding of the class
    (``keras_hybrid.transfer.imprint``). Which classes the file has says the ``results.json`` of its
    run beside it; without one, as many classes are the same ones.

    Args:
        recipe: Whose ``initial_weights`` are a .keras file.
        model: What `build_model` made of it.
        train: Its training images, as `training.train.load_data` gives them.

    Raises:
        ValueError: If the file cannot be loaded, or none of its layers fits.
    """
    if recipe.initial_weights is None:
        return
    import keras_hybrid as kh
    from keras_hybrid.cli.reading import load_model, recorded_classes

    path = pathlib.Path(recipe.initial_weights)
    source = load_model(path)
    head = model.layers[-1]
    first = head.get_weights()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "These layers")  # they are named below
        left = kh.transfer_weights(source, model, skip_mismatch=True)
    layers = [layer.name for layer in model.layers if layer.weights]
    if len(left) == len(layers):
        raise ValueError(
            f"initial_weights={str(path)!r}: no layer of model {source.name!r} fits one of "
            f"{model.name!r}."
        )
    names = recorded_classes(path)
    if names and head.name not in left and names != [str(name) for name in train.class_names]:
        head.set_weights(first)
        left.append(head.name)
    rest = f"; {len(left)} begin anew: {', '.join(left)}" if left else ""
    print(
        f"{len(layers) - len(left)} of {len(layers)} layers have weights of {path}{rest}.",
        flush=True,
    )
    if head.name in left and recipe.loss != "cross_entropy":
        kh.transfer.imprint(model, *_class_means(recipe, model, train))
        print(f"Classes begin with the mean embedding of {IMPRINTED} images each.", flush=True)


def _class_means(recipe: Recipe, model, train):
    """Return the mean embedding of each class that has images, and the classes."""
    import keras
    import numpy as np

    import keras_hybrid as kh

    embedder = kh.applications.embedding_model(model)
    drawn = kh.data.sample_per_class(train, IMPRINTED, recipe.seed)
    is_lazy = recipe.reading == "lazy"
    batches = kh.data.Batches(
        drawn if is_lazy else train.images[drawn.indices],
        drawn.labels,
        recipe.batch_size,
        shuffle=False,
        image_size=recipe.image_size if is_lazy else None,
        workers=recipe.workers,
        landmarks=drawn.landmarks if recipe.takes_landmarks else None,
    )
    sums = np.zeros((len(train.class_names), embedder.output_shape[-1]))
    for images, labels in batches:
        short = recipe.batch_size - len(labels)
        # All batches of one size: a backend that compiles does so once, a mesh can share it out.
        padded = keras.tree.map_structure(
            lambda x, short=short: np.concatenate([x, np.repeat(x[-1:], short, axis=0)]), images
        )
        np.add.at(sums, labels, np.asarray(embedder.predict_on_batch(padded))[: len(labels)])
    classes = np.flatnonzero(np.linalg.norm(sums, axis=1) > 0)
    return sums[classes], classes


def _with_sampled_classes(recipe: Recipe, arguments: dict):
    """Return the model with a head that trains against a sample of the classes."""
    import keras_hybrid as kh

    head = kh.layers.PartialCosineClassifier(
        arguments["classes"],
        recipe.sampling_rate,
        arguments.pop("centers_per_class", 1),
        seed=recipe.seed,
        name="predictions",
    )
    trunk = kh.create_model(recipe.model, include_top=False, pooling="native", **arguments)
    inputs = trunk.inputs if len(trunk.inputs) > 1 else trunk.inputs[0]
    return kh.applications.MarginModel(inputs, head(trunk.output), name=trunk.name)


def check_classes(recipe: Recipe, classes: int) -> None:
    """Look at what does not fit the number of classes, which is known before images are read.

    Raises:
        ValueError: If the mesh or a sample of the identities does not fit it.
    """
    import keras_hybrid as kh

    if classes % recipe.mesh_axes.get("model", 1):
        raise ValueError(
            f"The mesh's model must divide the number of identities, {classes}; got "
            f"mesh={recipe.mesh!r}."
        )
    if recipe.sampling_rate < 1:
        shards = recipe.mesh_axes.get("model", 1)
        head = kh.layers.PartialCosineClassifier(classes, recipe.sampling_rate, shards=shards)
        if head.sampled // shards < recipe.batch_size:
            raise ValueError(
                f"sampling_rate {recipe.sampling_rate:g} of {classes} identities is "
                f"{head.sampled // shards} a step{' on each part of the mesh' * (shards > 1)}, "
                f"fewer than a batch of {recipe.batch_size} may have: raise sampling_rate or lower "
                "batch_size."
            )


def check_model(recipe: Recipe) -> None:
    """Look at what can be wrong with a recipe's model before it is built.

    Raises:
        ValueError: If the model is not registered, has no such arguments or no attention for
            ``remat``, there is no file of initial weights, or the backend takes one step at a time.
    """
    import keras

    import keras_hybrid as kh
    from keras_hybrid.applications.registry import model_signature

    if recipe.steps_per_execution > 1 and keras.backend.backend() == "torch":
        raise ValueError(
            "steps_per_execution must be 1 with the PyTorch backend; got "
            f"{recipe.steps_per_execution}."
        )

    parameters = model_signature(recipe.model).parameters
    unknown = sorted(recipe.model_arguments.keys() - {*parameters, "remat"})
    if unknown:
        raise ValueError(
            f"model_arguments has {', '.join(unknown)}; {recipe.model} takes "
            f"{', '.join(parameters)}."
        )
    arguments = {"remat": recipe.remat, **recipe.model_arguments}
    if arguments["remat"]:  # whether there is attention is known of a model that is built
        size = recipe.image_size
        kh.create_model(recipe.model, **{"input_shape": (size, size, 3), **arguments})
    weights = recipe.initial_weights
    if weights is not None and not pathlib.Path(weights).is_file():
        raise ValueError(f"initial_weights must be an existing .keras file; got {weights!r}.")
