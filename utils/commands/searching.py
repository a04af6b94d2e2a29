"""Work of ``search``: the cells of a query, or of a part of it, and the sheet that shows why each hit is one."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from utils import heatmap, imaging, similarity
from utils.commands import drawing
from utils.runtime import Explainer
from utils.similarity import Cells

TILE, GAP, ACROSS = 176, 8, 4  # pixels of an image's longer side and between hits; hits in a row, two images each


def cells_of(explainer: Explainer, image: np.ndarray, region: list[int] | None = None) -> Cells:
    """The cells of an image uint8 (H, W, 3); with a region x0, y0, x1, y1 each counts as far as it lies in it.

    Raises:
        ValueError: the region is no part of the image, or the file has no cells.
    """
    cells = explainer.cells(image)
    if region is None:
        return cells
    (height, width), (x0, y0, x1, y1) = cells.size, region
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        received = f"{' '.join(map(str, region))}, of {width} x {height} pixels"
        raise ValueError(f"A region X0 Y0 X1 Y1 must lie in the image and hold a pixel. Received: {received}")
    spans = ((y0 / height, y1 / height, *cells.window[:2]), (x0 / width, x1 / width, *cells.window[2:]))
    rows, columns = (_inside(*span, n) for span, n in zip(spans, cells.maps.shape, strict=False))
    if not (rows.any() and columns.any()):
        raise ValueError("The network does not look at this region: it crops its images.")
    return replace(cells, weights=np.outer(rows, columns).astype(np.float32))


def _inside(low, high, start, end, n):
    """Which share of each of n cells between start and end lies between low and high, float (n,)."""
    low, high = sorted((edge - start) / (end - start) * n for edge in (low, high))
    return np.clip(np.minimum(np.arange(1, n + 1), high) - np.maximum(np.arange(n), low), 0, 1)


def draw(
    path: Path, explainer: Explainer, *, query: Cells, image: np.ndarray, hits: list[tuple[float, str]], folder: Path
) -> list[str]:
    """Write a sheet of the hits, the query beside each, on both what makes them alike; returns what is not readable."""
    tiles, skipped = [], []
    files = [(folder / name, f"{score:.3f} {name}") for score, name in hits]
    for _, text, hit in imaging.read_or_skip(files, skipped):
        result = similarity.of_cells(query, explainer.cells(hit))
        pair = [_tile(image, result.heatmap_a), _tile(hit, result.heatmap_b)]
        tile = np.hstack(pair)
        drawing.draw_text(tile, text, corner=(0, TILE), lowest=TILE)
        tiles.append(np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=255))
    if tiles:
        across = min(ACROSS, len(tiles))
        tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % across)
        rows = [np.hstack(tiles[i : i + across]) for i in range(0, len(tiles), across)]
        imaging.write_image(path, np.vstack(rows))
    return skipped


def _tile(image, heat):
    """An image under its signed map, of which only what is above 0 is drawn, on a square."""
    scale = TILE / max(image.shape[:2])
    size = [max(1, round(scale * side)) for side in image.shape[:2]]
    heat = imaging.resize(np.clip(heat, 0, 1)[None], *size)[0]
    small = heatmap.overlay(imaging.resize(image[None], *size)[0], heat)
    rest = np.subtract(TILE, size)
    return np.pad(small, ((rest[0] // 2, rest[0] - rest[0] // 2), (rest[1] // 2, rest[1] - rest[1] // 2), (0, 0)))
