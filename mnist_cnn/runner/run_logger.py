"""What a run records: seconds, metrics and its result. In a job, process 0 alone writes."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mnist_cnn import config as config_lib
from mnist_cnn.parallel import processes
from mnist_cnn.runner import recorded_config, results
from mnist_cnn.runner.run_directory import RunDirectory

OnLog = Callable[[dict[str, Any]], object]  # of a line of metrics.jsonl


class RunLogger:
    """The clock and the records of one run."""

    def __init__(
        self, config: Mapping[str, Any], directory: RunDirectory, on_log: OnLog | None = None
    ) -> None:
        self._config = config
        self._on_log = on_log
        self._directory = directory
        self._began = time.monotonic()
        self._seconds = dict.fromkeys(("total", "data", "compile", "train", "evaluate"), 0.0)

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Adds the wall-clock seconds within the block to `name`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - began

    def seconds(self) -> dict[str, float]:
        """The seconds of the run so far, by name; "total" is all of them."""
        return self._seconds | {"total": time.monotonic() - self._began}

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Adds those that the run took before this process."""
        for name, value in seconds.items():
            self._seconds[name] += value
        self._began -= seconds["total"]

    def begin(
        self, environment: dict[str, Any], before: Mapping[str, Any], step: int, total: int
    ) -> None:
        """Writes config.json and environment.json, and opens metrics.jsonl to continue at `step`.

        `before` is the environment.json of the directory, {} if there is none.
        """
        directory = self._directory
        # Where the networks of a joined run come from, and a file that is unknown to this process.
        environment |= {
            key: before[key]
            for key in ("joined", "experiment")
            if key in before and key not in environment
        }
        result = directory.path / "result.json"
        if step < total and result.exists():  # what a shorter run ended with is outdated
            outdated = [*directory.path.glob("events.out.tfevents.*.hparams")]
            outdated += [directory.path / name for name in ("report.html", "predictions.npz")]
            for path in (*outdated, result):
                path.unlink(missing_ok=True)
        directory.write("config.json", recorded_config.as_dict(self._config))
        directory.write("environment.json", environment)
        directory.open_metrics(step, total)

    def log(
        self, step: int, epoch: float, split: str, metrics: Mapping[str, Any], **others: float
    ) -> None:
        """Writes a line of metrics: numbers for one replica, lists for several."""
        if not processes.is_primary():
            return
        line = {"step": step, "epoch": round(epoch, 6), "split": split}
        line |= {key: results.to_json(value) for key, value in metrics.items()}
        series = {"": slice(None)}
        if self._config["sweep"] and not config_lib.is_tested_name(split):
            seeds, settings = self._config["num_seeds"], config_lib.settings(self._config)
            rows = [config_lib.setting_rows(seeds, index) for index in range(len(settings))]
            series = dict(zip(map(results.setting_label, settings), rows, strict=True))
        self._directory.log(line | others, series)
        if self._on_log is not None:
            self._on_log(line | others)

    def diverge(self, step: int) -> None:
        """Records that the run ended without a result."""
        seeds = sorted({replica.seed for replica in config_lib.replicas(self._config)})
        result = {"status": "diverged", "experiment": self._config["name"], "seeds": seeds}
        self._directory.write_result(result | {"steps": step, "seconds": self.seconds()})

    def pause(self, step: int, found: dict[str, Any]) -> dict[str, Any]:
        """Writes result.json of a run that is validated and not tested; returns that."""
        seconds = {name: round(value, 3) for name, value in self.seconds().items()}
        result = {"status": "validated", "experiment": self._config["name"]} | found
        result |= {"steps": step, "seconds": seconds}
        self._directory.write_result(result)
        return result

    def finish(self, step: int, found: dict[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
        """Writes predictions.npz, the arrays `kept`, and result.json with `found`; returns that."""
        seconds = {name: round(value, 3) for name, value in self.seconds().items()}
        result = {"status": "finished", "experiment": self._config["name"]} | found
        result |= {"steps": step, "seconds": seconds}
        self._directory.write_arrays("predictions.npz", kept)
        fields = recorded_config.as_dict(self._config)
        if "sweep" in found:
            fields |= found["sweep"]["settings"][found["sweep"]["chosen"]]["setting"]
        fields["sweep"] = str(fields["sweep"])
        tested = config_lib.tested_name(self._config).partition(" ")[0]  # as in TensorBoard's tags
        own = fields.pop("model_fields", {})
        fields |= {
            f"model.{name}": results.value_text(value) if isinstance(value, list) else value
            for name, value in own.items()
        }
        self._directory.log_hparams(
            {key: fields[key] for key in fields if key not in config_lib.FREE_ON_RESUME},
            {f"{tested}/{key}": result["test_mean"][key] for key in ("accuracy", "loss")},
            step,
        )
        self._directory.write_result(result)
        return result
