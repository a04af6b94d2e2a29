"""What speaks for a defect, place by place: five sources of evidence, and how they are weighed against each other.

    logits of "changed" ──────────────────────────────► learnt
    maps at 1/4, 1/8, 1/16 ─► projected, at 1/8 ──┬───► nearest fine    distance to the nearest normal patch
                                                  └───► place fine      distance from what is usual at this place
    maps at 1/16 ───────────► projected, at 1/16 ─┬───► nearest coarse
                                                  └───► place coarse

The nearest patch follows PatchCore (arXiv 2106.08265), the place PaDiM (arXiv 2011.08785), of whose Gaussians only the
diagonal is kept. Which source tells something differs by product, and normal images can say: of each source e the
highest value in an image it has not seen, its peak, has mean μ and standard deviation σ. So z = (e − μ) / σ is small
wherever a source is as high in normal images as in others, and

    a = log(1 + Σ log(1 + exp z))

adds what is left of all sources: useless evidence adds little, two sources that agree add up. The outer logarithm
leaves all orders as they are; it keeps the heat of strong defects apart. Only `TRUSTED` sources are added: features
that were trained from scratch on artificial defects say little about others.
"""

import numpy as np

from utils.repro import keras, tf

SCALES = {"fine": (0, 1, 2), "coarse": (2,)}  # the maps each is made of
CELLS = {"fine": 1, "coarse": 2}  # the map whose cells it has
SOURCES = ("learnt", *(f"{kind} {scale}" for scale in SCALES for kind in ("nearest", "place")))
TRUSTED = {"small_resnet": 1, "mobilenet_v2": len(SOURCES)}  # the first so many
TAIL = "anomaly_tail"
SCORE_WINDOW, FEATURE_WINDOW = 2, 3  # cells, sides of what is averaged


class Tail(keras.layers.Layer):
    """From the core's outputs to scores and heat maps of S × S: the formula of `anomaly`, of operations LiteRT has.

    Args:
        side: S, of the image.
        arrays: what `normality.fit` returns.
    """

    def __init__(self, side, arrays):
        super().__init__(name=TAIL)
        self.side, self.arrays = side, arrays

    def call(self, logits, *maps):
        n_trusted = int(self.arrays["n_trusted"])
        a = combine(self.evidence(logits, *maps)[:n_trusted], self.arrays["peaks"][:n_trusted])
        usual, threshold = map(float, self.arrays["levels"])
        peak = tf.reduce_max(smooth(a, SCORE_WINDOW), axis=(1, 2, 3))  # (N,)
        rise = tf.nn.relu(tf.image.resize(a, (self.side,) * 2) - usual) / (threshold - usual)
        power = tf.square(tf.square(rise[..., 0]))
        return {"scores": (peak - usual) / (threshold - usual), "heatmap": power / (1 + power)}

    def evidence(self, logits, *maps):
        """Of each source float32 (N, g, g, 1), in the order of `SOURCES`."""
        found = [logits]
        for scale in SCALES:
            features = self.project(scale, maps)
            for measure in (self.nearest, self.place):
                found.append(tf.image.resize(measure(scale, features), logits.shape[1:3]))
        return found

    def project(self, scale, maps):
        """The scale's maps, averaged over 3×3 cells, standardised and projected: float32 (N, h, w, d)."""
        levels = [maps[n] for n in SCALES[scale]]
        size = maps[CELLS[scale]].shape[1:3]
        kernels = np.split(self.arrays[f"{scale}_projection"], np.cumsum([x.shape[-1] for x in levels])[:-1])
        total = tf.constant(self.arrays[f"{scale}_offset"])
        for level, kernel in zip(levels, kernels, strict=True):
            level = smooth(level, FEATURE_WINDOW)
            if level.shape[1] > size[0]:
                level = tf.nn.avg_pool2d(level, 2, 2, "VALID")
            level = tf.nn.conv2d(level, tf.constant(kernel[None, None]), 1, "SAME")
            total += tf.image.resize(level, size) if level.shape[1] < size[0] else level
        return total

    def nearest(self, scale, features):
        """Of each cell's features to the nearest normal patch: float32 (N, h, w, 1)."""
        patches = self.arrays[f"{scale}_patches"]
        # ‖f − p‖² = ‖f‖² − 2 f·p + ‖p‖²: one product for all patches.
        products = tf.nn.conv2d(features, tf.constant(-2 * patches.T[None, None]), 1, "SAME")
        least = tf.reduce_min(products + tf.constant((patches**2).sum(axis=1)), axis=-1, keepdims=True)
        return tf.sqrt(tf.nn.relu(tf.reduce_sum(tf.square(features), axis=-1, keepdims=True) + least))

    def place(self, scale, features):
        """Of each cell's features from their mean at this place, in standard deviations: float32 (N, h, w, 1)."""
        mean, inverse = (tf.constant(self.arrays[f"{scale}_{name}"]) for name in ("mean", "inverse_variance"))
        return tf.sqrt(tf.reduce_mean(tf.square(features - mean) * inverse, axis=-1, keepdims=True))


def combine(evidence, peaks):
    """a of the formula: float32 (N, g, g, 1), of each source's map and, (K, 2), mean and deviation of its peaks."""
    total = 0.0
    for found, (mean, deviation) in zip(evidence, np.asarray(peaks).tolist(), strict=True):
        z = (found - mean) / deviation
        total += tf.nn.relu(z) + tf.math.log(1 + tf.exp(-tf.abs(z)))  # log(1 + exp z) that cannot overflow
    return tf.math.log(1 + total)


def smooth(maps, side):
    """Mean of each cell and its neighbours in a window of side × side cells."""
    return tf.nn.avg_pool2d(maps, side, 1, "SAME")
