"""The tutorial's own setting: Adam with a learning rate of 1e-4, over 30 seeds.

    python -m mnist_cnn.main --config experiments/tutorial.py

Result: 97.86 ± 0.10 % test accuracy.
Cost: 17 min on 2 cores of an AMD EPYC.

The tutorial's picture shows a test accuracy of 97.33 % and a test loss of 0.0895 after one epoch.
It was made before the tutorial scaled its inputs to 0..1.
"""

import mnist_cnn


def get_config():
    return mnist_cnn.experiment(name="tutorial", learning_rate=1e-4, num_seeds=30)
