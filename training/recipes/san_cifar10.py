"""SAN with pairwise and patchwise attention on CIFAR-10 (report on both, Table 1 and Figure 4).

Command: ``python training/train.py san_cifar10``; ``--model san_proposed_pairwise``,
``san_baseline_patchwise`` and ``san_baseline_pairwise`` for the other rows; ``--data cifar10.npz``
for the file that ``training/cifar10_from_npm.py`` writes, in place of TFDS's.
Hardware: the report says "GPU".
Time: 7 to 42 minutes at the reduced size, one CPU core.
Expected: 75.24 % (proposed, patchwise), 64.22 % (proposed, pairwise), 59.73 and 53.58 % (baseline).
Measured: 27.7 % (pairwise 32.1 %; baselines 25.5 % and 24.6 %) at a reduced size, 390 updates on a
tenth of the images at 16×16 (``run_table.py san --reduced``, docs/results.md).

From the report's own code: SGD at 0.03 with momentum 0.9, no schedule, 250 epochs, batches of 512,
crops with padding, flips, colour jitter 0.2, rotations of 10°, shifts and scales of a tenth.
PyTorch's SGD adds the weight decay of 1e-4 to the gradient, where a momentum of 0.9 repeats it
tenfold; Keras's is decoupled, so it is 1e-3 here. Deviation: brightness moves by up to 0.2 of the
range, where PyTorch's jitter multiplies by up to 1.2.
"""

from training.recipe import Recipe

recipe = Recipe(
    model="san_proposed_patchwise",
    data="tfds:cifar10",
    train_split="train",
    test_split="test",
    image_size=32,
    batch_size=512,
    epochs=250,
    loss="cross_entropy",
    optimizer="sgd",
    learning_rate=0.03,
    schedule="constant",
    momentum=0.9,
    weight_decay=1e-3,
    clip_norm=None,
    augment="images",
    augmentation={"crop_padding": 4, "jitter": 0.2, "rotation": 10, "shift": 0.1, "scale": 0.1},
)
