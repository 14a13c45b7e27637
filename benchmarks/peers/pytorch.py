"""PyTorch with its fused Adam, on a GPU if there is one.

The argument `channels_last` selects that memory format, `compiled` selects CUDA graphs.
"""

import sys

import numpy as np
import torch
from torch import nn

from benchmarks.peers.serve import serve

FORMAT = torch.channels_last if "channels_last" in sys.argv else torch.contiguous_format
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cuda":
    torch.set_float32_matmul_precision("high")  # TF32, as JAX does by default


class Trainer:
    def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int) -> None:
        torch.manual_seed(0)
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        self.images = pixels.to(DEVICE, memory_format=FORMAT)
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(DEVICE)
        self.batch_size = batch_size
        self.model = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 1024),
            nn.ReLU(),
            nn.Linear(1024, 10),
        ).to(DEVICE, memory_format=FORMAT)
        self.forward = self.model
        if "compiled" in sys.argv:
            self.forward = torch.compile(self.model, mode="reduce-overhead")
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)

    def train(self, rows: slice) -> float:
        total = torch.zeros((), device=DEVICE)
        order = rows.start + torch.randperm(rows.stop - rows.start, device=DEVICE)
        for index in order.split(self.batch_size):
            loss = self.loss(self.forward(self.images[index]), self.labels[index])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return total.item() / (len(order) // self.batch_size)


if __name__ == "__main__":
    serve(Trainer, "torch")
