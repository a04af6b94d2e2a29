"""The formulas of Grad-CAM's family: from feature maps A (N, h, w, C) and gradients g = ∂s/∂A of the score to raw maps.

Each returns float32 (N, h, w), before ReLU and scaling. Sums over i, j run over the h·w positions.
"""

import numpy as np

from utils.repro import tf


def gradcam(maps, gradients):
    """Grad-CAM (arXiv 1610.02391): Σ_c α_c·A_c with α_c = mean over h, w of g_c."""
    return tf.einsum("nhwc,nc->nhw", maps, tf.reduce_mean(gradients, axis=(1, 2)))


def gradcam_plus_plus(maps, gradients):
    """Grad-CAM++ (arXiv 1710.11063): Σ_c w_c·A_c with w_c = Σ_ij α_ijc·ReLU(g_ijc).

    The paper lets the score be exp(s): its second and third derivatives are then exp(s)·g² and exp(s)·g³, and

        α_ijc = g² / (2g² + Σ_ab A_abc · g³) = 1 / (2 + Σ_ab A_abc · g_ijc),  0 where g = 0 or the denominator is 0

    The second form does not underflow. The factor exp(s) of the first derivative is the same for a whole image and
    cancels in the heat map; raw maps are without it.
    """
    denominator = 2.0 + tf.reduce_sum(maps, axis=(1, 2), keepdims=True) * gradients
    alphas = tf.math.divide_no_nan(tf.ones_like(gradients), denominator)  # where g = 0, ReLU(g) makes it 0
    return tf.einsum("nhwc,nc->nhw", maps, tf.reduce_sum(alphas * tf.nn.relu(gradients), axis=(1, 2)))


def layercam(maps, gradients):
    """LayerCAM (IEEE TIP 2021, doi 10.1109/TIP.2021.3089943): Σ_c ReLU(g_c)·A_c, position by position."""
    return tf.reduce_sum(tf.nn.relu(gradients) * maps, axis=3)


def hirescam(maps, gradients):
    """HiResCAM (arXiv 2011.08891): Σ_c g_c·A_c, position by position."""
    return tf.reduce_sum(gradients * maps, axis=3)


def xgradcam(maps, gradients):
    """XGrad-CAM (arXiv 2008.02312): Σ_c α_c·A_c with α_c = Σ_ij A_ijc·g_ijc / Σ_ij A_ijc, 0 where that sum is 0."""
    weighted, total = (tf.reduce_sum(array, axis=(1, 2)) for array in (maps * gradients, maps))
    return tf.einsum("nhwc,nc->nhw", maps, tf.math.divide_no_nan(weighted, total))


def gradcam_elementwise(maps, gradients):
    """Grad-CAM, element-wise (pytorch-grad-cam): Σ_c ReLU(g_c·A_c): what speaks for the class, and nothing against."""
    return tf.reduce_sum(tf.nn.relu(gradients * maps), axis=3)


def cam(maps, gradients):
    """CAM (arXiv 1512.04150): Σ_c w_c·A_c with the class's weights w of a dense layer behind global average pooling.

    There Σ_ij g_ijc = w_c. Behind other layers it is Grad-CAM times h·w.
    """
    return tf.einsum("nhwc,nc->nhw", maps, tf.reduce_sum(gradients, axis=(1, 2)))


def shapleycam(maps, gradients, curvatures):
    """ShapleyCAM (arXiv 2501.06261): Σ_c α_c·A_c with α_c = mean over h, w of (g − H·A / 2)_c, the Hessian H of s.

    ``curvatures`` are H·A, float32 (N, h, w, C): 0 where s is piecewise linear in A, where this is Grad-CAM.
    """
    return gradcam(maps, gradients - curvatures / 2)


def smooth_gradcam_plus_plus(maps, first, second, third):
    """Smooth Grad-CAM++ (arXiv 1908.01224): Grad-CAM++ with the means of g, g² and g³ over noisy copies of the image.

        α_ijc = mean g² / (2·mean g² + Σ_ab A_abc · mean g³),  w_c = Σ_ij α_ijc·ReLU(mean g_ijc)
    """
    denominator = 2.0 * second + tf.reduce_sum(maps, axis=(1, 2), keepdims=True) * third
    alphas = tf.math.divide_no_nan(second, denominator)
    return tf.einsum("nhwc,nc->nhw", maps, tf.reduce_sum(alphas * tf.nn.relu(first), axis=(1, 2)))


def finer_score(scores, class_ids):
    """Finer-CAM (arXiv 2501.11309): how much more the class gets than the `N_SIMILAR` classes of the nearest scores.

    Σ_k p_k·(s − s_k) / Σ_k p_k with the softmax p of the scores, float32 (n,). Its Grad-CAM map shows what tells the
    class from its like.
    """
    own = tf.gather(scores, class_ids, axis=1, batch_dims=1)[:, None]
    distances = tf.abs(scores - own) - tf.one_hot(class_ids, tf.shape(scores)[1])  # the class itself comes first
    nearest = tf.argsort(distances, axis=1)[:, 1 : N_SIMILAR + 1]
    shares, others = (tf.gather(x, nearest, axis=1, batch_dims=1) for x in (tf.nn.softmax(scores), scores))
    return tf.math.divide_no_nan(tf.reduce_sum(shares * (own - others), axis=1), tf.reduce_sum(shares, axis=1))


