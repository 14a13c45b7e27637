"""The tutorial's own setting: Adam with a learning rate of 1e-4, over 30 seeds.

    python -m mnist_cnn.main --config experiments/tutorial.py

Its picture shows a test accuracy of 97.33 % and a test loss of 0.0895 after one epoch, made before
it scaled its inputs to 0..1.
"""

import mnist_cnn


def get_config():
    return mnist_cnn.experiment(name="tutorial", learning_rate=1e-4, num_seeds=30)
