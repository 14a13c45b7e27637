"""PyTorch with its fused Adam, on a GPU if there is one.

The arguments: `channels_last` selects that memory format, `bfloat16` autocast, `compiled`
torch.compile (on a GPU with CUDA graphs), and a name the network, as in `plain.py`.
"""

import functools
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from benchmarks.peers.serve import serve

FORMAT = torch.channels_last if "channels_last" in sys.argv else torch.contiguous_format
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cuda":
    torch.set_float32_matmul_precision("high")  # TF32, as JAX does by default


def pooled(size: int, hidden: int) -> list[nn.Module]:
    return [
        *(nn.Conv2d(1, 32, size, padding=size // 2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, size, padding=size // 2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
    ]


def mobile() -> list[nn.Module]:
    def layer(inputs: int, outputs: int, size: int, **options: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **options)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    return [
        *layer(1, 32, 3, stride=2),
        *layer(32, 32, 3, groups=32),
        *layer(32, 64, 1),
        nn.AvgPool2d(2),
        *layer(64, 64, 3, stride=2),
        *(nn.Flatten(), nn.Linear(64 * 4 * 4, 10)),
    ]


def accurate() -> list[nn.Module]:
    def layer(inputs: int, outputs: int, size: int, padding: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, size, padding=padding)
        return [conv, nn.ReLU(), nn.BatchNorm2d(outputs)]

    return [
        *(*layer(1, 16, 5, 2), nn.MaxPool2d(2), *layer(16, 48, 3, 1)),
        *(*layer(48, 48, 3, 1), nn.MaxPool2d(2), nn.Dropout(0.3)),
        *(*layer(48, 96, 3, 1), *layer(96, 96, 3, 0), nn.Dropout(0.3)),
        *(nn.Flatten(), nn.Linear(96 * 5 * 5, 10)),
    ]


NETWORKS: dict[str, Callable[[], list[nn.Module]]] = {
    "tutorial": functools.partial(pooled, 5, 1024),
    "small": functools.partial(pooled, 3, 128),
    "mobile": mobile,
    "accurate": accurate,
}


class Trainer:
    def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int) -> None:
        torch.manual_seed(0)
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        self.images = pixels.to(DEVICE, memory_format=FORMAT)
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(DEVICE)
        self.batch_size = batch_size
        make = NETWORKS[next((name for name in sys.argv if name in NETWORKS), "tutorial")]
        self.model = nn.Sequential(*make()).to(DEVICE, memory_format=FORMAT)
        self.forward = self.model
        if "compiled" in sys.argv:
            mode = "reduce-overhead" if DEVICE == "cuda" else "default"
            self.forward = torch.compile(self.model, mode=mode)
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)

    def train(self, rows: slice) -> float:
        total = torch.zeros((), device=DEVICE)
        order = rows.start + torch.randperm(rows.stop - rows.start, device=DEVICE)
        for index in order.split(self.batch_size):
            with torch.autocast(DEVICE, torch.bfloat16, enabled="bfloat16" in sys.argv):
                loss = self.loss(self.forward(self.images[index]), self.labels[index])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return total.item() / (len(order) // self.batch_size)


if __name__ == "__main__":
    serve(Trainer, "torch")
