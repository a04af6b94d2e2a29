"""The ArcFace layer (arXiv 1801.07698), which `arcface` trains with: angles in place of products."""

import math

import numpy as np

from utils.networks.graph import wrap
from utils.repro import keras

ops = keras.ops


@keras.saving.register_keras_serializable("faster_grad_cam")
class ArcFace(keras.layers.Layer):
    """Additive angular margin: cos(θ + m) for an image's own class, cos θ for the others, times a scale.

    θ is the angle between the embedding and a class prototype (a column of the kernel); both are normalised first,
    each row and each column by itself.

    Without labels (inference) the layer returns the score, the plain cosine similarity; labels and margin have no
    part in it. With labels (training) it returns logits for a softmax cross-entropy.

    Args:
        n_classes: K, number of prototypes.
        scale: s, radius of the hypersphere; > 0.
        margin: m in radians, in [0, π). At 0 the logits are those of the cosine softmax.
        easy_margin: apply the margin only where θ < π/2. Otherwise it is applied where θ + m < π, and beyond that
            cos θ − m·sin m continues the curve downwards, so that a worse angle never pays.

    Call:
        embeddings float32 (N, D), labels int (N,) or None → float32 (N, K).

    Example:
        >>> layer = ArcFace(3)
        >>> layer(np.ones((2, 8), np.float32)).shape
        TensorShape([2, 3])
    """

    def __init__(self, n_classes, scale=30.0, margin=0.3, easy_margin=False, **kwargs):
        super().__init__(**kwargs)
        if n_classes < 1 or scale <= 0 or not 0 <= margin < math.pi:
            raise ValueError(
                "ArcFace needs n_classes >= 1, scale > 0 and 0 <= margin < pi. "
                f"Received: n_classes={n_classes!r}, scale={scale!r}, margin={margin!r}"
            )
        self.n_classes, self.scale, self.margin, self.easy_margin = n_classes, scale, margin, easy_margin

    def build(self, embeddings_shape, labels_shape=None):
        self.kernel = self.add_weight(
            name="kernel", shape=(embeddings_shape[-1], self.n_classes), initializer="glorot_uniform"
        )

    def call(self, embeddings, labels=None):
        cosine = ops.matmul(normalise(embeddings, axis=-1), normalise(self.kernel, axis=0))  # (N, K)
        if labels is None:
            return cosine
        # The gradient of the square root is infinite at |cos θ| = 1, hence the floor.
        sine = ops.sqrt(ops.maximum(1.0 - ops.square(cosine), 1e-7))
        with_margin = cosine * math.cos(self.margin) - sine * math.sin(self.margin)  # cos(θ + m)
        if self.easy_margin:
            with_margin = ops.where(cosine > 0, with_margin, cosine)
        else:
            beyond = cosine - self.margin * math.sin(self.margin)
            with_margin = ops.where(cosine > -math.cos(self.margin), with_margin, beyond)
        own_class = ops.one_hot(labels, self.n_classes, dtype=cosine.dtype)
        return self.scale * (own_class * with_margin + (1.0 - own_class) * cosine)

    def compute_output_shape(self, embeddings_shape, labels_shape=None):
        return (*embeddings_shape[:-1], self.n_classes)

    def get_config(self):
        names = ("n_classes", "scale", "margin", "easy_margin")
        return super().get_config() | {name: getattr(self, name) for name in names}


def normalise(vectors, axis):
    """Unit length along the axis; a vector of zeros stays zero instead of becoming NaN."""
    return vectors * ops.rsqrt(ops.maximum(ops.sum(ops.square(vectors), axis=axis, keepdims=True), 1e-12))


def with_prototypes(network: keras.Model, prototypes: np.ndarray) -> keras.Model:
    """The network images → embedding (N, D) with an `ArcFace` head that has these prototypes (D, K)."""
    head = ArcFace(prototypes.shape[1], name="arcface")
    scores = head(network.outputs[0])
    head.set_weights([prototypes])
    return wrap(network.inputs[0], scores, like=network, name=f"{network.name}_arcface")
