"""The result of an explanation. Needs NumPy only, so that it can be used where there is no TensorFlow."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Explanation:
    """Labels and heat maps of N images.

    Attributes:
        labels: int (N,), index into ``class_names``.
        class_names: tuple of K names.
        scores: float32 (N, K), cosine similarity to each class prototype, in [-1, 1].
        heatmaps: float32 (N, H, W) in [0, 1], of the input's size; all zeros where the label is *none* or nothing
            speaks for the class.
        clusters: int (N,), the cluster whose channel weights made the map; -1 for *none*.
        embeddings: float32 (N, D), unit length.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    scores: np.ndarray
    heatmaps: np.ndarray
    clusters: np.ndarray
    embeddings: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """The predicted class name of each image."""
        return tuple(self.class_names[label] for label in self.labels)
