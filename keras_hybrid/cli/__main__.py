"""``python -m keras_hybrid.cli``: the command line where no script is installed."""

import sys

from keras_hybrid.cli import main

sys.exit(main())
