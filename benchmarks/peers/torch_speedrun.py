"""99 % on MNIST with PyTorch; prints the test accuracy.

    python -m benchmarks.peers.torch_speedrun published|ours [SEED]

`published` is the recipe of https://github.com/tuomaso/train_mnist_fast, `ours` the one of
experiments/speedrun.py.
"""

import sys

import numpy as np
import torch
from torch import nn

from benchmarks.peers.serve import read


def load(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels 0..1, float32 [N, 1, 28, 28], and labels [N]."""
    pixels = read(f"{part}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)
    labels = read(f"{part}-labels-idx1-ubyte", 8)
    return torch.from_numpy(pixels / np.float32(255)), torch.from_numpy(labels.astype(np.int64))


def published() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 24, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def gabor() -> np.ndarray:
    """16 Gabor filters of 6 x 6 pixels, as weights [16, 4, 3, 3] for blocks of 2 x 2."""
    y, x = np.mgrid[-2.5:3.0, -2.5:3.0]
    envelope = np.exp(-(x**2 + y**2) / 8)
    edges, lines = ([a * np.pi * i / n for i in range(n)] for a, n in ((2, 8), (1, 4)))
    odd = [np.sin(1.4 * (x * np.cos(a) + y * np.sin(a))) * envelope for a in edges]
    even = [np.cos(1.4 * (x * np.cos(a) + y * np.sin(a))) * envelope for a in lines]
    even = [wave - envelope * wave.sum() / envelope.sum() for wave in even]
    bank = np.stack([*odd, *even, *(-wave for wave in even)])
    bank /= np.sqrt((bank**2).sum((1, 2), keepdims=True))
    return bank.reshape(16, 3, 2, 3, 2).transpose(0, 2, 4, 1, 3).reshape(16, 4, 3, 3)


def ours() -> nn.Module:
    fixed = nn.Conv2d(4, 16, 3).requires_grad_(False)
    fixed.weight.copy_(torch.from_numpy(gabor()))
    fixed.bias.fill_(-0.2)
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        fixed,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 48, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(768, 160),
        nn.ReLU(),
        nn.Linear(160, 10),
    )


def main() -> None:
    name, seed = sys.argv[1], int((*sys.argv, "0")[2])
    torch.manual_seed(seed)
    images, labels = load("train")
    if name == "published":
        model, batch_size, steps, smoothing = published(), 256, -(-len(labels) // 256), 0.0
        mean, scale, warm_up = 0.1307, 0.3081, 0.3
    else:
        model, batch_size, steps, smoothing = ours(), 128, 300, 0.15
        mean, scale, warm_up = 0.0, 1.0, 0.1
    images = (images - mean) / scale
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=steps, pct_start=warm_up, cycle_momentum=False
    )
    for index in torch.randperm(len(labels)).split(batch_size)[:steps]:
        optimizer.zero_grad(set_to_none=True)
        loss(model(images[index]), labels[index]).backward()
        optimizer.step()
        schedule.step()
    images, labels = load("t10k")
    with torch.inference_mode():
        parts = ((images - mean) / scale).split(1000)
        right = sum(
            int((model(part).argmax(1) == wanted).sum())
            for part, wanted in zip(parts, labels.split(1000), strict=True)
        )
    print(right / len(labels))


if __name__ == "__main__":
    main()
