"""Why two images are alike: the cosine of their embeddings, shared out among pairs of cells, without a gradient.

Where average pooling and a dense layer W follow the last feature maps A of n cells, an embedding is a sum over cells,
e = Σ_p z_p with z_p = Wᵀ A_p / n, and so is the cosine, exactly:

    cos(e, e′) = Σ_p Σ_q z_p · z′_q / (‖e‖ ‖e′‖)        cell p alone adds  s_p = z_p · ê′ / ‖e‖

(Zhu et al., arXiv 1909.12977; Stylianou et al., arXiv 1901.00536.) With itself an image has the cosine 1. What a cell
adds to that and not to the other cosine speaks against it, d_p = z_p · (ê − ê′) / ‖e‖: together 1 − cos(e, e′). For the
eye a detail map F sharpens both, sign(s) · √|s| · F; the sharpened ones sum to nothing in particular. Where an
embedding is no such sum, s_p is gradient × activation of the cosine: an approximation, which says so.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np

from utils import imaging


def product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of two float32 matrices, by OpenCV: NumPy's starts threads, which get in the way of the network's."""
    return cv2.gemm(np.asarray(one, np.float32), np.asarray(other, np.float32), 1, None, 0)


@dataclass(frozen=True, eq=False)  # == of arrays has no single answer
class Cells:
    """An image as the n = h · w cells that its embedding is the sum of.

    Attributes:
        maps: float32 (h, w, C), A_p.
        projection: float32 (C, D), W: the embedding is the mean of Wᵀ A_p; None: of A_p itself.
        size: height and width of the image in pixels.
        outline: float32 (h', w') or None, a detail map, nowhere below 0.
        window: the part of the image that the maps show, see `networks.Window`.
        weights: float32 (h, w) in [0, 1], how far a cell counts, where only a part of the image is asked for.
    """

    maps: np.ndarray
    size: tuple[int, int]
    projection: np.ndarray | None = None
    outline: np.ndarray | None = None
    window: tuple[float, float, float, float] = imaging.WHOLE
    weights: np.ndarray | float = 1.0

    @cached_property
    def shares(self) -> np.ndarray:
        """Of each cell in the mean over the image, float32 (h, w)."""
        height, width, _ = self.maps.shape
        return np.full((height, width), self.weights / (height * width), np.float32)

    @cached_property
    def rows(self) -> np.ndarray:
        """A_p of all cells, float32 (n, C)."""
        return self.maps.reshape(self.shares.size, -1)

    @cached_property
    def vectors(self) -> np.ndarray:
        """z_p of all cells, float32 (n, D): they cost the most, and only the table of pairs needs them."""
        projected = self.rows if self.projection is None else product(self.rows, self.projection)
        return projected * self.shares.reshape(-1, 1)

    @cached_property
    def embedding(self) -> np.ndarray:
        """Σ_p z_p, float32 (D,), not of unit length."""
        mean = np.einsum("n,nc->c", self.shares.ravel(), self.rows)  # on one thread, as `product`
        return mean if self.projection is None else np.einsum("c,cd->d", mean, self.projection)

    @cached_property
    def length(self) -> float:  # of the embedding
        return max(math.sqrt(self.embedding @ self.embedding), 1e-12)

    @cached_property
    def unit(self) -> np.ndarray:
        """The embedding divided by its length, float32 (D,)."""
        return self.embedding / self.length

    @property
    def places(self) -> np.ndarray:
        """The middle of each cell, float (n, 2): x and y in pixels of the image."""
        edges = np.reshape(self.window, (2, 2))
        sides = zip(edges, self.maps.shape, self.size, strict=False)
        y, x = ((start + (end - start) * (np.arange(n) + 0.5) / n) * side for (start, end), n, side in sides)
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)

    def along(self, direction: np.ndarray) -> np.ndarray:
        """z_p · direction / ‖e‖ = A_p · (W direction) / (n ‖e‖), float32 (h, w)."""
        weights = direction / np.float32(self.length)
        if self.projection is not None:
            weights = np.einsum("cd,d->c", self.projection, weights)
        return np.einsum("nc,c->n", self.rows, weights).reshape(self.shares.shape) * self.shares

    def draw(self, raw: np.ndarray, sharpen: bool) -> np.ndarray:
        """A signed map (h, w) at the size of the image, float32 (H, W), sharpened or not, not scaled."""
        if sharpen and self.outline is not None:
            raw = imaging.resize(raw[None], *self.outline.shape)[0]
            raw = np.sign(raw) * np.sqrt(np.abs(raw)) * self.outline
        if tuple(self.window) == imaging.WHOLE:
            return imaging.resize(raw[None], *self.size)[0]
        rows, columns = imaging.placing(raw.shape, self.size, self.window)
        return rows @ raw @ columns.T


