"""Find what is not normal, and show where, having seen normal images only.

Artificial defects, made from the normal images (see `render.defects`), teach one network two things: a map of what was
changed, made of three of its resolutions (after DRAEM, arXiv 2108.07610), and an embedding in which ArcFace tells the
kinds of defects apart (after AnomalyTwin). For what looks like none of the artificial defects, a third is weighed in:
how far features are from those of normal images, the nearest of some prototypes (after PatchCore, arXiv 2106.08265).

    images ─► network ─► logit of "changed" (N,g,g) ──► z₁ ─┐
                  ├────► features (N,h,w,C) ─► distance ─► z₂ ─┴─► a = z₁ + w·z₂ ─► m = ReLU(a − a₀) / (t − a₀)
                  └────► embedding (N,D): see `AnomalyDetector.classifier`          heat = m⁴ / (1 + m⁴)

Normal images that took no part in the training say what is usual: z₁ and z₂ have mean 0 and standard deviation 1 over
their pixels, a₀ is the median of a, and above t lies an image's score, the maximum of the smoothed a, only for the
stated share of normal images. So heat is 1/2 at the threshold, whatever the image, and a normal image stays cold.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.cluster import MiniBatchKMeans

from utils import arcface, augment, imaging, networks, repro
from utils.networks import model_folder
from utils.networks.detector import LAYERS, SCORE_WINDOW, Tail, build, smooth
from utils.render import defects
from utils.render.camera import vary
from utils.repro import keras, tf
from utils.runtime import AnomalyResult

FORMAT = 1
WEIGHTS_FILE, ARRAYS_FILE = "network.weights.h5", "anomaly.npz"
CLASS_NAMES = ("normal", *defects.KINDS)
ARCFACE_WEIGHT = 0.1  # of its loss
N_PROTOTYPES, N_DIMENSIONS, N_PATCHES = 256, 128, 20_000
HELD_OUT = 0.25  # of the normal images
FEWEST_TO_HOLD_OUT = 8  # with fewer images all take part in everything
DEFECTIVE = 0.7  # of a batch
LEAST_RISE = 1.0  # of t over a₀: identical images would leave nothing between them
OUTLIER = 6.0  # robust standard deviations from the median: a held-out image that is no normal one


class AnomalyDetector:
    """A network and what is usual for it. Make one with `fit` or `load`.

    Attributes:
        network: keras.Model, float32 images (N, S, S, 3) of 0..255 → scores (N,) and heat maps (N, S, S).
        core: keras.Model, its trainable part: → logits (N, g, g, 1), fine features, coarse features, embedding (N, D).
        arrays: dict of what was fitted besides, see `_calibrate`.
        meta: dict, what `save` writes beside the arrays.
    """

    def __init__(self, core, arrays, meta):
        self.core, self.arrays, self.meta = core, arrays, meta
        tail = Tail(core.inputs[0].shape[1], arrays)
        outputs = tail(*core.outputs[:3])
        self.network = keras.Model(core.inputs[0], [outputs["scores"], outputs["heatmap"]], name="anomaly_detector")

    @classmethod
    def fit(
        cls, normal_images: np.ndarray | Iterable[np.ndarray], weights: str | os.PathLike | None = None, *,
        seed: int = 0, image_size: int | None = None, steps: int | None = None, false_positives: float = 0.01,
        progress: Callable[[dict], None] = lambda entry: None,
    ) -> "AnomalyDetector":
        """Learn what is normal.

        Sets seeds and deterministic kernels for the whole process (`repro.seed_everything`). Ctrl-C ends the training
        early and goes on with what was learnt; ``meta["interrupted"]`` tells.

        Args:
            normal_images: uint8 RGB (N, H, W, 3), or (H, W, 3) of any sizes, one by one: of large photos a generator
                holds one at a time. At least 2, better 200. A defective one among them does no great harm.
            weights: None trains a small network from scratch; "imagenet" or a weights file takes MobileNetV2 as it is
                and trains only what is behind it: better for photos.
            image_size: S the network works at; None: 96 from scratch, 224 with weights.
            steps: of the training; None: 400 from scratch, 150 with weights.
            false_positives: share of normal images that may be called anomalous.
            progress: called after every tenth of the training, as of `repro.pace`, with the loss.

        Raises:
            ValueError: fewer than two images, what is no image, or settings out of range.
            FileNotFoundError: no such weights.

        Example:
            >>> normal = np.random.default_rng(0).integers(90, 110, (4, 32, 32, 3)).astype(np.uint8)
            >>> detector = AnomalyDetector.fit(normal, image_size=32, steps=1)
            >>> detector.explain(normal).heatmaps.shape
            (4, 32, 32)
        """
        spec = networks.Spec(
            backbone="mobilenet_v2" if weights else "small_resnet", image_size=image_size or (224 if weights else 96),
            embedding_size=64, last_layer=LAYERS["mobilenet_v2"][-1] if weights else None,
        )
        steps = (150 if weights else 400) if steps is None else steps
        _check_settings(spec, steps, false_positives)
        images = _prepare(normal_images, spec.image_size)
        repro.seed_everything(seed)
        core = build(spec, weights, seed=seed)
        order = np.random.default_rng(seed).permutation(len(images))
        n_held_out = round(HELD_OUT * len(images)) if len(images) >= FEWEST_TO_HOLD_OUT else 0
        seen, unseen = images[order[n_held_out:]], images[order[:n_held_out] if n_held_out else order]
        batch_size = 16 if weights else 32
        prototypes, interrupted = _train(core, seen, steps=steps, batch_size=batch_size, seed=seed, progress=progress)
        usual = _calibrate(core, seen, unseen, false_positives=false_positives, seed=seed)
        meta = {
            "network": spec.asdict(), "false_positives": false_positives, "n_images": len(images), "seed": int(seed),
            "steps": steps, "weights": None if weights is None else Path(weights).name, "interrupted": interrupted,
        }
        return cls(core, {"class_prototypes": prototypes} | usual, meta)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width the network works at, in pixels."""
        return self.core.inputs[0].shape[1:3]

    def explain(self, images: np.ndarray, batch_size: int = 32) -> AnomalyResult:
        """Score, verdict and heat map of each image, uint8 RGB (N, H, W, 3) or (H, W, 3) of any size."""
        images = imaging.check_images(images)
        scores, maps = networks.forward(self.network, imaging.resize(images, *self.input_size), batch_size=batch_size)
        return AnomalyResult(scores, imaging.resize(maps, *images.shape[1:3]))

    def distances(self, images: np.ndarray) -> np.ndarray:
        """Distance of the features to the nearest prototype alone, float32 (N, H, W); images as in `explain`."""
        images, tail = imaging.check_images(images), Tail(self.input_size[0], self.arrays)
        maps = _run(self.core, lambda _, *features: tail.distance(*features), imaging.resize(images, *self.input_size))
        return imaging.resize(np.ascontiguousarray(maps[..., 0]), *images.shape[1:3])

    def classifier(self) -> keras.Model:
        """images → cosine scores (N, K) of `CLASS_NAMES`: what ArcFace learnt, for Grad-CAM to differentiate."""
        embedding = networks.wrap(self.core.inputs[0], self.core.outputs[3], like=self.core)
        return arcface.with_prototypes(embedding, self.arrays["class_prototypes"])

    def save(self, folder: str | os.PathLike, **info) -> None:
        """Write the detector into the folder (made if need be), and ``info``, as JSON, into its ``meta.json``."""
        meta = self.meta | info | {"format": FORMAT, "kind": "anomaly", "versions": repro.versions()}
        files = {WEIGHTS_FILE: self.core.save_weights, ARRAYS_FILE: lambda file: np.savez(file, **self.arrays)}
        self.meta = model_folder.write(folder, files, meta=meta)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "AnomalyDetector":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such folder, or a file is missing.
            ValueError: a file is truncated, foreign, or belongs to another model.
        """
        meta = model_folder.read(folder, lambda meta: meta["kind"] == "anomaly" and meta["format"] == FORMAT)
        with np.load(Path(folder) / ARRAYS_FILE, allow_pickle=False) as file:
            arrays = dict(file)
        core = build(model_folder.spec(folder, meta))
        core.load_weights(Path(folder) / WEIGHTS_FILE)
        return cls(core, arrays, meta)


def _check_settings(spec, steps, false_positives):
    if spec.image_size % 16:
        raise ValueError(f"image_size must be a multiple of 16. Received: {spec.image_size!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1. Received: {steps!r}")
    if not 0 < false_positives < 0.5:
        raise ValueError(f"false_positives must lie in (0, 0.5). Received: {false_positives!r}")


def _prepare(images, side):
    """Normal images of any sizes as uint8 (N, side, side, 3)."""
    small = [imaging.resize(imaging.check_images(image), side, side) for image in images]
    if len(small) < 2:
        raise ValueError(f"Expected at least 2 normal images, better 20 or more. Received: {len(small)}")
    return np.concatenate(small)


def _train(core, images, *, steps, batch_size, seed, progress):
    """Train the core in place on artificial defects; returns the class prototypes (D, K) and whether Ctrl-C came.

    The loss: cross-entropy of the map's cells, changed ones counted up to five times; the Dice loss of the same, for
    which small defects do not matter less; and ArcFace.
    """
    head = arcface.ArcFace(len(CLASS_NAMES))
    head.build(core.outputs[3].shape)
    head.kernel.assign(keras.initializers.GlorotUniform(seed)(head.kernel.shape))
    variables = [*core.trainable_variables, head.kernel]
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps), amsgrad=True)
    optimizer.build(variables)

    @tf.function(reduce_retracing=True)
    def step(images, masks, labels):
        cell = core.inputs[0].shape[1] // core.outputs[0].shape[1]
        # A thin line fills no cell: half a cell counts as a whole one.
        target = tf.minimum(1.0, 2 * tf.nn.avg_pool2d(tf.cast(masks, tf.float32)[..., None], cell, cell, "VALID"))
        with tf.GradientTape() as tape:
            logits, *_, embeddings = core(tf.cast(images, tf.float32), training=True)
            entropy = tf.nn.sigmoid_cross_entropy_with_logits(target, logits)
            found = tf.sigmoid(logits)
            dice = 1 - (2 * tf.reduce_sum(found * target) + 1) / (tf.reduce_sum(found) + tf.reduce_sum(target) + 1)
            angular = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, head(embeddings, labels))
            loss = tf.reduce_mean((1 + 4 * target) * entropy) + 0.3 * dice + ARCFACE_WEIGHT * tf.reduce_mean(angular)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    losses, start, interrupted = [], time.perf_counter(), False
    try:
        for number, batch in enumerate(_batches(images, batch_size=batch_size, steps=steps, seed=seed), 1):
            losses.append(float(step(*map(tf.constant, batch))))
            if number % max(1, steps // 10) == 0:
                progress({"loss": float(np.mean(losses))} | repro.pace(number, steps, start))
                losses.clear()
    except KeyboardInterrupt:
        interrupted = True
    return head.kernel.numpy(), interrupted


def _batches(images, *, batch_size, steps, seed):
    """``steps`` batches: images uint8 (B, S, S, 3), masks bool (B, S, S), labels int32 (B,)."""

    def example(rng):
        image = vary(images[rng.integers(len(images))], rng)
        mask, label = np.zeros(image.shape[:2], bool), 0
        if rng.random() < DEFECTIVE:
            kind = rng.integers(len(defects.KINDS))
            for _ in range(rng.integers(1, 4)):
                other = images[rng.integers(len(images))]
                image, changed = defects.add_defect(image, other, rng=rng, kind=defects.KINDS[kind])
                mask |= changed
            label = 1 + kind if mask.any() else 0
        return image, mask, label

    def batch(step):
        rng = np.random.default_rng([seed, step])
        images, masks, labels = zip(*(example(rng) for _ in range(batch_size)), strict=True)
        return np.stack(images), np.stack(masks), np.array(labels, np.int32)

    return augment.prefetch(batch, steps)


def _calibrate(core, seen, unseen, *, false_positives, seed):
    """What is usual: all that the `Tail` needs, from images that trained the core and others.

    Returns:
        prototypes: float32 (P, d), means of the clusters of projected features of the seen images.
        projection, offset: float32 (C, d) and (d,), standardise the features and project on principal components.
        moments: float64 (2, 2), mean and standard deviation of logits and of distances over unseen images.
        levels: float64 (2,), a₀ and t of the formula.
    """
    rng, channels = np.random.default_rng(seed), [maps.shape[-1] for maps in core.outputs[1:3]]
    identity = np.eye(sum(channels), dtype=np.float32)  # until there is better
    arrays = {"projection": identity, "offset": np.zeros(len(identity), np.float32)}
    side = core.inputs[0].shape[1]
    per_image = -(-N_PATCHES // len(seen))

    def sample(*maps):
        features = Tail(side, arrays).project(*maps[1:])
        features = tf.reshape(features, (len(features), -1, features.shape[-1]))
        cells = [rng.permutation(features.shape[1])[:per_image] for _ in features]
        return tf.gather(features, tf.constant(np.stack(cells)), axis=1, batch_dims=1)

    patches = _run(core, sample, seen).reshape(-1, len(identity))[:N_PATCHES]
    # Each resolution has the same say, however many channels it has.
    share = np.repeat(np.power(channels, -0.5), channels)
    scale = share / (patches.std(axis=0) + 1e-2 * patches.std() + 1e-6)
    centre = patches.mean(axis=0)
    standardised = (patches - centre) * scale
    _, axes = np.linalg.eigh(standardised.T @ standardised)
    projection = scale[:, None] * axes[:, ::-1][:, :N_DIMENSIONS]
    projected = ((patches - centre) @ projection).astype(np.float32)
    n_prototypes = min(N_PROTOTYPES, len(np.unique(projected.round(4), axis=0)))
    kmeans = MiniBatchKMeans(n_prototypes, batch_size=4096, n_init=1, max_iter=30, random_state=seed).fit(projected)
    arrays |= {
        "projection": projection.astype(np.float32), "offset": (-centre @ projection).astype(np.float32),
        "prototypes": kmeans.cluster_centers_.astype(np.float32),
    }
    logits = _run(core, lambda logits, *_: logits, unseen)
    distances = _run(core, lambda _, *maps: Tail(side, arrays).distance(*maps), unseen)
    arrays["moments"] = np.array([[x.mean(), max(x.std(), 1e-3)] for x in (logits, distances)], float)
    anomalies = _run(core, Tail(side, arrays).anomaly, unseen)
    usual = float(np.median(anomalies))
    scores = smooth(tf.constant(anomalies), SCORE_WINDOW).numpy().max(axis=(1, 2, 3))
    arrays["levels"] = np.array([usual, max(_limit(scores, false_positives), usual + LEAST_RISE)])
    return arrays


def _run(core, function, images):
    """The function of logits, fine and coarse features, batch by batch: features of all images at once are large."""
    parts = (networks.forward(core, images[i : i + 32], batch_size=32)[:3] for i in range(0, len(images), 32))
    return np.concatenate([function(*map(tf.constant, part)).numpy() for part in parts])


def _limit(scores, false_positives):
    """Above which the stated share of further scores lies, if they are normally distributed: a prediction limit.

    It is higher where few scores are known. Those far off the others are left out: a defective image may be there.
    """
    middle = np.median(scores)
    spread = 1.4826 * np.median(np.abs(scores - middle)) + 1e-6
    scores = scores[scores < middle + OUTLIER * spread]
    n = len(scores)
    deviation = scores.std(ddof=1) if n > 1 else 0.0
    return float(scores.mean() + stats.t.isf(false_positives, max(n - 1, 1)) * deviation * np.sqrt(1 + 1 / n))
