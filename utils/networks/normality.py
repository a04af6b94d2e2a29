"""What is usual, learnt from normal images: all numbers that `evidence.Tail` needs.

Each photo is judged by what was learnt from the others, so that the numbers hold for photos to come: its own patches
are left out of the memory, it is left out of the mean and variance of its places, and the logits come from a head that
has not trained on it. The network sees a photo in one image, or in several (see `views`).
"""

import numpy as np
from scipy import stats

from utils.networks.evidence import SCALES, SCORE_WINDOW, Tail, combine, smooth
from utils.networks.graph import forward
from utils.repro import keras, tf

N_SAMPLES, N_PATCHES, N_DIMENSIONS = 20_000, 512, 64
SHARED = 0.1  # of the variance over all places, added to that of each: few images know little of a place
OUTLIER = 6.0  # robust standard deviations from the median: an image that is no normal one
LEAST_RISE = 1.0  # of t over a₀: identical images would leave nothing between them
LEAST_DEVIATION = 0.02  # of peaks, for the same reason; features and logits are of the order of 1
BATCH = 16


def fit(
    core: keras.Model, images: np.ndarray, logits: np.ndarray, *, photos: np.ndarray, n_trusted: int, seed: int
) -> dict[str, np.ndarray]:
    """The arrays of a `Tail`, but for its levels.

    Args:
        core: of `detector.build`, trained.
        images: uint8 (M, S, S, 3), normal.
        logits: float32 (M, g, g, 1), of heads that have not seen the photo.
        photos: int (M,), of each image the number of its photo, ascending, 0 to N − 1, N ≥ 2.
        n_trusted: the first so many of `evidence.SOURCES` are added up.
        seed: of the sample of patches.

    Returns:
        For each scale projection (C, d), offset (d,), patches (P, d), mean and inverse_variance (h, w, d), float32;
        peaks, float64 (K, 2): mean and standard deviation of each source's highest value in an image;
        normal_peaks, float32 (N,): the highest a of each photo; usual, float32 (): the median of a.
    """
    arrays, evidence = _projections(core, images, seed=seed), [logits]
    for scale, maps in _projected(core, images, arrays).items():
        patches, owners = _memory(maps, seed=seed)
        places, mean, inverse = _places(maps, photos)
        values = {"patches": patches, "mean": mean, "inverse_variance": inverse}
        arrays |= {f"{scale}_{name}": value for name, value in values.items()}
        evidence += [_nearest_of_others(maps, patches, photos, photos[owners]), places]
    arrays["peaks"] = np.array([moments(peaks(found)) for found in evidence])
    trusted, size = arrays["peaks"][:n_trusted], logits.shape[1:3]
    parts = [[found[i : i + BATCH] for found in evidence[:n_trusted]] for i in range(0, len(images), BATCH)]
    a = np.concatenate([combine([tf.image.resize(x, size) for x in part], trusted) for part in parts])
    highest = np.maximum.reduceat(peaks(a), np.flatnonzero(np.diff(photos, prepend=-1)))
    return arrays | {"normal_peaks": highest, "usual": np.median(a), "n_trusted": np.array(n_trusted)}


def levels(usual: float, normal_peaks: np.ndarray, false_positives: float) -> np.ndarray:
    """a₀ and t of `anomaly`'s formula: float64 (2,)."""
    return np.array([usual, max(limit(normal_peaks, false_positives), usual + LEAST_RISE)], float)


def limit(peaks: np.ndarray, false_positives: float) -> float:
    """Above which the stated share of further peaks lies, if they are normally distributed: a prediction limit.

    It is higher where few peaks are known. Those far off the others are left out: a defective image may be there.
    """
    mean, deviation, n = _usual_moments(peaks)
    return float(mean + stats.t.isf(false_positives, max(n - 1, 1)) * deviation * np.sqrt(1 + 1 / n))


