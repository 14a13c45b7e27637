"""The plots of a report that consist of images: test images, and the filters of the first layer."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mnist_cnn import statistics
from mnist_cnn.analysis.comparison import paired_seeds
from mnist_cnn.analysis.finished_runs import Run
from mnist_cnn.analysis.plots import Plot, draw_plot, short
from mnist_cnn.analysis.run_settings import Setting
from mnist_cnn.analysis.theme import Theme
from mnist_cnn.data.doubtful import MEANING

_MAX_DIGITS = 16  # in one plot


class Captioned(NamedTuple):
    """An image with the texts above and below it."""

    image: np.ndarray  # uint8 [H, W] or [H, W, 3]
    above: str
    below: str
    doubtful: bool = False  # whether its label is in doubt


def worst_mistakes(run: Run) -> Plot:
    """The misclassified images with the lowest probability of their true class."""
    stored = run.predictions
    # Of several seeds, the mean probability: it is correct on the images that are not stored.
    p = np.exp(statistics.log_probabilities(stored.logits[:, stored.wrong])).mean(0)
    true, predicted = stored.labels[stored.wrong], p.argmax(-1)
    mistakes = np.flatnonzero(predicted != true)
    order = mistakes[np.argsort(p[mistakes, true[mistakes]], kind="stable")][:_MAX_DIGITS]
    shown = [
        _captioned(run, stored.wrong[i], predicted[i], f"{100 * p[i, predicted[i]]:.1f} %")
        for i in order
    ]
    noun = run.spec.noun
    caption = f"Misclassified {run.images} whose true {noun} has the lowest probability. "
    if run.spec.is_digits:
        caption += "Above each: the true and the predicted digit; below: the probability of the "
        caption += "prediction."
    else:
        caption += "Above each: the true class; below: the predicted one and its probability."
    return image_grid("Worst mistakes", caption if shown else "None.", shown)


def _captioned(run: Run, index: np.integer, guess: np.integer, note: str) -> Captioned:
    """A stored image with its true and its predicted class, shortened to the space there is."""
    stored = run.predictions
    image, true = stored.images[np.searchsorted(stored.wrong, index)], stored.labels[index]
    if run.spec.is_digits:
        doubtful = bool((run.doubtful == index).any())
        return Captioned(image, f"{true}{'?' * doubtful} predicted as {guess}", note, doubtful)
    names = run.spec.class_names
    return Captioned(image, short(names[true], 18), f"{short(names[guess], 12)}, {note}")


def changed_predictions(first: Setting, other: Setting) -> Plot:
    """The test images that only one of two settings classifies correctly."""
    seed, other_seed = paired_seeds(first, other)
    gained = corrected_images(first, seed, other, other_seed, "gained")
    lost = corrected_images(other, other_seed, first, seed, "lost")
    shown = gained[: max(_MAX_DIGITS // 2, _MAX_DIGITS - len(lost))]
    shown += lost[: _MAX_DIGITS - len(shown)]
    caption = (
        f"{len(gained):,} images that {first.label} misclassifies and {other.label} classifies "
        f"correctly (gained), {len(lost):,} the other way round (lost); seeds {seed} and "
        f"{other_seed}. Each with the wrong prediction; the first of each kind in the order of "
        "the images."
    )
    if first.num_folds:
        caption = f"{first.runs[0].images.capitalize()}: {caption}"
    title = f"Changed predictions: {first.label} \N{RIGHTWARDS ARROW} {other.label}"
    return image_grid(title, caption, shown)


def corrected_images(
    wrong: Setting, wrong_seed: int, correct: Setting, correct_seed: int, note: str
) -> list[Captioned]:
    """The test images that `wrong` misclassifies and `correct` classifies correctly."""
    run = wrong.run(wrong_seed)
    stored = run.predictions
    predicted = stored.logits[run.seeds.index(wrong_seed)].argmax(-1)
    changed = np.flatnonzero(~wrong.correct(wrong_seed) & correct.correct(correct_seed))
    return [_captioned(run, i, predicted[i], note) for i in changed]


def image_grid(title: str, caption: str, images: Sequence[Captioned]) -> Plot:
    """Images in rows of four, in squares of 28 units; without any, a blank one.

    Those whose label is in doubt have a thick frame, which the caption explains.
    """
    if any(one.doubtful for one in images):
        caption += f" A question mark and a thick frame: {MEANING}."
    images = images or [Captioned(np.zeros((28, 28), np.uint8), "none", "")]
    width, height = 32, 40
    rows = -(-len(images) // 4)

    def draw_images(figure: Figure, theme: Theme) -> None:
        # One pair of axes for all images: the layout of sixteen takes a second.
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        for place, (image, above, below, doubtful) in enumerate(images):
            left, top = 2 + place % 4 * width, 6 + place // 4 * height
            high, wide = (28 * length / max(image.shape[:2]) for length in image.shape[:2])
            x, y = left + (28 - wide) / 2, top + (28 - high) / 2
            axes.imshow(
                image, cmap=theme.digits, vmin=0, vmax=255, interpolation="nearest", aspect="auto",
                extent=(x, x + wide, y + high, y), zorder=1,
            )  # fmt: skip
            colour, line = (theme.series[1], 2.5) if doubtful else (theme.grid, 0.8)
            frame = Rectangle((x, y), wide, high, fill=False, ec=colour, lw=line, zorder=2)
            axes.add_patch(frame)
            axes.text(left + 14, top - 1, above, ha="center", va="bottom", fontsize=9.5)
            axes.text(left + 14, top + 28.8, below, ha="center", va="top", fontsize=9)
        axes.set(xlim=(0, 4 * width), ylim=(rows * height, 0))

    return draw_plot(title, caption, draw_images, 5.4 * rows * height / (4 * width))


def filters(kernels: np.ndarray) -> Plot:
    """The first 64 filters, in rows of eight on a scale symmetric about 0.

    They are float [F, H, W] or, of colours, [F, H, W, 3]: shown as colours, with grey as 0.
    """
    shown = kernels[:64]
    (count, height, width), colours = shown.shape[:3], shown.shape[3:]
    rows, gap = -(-count // 8), max(1, width // 8)
    mosaic = np.full((rows * (height + gap) - gap, 8 * (width + gap) - gap, *colours), np.nan)
    largest = float(np.abs(shown).max()) or 1.0

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        for place, kernel in enumerate(shown):
            row, column = place // 8 * (height + gap), place % 8 * (width + gap)
            mosaic[row : row + height, column : column + width] = kernel
            corner = column - 0.5, row - 0.5
            axes.add_patch(Rectangle(corner, width, height, fill=False, ec=theme.grid, lw=1))
        axes.axis("off")
        if colours:
            between = np.isnan(mosaic[..., :1])
            scaled = np.nan_to_num(0.5 + mosaic / (2 * largest))
            axes.imshow(np.concatenate([scaled, 1.0 - between], -1))
            return
        image = axes.imshow(mosaic, cmap=theme.filters, vmin=-largest, vmax=largest)
        bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.05, aspect=45, pad=0.03)
        bar.set_label("weight")
        bar.outline.set_visible(False)

    number = f"first 64 of the {len(kernels)}" if len(kernels) > 64 else f"{count}"
    caption = f"The {number} filters of the first layer, on one scale"
    caption += f", as colours: grey is 0, white {largest:.2g}." if colours else "."
    return draw_plot(
        "First-layer filters", caption, draw, 5.4 * len(mosaic) / mosaic.shape[1] + 0.7
    )
