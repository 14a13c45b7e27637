"""The configuration of an experiment: its fields, their legal values, and what fits together."""

from mnist_cnn.config.fields import (
    DEFAULTS,
    FIELDS,
    FREE_ON_RESUME,
    HYPERPARAMETERS,
    LENGTH,
    OBJECTS,
    OFF_AT_ZERO,
    VARIABLE,
    Field,
    check_key,
    check_value,
    experiment,
    parse_value,
    takes_total_steps,
)
from mnist_cnn.config.settings import (
    Replica,
    changes_of,
    has_one_program,
    of_setting,
    replicas,
    setting_rows,
    settings,
)
from mnist_cnn.config.tested import fold_numbers, is_tested_name, tested_name
from mnist_cnn.config.validation import test_split_error, validate

__all__ = [
    "DEFAULTS", "FIELDS", "FREE_ON_RESUME", "HYPERPARAMETERS", "LENGTH", "OBJECTS", "OFF_AT_ZERO",
    "VARIABLE", "Field", "Replica", "changes_of", "check_key", "check_value", "experiment",
    "fold_numbers", "has_one_program", "is_tested_name", "of_setting", "parse_value", "replicas",
    "setting_rows", "settings", "takes_total_steps", "test_split_error", "tested_name", "validate",
]  # fmt: skip
