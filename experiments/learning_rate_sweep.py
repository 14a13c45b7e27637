"""Which learning rate?  Seven of them, three seeds each, judged on held-out training images.

    python -m mnist_cnn.main --config experiments/learning_rate_sweep.py

The test images are read for the chosen rate alone.  `sweep` takes any number of the recipe
(`mnist_cnn.config.HYPERPARAMETERS`); of several, their grid.
"""

import mnist_cnn


def get_config():
    return mnist_cnn.experiment(
        name="learning_rate_sweep",
        train_split="train[:55000]",
        validation_split="train[55000:]",
        sweep={"learning_rate": [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]},
        num_seeds=3,
    )
