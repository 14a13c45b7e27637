"""The contents of result.json: test metrics, their mean, the ensemble, the result of a sweep."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from mnist_cnn import config as config_lib, statistics
from mnist_cnn.runner import recorded_config

Metrics = Mapping[str, Any]  # of one network, as returned by `metrics.summarize`


def to_json(value: Any) -> Any:
    """A number, or of several values a list, for JSON: a NaN or an infinity becomes None."""
    values = [
        None if isinstance(item, float) and not math.isfinite(item) else item
        for item in np.atleast_1d(value).tolist()
    ]
    return values[0] if len(values) == 1 else values


def stack_metrics(metrics: Sequence[Metrics]) -> dict[str, Any]:
    """The metrics of several networks on the same images, each a list with one item per network."""
    first = ("accuracy", "loss", "correct", "expected_calibration_error")
    names = [*first, *other_names(metrics[0])]
    return {"examples": metrics[0]["examples"]} | {
        name: [to_json(network[name]) for network in metrics] for name in names
    }


def mean_metrics(metrics: Sequence[Metrics]) -> dict[str, Any]:
    """Means over the networks; `ci95` (None for one network) is of `statistics.mean_interval`."""
    values = {name: np.array([one[name] for one in metrics]) for name in metrics[0]}
    accuracy, loss = values["accuracy"], values["loss"]
    error = values["expected_calibration_error"]
    others = {
        name: {
            "mean": to_json(values[name].mean()),
            "ci95": to_json(statistics.mean_interval(values[name])),
        }
        for name in other_names(values)
    }
    return {
        "accuracy": float(accuracy.mean()),
        "ci95": to_json(statistics.mean_interval(accuracy)),
        "loss": to_json(loss.mean()),
        "expected_calibration_error": to_json(error.mean()),
        **({"metrics": others} if others else {}),
    }


def other_names(metrics: Metrics) -> list[str]:
    """The names of an experiment's own metrics among those of `metrics.summarize`."""
    own = ("examples", "correct", "accuracy", "loss", "expected_calibration_error")
    return [name for name in metrics if name not in own]


def ensemble_metrics(
    logits: Float[np.ndarray, "R N K"], labels: Integer[np.ndarray, "N"], or_none: bool = False
) -> dict[str, float | int | None]:
    """Metrics of the ensemble, whose probabilities are the mean of the R networks' ones.

    With `or_none` (the loss "cross_entropy_or_none") one of them is that of none of the classes.
    """
    logits = np.pad(logits, ((0, 0), (0, 0), (0, int(or_none))))  # the logit of "none" is 0
    p = np.exp(statistics.log_probabilities(logits)).mean(0)
    p = p[:, :-1] if or_none else p
    correct = int((p.argmax(-1) == labels).sum())
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    return {
        "correct": correct,
        "accuracy": correct / len(labels),
        "loss": to_json(-log_p[np.arange(len(labels)), labels].mean()),
        "expected_calibration_error": to_json(statistics.calibration(log_p, labels).error),
    }


def calibrated(
    split: str,
    held_out: Float[np.ndarray, "R N K"],
    held_out_labels: Integer[np.ndarray, "N"],
    tested: Float[np.ndarray, "R M K"],
    labels: Integer[np.ndarray, "M"],
) -> dict[str, Any]:
    """The temperatures of R networks, fitted to their logits of the held-out images of `split`.

    With each are the metrics that change when the tested logits are divided by it, for JSON; their
    classes do not change. Of several networks the ensemble has a temperature of its own.
    """

    def fit(fitted: Float[np.ndarray, "N K"], scored: Float[np.ndarray, "M K"]) -> dict[str, Any]:
        temperature = statistics.fit_temperature(fitted, held_out_labels)
        metrics = calibration_metrics(scored / np.float64(temperature), labels)
        return {"temperature": temperature} | {key: to_json(metrics[key]) for key in metrics}

    networks = [fit(*pair) for pair in zip(held_out, tested, strict=True)]
    found: dict[str, Any] = {"split": split}
    found |= {name: [one[name] for one in networks] for name in networks[0]}
    if len(networks) > 1:
        means = [np.exp(statistics.log_probabilities(one)).mean(0) for one in (held_out, tested)]
        found["ensemble"] = fit(*(np.log(np.maximum(p, np.finfo(p.dtype).tiny)) for p in means))
    return found


