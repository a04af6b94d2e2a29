"""The formulas of Grad-CAM's family: from feature maps A (N, h, w, C) and gradients g = ∂s/∂A of the score to raw maps.

Each returns float32 (N, h, w), before ReLU and scaling. Sums over i, j run over the h·w positions.
"""

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


def eigencam(maps, _):
    """Eigen-CAM (arXiv 2008.00299): A as a matrix (h·w, C), not centred, times its first right singular vector.

    No class takes part. A singular vector has no sign of its own: it is chosen so that the map's sum is not negative.
    """
    shape = tf.shape(maps)
    matrix = tf.reshape(maps, (shape[0], shape[1] * shape[2], shape[3]))  # (N, h·w, C)
    scale = tf.reduce_max(tf.abs(matrix), axis=(1, 2), keepdims=True)
    matrix = tf.math.divide_no_nan(matrix, scale)  # so that squares neither overflow nor vanish

    # The smaller of the two Gram matrices has the same first vector: A·v = σ·u, v of AᵀA, u of AAᵀ.
    def from_channels():
        vector = tf.linalg.eigh(tf.matmul(matrix, matrix, transpose_a=True))[1][..., -1:]
        return tf.matmul(matrix, vector)[..., 0]

    def from_positions():
        values, vectors = tf.linalg.eigh(tf.matmul(matrix, matrix, transpose_b=True))
        return tf.sqrt(tf.maximum(values[:, -1:], 0.0)) * vectors[..., -1]

    raw = tf.cond(shape[3] <= shape[1] * shape[2], from_channels, from_positions) * scale[..., 0]
    raw = tf.where(tf.reduce_sum(raw, axis=1, keepdims=True) < 0, -raw, raw)
    return tf.reshape(raw, shape[:3])


RAW_MAPS = {
    "gradcam": gradcam, "gradcam++": gradcam_plus_plus, "layercam": layercam, "hirescam": hirescam,
    "xgradcam": xgradcam, "eigencam": eigencam,
}
