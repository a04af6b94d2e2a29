"""A z-buffer of tapered capsules: one float32 plane that holds depths and part ids.

    bit   31   30 ... 23   22 ... 5            4 ... 0
          sign exponent    mantissa of depth   part id (0..31)

One maximum settles both, and depths are still good to five digits.
"""

import cv2
import numpy as np

PART_BITS = 0b11111
EMPTY = -131072.0  # a depth behind everything, of part 0
BATCH = 8  # capsules at a time
PIXELS = np.arange(1024, dtype=np.float32)  # coordinates, ready made; a canvas is no larger


def draw_capsules(buffer: np.ndarray, ends: np.ndarray, part: np.ndarray) -> None:
    """Put tapered capsules into a z-buffer, float32 (H, W), in place.

    ``ends`` (n, 2, 4) are x, y, z and radius in pixels at start and end, ``part`` (n,) the part ids.
    """
    height, width = buffer.shape
    low = np.clip((ends[..., :2] - ends[..., 3:]).min(1), 0, (width, height)).astype(int)
    high = np.clip((ends[..., :2] + ends[..., 3:]).max(1) + 2, 0, (width, height)).astype(int)
    extent = high - low
    area = extent.prod(1)
    order = np.argsort(area)[np.count_nonzero(area == 0) :]
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]  # of like size, each in its own window
        tops = _tops(ends[batch], part[batch], low[batch], extent[batch].max(0).tolist())
        for top, (x, y), (columns, rows) in zip(tops, low[batch].tolist(), extent[batch].tolist(), strict=True):
            window = buffer[y : y + rows, x : x + columns]
            np.fmax(window, top[:rows, :columns], out=window)  # knows no NaN


def _tops(ends, part, corner, extent):
    """Depth of n capsules with the part ids in the last bits: float32 (n, rows, columns), NaN where there is none.

    Each is seen through a window of ``extent`` = (columns, rows) at its corner. With t from 0 to 1 along the axis, and
    everything else relative to its start, the surface at (x, y) lies at

        height² = radius(t)² - (x - t·dx)² - (y - t·dy)²    above the axis point z(t)
    """
    columns, rows = extent
    (xa, ya, za, ra), (dx, dy, dz, dr) = ends[:, 0].T, (ends[:, 1] - ends[:, 0]).T
    length2 = np.maximum(dx * dx + dy * dy, 1e-6)
    length = np.sqrt(length2)
    # Seen at a slant, the visible surface belongs to a point further along the axis.
    further = dz / np.sqrt(length2 + dz * dz) / length
    numbers = np.stack([xa, ya, za, ra, dx, dy, dz, dr, length2, length, further]).astype(np.float32)
    xa, ya, za, ra, dx, dy, dz, dr, length2, length, further = numbers[..., None, None]
    x = (PIXELS[:columns] + corner[:, :1].astype(np.float32))[:, None] - xa  # (n, 1, columns)
    y = (PIXELS[:rows] + corner[:, 1:].astype(np.float32))[..., None] - ya  # (n, rows, 1)
    along = x * dx + y * dy
    # All in place: the arrays are large, and new ones cost more than the arithmetic.
    aside = x * (dy / length) - y * (dx / length)  # distance from the axis
    aside *= aside
    height = np.subtract((ra + 0.5 * dr) ** 2, aside, out=aside)  # squared, at the mean radius
    flat = height.reshape(len(height), -1)
    cv2.sqrt(cv2.max(flat, 0.0, dst=flat), dst=flat)
    t = np.multiply(height, further, out=height)
    t += along * (1 / length2)
    np.clip(t, 0, 1, out=t)
    # height² = t² (dr² - length²) + 2 t (along + ra dr) + ra² - x² - y²
    along += ra * dr
    along += along
    top = t * (dr * dr - length2)
    top += along
    top *= t
    top += (ra * ra - x * x) - y * y
    flat = top.reshape(len(top), -1)
    cv2.sqrt(flat, dst=flat)  # NaN outside, without NumPy's warning
    t *= dz
    top += t
    top += za
    bits = top.view(np.int32)
    bits &= ~PART_BITS
    bits |= part.astype(np.int32)[:, None, None]
    return top


def part_ids(buffer: np.ndarray) -> np.ndarray:
    """The part ids in a z-buffer: uint8 (H, W), 0 where there is nothing."""
    return (buffer.view(np.int32) & PART_BITS).astype(np.uint8)
