"""The end of a training: its networks are tested, or validated where a sweep pauses it."""

from typing import Any

from mnist_cnn import config as config_lib
from mnist_cnn.runner import predictions, results
from mnist_cnn.runner.best import Best
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.runner.preparation import ReplicaMetrics, Run


def finish(this: Run, step: int, best: Best | None, validated: ReplicaMetrics) -> dict[str, Any]:
    """Tests the networks (of a sweep, those of the best setting) and writes the result."""
    config, replicas = this.config, range(this.replicas.plan.total)
    swept, kept_best = {}, {}
    if best is not None:
        this.replicas.set_variables(best.variables)
        validated = []  # that of the last step
    if config["sweep"]:
        assert this.validate is not None  # `config.validate` requires it
        validated = validated or this.validate(replicas)[0]  # this process may have taken no step
        swept = {"sweep": results.sweep_result(config, validated, this.replicas.finite().tolist())}
        replicas = replicas[config_lib.setting_rows(config["num_seeds"], swept["sweep"]["chosen"])]
    assert this.test is not None
    metrics, logits, labels, images = this.test(replicas)
    calibrated = {}
    # Held-out images all show a class, so they say nothing of the probability that one shows none.
    or_none = config["loss"] == "cross_entropy_or_none"
    if this.validate is not None and not or_none:
        _, held_out, held_out_labels, _ = this.validate(replicas)
        fitted = results.calibrated(
            config["validation_split"], held_out, held_out_labels, logits, labels
        )
        calibrated = {"calibrated": fitted}
    networks = this.replicas.variables(replicas)
    if this.checkpoints is None:
        return {}
    this.stop.check()
    tested = results.stack_metrics(metrics)
    if best is not None:
        chosen = {"split": config["validation_split"], "metric": config["keep_best"]}
        kept_best = {"best": chosen | {"step": best.step[list(replicas)].tolist()}}
    this.log(step, config_lib.tested_name(config), tested)
    this.checkpoints.wait()
    this.checkpoints.close()
    ensemble = results.ensemble_metrics(logits, labels, or_none) if len(replicas) > 1 else None
    found = {
        "seeds": [config_lib.replicas(config)[replica].seed for replica in replicas],
        **({"fold": config["fold"]} if config["fold"] else {}),
        "training_images": this.replicas.num_examples,
        "test": tested,
        "test_mean": results.mean_metrics(metrics),
        **({"ensemble": ensemble} if ensemble else {}),
        **calibrated,
        **swept,
        **kept_best,
        "params_sha256": [sha256(variables) for variables in networks],
    }
    kept = predictions.collect(logits, labels, images, networks[0]["params"])
    return this.logger.finish(step, found, kept)


def pause(this: Run, step: int, best: Best | None, validated: ReplicaMetrics) -> dict[str, Any]:
    """Records the validation by which a sweep compares this run with others."""
    if best is not None and (step == this.total_steps or best.is_over(this.config["patience"])):
        this.replicas.set_variables(best.variables)
        validated = []  # that of the last step
    assert this.validate is not None  # `config.validate` requires it
    validated = validated or this.validate(range(this.replicas.plan.total))[0]
    if this.checkpoints is None:
        return {}
    this.stop.check()
    this.checkpoints.wait()
    this.checkpoints.close()
    found = {
        "seeds": [replica.seed for replica in config_lib.replicas(this.config)],
        "validation": results.stack_metrics(validated),
        "validation_mean": results.mean_metrics(validated),
    }
    return this.logger.pause(step, found)
