"""Which replicas are on the devices together. Pure: numbers only."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
    """The replicas 0 to `total` - 1 in groups of equal size, which are computed in turn.

    Attributes:
      total: the number of replicas.
      groups: the replicas of each group; the last one may be completed with the first replicas.
    """

    total: int
    groups: tuple[tuple[int, ...], ...]

    @property
    def group_size(self) -> int:
        return len(self.groups[0])

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The arrays [G, ...] of all groups as one array [total, ...]."""
        return np.concatenate(parts)[: self.total]

    def find(self, wanted: Iterable[int]) -> dict[int, tuple[int, int]]:
        """For each wanted replica its group and its position there."""
        size = self.group_size
        return {replica: divmod(replica, size) for replica in wanted}


def make_plan(total: int, size: int, multiple: int) -> Plan:
    """Divides `total` replicas into as few groups as possible.

    Args:
      total: the number of replicas.
      size: the largest size of a group, unless `multiple` needs more.
      multiple: the size of every group is a multiple of this.
    """
    size = -(-total // -(-total // size))  # even sizes: of 10 by 4, groups of 4, 4, 2 become 4 x 3
    size += -size % multiple
    starts = range(0, total, size)
    groups = tuple(tuple(n % total for n in range(start, start + size)) for start in starts)
    return Plan(total, groups)
