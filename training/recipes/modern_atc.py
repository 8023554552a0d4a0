"""ATC with a recipe of ours: the report's architecture, everything that helps small images.

Command: ``python training/train.py modern_atc``; ``--model atc_15`` for the largest.
Hardware: a CUDA GPU with ``--precision mixed_bfloat16``.
Time: 11 minutes (ATC-3) at the reduced size, one shared CPU core.
Expected: nothing published for this recipe.
Measured: 10.96 % (plain recipe: 20.48 %) on 100 classes of Tiny-ImageNet at 32×32 after 5 epochs,
one seed: ``benchmarks/results/modern.csv``.

Against ``atc_cifar100``: MixUp or CutMix, RandAugment, an average of the weights, 300 epochs.
"""

import dataclasses

from training.recipes.atc_cifar100 import recipe as plain

recipe = dataclasses.replace(
    plain,
    epochs=300,
    ema_momentum=0.999,
    augmentation={
        "crop_padding": 4,
        "rand_augment": 9.0,
        "erasing": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
)
