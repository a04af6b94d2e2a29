"""What the renderers of hands and rings share: checks of their arguments, and many images from one seed."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def check(what: str, names: Sequence[str], known: Sequence[str], *, image_size: int, sizes: tuple[int, int]) -> None:
    """ValueError unless all names are known, ``what`` they name, and image_size is a whole number in the range."""
    for name in names:
        if name not in known:
            raise ValueError(f"A {what} must be one of {', '.join(known)}. Received: {name!r}")
    smallest, largest = sizes
    is_integer = isinstance(image_size, int | np.integer) and not isinstance(image_size, bool)
    if not is_integer or not smallest <= image_size <= largest:
        raise ValueError(f"image_size must be an integer from {smallest} to {largest} pixels. Received: {image_size!r}")


def render_many(
    render: Callable, names: Sequence[str], *, seed: int, image_size: int, **settings
) -> tuple[np.ndarray, np.ndarray]:
    """Call render(name, rng, ...) → image, mask for each name: uint8 (N, S, S, 3) and bool (N, S, S)."""
    images = np.empty((len(names), image_size, image_size, 3), np.uint8)
    masks = np.empty(images.shape[:3], bool)
    # A trick for speed, a quarter of the time at 224 pixels: freeing a block of 24 MB raises glibc's M_MMAP_THRESHOLD
    # and M_TRIM_THRESHOLD, see mallopt(3); else it asks the system for fresh pages with nearly every temporary array.
    np.empty(24 << 20, np.uint8)

    def fill(i):
        images[i], masks[i] = render(names[i], np.random.default_rng([seed, i]), image_size=image_size, **settings)

    # NumPy and OpenCV let go of the interpreter lock, but Python in between does not: more threads only queue.
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(len(names))))
    return images, masks
