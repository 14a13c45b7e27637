"""Small datasets of other forms than MNIST's: other sizes, colours, numbers of classes, names."""

import numpy as np
from PIL import Image

from mnist_cnn.data.spec import DataSpec

GREY = DataSpec((12, 10, 1), ("0", "1", "2"))
# Names as folders may have them: long ones, markup, a character that is not printed as it is.
_ODD = ("$x$", "<b>bag", "a name of thirty-one characters")
COLOURED = DataSpec((16, 16, 3), (*_ODD, *(f"kind {n}" for n in range(9))))
COUNTS = {"train": 30, "test": 10}  # of each class


def examples(spec, part):
    """Images uint8 [N, H, W, C] and labels [N]: of each class a pattern of its own, with noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (spec.num_classes, *spec.image_shape))
    labels = np.tile(np.arange(spec.num_classes), COUNTS[part])
    noise = np.random.default_rng(len(part)).integers(0, 56, (len(labels), *spec.image_shape))
    return (patterns[labels] + noise).astype(np.uint8), labels.astype(np.uint8)


def make_manual_dir(folder, spec):
    """Writes a manual_dir: IDX files if the classes are numbers, else a folder of each class."""
    folder.mkdir()
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = examples(spec, part)
        if spec == GREY:
            header = np.array([2051, *images.shape[:3]], ">i4").tobytes()
            (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            header = np.array([2049, len(labels)], ">i4").tobytes()
            (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
            continue
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / part / spec.class_names[label] / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze()).save(path)
    return folder
