"""What a network sees of a photo: all of it, a region of interest, or tiles that overlap. Needs no TensorFlow."""

from dataclasses import dataclass

import numpy as np

from utils import imaging

OVERLAP = 1 / 4  # of two neighbouring tiles, at least
OUTSIDE = 128  # grey: what the network sees of pixels outside the region
MASK_SIDE = 128  # pixels of a region's mask, at most


@dataclass(frozen=True, eq=False)
class Views:
    """How photos are cut into the images a network sees, and how its answers are joined again.

    Attributes:
        region: top, bottom, left, right as shares of the photo's height and width.
        mask: bool (h, w), the region's shape inside these bounds, of any size; None: all of it.
        tile: side of a tile in pixels of the photo; None: the region is seen in one piece.

    Example:
        >>> views = Views(tile=40)
        >>> tiles = views.cut(np.zeros((1, 100, 40, 3), np.uint8), 32, 32)
        >>> tiles.shape
        (3, 32, 32, 3)
        >>> scores, maps = views.join(np.array([1, 2, 3]), np.ones((3, 32, 32), np.float32), (1, 100, 40))
        >>> scores, maps.shape
        (array([3]), (1, 100, 40))
    """

    region: tuple[float, float, float, float] = imaging.WHOLE
    mask: np.ndarray | None = None
    tile: int | None = None

    @classmethod
    def of(cls, shape: tuple[int, ...], region=None, tile: int | None = None) -> "Views":
        """For photos like one of this shape (H, W, ...).

        Args:
            region: left, top, right and bottom in its pixels; or a mask, bool (H, W); None: all of it.
            tile: as of the class.

        Raises:
            ValueError: the region has no pixel in the photo, the mask has another size, or a tile is larger than the
                region.
        """
        mask = region if isinstance(region, np.ndarray) else None
        if mask is not None:
            region = _bounds(mask, shape)
        bounds = imaging.WHOLE if region is None else _shares(region, shape)
        views = cls(bounds, None if mask is None or mask.all() else _shrunk(mask, region), tile)
        views._window(shape)
        return views

    @property
    def is_whole(self) -> bool:
        """Whether the network sees all of a photo at once."""
        return self.region == imaging.WHOLE and self.mask is None and self.tile is None

    def size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of a view of a photo of this shape, in its pixels."""
        top, bottom, left, right = self._window(shape)
        return (self.tile, self.tile) if self.tile else (bottom - top, right - left)

    def smallest(self) -> int:
        """Side of a square photo that is large enough to be looked at."""
        top, bottom, left, right = self.region
        return int(np.ceil((self.tile or 1) / min(bottom - top, right - left))) + 1

    def cut(self, images: np.ndarray, height: int, width: int) -> np.ndarray:
        """The T views of each photo, uint8 (N, H, W, 3), at the network's size: uint8 (N·T, height, width, 3).

        Raises:
            ValueError: the photos are smaller than a tile.
        """
        top, bottom, left, right = self._window(images.shape[1:])
        images = images[:, top:bottom, left:right]
        if self.mask is not None:
            inside = _grown(self.mask, images.shape[1:3])
            images = np.where(inside[..., None], images, np.uint8(OUTSIDE))
        corners = self._corners(images.shape[1:])
        if corners is None:
            return imaging.resize(images, height, width)
        tiles = [image[y : y + self.tile, x : x + self.tile] for image in images for y, x in corners]
        return imaging.resize(np.stack(tiles), height, width)

    def join(self, scores: np.ndarray, maps: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """What was found in the views of N photos of shape (N, H, W, ...).

        Args:
            scores: (N·T,).
            maps: (N·T, h, w).

        Returns:
            scores (N,), of each photo the highest; maps as of `join_maps`.
        """
        return scores.reshape(shape[0], -1).max(axis=1), self.join_maps(maps, shape)

    def join_maps(self, maps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Maps (N·T, h, w) of the views of N photos of shape (N, H, W, ...) as maps of the photos, float32 (N, H, W).

        Where tiles overlap it is the mean of theirs, weighted by the distance to a tile's edge; 0 outside the region.
        """
        top, bottom, left, right = window = self._window(shape[1:])
        inner = bottom - top, right - left
        corners = self._corners(inner)
        maps = imaging.resize(maps, *(inner if corners is None else (self.tile, self.tile)))
        if corners is not None:
            maps = np.stack([_blend(part, corners, inner) for part in maps.reshape(shape[0], -1, *maps.shape[1:])])
        if self.mask is not None:
            maps = maps * _grown(self.mask, inner)
        if window != (0, shape[1], 0, shape[2]):
            maps = np.pad(maps, ((0, 0), (top, shape[1] - bottom), (left, shape[2] - right)))
        return maps

    def asdict(self) -> dict:
        """As JSON takes it; `from_dict` reads it."""
        rows = None if self.mask is None else ["".join(row) for row in np.where(self.mask, "1", "0")]
        return {"region": list(self.region), "tile": self.tile, "mask": rows}

    @classmethod
    def from_dict(cls, values: dict) -> "Views":
        """What `asdict` wrote; of an empty dict whole photos."""
        rows = values.get("mask")
        mask = None if rows is None else np.array([list(row) for row in rows]) == "1"
        return cls(tuple(values.get("region", imaging.WHOLE)), mask, values.get("tile"))

    def _window(self, shape):
        """The region in pixels of a photo, and whether it is large enough."""
        height, width = shape[:2]
        top, bottom, left, right = self.region
        top, left = min(round(top * height), height - 1), min(round(left * width), width - 1)
        bottom, right = max(round(bottom * height), top + 1), max(round(right * width), left + 1)
        if self.tile is not None and not 1 <= self.tile <= min(bottom - top, right - left):
            raise ValueError(
                f"A tile must fit into what is looked at, {right - left} × {bottom - top} pixels of a photo. "
                f"Received: tiles of {self.tile}"
            )
        return top, bottom, left, right

    def _corners(self, shape):
        """Upper left corners (y, x) of the tiles that cover a region of this shape; None: it is not cut."""
        if self.tile is None:
            return None
        starts = [_starts(length, self.tile) for length in shape[:2]]
        return [(y, x) for y in starts[0] for x in starts[1]]


