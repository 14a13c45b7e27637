"""Keras 3 with `model.fit`: `python -m benchmarks.peers.keras_fit tensorflow` (or jax)."""

import os
import sys

import numpy as np

os.environ["KERAS_BACKEND"] = sys.argv[1]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
from keras import layers

from benchmarks.peers.serve import serve


class Trainer:
    def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int) -> None:
        self.x, self.y, self.batch_size = images.astype("float32") / 255, labels, batch_size
        self.model = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Conv2D(32, 5, padding="same", activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(64, 5, padding="same", activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(1024, activation="relu"),
                layers.Dense(10),
            ]
        )
        self.model.compile(
            optimizer=keras.optimizers.Adam(1e-3),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )

    def train(self, rows: slice) -> float:
        x, y = self.x[rows], self.y[rows]
        history = self.model.fit(x, y, batch_size=self.batch_size, shuffle=True, verbose=0)
        return history.history["loss"][-1]


if __name__ == "__main__":
    serve(Trainer, "keras", {"tensorflow": "tensorflow-cpu"}.get(sys.argv[1], sys.argv[1]))
