"""FaceRec as in the paper's first attempt: Figure 3, first value of each pair of braces.

Command: ``python training/train.py facerec_attempt1 --data faces.csv --images faces.zip
--train-split train --test-split test`` (a CSV of files, labels and splits; the paper has 306
CelebA identities, 7,342 training and 1,839 test images of 256×256, which cannot be redistributed).
Hardware: the paper names a T4 GPU.
Time: four hours by the paper; 33 minutes at the reduced size, one CPU core.
Expected: the paper reports 20.36 % top-1 for its second attempt and no figure for this one, only
that the test loss stalled near 5.2.
Measured: not at this size. At an eighth of the widths and 64×64 it collapses: 0.7 % of 306
identities, all embeddings opposite to all centres (docs/results.md).

Ours where the paper is silent: flip as the only augmentation. Adam without weight decay.
"""

from training.recipe import MIRROR_ONLY, Recipe

recipe = Recipe(
    model="facerec",
    data="faces.csv",
    images="faces.zip",
    train_split="train",
    test_split="test",
    image_size=256,
    batch_size=128,
    epochs=12,
    loss="arcface",
    margin=0.5,
    scale=64.0,
    optimizer="adam",
    learning_rate=1e-3,
    beta_2=0.999,
    weight_decay=0.0,
    clip_norm=None,
    schedule="cosine_restarts",
    restart_steps=1000,
    restart_factor=1.0,
    augmentation=MIRROR_ONLY,
    validation_every=1,
)