def moments(peaks: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation, at least `LEAST_DEVIATION`, without those far off the others."""
    mean, deviation, _ = _usual_moments(peaks)
    return mean, max(deviation, LEAST_DEVIATION)


def peaks(maps: np.ndarray) -> np.ndarray:
    """The highest value of each smoothed map (N, h, w, 1): float32 (N,)."""
    return smooth(tf.constant(maps), SCORE_WINDOW).numpy().max(axis=(1, 2, 3))


def _usual_moments(values):
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle)) + 1e-6
    values = values[values < middle + OUTLIER * spread]
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0, len(values)


def _run(core, function, images):
    """For each scale the function of it and the core's three maps, in one pass, batch by batch: all maps are large."""
    parts = {scale: [] for scale in SCALES}
    for i in range(0, len(images), BATCH):
        maps = [tf.constant(level) for level in forward(core, images[i : i + BATCH], batch_size=BATCH)[1:4]]
        for scale, part in parts.items():
            part.append(function(scale, maps).numpy())
    return {scale: np.concatenate(part) for scale, part in parts.items()}


def _projections(core, images, *, seed):
    """Standardise each scale's features and project them on principal components, as fitted to a sample of cells."""
    channels = {scale: [core.outputs[1 + n].shape[-1] for n in levels] for scale, levels in SCALES.items()}
    widths, raw = {scale: sum(parts) for scale, parts in channels.items()}, {}
    for scale, width in widths.items():
        raw |= {f"{scale}_projection": np.eye(width, dtype=np.float32), f"{scale}_offset": np.zeros(width, np.float32)}
    tail, per_image = Tail(core.inputs[0].shape[1], raw), -(-N_SAMPLES // len(images))
    rngs = {scale: np.random.default_rng(seed) for scale in SCALES}

    def sample(scale, maps):
        features = tail.project(scale, maps)
        features = tf.reshape(features, (len(features), -1, widths[scale]))
        cells = [rngs[scale].permutation(features.shape[1])[:per_image] for _ in features]
        return tf.gather(features, tf.constant(np.stack(cells)), axis=1, batch_dims=1)

    arrays = {}
    for scale, cells in _run(core, sample, images).items():
        projection, offset = _principal(cells.reshape(-1, widths[scale]), channels[scale])
        arrays |= {f"{scale}_projection": projection, f"{scale}_offset": offset}
    return arrays


def _principal(cells, channels):
    """Projection (C, d) and offset (d,) of features (n, C) of resolutions with so many channels each, float32."""
    # Each resolution has the same say, however many channels it has.
    scales = np.repeat(np.power(channels, -0.5), channels) / (cells.std(axis=0) + 1e-2 * cells.std() + 1e-6)
    centre = cells.mean(axis=0)
    standardised = (cells - centre) * scales
    _, axes = np.linalg.eigh(standardised.T @ standardised)
    projection = scales[:, None] * axes[:, ::-1][:, :N_DIMENSIONS]
    return projection.astype(np.float32), (-centre @ projection).astype(np.float32)


def _projected(core, images, arrays):
    """Projected features of all images, for each scale float16 (N, h, w, d), half as large in memory."""
    tail = Tail(core.inputs[0].shape[1], arrays)
    return _run(core, lambda scale, maps: tf.cast(tail.project(scale, maps), tf.float16), images)


def _memory(maps, *, seed):
    """Patches that cover a sample of all: the farthest from those chosen is next (greedy k-centre, as in PatchCore).

    Returns:
        patches: float32 (P, d), without repetitions.
        owners: int (P,), the image each is from.
    """
    rng, (n, *_, dimensions) = np.random.default_rng(seed), maps.shape
    cells = maps.reshape(-1, dimensions)
    chosen = rng.permutation(len(cells))[:N_SAMPLES]
    sample = cells[chosen].astype(np.float32)
    picked = [0]
    distances = ((sample - sample[0]) ** 2).sum(axis=1)
    while len(picked) < N_PATCHES and distances.max() > 1e-6:
        picked.append(int(distances.argmax()))
        distances = np.minimum(distances, ((sample - sample[picked[-1]]) ** 2).sum(axis=1))
    return sample[picked], chosen[picked] // (len(cells) // n)


def _nearest_of_others(maps, patches, photos, owners):
    """Distance of each cell to the nearest patch of another photo: float32 (M, h, w, 1)."""
    found = []
    for photo, features in zip(photos, map(np.float32, maps), strict=True):
        others = patches[owners != photo] if (owners != photo).any() else patches
        squares = (others**2).sum(axis=1) - 2 * features @ others.T
        found.append(np.sqrt(np.maximum((features**2).sum(axis=-1) + squares.min(axis=-1), 0)))
    return np.stack(found)[..., None]


def _places(maps, photos):
    """What is usual at each place.

    Returns:
        distance of each cell from what the other photos have there, float32 (M, h, w, 1);
        mean and inverse variance over all images, float32 (h, w, d), a share of the variance over all places added.
    """
    n, shared = len(maps), SHARED * maps.var(axis=(0, 1, 2), dtype=np.float32) + 1e-6
    total, squares = maps.sum(axis=0, dtype=np.float32), sum(np.float32(features) ** 2 for features in maps)

    def moments_of(total, squares, n):
        mean = total / n
        return mean, np.maximum(squares / n - mean**2, 0) + shared

    found = []
    for photo in np.unique(photos):
        own = maps[photos == photo].astype(np.float32)
        mean, variance = moments_of(total - own.sum(axis=0), squares - (own**2).sum(axis=0), n - len(own))
        found += list(np.sqrt(((own - mean) ** 2 / variance).mean(axis=-1)))
    mean, variance = moments_of(total, squares, n)
    return np.stack(found)[..., None], mean, 1 / variance
