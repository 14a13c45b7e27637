"""The report's page: one HTML file with its pictures inside, for phone and desk, light and dark.

It has no script and asks for nothing from elsewhere, and its Content-Security-Policy makes the
browser hold it to that.  Whatever comes from a run directory passes `_text`.
"""

from __future__ import annotations

import base64
import functools
import html
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import mnist_cnn
from mnist_cnn import config as config_lib, figures, measures, results, runs
from mnist_cnn.errors import printable

_SHOWN = 16  # digits in a picture

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --paper: #ffffff; --ink: #1a1a1a; --soft: #5b6470; --line: #dde1e6; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #16191d; --ink: #e8eaed; --soft: #a3abb5; --line: #343a42; }}
}}
* {{ box-sizing: border-box; }}
body {{ background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.1rem; color: var(--soft); font-weight: 500; margin: 0; }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .6rem; }}
.result {{ font-size: clamp(2.4rem, 9vw, 3.6rem); font-weight: 650; line-height: 1.15; margin: 0; }}
.said {{ margin: .2rem 0 1.5rem; color: var(--soft); }}
.pictures {{ display: grid; gap: 2.5rem 2rem; margin-top: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }}
figure {{ margin: 0; min-width: 0; }}
figure h2 {{ margin: 0 0 .4rem; }}
img {{ display: block; width: 100%; max-width: 34rem; height: auto; }}
figcaption {{ color: var(--soft); font-size: .92rem; margin-top: .4rem; max-width: 34rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); }}
table:not(.numbers) th:first-child {{ width: 8rem; }}
th {{ font-weight: 500; color: var(--soft); }}
.numbers th:not(:first-child), .numbers td:not(:first-child) {{ text-align: right; padding-right: 0; padding-left: .4rem; }}
pre {{ white-space: pre-wrap; border: 1px solid var(--line); border-radius: 6px; padding: .7rem;
  font-size: .88rem; margin: 0; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""  # noqa: E501


def single(setting: runs.Setting) -> str:
    """The page of one run."""
    run = setting.runs[0]
    numbers = measures.figures(*_tested(run))
    sweep = run.result.get("sweep")
    return _page(
        f"{run.config.get('name')}: {_percent(run.right.mean())}",
        [
            f"<h1>{_text(run.config.get('name'))}, {int(run.result['steps']):,} steps</h1>",
            f'<p class="result">{_percent(run.right.mean())}</p>',
            f'<p class="said">{_text(_said(run))}</p>',
            *([_sweep_table(sweep), "<h2>The test of the chosen setting</h2>"] if sweep else []),
            _figures_table(run, numbers),
            _grid([_figure_html(*picture) for picture in _pictures(setting, numbers)]),
            _classes(numbers["classes"]),
            *_provenance(run),
        ],
    )


def pictures(setting: runs.Setting) -> str:
    """The pictures of one run alone, one below the other, as HTML for a notebook."""
    shown = _pictures(setting, measures.figures(*_tested(setting.runs[0])))
    return "\n".join(
        f'<div style="max-width: 34rem">{_figure_html(*picture)}</div>' for picture in shown
    )


def _tested(run: runs.Run) -> tuple[np.ndarray, np.ndarray]:
    """Logits [R * N, 10] and labels [R * N] of all seeds together."""
    tested = run.tested
    return tested.logits.reshape(-1, 10), np.tile(tested.labels, len(tested.logits))


def _pictures(setting: runs.Setting, numbers: dict[str, Any]) -> list[Picture]:
    """What a run shows: how it learned, what it mistakes, what it looks for."""
    run = setting.runs[0]
    logits, labels = _tested(run)
    table = measures.confusion(labels, logits.argmax(-1))
    seeds = len(run.seeds)
    several = f", all {seeds} seeds together" if seeds > 1 else ""
    sweep = run.result.get("sweep")
    swept = _sweep_picture(sweep) if sweep else None
    pictures = [
        *([swept] if swept else []),
        *_curves([setting]),
        _figure(
            "Which digits are mistaken for which",
            functools.partial(figures.confusion, table),
            f"The test images by true digit and answer{several}; mistakes are coloured, the grey "
            "figures on the diagonal are right.",
        ),
        _worst(run),
        _figure(
            "Can its probabilities be trusted?",
            functools.partial(figures.reliability, measures.calibration(logits, labels)),
            f"Test images in {measures.BINS} bins by the probability of the answer: on the dashed "
            "line the network is right as often as it claims. Expected calibration error "
            f"{numbers['expected_calibration_error']:.4f}.",
        ),
    ]
    if len(run.tested.filters):
        count = len(run.tested.filters)
        caption = f"The {'first 64 of the ' * (count > 64)}{count} filters of the first layer"
        draw = functools.partial(figures.filters, run.tested.filters)
        pictures.append(
            _figure("What the first layer looks for", draw, f"{caption}, on one scale.")
        )
    return pictures


def _said(run: runs.Run) -> str:
    """The result in a sentence."""
    seeds, examples = run.right.shape
    chosen = run.result.get("sweep")
    best = ""
    if chosen:
        setting = results.name_of(chosen["settings"][chosen["chosen"]]["setting"])
        best = f" The setting with the best validation accuracy: {setting}."
    if seeds == 1:
        wrong = int((~run.right).sum())
        return f"of the {examples:,} test images right: {wrong:,} mistakes.{best}"
    half = measures.mean_interval(run.right.mean(1))
    together = float(run.result["ensemble"]["accuracy"])
    return (
        f"of the {examples:,} test images right, mean of {seeds} seeds; 95 % interval of the mean "
        f"± {100 * half:.2f} points (Student's t). All {seeds} as an ensemble: "
        f"{_percent(together)}.{best}"
    )


def comparison(settings: Sequence[runs.Setting]) -> str:
    """The page of several runs: each setting against the first."""
    first, others = settings[0], settings[1:]
    compared = [(other.label, runs.compare(first, other)) for other in others]
    labels = [label for label, _ in compared]
    methods = dict.fromkeys(difference.method for _, difference in compared)
    headline = f"{_points(compared[0][1].mean)} points" if len(compared) == 1 else ""
    said = [
        f"{label} against {first.label}: {_points(d.mean)} percentage points of test accuracy, "
        f"95 % interval {_points(d.low)} to {_points(d.high)}, p = {d.p:.2g} ({d.method})."
        for label, d in compared
    ]
    pictures = [
        _figure(
            f"Difference from {first.label}",
            functools.partial(figures.differences, compared),
            "Test accuracy with 95 % intervals: " + "; ".join(methods) + ".",
        ),
        *_sweep(settings),
        *_curves(settings),
        *(_changed(first, other) for other in others),
    ]
    return _page(
        " / ".join(setting.label for setting in settings),
        [
            f"<h1>{_text(', '.join(labels))} against {_text(first.label)}</h1>",
            f'<p class="result">{headline}</p>',
            *(f'<p class="said">{_text(line)}</p>' for line in said),
            _settings_table(settings),
            _grid([_figure_html(*picture) for picture in pictures]),
            *(part for setting in settings for run in setting.runs for part in _provenance(run)),
        ],
    )


# Pictures: a title, a drawing in both themes, and what it shows.


Picture = tuple[str, tuple[bytes, bytes], str]


def _figure(title: str, draw: Callable[[figures.Theme], Figure], caption: str) -> Picture:
    return title, figures.render(draw), caption


def _curves(settings: Sequence[runs.Setting]) -> list[Picture]:
    """Loss and error over the steps; a seed's band where there are several."""
    seeds = max(len(setting.accuracies()) for setting in settings)
    caption = (
        "Training: mean over the steps since the point before, as the network was then. Test: at "
        "the end, on images it has not seen."
        + " Thin lines are seeds, thick ones their mean" * (seeds > 1)
        + ", bands its 95 % interval" * (seeds > 2)
        + "." * (seeds > 1)
    )
    pictures = []
    for title, label, value in (
        ("Loss while learning", "loss", lambda entry: np.asarray(entry["loss"], float)),
        ("Mistakes while learning", "images wrong (%)", _error),
    ):
        curves = []
        for number, setting in enumerate(settings):
            for split, name in (("train", "training"), ("validation",) * 2, ("test",) * 2):
                steps, values = _series(setting, split, value)
                if len(steps):
                    full = name if len(settings) == 1 else f"{setting.label}, {name}"
                    curves.append(figures.Curve(full, number, steps, values, split))
        pictures.append(_figure(title, functools.partial(figures.curves, curves, label), caption))
    return pictures


def _sweep(settings: Sequence[runs.Setting]) -> list[Picture]:
    """Where the settings differ in one number: the error over it, on held-out training images."""
    found = runs.swept(settings)
    if found is None:
        return []
    name, values = found
    series = [_series(setting, "validation", _error)[1] for setting in settings]
    split = "validation" if all(one.size for one in series) else "test"
    if split == "test":
        series = [_series(setting, "test", _error)[1] for setting in settings]
    errors = [one[:, -1] for one in series]
    label = f"{split} images wrong (%)"
    caption = f"The end of each run; {split} images. Points are seeds, the line is their mean"
    caption += ", the band its 95 % interval." if min(map(len, errors)) > 2 else "."
    return [
        _figure(
            f"Mistakes over {name}",
            functools.partial(figures.sweep, name, [figures.Swept("", values, errors)], label),
            caption,
        )
    ]


def _sweep_picture(sweep: dict[str, Any]) -> Picture | None:
    """The validation error of a run's own sweep over the hyper-parameter with most values."""
    done = [entry for entry in sweep["settings"] if entry["status"] == "finished"]
    values = {key: {entry["setting"][key] for entry in done} for key in done[0]["setting"]}
    name = max(values, key=lambda key: len(values[key]))
    if len(values[name]) < 2:
        return None
    lines: dict[str, list[Any]] = {}
    for entry in done:
        others = {key: value for key, value in entry["setting"].items() if key != name}
        lines.setdefault(results.name_of(others), []).append(entry)
    drawn = [
        figures.Swept(
            label,
            [entry["setting"][name] for entry in entries],
            [100 * (1 - np.asarray(entry["validation"]["accuracy"])) for entry in entries],
        )
        for label, entries in lines.items()
    ]
    seeds = len(sweep["seeds"])
    return _figure(
        f"Mistakes over {name}",
        functools.partial(figures.sweep, name, drawn, "validation images wrong (%)"),
        f"At the end of training, on {sweep['split']}. Points are seeds, the line is their mean"
        + (", the band its 95 % interval (Student's t)." if seeds > 2 else ".")
        + " Settings that diverged are left out." * (len(done) < len(sweep["settings"])),
    )


def _sweep_table(sweep: dict[str, Any]) -> str:
    """Every setting, in the grid's order."""
    rows = []
    for index, entry in enumerate(sweep["settings"]):
        values = [f"{value:g}" for value in entry["setting"].values()]
        if entry["status"] != "finished":
            rows.append([*values, "diverged", "", ""])
            continue
        mean = entry["validation_mean"]
        half = "" if mean["ci95"] is None else f" ± {100 * mean['ci95']:.2f}"
        chosen = "chosen" if index == sweep["chosen"] else ""
        accuracy = f"{100 * mean['accuracy']:.2f}{half} %"
        rows.append([*values, accuracy, f"{float(mean['loss'] or np.nan):.4f}", chosen])
    names = list(sweep["settings"][0]["setting"])
    return f"<h2>The sweep, judged on {_text(sweep['split'])}</h2>\n" + _table(
        rows, [*names, "validation accuracy", "loss", ""], "numbers"
    )


def _error(entry: dict[str, Any]) -> Any:
    return 100 * (1 - np.asarray(entry["accuracy"], float))


def _series(
    setting: runs.Setting, split: str, value: Callable[[dict[str, Any]], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] that every run of the setting has, and the values [R, T]."""
    found = [
        {e["step"]: np.atleast_1d(value(e)) for e in run.metrics if e.get("split") == split}
        for run in setting.runs
    ]
    steps = sorted(set.intersection(*(set(entries) for entries in found)))
    values = [np.stack([entries[step] for step in steps], axis=1) for entries in found if steps]
    return np.array(steps), np.concatenate(values) if values else np.zeros((0, 0))


def _worst(run: runs.Run) -> Picture:
    """The mistakes that cost most: the true label had the least probability."""
    tested = run.tested
    # Over several seeds the mean probability: what all get right, it gets right.
    p = np.exp(measures.log_probabilities(tested.logits[:, tested.wrong])).mean(0)
    true = tested.labels[tested.wrong]
    answer = p.argmax(-1)
    mistakes = np.flatnonzero(answer != true)
    order = mistakes[np.argsort(p[mistakes, true[mistakes]], kind="stable")][:_SHOWN]
    if not len(order):
        return _figure("The worst mistakes", functools.partial(figures.digits, [_NONE]), "None.")
    digits = [
        figures.Digit(
            tested.images[i], f"true {true[i]}, said {answer[i]}", _percent(p[i, answer[i]], 1)
        )
        for i in order
    ]
    return _figure(
        "The worst mistakes",
        functools.partial(figures.digits, digits),
        "Test images whose true digit got the least probability: the true digit, the network's "
        "answer, and the probability that it gave to that.",
    )


def _changed(first: runs.Setting, other: runs.Setting) -> Picture:
    """The test images that one gets right and the other wrong."""
    (a, seed_a), (b, seed_b) = runs.pair(first, other)
    mended, lost = (
        _flipped(a, seed_a, b, seed_b, "mended"),
        _flipped(b, seed_b, a, seed_a, "lost"),
    )
    few = max(_SHOWN // 2, _SHOWN - len(lost)), max(_SHOWN // 2, _SHOWN - len(mended))
    digits = [*mended[: few[0]], *lost[: few[1]]]
    caption = (
        f"{len(mended):,} that {first.label} gets wrong and {other.label} right (mended), "
        f"{len(lost):,} the other way round (lost); seeds {seed_a} and {seed_b}. Each with the "
        "wrong answer; of both kinds the first in the test's order."
    )
    title = f"Test images that change sides: {other.label}"
    return _figure(title, functools.partial(figures.digits, digits or [_NONE]), caption)


def _flipped(
    wrong: runs.Setting, seed: int, right: runs.Setting, other: int, note: str
) -> list[figures.Digit]:
    """The images that `wrong` gets wrong and `right` right."""
    run = wrong.run(seed)
    tested, answers = run.tested, run.tested.logits[run.seeds.index(seed)].argmax(-1)
    changed = np.flatnonzero(~wrong.right(seed) & right.right(other))
    places = np.searchsorted(tested.wrong, changed)
    return [
        figures.Digit(tested.images[place], f"true {tested.labels[i]}, said {answers[i]}", note)
        for i, place in zip(changed, places, strict=True)
    ]


_NONE = figures.Digit(np.zeros((28, 28), np.uint8), "none", "")


# HTML.


def _text(value: Any) -> str:
    """Text from outside: no markup, and nothing that steers."""
    return html.escape(printable(str(value)))


def _percent(value: float, digits: int = 2) -> str:
    return f"{100 * float(value):.{digits}f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}".replace("-", "\N{MINUS SIGN}")


def _page(title: str, parts: Sequence[str]) -> str:
    return _PAGE.format(title=_text(title), body="\n".join(parts))


def _grid(parts: Sequence[str]) -> str:
    return '<div class="pictures">\n' + "\n".join(parts) + "\n</div>"


def _figure_html(title: str, versions: tuple[bytes, bytes], caption: str) -> str:
    light, dark = (
        "data:image/png;base64," + base64.b64encode(version).decode() for version in versions
    )
    return (
        f"<figure>\n<h2>{_text(title)}</h2>\n<picture>\n"
        f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">\n'
        f'<img src="{light}" alt="{_text(title)}">\n</picture>\n'
        f"<figcaption>{_text(caption)}</figcaption>\n</figure>"
    )


def _table(rows: Iterable[Sequence[Any]], head: Sequence[str] = (), kind: str = "") -> str:
    lines = ["<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr>"] if head else []
    for first, *rest in rows:
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in rest)
        lines.append(f"<tr><th>{_text(first)}</th>{cells}</tr>")
    return f'<table class="{kind}">\n' + "\n".join(lines) + "\n</table>"


def _figures_table(run: runs.Run, numbers: dict[str, Any]) -> str:
    test, seconds = run.result["test"], run.result["seconds"]
    examples = run.right.shape[1]
    return _table(
        [
            ["seed", "right", "test loss"],
            *(
                [seed, f"{int(right):,} of {examples:,}", f"{float(loss):.4f}"]
                for seed, right, loss in zip(run.seeds, run.right.sum(1), test["loss"], strict=True)
            ),
        ],
        kind="numbers",
    ) + _table(
        [
            ["negative log-likelihood", f"{numbers['negative_log_likelihood']:.4f} nats an image"],
            ["expected calibration error", f"{numbers['expected_calibration_error']:.4f}"],
            ["time", f"{float(seconds['total']):.1f} s"],
        ],
        kind="numbers",
    )


def _settings_table(settings: Sequence[runs.Setting]) -> str:
    rows = []
    for setting in settings:
        accuracies = np.array(list(setting.accuracies().values()))
        half = measures.mean_interval(accuracies)
        interval = f" ± {100 * half:.2f}" if len(accuracies) > 1 else ""
        seeds = ", ".join(map(str, setting.accuracies()))
        rows.append([setting.label, seeds, f"{100 * accuracies.mean():.2f}{interval} %"])
    return _table(rows, ["setting", "seeds", "test accuracy"], "numbers")


def _classes(classes: Sequence[dict[str, Any]]) -> str:
    def ratio(value: float | None) -> str:
        return "-" if value is None else _percent(value)

    rows = [
        [number, ratio(row["precision"]), ratio(row["recall"]), f"{row['examples']:,}"]
        for number, row in enumerate(classes)
    ]
    return "<h2>Digit by digit</h2>\n" + _table(
        rows, ["digit", "precision", "recall", "images"], "numbers"
    )


def _provenance(run: runs.Run) -> list[str]:
    """What differs from base, where it ran, and the command."""
    environment = run.environment
    base = {key: field.default for key, field in config_lib.FIELDS.items()}
    differing = [
        [key, base.get(key), value] for key, value in run.config.items() if value != base.get(key)
    ]
    versions = environment.get("versions")
    devices = environment.get("devices")
    git = environment.get("git")
    data = environment.get("data")
    rows: list[list[Any]] = [
        ["run directory", run.path],
        ["python", environment.get("python")],
        ["platform", environment.get("platform")],
        ["processor", f"{environment.get('processor')}, {environment.get('cpu_count')} cores"],
    ]
    if isinstance(devices, list):
        rows.append(
            ["devices", ", ".join(str(d.get("kind")) for d in devices if isinstance(d, dict))]
        )
    if isinstance(versions, dict):
        rows.append(
            ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())]
        )
    if isinstance(git, dict):
        rows.append(["git", f"{git.get('commit')}{', changed' if git.get('dirty') else ''}"])
    if isinstance(data, dict):
        rows.append(["data", f"{run.config.get('dataset')} from {data.get('origin')}"])
    rows.append(
        ["parameters", f"sha256 {', '.join(map(str, run.result.get('params_sha256', [])))}"]
    )
    rows.append(["report", f"mnist_cnn {mnist_cnn.__version__}"])
    command = shlex.join(map(str, environment.get("command") or [])) or "(called from Python)"
    return [
        f"<h2>Configuration of {_text(run.path)}</h2>",
        _table(differing, ["field", "base", "here"])
        if differing
        else "<p>Nothing differs from <code>experiments/base.py</code>.</p>",
        "<h2>Command</h2>",
        f"<pre>{_text(command)}</pre>",
        "<h2>Environment</h2>",
        _table(rows),
    ]