def calibration_metrics(
    logits: Float[np.ndarray, "N K"], labels: Integer[np.ndarray, "N"]
) -> dict[str, float]:
    """The metrics of probabilities, as in `statistics.classification_metrics`."""
    metrics = statistics.classification_metrics(logits, labels)
    names = ("negative_log_likelihood", "expected_calibration_error")
    return {name: metrics[name] for name in names}


def temperatures(
    result: Mapping[str, Any], seeds: Sequence[int], steps: Sequence[int]
) -> tuple[float, ...]:
    """Those of the networks with these seeds after these steps: of their ensemble, then of each.

    () if the run of this result.json has fitted none, or has tested networks of other steps.
    """
    if "calibrated" not in result:
        return ()
    found, tested = result["calibrated"], result["seeds"]
    ends = result["best"]["step"] if "best" in result else [result["steps"]] * len(tested)
    rows = [tested.index(seed) for seed in seeds]
    if [ends[row] for row in rows] != list(steps):
        return ()
    each = tuple(found["temperature"][row] for row in rows)
    return each if len(rows) == 1 else (found["ensemble"]["temperature"], *each)


def test_accuracy(result: Mapping[str, Any], seed: int | tuple[int, ...]) -> float | None:
    """The accuracy of the tested network with this seed, or of the ensemble; None before a test."""
    seeds = result.get("seeds", [])
    if isinstance(seed, tuple):
        return result.get("ensemble", {}).get("accuracy") if list(seed) == seeds else None
    return dict(zip(seeds, result.get("test", {}).get("accuracy", []), strict=False)).get(seed)


def sweep_result(
    config: Mapping[str, Any], validation: Sequence[Metrics], finite: Sequence[bool]
) -> dict[str, Any]:
    """The validation metrics of every setting, and the index of the chosen one.

    The setting with the best mean accuracy is chosen; of equals, the one with the lowest mean loss.
    A setting with a network that is not `finite` has no metrics and is not chosen; `chosen` is None
    if all have one. The metrics are those of every replica, in the order of `config.replicas`.
    """
    seeds = config["num_seeds"]
    settings: list[dict[str, Any]] = []
    scores: dict[int, tuple[float, float]] = {}
    for index, setting in enumerate(config_lib.settings(config)):
        replicas = config_lib.setting_rows(seeds, index)
        if not all(finite[replicas]):
            settings.append({"setting": setting, "status": "diverged"})
            continue
        metrics, mean = stack_metrics(validation[replicas]), mean_metrics(validation[replicas])
        entry = {"status": "finished", "validation": metrics, "validation_mean": mean}
        settings.append({"setting": setting, **entry})
        scores[index] = mean["accuracy"], -math.inf if mean["loss"] is None else -mean["loss"]
    return {
        "split": config["validation_split"],
        "seeds": list(range(config["seed"], config["seed"] + seeds)),
        "settings": settings,
        "chosen": max(scores, key=scores.__getitem__, default=None),
    }


def setting_label(setting: Mapping[str, Any]) -> str:
    """A setting of a sweep as text: "learning_rate=0.001, b1=0.9", "mlp, batch_size=64"."""
    return ", ".join(
        value_text(value) if key == "variant" else f"{key}={value_text(value)}"
        for key, value in setting.items()
    )


def value_text(value: Any) -> str:
    """The value of a field as text, an object by its name: "0.001", "MLP(hidden=64)"."""
    described = recorded_config.describe(value)
    if isinstance(described, float):
        return f"{described:g}"
    if isinstance(described, list):
        return f"({', '.join(map(value_text, described))})"
    if not isinstance(described, str):
        return str(described)
    # Flax writes a module as "MLP( # attributes hidden = 64 )".
    text = re.sub(r"# (attributes|children) ", "", described)
    return re.sub(r"\( | \)| = ", lambda found: found[0].strip(), text)


def network_label(seed: int | Sequence[int], step: int | Sequence[int]) -> str:
    """A network as text: "seed 1337, step 1,875"; "ensemble of seeds 1337 to 1341, step 300"."""
    name = f"seed {seed}" if isinstance(seed, int) else f"ensemble of seeds {listed(seed)}"
    steps = [step] if isinstance(step, int) else step
    return f"{name}, step{'s' * (len(steps) > 1)} {', '.join(f'{one:,}' for one in steps)}"


def listed(seeds: Sequence[int]) -> str:
    """Several seeds as text: "1337 to 1341", and if some are missing "1337, 1339, 1340"."""
    if len(seeds) == seeds[-1] - seeds[0] + 1:
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