@dataclass(frozen=True, eq=False)
class Comparison:
    """Why images a and b are alike, and what speaks against it: maps and table are computed when asked for.

    Attributes:
        score: cosine of the embeddings, in [-1, 1].
        a, b: `Cells` of both.
        sharpen: whether details sharpen the heat maps.
        gradients: gradient × activation of the score, float32 (h, w) of a and of b, where the embedding is no sum
            over cells: the shares, then, whose sum means nothing, and losses are −shares.
    """

    score: float
    a: Cells
    b: Cells
    sharpen: bool = True
    gradients: tuple[np.ndarray, np.ndarray] | None = None

    is_exact = property(lambda self: self.gradients is None, doc="Whether the shares sum to the score.")

    @cached_property
    def shares_a(self) -> np.ndarray:
        """float32 (h, w), what each cell of a adds to the score: the sum is the score."""
        return self.a.along(self.b.unit) if self.is_exact else self.gradients[0]

    @cached_property
    def shares_b(self) -> np.ndarray:
        """float32 (h', w'), the same of b."""
        return self.b.along(self.a.unit) if self.is_exact else self.gradients[1]

    @cached_property
    def losses_a(self) -> np.ndarray:
        """float32 (h, w), what of a speaks against the score: the sum is 1 − score."""
        return (self.a.along(self.a.unit) if self.is_exact else 0) - self.shares_a

    @cached_property
    def losses_b(self) -> np.ndarray:
        """float32 (h', w'), the same of b."""
        return (self.b.along(self.b.unit) if self.is_exact else 0) - self.shares_b

    @cached_property
    def pairs(self) -> np.ndarray:
        """float32 (n, n'), what each pair of cells, row by row, adds to the score; ValueError if not exact."""
        if not self.is_exact:
            raise ValueError("Pairs of cells need a network whose embedding is a sum over cells: pooling, dense layer.")
        return product(self.a.vectors, self.b.vectors.T) / np.float32(self.a.length * self.b.length)

    @cached_property
    def _drawn(self):
        """Shares and losses of a, then of b, drawn and divided by the highest value of either image."""
        sides = ((self.a, self.shares_a, self.losses_a), (self.b, self.shares_b, self.losses_b))
        pairs = [np.stack([cells.draw(raw, self.sharpen) for raw in maps]) for cells, *maps in sides]
        return [heat for pair in pairs for heat in pair / max(np.abs(pair).max(), 1e-12)]

    heatmap_a = property(lambda self: self._drawn[0], doc="float32 (H, W) in [-1, 1], what of a makes them alike.")
    heatmap_b = property(lambda self: self._drawn[2], doc="float32 (H', W') in [-1, 1], the same of b.")
    difference_a = property(lambda self: self._drawn[1], doc="float32 (H, W) in [-1, 1], what of a speaks against it.")
    difference_b = property(lambda self: self._drawn[3], doc="float32 (H', W') in [-1, 1], the same of b.")

    def match(self, point: tuple[int, int]) -> tuple[int, int]:
        """The middle of the cell of b that has most in common with that of a point (x, y) of a, in pixels."""
        if np.shape(point) != (2,) or not (np.less_equal(0, point) & np.less(point, self.a.size[::-1])).all():
            raise ValueError(f"A point (x, y) must lie in the image, {self.a.size[::-1]} pixels. Received: {point}")
        cell = ((self.a.places - np.add(point, 0.5)) ** 2).sum(axis=1).argmin()
        return tuple(self.b.places[self.pairs[cell].argmax()].astype(int).tolist())


class Contrast(NamedTuple):
    """Why an image x is nearer to a than to b, or is not.

    margin: cosine with a minus that with b; shares: float32 (h, w), what each cell of x adds to it; heatmap: float32
    (H, W) in [-1, 1], above 0 where x speaks for a, below 0 where it speaks for b.
    """

    margin: float
    shares: np.ndarray
    heatmap: np.ndarray


def compare(model, a: np.ndarray, b: np.ndarray, *, details: bool = True, layer: str | None = None) -> Comparison:
    """Why two images are alike.

    Args:
        model: a `runtime.Explainer`, a `FasterGradCAM`, or any Keras network images → embedding (N, D), also with
            `ArcFace` behind it. Where its embedding is a sum over cells the result is exact.
        a, b: uint8 RGB (H, W, 3) of any sizes, resized to the network's; or of another network floats as it wants them.
        details: whether to sharpen the heat maps, where the model has a detail layer.
        layer: that of the maps where the result is not exact; None: `networks.default_layer`.

    Raises:
        ValueError: no such images, a network that has no maps or gives no embedding, an exported file without cells.

    Example:
        >>> from utils.runtime import Explainer
        >>> a, b = (imaging.read_image(f"data/hands/pa/0{i}.jpg") for i in (0, 1))
        >>> result = compare(Explainer("data/models/janken/explainer.tflite"), a, b)
        >>> bool(abs(result.pairs.sum() - result.score) < 1e-5), result.heatmap_a.shape
        (True, (160, 160))
    """
    if hasattr(model, "cells"):  # of an exported file, without TensorFlow
        return of_cells(model.cells(a), model.cells(b), sharpen=details)
    from utils.networks import cells

    network = cells.embedding_of(getattr(model, "network", model))
    sharper = (model.layers, model.outline) if getattr(model, "has_details", False) else None
    found = [Cells(**cells.read(network, image, layer=layer, details=sharper)) for image in (a, b)]
    if cells.linear_tail(network):
        return of_cells(*found, sharpen=details)
    score, shares = cells.gradient_shares(network, (a, b), layer)
    return Comparison(score, *found, gradients=tuple(shares))


def contrast(model, x: np.ndarray, *, a: np.ndarray, b: np.ndarray, details: bool = True) -> Contrast:
    """Why image x is nearer to a than to b; arguments as of `compare`."""
    to_a, to_b = (compare(model, x, other, details=details) for other in (a, b))
    shares = to_a.shares_a - to_b.shares_a
    heat = to_a.a.draw(shares, details)
    return Contrast(to_a.score - to_b.score, shares, heat / max(np.abs(heat).max(), 1e-12))


def of_cells(a: Cells, b: Cells, *, sharpen: bool = True) -> Comparison:
    """The formula alone: `Comparison` of the cells of two images."""
    return Comparison(float(a.unit @ b.unit), a, b, sharpen=sharpen)
