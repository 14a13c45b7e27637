"""Ten networks of accuracy.py, of ten seeds, and the mean of their probabilities.

    python -m mnist_cnn.main --config experiments/ensemble.py --workdir runs/ensemble

The result has both: each network's figures, and all of them as one ensemble.  The first five are
those of accuracy.py, bit for bit.
"""

import pathlib
import runpy


def get_config():
    config = runpy.run_path(pathlib.Path(__file__).with_name("accuracy.py"))["get_config"]()
    config.update(name="ensemble", num_seeds=10)
    return config
