"""Opens files so that a length in them that lies takes no memory."""

import io
import os
from pathlib import Path


class Bounded(io.BufferedReader):
    """A file that is read, at most to its end.

    Python takes memory for as many bytes as are asked for, even if the file has fewer.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._length = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Returns the next `size` bytes, or all that are left if there are fewer or `size` is None or below 0."""
        left = max(self._length - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))
