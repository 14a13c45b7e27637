"""What the final evaluation scores: the test split, or a held-out fold of the training images."""

from collections.abc import Mapping
from typing import Any


def fold_numbers(fold: str) -> tuple[int, int]:
    """The fold of "3/10" and their number: (3, 10)."""
    index, count = map(int, fold.split("/"))
    return index, count


def tested_name(config: Mapping[str, Any]) -> str:
    """What the final evaluation of a configuration or a result scores, as `split` in metrics.jsonl.

    "test" or, with a fold, "held-out fold 3/10".
    """
    fold = config.get("fold")
    return "test" if fold is None else f"held-out fold {fold}"


def is_tested_name(split: str) -> bool:
    """Whether `split` of a line of metrics.jsonl is a `tested_name`."""
    return split == "test" or split.startswith("held-out fold ")
