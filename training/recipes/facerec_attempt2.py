"""FaceRec as in the paper's second attempt: Figure 3, second value of each pair of braces.

Command: ``python training/train.py facerec_attempt2 --data faces.csv --images faces.zip
--train-split train --test-split test`` (data as for ``facerec_attempt1``).
Hardware: the paper names a T4 GPU.
Time: four hours by the paper; 39 minutes at the reduced size, one CPU core.
Expected: 20.36 % top-1 in the paper's Figure 6.
Measured: not at this size. At an eighth of the widths and 64×64 (``run_table.py facerec_306 --rows
facerec_attempt2 --reduced``): 7.2 % of 306 identities, 20.5 % among five (docs/results.md).

"Weight decay of 0.1 to the Adam optimizer" is read as Keras's and PyTorch's decoupled form.
"""

import dataclasses

from training.recipes.facerec_attempt1 import recipe as attempt1

recipe = dataclasses.replace(
    attempt1,
    model="facerec_attempt2",
    epochs=15,
    margin=0.35,
    restart_steps=500,
    optimizer="adamw",
    weight_decay=0.1,
)
