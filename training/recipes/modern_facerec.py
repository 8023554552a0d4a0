"""FaceRec's own proportions with a recipe of ours, on the photographs of a few hundred people.

Command: ``python training/train.py modern_facerec --data faces.csv --images faces.zip
--train-split train --test-split test``
Hardware: a CUDA GPU with ``--precision mixed_bfloat16``.
Time: 16 minutes at the reduced size, one shared CPU core.
Expected: the paper reports 20.36 % on 306 identities.
Measured: not at this size. At 64×64 with 2.0 million parameters, on 306 identities: 33.3 % after 10
epochs (docs/results.md); the same network with ``facerec_small``'s recipe 76.2 % after 40.

Against the paper: CosFace at s 30, Muon for matrices and convolutions, warm-up and cosine, face
augmentation, 112×112 images (49 patches of 16×16, as the paper's 64 of 32×32).
"""

from training.recipe import Recipe

recipe = Recipe(
    model="facerec",
    model_arguments={"patch_size": 16},
    data="faces/",
    image_size=112,
    batch_size=32,
    epochs=60,
    optimizer="muon",
    matrix_learning_rate=2e-3,
    learning_rate=5e-4,
    ema_momentum=0.999,
)