def eigencam(maps, _):
    """Eigen-CAM (arXiv 2008.00299): A as a matrix (h·w, C), not centred, times its first right singular vector.

    No class takes part. A singular vector has no sign of its own: it is chosen so that the map's sum is not negative.
    """
    raw = _first_component(_matrix(maps))
    raw = tf.where(tf.reduce_sum(raw, axis=1, keepdims=True) < 0, -raw, raw)
    return tf.reshape(raw, tf.shape(maps)[:3])


def eigengradcam(maps, gradients):
    """Eigen-CAM of g·A (pytorch-grad-cam), centred: the first principal component of what counts for the class.

    Its sign makes the largest value positive (doi 10.3390/app15137562).
    """
    matrix = _matrix(maps * gradients)
    raw = _first_component(matrix - tf.reduce_mean(matrix, axis=1, keepdims=True))
    return tf.reshape(_with_sign(raw), tf.shape(maps)[:3])


def kpcacam(maps, _):
    """KPCA-CAM (arXiv 2410.00267): the first kernel principal component of A as a matrix (h·w, C), centred.

    The kernel of two rows is tanh(x·y / C + 1). No class takes part. The sign is that of `eigengradcam`. A map takes
    (h·w)² numbers: choose a late layer.
    """
    matrix = _matrix(maps)
    matrix -= tf.reduce_mean(matrix, axis=1, keepdims=True)
    kernel = tf.tanh(tf.matmul(matrix, matrix, transpose_b=True) / tf.cast(tf.shape(maps)[3], tf.float32) + 1.0)
    across, down = (tf.reduce_mean(kernel, axis=axis, keepdims=True) for axis in (1, 2))
    values, vectors = tf.linalg.eigh(kernel - across - down + tf.reduce_mean(kernel, axis=(1, 2), keepdims=True))
    raw = tf.sqrt(tf.maximum(values[:, -1:], 0.0)) * vectors[..., -1]
    return tf.reshape(_with_sign(raw), tf.shape(maps)[:3])


def _matrix(maps):
    shape = tf.shape(maps)
    return tf.reshape(maps, (shape[0], shape[1] * shape[2], shape[3]))  # (N, h·w, C)


def _first_component(matrix):
    """Matrices (N, P, C) times their first right singular vectors: (N, P)."""
    scale = tf.reduce_max(tf.abs(matrix), axis=(1, 2), keepdims=True)
    matrix = tf.math.divide_no_nan(matrix, scale)  # so that squares neither overflow nor vanish

    # The smaller of the two Gram matrices has the same first vector: A·v = σ·u, v of AᵀA, u of AAᵀ.
    def from_channels():
        vector = tf.linalg.eigh(tf.matmul(matrix, matrix, transpose_a=True))[1][..., -1:]
        return tf.matmul(matrix, vector)[..., 0]

    def from_positions():
        values, vectors = tf.linalg.eigh(tf.matmul(matrix, matrix, transpose_b=True))
        return tf.sqrt(tf.maximum(values[:, -1:], 0.0)) * vectors[..., -1]

    return tf.cond(tf.shape(matrix)[2] <= tf.shape(matrix)[1], from_channels, from_positions) * scale[..., 0]


def _with_sign(raw):
    """(N, P), turned where the value of the largest size is negative."""
    low, high = (reduce(raw, axis=1, keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
    return tf.where(-low > high, -raw, raw)


def joined(heatmaps, how: str = "product") -> np.ndarray:
    """One heat map of those of several layers: as sharp as the early ones, as sure as the late ones.

    Args:
        heatmaps: float (N, H, W) in [0, 1] of each layer, as `gradcam.explain_layers` returns them.
        how: "product", the geometric mean, as RefineCAM (arXiv 2605.14641) joins them; or "maximum" of tanh(2·map), as
            LayerCAM (doi 10.1109/TIP.2021.3089943) does.

    Returns:
        float32 (N, H, W) in [0, 1].

    Example:
        >>> joined({"early": np.full((1, 1, 1), 0.25), "late": np.ones((1, 1, 1))}).tolist()
        [[[0.5]]]
    """
    maps = [np.asarray(x, np.float32) for x in (heatmaps.values() if isinstance(heatmaps, dict) else heatmaps)]
    if how not in ("product", "maximum") or not maps or len({x.shape for x in maps}) > 1:
        raise ValueError(
            f'Expected heat maps of one shape, and "product" or "maximum". Received: {[x.shape for x in maps]}, {how!r}'
        )
    if how == "product":
        return np.prod(np.stack(maps), axis=0) ** np.float32(1 / len(maps))
    return np.tanh(2 * np.max(np.stack(maps), axis=0)) / np.tanh(np.float32(2))


N_SIMILAR = 3  # classes, of Finer-CAM
RAW_MAPS = {
    "gradcam": gradcam, "gradcam++": gradcam_plus_plus, "layercam": layercam, "hirescam": hirescam,
    "xgradcam": xgradcam, "eigencam": eigencam, "elementwise": gradcam_elementwise, "cam": cam,
    "eigengradcam": eigengradcam, "kpcacam": kpcacam, "shapleycam": shapleycam, "finercam": gradcam,
}
CURVED = ("shapleycam",)  # which take the second derivative, too
SMOOTHED = ("smoothgradcam++",)  # from the gradients of several copies
