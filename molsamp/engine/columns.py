"""A table in flat arrays that only grows: the arrays double when full, so that adding m rows one by one costs O(m)."""

from __future__ import annotations

from torch import Tensor


class Columns:
    """Named columns of one length.

    Args:
        columns: the first rows, copied.
    """

    def __init__(self, columns: dict[str, Tensor]):
        self._full = {name: column.clone() for name, column in columns.items()}
        self._size = len(next(iter(columns.values())))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, name: str) -> Tensor:
        """The rows of a column, as a view: what is written into it is written into the table."""
        return self._full[name][: self._size]

    def get(self, name: str) -> Tensor | None:
        """The rows of a column, None where there is no such column."""
        return self[name] if name in self._full else None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        return tuple(self._full)

    @property
    def capacity(self) -> int:
        """Rows before the arrays grow."""
        return len(next(iter(self._full.values())))

    def append(self, rows: dict[str, Tensor]) -> None:
        """Adds rows: a tensor for every column."""
        first, self._size = self._size, self._size + len(next(iter(rows.values())))
        if self._size > self.capacity:
            for name, column in self._full.items():
                wider = column.new_empty((max(self._size, 2 * len(column)), *column.shape[1:]))
                wider[:first] = column[:first]
                self._full[name] = wider
        for name, column in self._full.items():
            column[first : self._size] = rows[name]

    def to_tensors(self) -> dict[str, Tensor]:
        """The flat dict of tensors that checkpoints hold."""
        return {name: self[name].clone() for name in self._full}
