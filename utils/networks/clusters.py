"""The clusters of the embedding space, class by class: k-means on unit embeddings, and the mean weights of each."""

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans

MANY = 10_000  # images of a class: up to here k-means takes seconds, beyond it looks at small batches


@dataclass(frozen=True, eq=False)
class Clusters:
    """The M clusters of the embedding space.

    Attributes:
        centroids: float32 (M, D), mean of the unit embeddings of each cluster.
        classes: int (M,), the class each cluster belongs to.
        mean_weights: float32 (M, C), mean of the harvested channel weights of each cluster.
    """

    centroids: np.ndarray
    classes: np.ndarray
    mean_weights: np.ndarray

    @classmethod
    def fit(
        cls, embeddings: np.ndarray, channel_weights: np.ndarray, labels: np.ndarray, *, n_clusters: int, seed: int
    ) -> "Clusters":
        """Cluster each class; no cluster is empty.

        Args:
            embeddings: float32 (N, D).
            channel_weights: float32 (N, C), an array or a `store.Stored`.
            labels: int (N,).
            n_clusters: of a class; of one with fewer distinct embeddings as many. Of a class with more than `MANY`
                images they come from mini-batch k-means (doi 10.1145/1772690.1772862).
            seed: of k-means.
        """
        embeddings, centroids, classes, mean_weights = unit(embeddings), [], [], []
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            found = k_means(embeddings[own], n_clusters, seed=seed)
            for k in np.unique(found):
                members = own[found == k]
                centroids.append(embeddings[members].mean(axis=0))
                classes.append(label)
                mean_weights.append(channel_weights[members].mean(axis=0))
        return cls(np.stack(centroids), np.array(classes), np.stack(mean_weights))


def k_means(vectors: np.ndarray, n_clusters: int, *, seed: int) -> np.ndarray:
    """The cluster of each vector (N, D): int (N,), at most ``n_clusters`` different ones, or as vectors are distinct.

    Example:
        >>> len(np.unique(k_means(np.float32([[0, 1], [0, 1], [1, 0]]), 5, seed=0)))
        2
    """
    sample = vectors[:: -(-len(vectors) // MANY)]
    n_clusters = min(n_clusters, len(np.unique(sample.round(6), axis=0)))
    kind = KMeans if len(vectors) <= MANY else MiniBatchKMeans
    return kind(n_clusters, n_init=10, random_state=seed).fit(vectors).labels_


def unit(vectors: np.ndarray, axis: int = -1) -> np.ndarray:
    """Vectors divided by their length, of zeros zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=axis, keepdims=True), 1e-6)