def _starts(length, tile):
    """Evenly spread, so that neighbours overlap by `OVERLAP` at least."""
    n = 1 + int(np.ceil((length - tile) / (tile * (1 - OVERLAP))))
    return np.linspace(0, length - tile, n).round().astype(int)


def _blend(maps, corners, shape):
    side = maps.shape[1]
    ramp = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)).astype(np.float32)
    weight = np.minimum.outer(ramp, ramp)
    total, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for tile, (y, x) in zip(maps, corners, strict=True):
        total[y : y + side, x : x + side] += weight * tile
        weights[y : y + side, x : x + side] += weight
    return total / weights


def _bounds(mask, shape):
    if mask.shape != tuple(shape[:2]):
        raise ValueError(
            f"The region's mask must have the size of the photos, {shape[1]} × {shape[0]} pixels. "
            f"Received: {mask.shape[1]} × {mask.shape[0]}"
        )
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("The region's mask is black: no pixel of a photo is left.")
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _shares(region, shape):
    height, width = shape[:2]
    left, right = np.clip(region[::2], 0, width) / width
    top, bottom = np.clip(region[1::2], 0, height) / height
    if left >= right or top >= bottom:
        raise ValueError(
            f"The region holds no pixel of the photos, of {width} × {height}. Received: {' '.join(map(str, region))}"
        )
    return float(top), float(bottom), float(left), float(right)


def _shrunk(mask, bounds):
    left, top, right, bottom = bounds
    mask = mask[top:bottom, left:right]
    scale = min(1, MASK_SIDE / max(mask.shape))
    return _grown(mask, [max(1, round(scale * side)) for side in mask.shape])


def _grown(mask, size):
    return imaging.resize(mask[None].astype(np.float32), *size)[0] >= 0.5
