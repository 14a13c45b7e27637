"""The page that compares settings by their finished runs."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mnist_cnn import statistics
from mnist_cnn.analysis import (
    comparison,
    cross_validation_page,
    mosaics,
    pages,
    plots,
    run_settings,
    sweep_plots,
)
from mnist_cnn.analysis.comparison import Comparison
from mnist_cnn.analysis.run_settings import Setting


def comparison_page(settings: Sequence[Setting], pairs: bool = False) -> tuple[str, list[str]]:
    """The page that compares settings by their finished runs, and its sentences."""
    runs = [(setting, run) for setting in settings for run in setting.runs]
    others = [(setting, run) for setting, run in runs if not run.tested]
    tested = [
        dataclasses.replace(setting, runs=finished)
        for setting in settings
        if (finished := [run for run in setting.runs if run.tested])
    ]
    compared = comparison.compare_all(tested, pairs)
    rows = []
    for setting in tested:
        accuracy = pages.percent(*setting.mean_accuracy())
        folds = [len(setting.folds)] if setting.num_folds else []
        seeds = ", ".join(map(str, setting.seeds))
        rows.append([setting.label, seeds, *folds, accuracy, *_other_means(setting)])
    for setting, run in others:
        folds = [run.config["fold"]] if setting.num_folds else []
        rows.append([setting.label, ", ".join(map(str, run.seeds)), *folds, pages.status(run)])
    name = settings[0].tested_name
    head = ["setting", "seeds", *["folds"] * bool(settings[0].num_folds), f"{name} accuracy"]
    head += ["NLL", "ECE"]
    if tested and len(doubtful := tested[0].runs[0].doubtful):
        head.append(f"without {len(doubtful)} doubtful labels")
    heading, sentences = "Not compared", [_sentence(one, len(compared)) for one in compared]
    shown = []
    if not compared:
        sentences = ["Fewer than two settings have a test result, so nothing is compared."]
    elif pairs:
        heading = f"{', '.join(setting.label for setting in tested)} compared in pairs"
        differences = [
            (f"{x.first.label} \N{RIGHTWARDS ARROW} {x.other.label}", x.difference)
            for x in compared
        ]
        shown = [plots.differences("Differences of the second from the first", differences, name)]
    else:
        heading = f"{', '.join(x.other.label for x in compared)} compared with {tested[0].label}"
        differences = [(x.other.label, x.difference) for x in compared]
        shown = [plots.differences(f"Difference from {tested[0].label}", differences, name)]
    missing = filter(None, map(cross_validation_page.missing_folds, tested))
    sentences += [*_notes(compared), *missing, *(run.note for _, run in others)]
    shown += sweep_plots.error_across_settings(tested)
    unfinished = [
        curves
        for setting, run in others
        for curves in run_settings.curves_of(run, f"{setting.label} ({pages.status(run)})")
    ]
    shown += pages.curves([*tested, *unfinished])
    for one in compared:
        pair = one.first, one.other
        if one.first.num_folds:
            pair = comparison.shared_folds(*pair)[0]
        shown.append(mosaics.changed_predictions(*pair))
    page = pages.page(
        " / ".join(setting.label for setting in settings),
        heading,
        f"{pages.points(compared[0].difference.mean)} points" if len(compared) == 1 else "",
        sentences,
        [
            pages.table(rows, head, "numbers"),
            *(cross_validation_page.fold_table(setting) for setting in tested if setting.num_folds),
            pages.grid(shown),
            *(part for _, run in runs for part in pages.provenance(run)),
        ],
    )
    return page, sentences


def _other_means(setting: Setting) -> list[str]:
    """Negative log-likelihood and calibration error, and the accuracy without doubtful labels."""
    runs, networks = setting.runs, [len(run.seeds) for run in setting.runs]
    likelihoods = [run.negative_log_likelihood for run in runs]
    errors = [run.calibration_error for run in runs]
    shown = [f"{np.average(one, weights=networks):.4f}" for one in (likelihoods, errors)]
    if len(runs[0].doubtful):
        accuracies = np.concatenate([run.accuracies_undoubted for run in runs])
        shown.append(pages.percent(accuracies.mean(), statistics.mean_interval(accuracies)))
    return shown


def _sentence(found: Comparison, comparisons: int) -> str:
    """A comparison, one of a number, in words."""
    difference = found.difference
    interval = f"{pages.points(difference.low)} to {pages.points(difference.high)}"
    if not statistics.is_possible(difference.low, difference.high, minimum=-1):
        interval = "unknown (too few seeds)"
    p, level = f"p = {difference.p:.2g}", f"{statistics.LEVEL:.0%}".replace("%", " %")
    if comparisons > 1:
        p, level = f"{p}, corrected {found.corrected_p:.2g}", f"{level} / {comparisons}"
    text = (
        f"{found.other.label} compared with {found.first.label}: {pages.points(difference.mean)} "
        f"percentage points of {found.first.tested_name} accuracy, 95 % confidence interval "
        f"{interval}, {p} "
        f"({difference.method})."
    )
    if difference.effect_size is None:
        return text
    needed = found.seeds_needed
    number = f"more than {statistics.MAX_SEEDS:,}" if needed is None else f"about {needed:,}"
    return (
        f"{text} A difference of this size and spread needs {number} seeds "
        f"({100 * statistics.POWER:.0f} % power, paired t-test at {level})."
    )


def _notes(compared: Sequence[Comparison]) -> list[str]:
    """What the comparisons do not say."""
    notes = []
    if len(compared) > 1:
        notes.append(
            f"The corrected p is that of {len(compared)} comparisons (Holm); each interval is that "
            "of its comparison alone."
        )
    differences = [one.difference for one in compared]
    if any(one.over_folds for one in differences):
        notes.append(cross_validation_page.NOTE)
    if any(one.effect_size is None and not one.over_folds for one in differences):
        notes.append(
            "A test over images tells whether two trained networks differ, not whether their "
            "settings do: another seed trains another network. To compare the settings, and to "
            "know how many seeds show the difference, train the same seeds of both, at least two "
            "(num_seeds)."
        )
    return notes
