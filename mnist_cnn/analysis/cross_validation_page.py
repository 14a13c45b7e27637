"""The page of a cross-validation: the runs of its folds as one result."""

import dataclasses

import numpy as np

from mnist_cnn import statistics
from mnist_cnn.analysis import cross_validation, mosaics, pages, plots
from mnist_cnn.analysis.run_settings import Setting
from mnist_cnn.runner import results

NOTE = (
    "Networks of different folds share most of their training images, so their accuracies are not "
    "independent, and no estimate of the variance of their mean is unbiased (Bengio & Grandvalet "
    "2004). The correction of Nadeau & Bengio (2003) widens the interval; it is an approximation."
)


def cross_validation_page(setting: Setting) -> tuple[str, list[str]]:
    """The page of one setting that was trained without each of several folds, and its sentences."""
    unfinished = [run for run in setting.runs if not run.tested]
    finished = [run for run in setting.runs if run.tested]
    tested = dataclasses.replace(setting, runs=finished or unfinished)
    missing = missing_folds(tested) if finished else f"No fold of {setting.label} is finished."
    notes = [*filter(None, [missing]), *(run.note for run in unfinished)]
    heading = f"{setting.label}, {setting.num_folds} folds"
    shown, parts, accuracy, sentences = [], [], "not finished", notes
    if finished:
        joined = cross_validation.join(tested)
        mean, half = tested.mean_accuracy()
        accuracy = pages.percent(mean, half)
        first, *others = [_summary(tested), *([NOTE] if len(tested.folds) > 1 else []), *notes]
        metrics = statistics.classification_metrics(*joined.pooled)
        overall = [
            *pages.training_images(*tested.runs),
            ["negative log-likelihood", f"{metrics['negative_log_likelihood']:.4f} nats per image"],
            [
                f"expected calibration error{plots.mean_of_seeds_note(joined)}",
                f"{joined.calibration_error:.4f}",
            ],
            [
                "temperature fitted on these images",
                f"{statistics.fit_temperature(*joined.pooled):.4f}",
            ],
        ]
        per_class = [
            [name, pages.percent(row["precision"]), pages.percent(row["recall"]), row["examples"]]
            for name, row in zip(joined.spec.class_names, metrics["classes"], strict=True)
        ]
        parts = [fold_table(tested), pages.table(overall, kind="numbers")]
        shown = [
            *pages.curves([tested]),
            plots.confusion_matrix(joined),
            mosaics.worst_mistakes(joined),
            plots.reliability_diagram(joined),
        ]
        sentences = [f"{heading}: {accuracy} {first}", *others]
        notes = [first, *others]
    else:
        shown = pages.curves([tested])
    page = pages.page(
        f"{setting.label}: {accuracy}",
        heading,
        accuracy,
        notes,
        [
            *parts,
            pages.grid(shown),
            *(
                [
                    f"<h2>Metrics per {joined.spec.noun}</h2>",
                    pages.table(
                        per_class, [joined.spec.noun, "precision", "recall", "images"], "numbers"
                    ),
                ]
                if finished
                else []
            ),
            *(part for run in setting.runs for part in pages.provenance(run)),
        ],
    )
    return page, sentences


def _summary(setting: Setting) -> str:
    """The result in a sentence."""
    folds, half = setting.folds, setting.mean_accuracy()[1]
    images = sum(len(part.runs[0].predictions.labels) for part in folds.values())
    seeds = {len(part.seeds) for part in folds.values()}
    networks = "one network" if seeds == {1} else f"{min(seeds)} networks"
    if len(seeds) > 1:
        networks = f"{min(seeds)} to {max(seeds)} networks"
    accuracies = "mean accuracy" if len(folds) > 1 else "accuracy"
    text = (
        f"{accuracies} of {len(folds)} held-out fold{'s' * (len(folds) > 1)}, {images:,} training "
        f"images, each scored once by {networks} that did not train on it"
    )
    if len(folds) < 2:
        return f"{text}; an interval needs more folds."
    mean = setting.mean_accuracy()[0]
    if not statistics.is_possible(mean - half, mean + half):
        return f"{text}; 95 % confidence interval unknown: {len(folds)} folds are too few."
    interval = f"± {100 * half:.2f} points ({statistics.FOLD_METHOD})"
    return f"{text}; 95 % confidence interval of the mean {interval}."


def fold_table(setting: Setting) -> str:
    """A row for each fold: its networks, its images, and how many of them are right."""
    rows = []
    sweeps = any("sweep" in run.result for run in setting.runs)
    for fold, part in setting.folds.items():
        correct = np.concatenate([run.correct.sum(1) for run in part.runs])
        losses = np.concatenate([run.result["test"]["loss"] for run in part.runs])
        images = len(part.runs[0].predictions.labels)
        row = [fold, ", ".join(map(str, part.seeds))]
        row += [f"{', '.join(f'{number:,}' for number in correct)} of {images:,}"]
        row += [pages.percent(part.mean_accuracy()[0]), pages.number(float(np.mean(losses)))]
        row.append(pages.number(float(np.mean([run.calibration_error for run in part.runs]))))
        chosen = [
            results.setting_label(sweep["settings"][sweep["chosen"]]["setting"])
            for run in part.runs
            if (sweep := run.result.get("sweep"))
        ]
        rows.append([*row, *(["; ".join(dict.fromkeys(chosen))] if sweeps else [])])
    head = ["fold", "seeds", "correct", "accuracy", "loss", "ECE", *["chosen"] * sweeps]
    return f"<h2>{pages.escape(setting.label)} by fold</h2>\n{pages.table(rows, head, 'numbers')}"


def missing_folds(setting: Setting) -> str:
    """Which folds have no result, in a sentence; "" if none are missing or there are no folds."""
    folds = cross_validation.missing(setting)
    if not folds:
        return ""
    several = len(folds) > 1
    return (
        f"Of {setting.label}, fold{'s' * several} {', '.join(folds)} {'are' if several else 'is'} "
        f"missing: {'their' if several else 'its'} images are not scored, and do not count."
    )
