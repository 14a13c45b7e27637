"""Which replicas are on the devices together. Pure: numbers only."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
    """The replicas 0 to `total` - 1 in groups of equal size, which are computed in turn."""

    total: int
    groups: tuple[tuple[int, ...], ...]  # the last may be completed with the first replicas

    @property
    def group_size(self) -> int:
        return len(self.groups[0])

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The arrays [G, ...] of all groups as one array [total, ...]."""
        return np.concatenate(parts)[: self.total]

    def find(self, wanted: Iterable[int]) -> dict[int, tuple[int, int]]:
        """For each wanted replica its group and its position there."""
        return {replica: divmod(replica, self.group_size) for replica in wanted}


def make_plan(total: int, size: int, multiple: int) -> Plan:
    """Divides `total` replicas into as few groups of at most `size` as possible.

    The size of a group is a multiple of `multiple`, for which it may exceed `size`.
    """
    size = -(-total // -(-total // size))  # even sizes: of 10 by 4, groups of 4, 4, 2 become 4 x 3
    size += -size % multiple
    groups = (range(start, start + size) for start in range(0, total, size))
    return Plan(total, tuple(tuple(replica % total for replica in group) for group in groups))
