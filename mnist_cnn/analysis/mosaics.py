"""The plots of a report that consist of images: test images, and the filters of the first layer."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mnist_cnn import statistics
from mnist_cnn.analysis.finished_runs import Run, Setting, paired_seeds
from mnist_cnn.analysis.plots import Plot, draw_plot
from mnist_cnn.analysis.theme import Theme

_MAX_DIGITS = 16  # in one plot

Digit = tuple[np.ndarray, str, str]  # uint8 [28, 28], the text above it, the text below it


def worst_mistakes(run: Run) -> Plot:
    """The misclassified images with the lowest probability of their true digit."""
    stored = run.predictions
    # Of several seeds, the mean probability: it is correct on the images that are not stored.
    p = np.exp(statistics.log_probabilities(stored.logits[:, stored.wrong])).mean(0)
    true, predicted = stored.labels[stored.wrong], p.argmax(-1)
    mistakes = np.flatnonzero(predicted != true)
    order = mistakes[np.argsort(p[mistakes, true[mistakes]], kind="stable")][:_MAX_DIGITS]
    digits = [
        (stored.images[i], f"{true[i]} predicted as {guess}", f"{100 * p[i, guess]:.1f} %")
        for i, guess in zip(order, predicted[order], strict=True)
    ]
    caption = (
        f"Misclassified {run.images} whose true digit has the lowest probability. Above each: "
    )
    caption += "the true and the predicted digit; below: the probability of the prediction."
    return _digits("Worst mistakes", caption if digits else "None.", digits)


def changed_predictions(first: Setting, other: Setting) -> Plot:
    """The test images that only one of two settings classifies correctly."""
    seed, other_seed = paired_seeds(first, other)
    gained = corrected_digits(first, seed, other, other_seed, "gained")
    lost = corrected_digits(other, other_seed, first, seed, "lost")
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
    return _digits(title, caption, shown)


def corrected_digits(
    wrong: Setting, wrong_seed: int, correct: Setting, correct_seed: int, note: str
) -> list[Digit]:
    """The test images that `wrong` misclassifies and `correct` classifies correctly."""
    run = wrong.run(wrong_seed)
    stored = run.predictions
    predicted = stored.logits[run.seeds.index(wrong_seed)].argmax(-1)
    changed = np.flatnonzero(~wrong.correct(wrong_seed) & correct.correct(correct_seed))
    return [
        (stored.images[place], f"{stored.labels[i]} predicted as {predicted[i]}", note)
        for i, place in zip(changed, np.searchsorted(stored.wrong, changed), strict=True)
    ]


def _digits(title: str, caption: str, digits: Sequence[Digit]) -> Plot:
    """Images in rows of four; without any, a blank one."""
    digits = digits or [(np.zeros((28, 28), np.uint8), "none", "")]
    width, height = 32, 40
    rows = -(-len(digits) // 4)

    def draw(figure: Figure, theme: Theme) -> None:
        # One pair of axes for all images: the layout of sixteen takes a second.
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        for place, (image, above, below) in enumerate(digits):
            left, top = 2 + place % 4 * width, 6 + place // 4 * height
            axes.imshow(
                image, cmap=theme.digits, vmin=0, vmax=255, interpolation="nearest", aspect="auto",
                extent=(left, left + 28, top + 28, top), zorder=1,
            )  # fmt: skip
            frame = Rectangle((left, top), 28, 28, fill=False, ec=theme.grid, lw=0.8, zorder=2)
            axes.add_patch(frame)
            axes.text(left + 14, top - 1, above, ha="center", va="bottom", fontsize=9.5)
            axes.text(left + 14, top + 28.8, below, ha="center", va="top", fontsize=9)
        axes.set(xlim=(0, 4 * width), ylim=(rows * height, 0))

    return draw_plot(title, caption, draw, 5.4 * rows * height / (4 * width))


def filters(kernels: np.ndarray) -> Plot:
    """The first 64 filters, float [F, H, W], in rows of eight on a scale symmetric about 0."""
    shown = kernels[:64]
    count, height, width = shown.shape
    rows, gap = -(-count // 8), max(1, width // 8)
    mosaic = np.full((rows * (height + gap) - gap, 8 * (width + gap) - gap), np.nan)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        for place, kernel in enumerate(shown):
            row, column = place // 8 * (height + gap), place % 8 * (width + gap)
            mosaic[row : row + height, column : column + width] = kernel
            corner = column - 0.5, row - 0.5
            axes.add_patch(Rectangle(corner, width, height, fill=False, ec=theme.grid, lw=1))
        largest = float(np.abs(shown).max()) or 1.0
        image = axes.imshow(mosaic, cmap=theme.filters, vmin=-largest, vmax=largest)
        axes.axis("off")
        bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.05, aspect=45, pad=0.03)
        bar.set_label("weight")
        bar.outline.set_visible(False)

    number = f"first 64 of the {len(kernels)}" if len(kernels) > 64 else f"{count}"
    caption = f"The {number} filters of the first layer, on one scale."
    return draw_plot(
        "First-layer filters", caption, draw, 5.4 * len(mosaic) / mosaic.shape[1] + 0.7
    )
