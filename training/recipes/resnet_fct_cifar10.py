"""ResNet-50 with FCT modules on CIFAR-10 (ResNet-FCT paper, Table 1).

Command: ``python training/train.py resnet_fct_cifar10``; ``--model resnet50_fct_ln`` for layer
normalisation, ``--model resnet50_cifar`` for the plain network, ``--model-arguments
weights=imagenet stem=imagenet --image-size 128 --augmentation crop_padding=16`` for ImageNet
weights in the trunk; ``--data cifar10.npz`` for the file that ``training/cifar10_from_npm.py``
writes, in place of TFDS's.
Hardware: the paper names none.
Time: 10 to 12 minutes at the reduced size, one shared CPU core.
Expected: 93.35 % (batch norm), 93.04 % (layer norm), 92.87 % (plain), 95.72 % (pretrained).
Measured: 28.0 % (layer norm 30.9 %) at a reduced size, 390 updates on a tenth of the images at
16×16 (``run_table.py resnet_fct --reduced``, docs/results.md).

As in the paper: Adam at 0.01 with a one-cycle schedule (its reference 26), batches of 128, global
gradient norm 1, 200 epochs, crops with padding, flips in both directions, Kaiming initialisation.
The paper does not say how ImageNet's stem met images of 32×32; enlarged to 128×128 they give the
maps that the other rows have.
Deviation: the weight decay of 1e-4 is decoupled (Keras's), where PyTorch's Adam adds it to the
gradient.
"""

from training.recipe import Recipe

recipe = Recipe(
    model="resnet50_fct",
    data="tfds:cifar10",
    train_split="train",
    test_split="test",
    image_size=32,
    batch_size=128,
    epochs=200,
    loss="cross_entropy",
    optimizer="adam",
    learning_rate=1e-2,
    schedule="one_cycle",
    beta_2=0.999,
    weight_decay=1e-4,
    clip_norm=1.0,
    augment="images",
    augmentation={"crop_padding": 4, "flip_vertical": True},
)
