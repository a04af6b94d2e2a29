"""What `FasterGradCAM.explain` does behind its network, as a layer of operations that LiteRT has."""

import numpy as np

from utils import imaging
from utils.repro import keras, tf

TAIL = "explanation_tail"


class ExplanationTail(keras.layers.Layer):
    """From feature maps (1, h, w, C), embedding (1, D) and finer maps to scores, unit embedding, cluster and heat map.

    One product with a table of prototypes and centroids gives all similarities. With unit embeddings
    ‖ê − m‖² = 1 − 2 ê·m + ‖m‖²; clusters of other classes are put out of reach by an offset, and a last cluster of
    zero weights is there for the classes that have none of their own.

    Args:
        model: a `FasterGradCAM`.
    """

    def __init__(self, model):
        super().__init__(name=TAIL)
        centroids = model.clusters.centroids
        n_clusters, size = centroids.shape
        self.n_classes = len(model.class_names)
        self.table = np.concatenate([model.prototypes, -2 * centroids.T, np.zeros((size, 1))], axis=1)
        reachable = np.arange(self.n_classes)[:, None] == model.clusters.classes  # (K, M)
        reachable = np.concatenate([reachable, ~reachable.any(axis=1, keepdims=True)], axis=1)
        self.offsets = np.where(reachable, np.append((centroids**2).sum(axis=1), 0), 1e9)  # (K, M + 1)
        self.channel_weights = np.pad(model.channel_weights, ((0, 1), (0, 0)))
        self.detail_weights, self.discriminant = model.detail_weights, model.discriminant
        grids = [maps.shape[1:3] for maps in (model.network.outputs[0], *model.network.outputs[2:])]
        finest = max(grids) if model.discriminant else grids[-1]
        self.resizes = [_resize_matrices(grid, finest) for grid in grids]
        self.to_image = _resize_matrices(finest, model.input_size)
        self.seen = np.ones(finest, np.float32)  # 0 for cells that show nothing of the image, but what was padded
        if model.window != imaging.WHOLE:
            self.to_image = imaging.placing(finest, model.input_size, model.window)
            self.seen = np.outer(*(matrix.any(axis=0) for matrix in self.to_image)).astype(np.float32)
        self.clusters = np.append(np.arange(n_clusters), -1).astype(np.int32)

    def call(self, maps, embedding, *finer):
        # tf.gather and tf.argmax, because those of keras.ops need operations that LiteRT does not have.
        embedding = tf.math.l2_normalize(embedding, axis=-1)
        products = tf.matmul(embedding, tf.constant(self.table, tf.float32))  # (1, K + M + 1)
        scores, products = products[:, : self.n_classes], products[:, self.n_classes :]
        label = tf.argmax(scores, axis=-1, output_type=tf.int32)  # (1,)
        distances = products + tf.gather(tf.constant(self.offsets, tf.float32), label)
        nearest = tf.argmin(distances, axis=-1, output_type=tf.int32)
        weights = tf.gather(tf.constant(self.channel_weights, tf.float32), nearest)  # (1, C)
        # Multiplied and summed: a matrix product packs the maps first, as if they were weights, and takes longer.
        positive = tf.nn.relu(tf.reduce_sum(maps * weights[:, None, None], axis=-1))  # (1, h, w)
        result = {"scores": scores, "embedding": embedding, "cluster": tf.gather(tf.constant(self.clusters), nearest)}
        if finer:
            result["outline"] = self._outline(maps, *finer)
            positive = tf.sqrt(_resized(positive, self.resizes[0])) * result["outline"]
        positive = positive if self.seen.all() else positive * self.seen
        positive = positive / tf.maximum(tf.reduce_max(positive), 1e-12)
        return result | {"heatmap": _resized(positive, self.to_image)}

    def _outline(self, maps, *finer):
        """As `FasterGradCAM.outline`, of operations that LiteRT has."""
        if not self.discriminant:
            return tf.nn.relu(tf.reduce_sum(finer[0] * tf.constant(self.detail_weights), axis=-1))
        odds = self.discriminant.bias
        for layer, weights, resize in zip((maps, *finer), self.discriminant.weights, self.resizes, strict=True):
            z = tf.nn.conv2d(layer, tf.constant(weights[None, None, :, None]), 1, "SAME")[..., 0]  # a constant kernel
            odds += _resized(z, resize)
        return tf.sqrt(tf.nn.relu(odds) + tf.math.log(1 + tf.exp(-tf.abs(odds))))


def _resize_matrices(grid, size):
    """Of rows (H, h) and of columns (W, w): what the resize, linear and axis by axis, makes of unit vectors."""
    return [imaging.resize(np.eye(n, dtype=np.float32)[None], m, n)[0] for n, m in zip(grid, size, strict=True)]


def _resized(maps, matrices):
    """A map (1, h, w) on another grid, (1, H, W)."""
    rows, columns = matrices
    maps = tf.matmul(tf.transpose(maps[0]), tf.constant(rows.T))  # (w, H)
    return tf.matmul(tf.transpose(maps), tf.constant(columns.T))[None]
