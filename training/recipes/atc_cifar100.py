"""ATC and CvT on CIFAR-100 (ATC report, Tables 3 to 6), one recipe for all of them.

Command: ``python training/train.py atc_cifar100``; ``--model cvt_13_32``, ``atc_15``, ``atc_3_res``
and so on for the other rows, or ``python training/run_table.py atc`` for all.
Hardware: the report names none. On a CPU: a smaller image set with ``--data`` and ``--epochs``.
Time: 9 minutes (ATC-3) and 48 to 75 (ATC-13) at the reduced size, one CPU core.
Expected: 71.44 % for ATC-3, 73.93 % for CvT-13, 80.32 % for ATC-15 by the report.
Measured: not on CIFAR-100. On 100 classes of Tiny-ImageNet at 32×32, 5 epochs: ATC-13
20.5 ± 0.3 %, CvT-13 18.7 ± 0.1 % (three seeds, ``benchmarks/results/atc.csv``), and the ablation
(``benchmarks/results/atc_ablation.csv``).

The report gives no hyperparameters, so that all of these are ours: AdamW, warm-up and cosine, crops
with padding, flips, erasing, label smoothing.
"""

from training.recipe import Recipe

recipe = Recipe(
    model="atc_3",
    data="tfds:cifar100",
    train_split="train",
    test_split="test",
    image_size=32,
    batch_size=128,
    epochs=200,
    loss="cross_entropy",
    label_smoothing=0.1,
    optimizer="adamw",
    learning_rate=1e-3,
    beta_2=0.999,
    weight_decay=0.05,
    warmup_epochs=10.0,
    clip_norm=1.0,
    augment="images",
    augmentation={"crop_padding": 4, "erasing": 0.25},
)
