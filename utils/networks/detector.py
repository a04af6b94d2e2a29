"""The network that finds what was changed in an image, which `anomaly` trains, and the tail behind it."""

import os

import numpy as np

from utils.networks.embedding import Spec, embedding_network
from utils.networks.graph import wrap
from utils.networks.spatial import get_layer
from utils.repro import keras, tf

# Maps of three resolutions, 1/4, 1/8 and 1/16 of the image's; distances are taken in the last two.
LAYERS = {
    "small_resnet": ("stage_1_block_1_relu", "stage_2_block_1_relu", "stage_3_block_1_relu"),
    "mobilenet_v2": ("block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu"),
}
CHANNELS = 48, 32  # of the map's head: where the resolutions meet, and behind that
DISTANCE_WEIGHT = 0.1  # w of the formula
SCORE_WINDOW, FEATURE_WINDOW = 2, 3  # cells, sides of what is averaged


def build(spec: Spec, weights: str | os.PathLike | None = None, *, seed: int = 0) -> keras.Model:
    """The core (see `anomaly.AnomalyDetector`). With weights nothing of the backbone is trained."""
    network = embedding_network(spec, weights, seed=seed)
    if weights:
        for layer in network.layers[:-1]:
            layer.trainable = False
    maps = [get_layer(network, name).output for name in LAYERS[spec.backbone]]
    seeds = iter(range(1000 * seed + 900, 1000 * seed + 1000))
    size = maps[0].shape[1]

    def convolution(maps, channels, kernel_size):
        how = {"padding": "same", "use_bias": False, "kernel_initializer": keras.initializers.HeNormal(next(seeds))}
        maps = keras.layers.Conv2D(channels, kernel_size, **how)(maps)
        return keras.layers.BatchNormalization(momentum=0.9)(maps)

    levels = [convolution(level, CHANNELS[0], 1) for level in maps]
    grown = [keras.layers.UpSampling2D(size // x.shape[1], interpolation="bilinear")(x) for x in levels[1:]]
    met = keras.layers.ReLU()(keras.layers.Add()([levels[0], *grown]))
    met = keras.layers.ReLU()(convolution(met, CHANNELS[1], 3))
    rare = keras.initializers.Constant(-3)  # few cells are changed
    initializer = keras.initializers.HeNormal(next(seeds))
    logits = keras.layers.Conv2D(1, 1, kernel_initializer=initializer, bias_initializer=rare, name="changed")(met)
    outputs = [logits, *maps[1:], network.outputs[0]]
    return wrap(network.inputs[0], outputs, like=network, name="anomaly_core")


class Tail(keras.layers.Layer):
    """From logits and features to scores and heat maps of S × S: the formula of `anomaly`, of operations LiteRT has."""

    def __init__(self, side, arrays):
        super().__init__(name="anomaly_tail")
        self.side, self.arrays = side, arrays

    def call(self, logits, fine, coarse):
        a = self.anomaly(logits, fine, coarse)
        usual, threshold = map(float, self.arrays["levels"])
        peak = tf.reduce_max(smooth(a, SCORE_WINDOW), axis=(1, 2, 3))  # (N,)
        rise = tf.nn.relu(tf.image.resize(a, (self.side,) * 2) - usual) / (threshold - usual)
        power = tf.square(tf.square(rise[..., 0]))
        return {"scores": (peak - usual) / (threshold - usual), "heatmap": power / (1 + power)}

    def anomaly(self, logits, fine, coarse):
        """a of the formula: float32 (N, g, g, 1)."""
        (m1, s1), (m2, s2) = self.arrays["moments"].tolist()
        distance = tf.image.resize(self.distance(fine, coarse), logits.shape[1:3])
        return (logits - m1) / s1 + DISTANCE_WEIGHT * (distance - m2) / s2

    def distance(self, fine, coarse):
        """Of each cell's features to the nearest prototype: float32 (N, h, w, 1)."""
        features = self.project(fine, coarse)
        prototypes = self.arrays["prototypes"]
        # ‖p − c‖² = ‖p‖² − 2 p·c + ‖c‖²: one product for all prototypes.
        products = tf.nn.conv2d(features, tf.constant(-2 * prototypes.T[None, None]), 1, "SAME")
        nearest = tf.reduce_min(products + tf.constant((prototypes**2).sum(axis=1)), axis=-1, keepdims=True)
        return tf.sqrt(tf.nn.relu(tf.reduce_sum(tf.square(features), axis=-1, keepdims=True) + nearest))

    def project(self, fine, coarse):
        """Both resolutions, averaged over 3×3 cells, standardised and projected: float32 (N, h, w, `N_DIMENSIONS`)."""
        kernels = np.split(self.arrays["projection"], [fine.shape[-1]])
        fine, coarse = (
            tf.nn.conv2d(smooth(maps, FEATURE_WINDOW), tf.constant(kernel[None, None]), 1, "SAME")
            for maps, kernel in zip((fine, coarse), kernels, strict=True)
        )
        return fine + tf.image.resize(coarse, fine.shape[1:3]) + tf.constant(self.arrays["offset"])


def smooth(maps, side):
    """Mean of each cell and its neighbours in a window of side × side cells."""
    return tf.nn.avg_pool2d(maps, side, 1, "SAME")
