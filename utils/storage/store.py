"""Arrays with a row per image that may be larger than memory: small ones are held, large ones lie on the disk.

`keep` takes the rows as they come. Up to `LIMIT` bytes they become a plain array, beyond that a `Stored`: its rows are
in a temporary file (in $TMPDIR, or where the system has its own) and are read when they are asked for. Both are
indexed alike. So memory does not grow with the number of images, and a small set never sees the disk.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

LIMIT = 1 << 26  # bytes of an array in memory: 2,400 images of 96 x 96 pixels, and little beside TensorFlow
PART = 128  # rows that are looked at together
READERS, AHEAD = min(4, os.cpu_count() or 1), 4  # threads that read files, and items of a thread that wait


class Stored(np.lib.mixins.NDArrayOperatorsMixin):
    """Rows in a temporary file, which is gone when nobody uses it any more. `keep` and `join` make one.

    A number gives a row, a slice an array. Many numbers, or bools, give an array, or another `Stored` of the same file
    where it would be larger than `LIMIT`. `mean` and `var` along axis 0 take part after part, in float64. For all else
    that an array can do it is read as a whole. It cannot be changed.

    Attributes:
        shape, dtype, ndim, size: as of an array (N, ...).
    """

    def __init__(self, file, lock: threading.Lock, *, rows: np.ndarray, shape: tuple[int, ...], dtype: np.dtype):
        self._file, self._lock, self._rows = file, lock, rows
        self.shape, self.dtype, self.ndim = (len(rows), *shape), np.dtype(dtype), 1 + len(shape)
        self._row_bytes = self.dtype.itemsize * int(np.prod(shape))
        self.size = int(np.prod(self.shape))

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, key):
        rows = self._rows[key]
        if rows.ndim == 0:
            return self._read(rows[None])[0]
        if isinstance(key, slice) or len(rows) * self._row_bytes <= LIMIT:
            return self._read(rows)
        return Stored(self._file, self._lock, rows=rows, shape=self.shape[1:], dtype=self.dtype)

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype, copy=False)

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        whole = (x[:] if isinstance(x, Stored) else x for x in inputs)
        return getattr(ufunc, method)(*whole, **settings)

    def __getattr__(self, name):  # of what is not written here
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self[:], name)

    def mean(self, axis=None, dtype=None, **settings) -> np.ndarray:
        if axis != 0:
            return self[:].mean(axis, dtype, **settings)
        return self._mean(lambda part: part).astype(dtype or np.result_type(self.dtype, np.float32))

    def var(self, axis=None, **settings) -> np.ndarray:
        if axis != 0:
            return self[:].var(axis, **settings)
        mean = self.mean(0, np.float64)
        return self._mean(lambda part: (part - mean) ** 2).astype(np.result_type(self.dtype, np.float32))

    def _mean(self, function):
        return sum(function(part).sum(axis=0, dtype=np.float64) for part in parts(self)) / len(self)

    def _read(self, rows):
        array = np.empty((len(rows), *self.shape[1:]), self.dtype)
        buffer, size = memoryview(array.reshape(-1).view(np.uint8)), self._row_bytes
        with self._lock:  # the thread that prepares batches reads as well
            for i, row in enumerate(rows.tolist()):
                self._file.seek(row * size)
                self._file.readinto(buffer[i * size : (i + 1) * size])
        return array


class Rows:
    """Collects rows: `add` some, (n, ...), as often as need be; `done` gives all, of which there must be some."""

    def __init__(self):
        self._held, self._file, self._n_rows, self._n_bytes = [], None, 0, 0

    def add(self, part: np.ndarray) -> None:
        """Append rows.

        Raises:
            OSError: no space is left for the temporary file.
        """
        self._held.append(part)
        self._n_rows, self._n_bytes = self._n_rows + len(part), self._n_bytes + part.nbytes
        if self._n_bytes > LIMIT:
            self._write()

    def done(self) -> np.ndarray | Stored:
        """All rows in order: an array, or beyond `LIMIT` bytes a `Stored`."""
        if not self._file:
            return np.concatenate(self._held)
        rows, (shape, dtype) = np.arange(self._n_rows), self._kind
        return Stored(self._file, threading.Lock(), rows=rows, shape=shape, dtype=dtype)

    def _write(self):
        import tempfile  # here, because the runtime starts without it

        together = np.concatenate(self._held)
        self._held, self._kind = [], (together.shape[1:], together.dtype)
        try:
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115  open as long as it is used
            self._file.write(together)
            self._file.flush()
        except OSError as error:
            where = f"{error.strerror} in {tempfile.gettempdir()}; name another folder as $TMPDIR"
            raise OSError(f"Cannot keep so many images: {where}.") from None


def keep(arrays: Iterable[np.ndarray]) -> np.ndarray | Stored:
    """Arrays (n, ...) behind each other, as one: an array, or beyond `LIMIT` bytes a `Stored`.

    Example:
        >>> keep(np.full((2, 3), i) for i in range(2)).shape
        (4, 3)
    """
    return keep_each((array,) for array in arrays)[0]


def keep_each(groups: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray | Stored]:
    """`keep` of several arrays, parts of which come together; of nothing an empty list."""
    rows = []
    for arrays in groups:
        rows = rows or [Rows() for _ in arrays]
        for row, array in zip(rows, arrays, strict=True):
            row.add(np.asarray(array))
    return [row.done() for row in rows]


def join(arrays: list[np.ndarray | Stored]) -> np.ndarray | Stored:
    """As `keep`, of arrays that may be stored themselves."""
    if len(arrays) == 1 and isinstance(arrays[0], Stored):
        return arrays[0]
    return keep(part for array in arrays for part in parts(array))


def parts(array: np.ndarray | Stored, size: int = PART) -> Iterator[np.ndarray]:
    """So many rows at a time, in order, each time as an array."""
    return (array[i : i + size] for i in range(0, len(array), size))


def ahead(function: Callable, items: Iterable, n_threads: int = READERS) -> Iterator:
    """``map``, by threads that are a few items ahead."""
    from concurrent.futures import ThreadPoolExecutor  # here, because the runtime starts without it

    with ThreadPoolExecutor(n_threads) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == AHEAD * n_threads:
                yield waiting.popleft().result()
        yield from (coming.result() for coming in waiting)
