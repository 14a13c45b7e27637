"""A sweep of seven learning rates with three seeds each, judged on held-out training images.

    python -m mnist_cnn.main --config experiments/learning_rate_sweep.py --config.num_steps=300

Cost: 4 min on 2 cores of an AMD EPYC; without num_steps each network trains for a whole epoch.

The test images are read for the chosen rate only. `sweep` takes any of
`mnist_cnn.config.VARIABLE`, and `model.FIELD` for a field of an experiment's own module; several of
them span a grid.
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
