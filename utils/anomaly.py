"""Find what is not normal, and show where, having seen normal images only.

Artificial defects, made from the normal images (see `render.defects`), teach one network two things: a map of what was
changed, made of three of its resolutions (after DRAEM, arXiv 2108.07610), and an embedding in which ArcFace tells the
kinds of defects apart (after AnomalyTwin). What looks like none of the artificial defects is found by two other kinds
of evidence: distance from the patches of normal images, and from what is usual at a place. Normal images say what each
is worth (see `networks.evidence`):

    images ─► network ─► logit of "changed" (N,g,g), maps of three resolutions ─► evidence, five maps (N,g,g) ─► a
                  └────► embedding (N,D): see `AnomalyDetector.classifier`

    m = ReLU(a − a₀) / (t − a₀)        heat = m⁴ / (1 + m⁴)

a₀ is the median of a in normal images, and above t lies an image's score, the maximum of the smoothed a, only for the
stated share of normal images. So heat is 1/2 at the threshold, whatever the image, and a normal image stays cold. All
this is fitted to images that took no part in what judges them (see `networks.normality`).
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from utils import augment, imaging, networks, repro
from utils.networks import angular, model_folder, normality
from utils.networks.detector import LAYERS, SIDES, build, map_head, side_for, side_of_tile, training_step
from utils.networks.evidence import SOURCES, TRUSTED, Tail
from utils.render import defects
from utils.render.camera import vary
from utils.repro import keras, tf
from utils.runtime import AnomalyResult
from utils.storage import hub
from utils.views import Views

FORMAT = 2
WEIGHTS_FILE, ARRAYS_FILE = "network.weights.h5", "anomaly.npz"
CLASS_NAMES = ("normal", *defects.KINDS)
DEFECTIVE = 0.7  # of a batch
CORRECTION = 1e-3  # how far above an image that is normal, too, the threshold lies: rounding must not matter
CROP = 224  # the largest piece of an image to train on


class AnomalyDetector:
    """A network and what is usual for it. Make one with `fit` or `load`.

    Attributes:
        network: keras.Model, float32 images (N, S, S, 3) of 0..255 → scores (N,) and heat maps (N, S, S).
        core: keras.Model, its trainable part: → logits (N, g, g, 1), maps of three resolutions, embedding (N, D).
        arrays: dict of what was fitted besides, see `normality.fit`.
        meta: dict, what `save` writes beside the arrays.
        views: what the network sees of a photo.
    """

    def __init__(self, core, arrays, meta):
        self.core, self.arrays, self.meta = core, arrays, meta
        self.views = Views.from_dict(meta.get("views", {}))
        tail = Tail(core.inputs[0].shape[1], arrays)
        outputs = tail(*core.outputs[:4])
        self.network = keras.Model(core.inputs[0], [outputs["scores"], outputs["heatmap"]], name="anomaly_detector")

    @classmethod
    def fit(
        cls, normal_images: np.ndarray | Iterable[np.ndarray], weights: str | os.PathLike | None = None, *,
        seed: int = 0, image_size: int | None = None, steps: int | None = None, false_positives: float = 0.01,
        region: np.ndarray | Sequence[int] | None = None, tile: int | None = None,
        progress: Callable[[dict], None] = lambda entry: None,
    ) -> "AnomalyDetector":
        """Learn what is normal.

        Sets seeds and deterministic kernels for the whole process (`repro.seed_everything`). Ctrl-C ends the training
        early and goes on with what was learnt; ``meta["interrupted"]`` tells.

        Args:
            normal_images: uint8 RGB (N, H, W, 3), or (H, W, 3) of any sizes: a generator holds one large photo at a
                time. At least 2, better 200. A defective one among them does no great harm.
            weights: None trains a small network from scratch; "imagenet" or a weights file takes MobileNetV2 as it is
                and trains only what is behind it: better for photos.
            image_size: S the network works at, a multiple of 16; None: 96 from scratch, with weights the smallest
                that keeps the images' detail, see `detector.side_for`, or that of a tile.
            steps: of the training; None: 400 from scratch, 150 with weights.
            false_positives: share of normal images that may be called anomalous.
            region: what to look at, in pixels of the first image: left, top, right and bottom, or a mask, bool (H, W).
            tile: cut the images into overlapping squares of so many pixels, for small defects in large photos. An
                image's score is that of its worst tile. None: an image is seen as a whole.
            progress: called after every tenth of the training, as of `repro.pace`, with the loss.

        Raises:
            ValueError: fewer than two images, what is no image, an image smaller than a tile, a region without a
                pixel, or settings out of range.
            FileNotFoundError: no such weights.

        Example:
            >>> normal = np.random.default_rng(0).integers(90, 110, (4, 32, 32, 3)).astype(np.uint8)
            >>> detector = AnomalyDetector.fit(normal, image_size=32, steps=1)
            >>> detector.explain(normal).heatmaps.shape
            (4, 32, 32)
        """
        steps = (150 if weights else 400) if steps is None else steps
        _check_settings(image_size, steps, false_positives)
        side = image_size or (side_of_tile(tile) if weights else 96)
        images, photos, views = _prepare(normal_images, side, region, tile)
        spec = networks.Spec(
            backbone="mobilenet_v2" if weights else "small_resnet", image_size=images.shape[1], embedding_size=64,
            last_layer=LAYERS["mobilenet_v2"][-1] if weights else None,
        )
        repro.seed_everything(seed)
        core, heads, prototypes, interrupted = _train(
            spec, weights, [images[photos % 2 == half] for half in (0, 1)], steps=steps, seed=seed, progress=progress
        )
        unseen = _unseen_logits(core, heads, images, photos)
        arrays = normality.fit(core, images, unseen, photos=photos, n_trusted=TRUSTED[spec.backbone], seed=seed)
        meta = {
            "network": spec.asdict(), "views": views.asdict(), "false_positives": false_positives, "seed": int(seed),
            "n_images": int(photos[-1]) + 1, "steps": steps, "weights": None if weights is None else Path(weights).name,
            "interrupted": interrupted,
        }
        arrays["levels"] = normality.levels(arrays["usual"], arrays["normal_peaks"], false_positives)
        return cls(core, arrays | {"class_prototypes": prototypes}, meta)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width the network works at, in pixels."""
        return self.core.inputs[0].shape[1:3]

    def explain(self, images: np.ndarray, batch_size: int = 32) -> AnomalyResult:
        """Score, verdict and heat map of each image, uint8 RGB (N, H, W, 3) or (H, W, 3) of any size."""
        images = imaging.check_images(images)
        seen = self.views.cut(images, *self.input_size)
        scores, maps = networks.forward(self.network, seen, batch_size=batch_size)
        return AnomalyResult(*self.views.join(scores, maps, images.shape))

    def evidence(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """How unusual each source finds each place; images as in `explain`.

        Returns:
            for each of `SOURCES` z, float32 (N, H, W): standard deviations above the mean peak of normal images. Where
            it is below 0, even a normal image has a place as unusual.
        """
        images = imaging.check_images(images)
        outputs = networks.forward(self.core, self.views.cut(images, *self.input_size), batch_size=32)[:4]
        found = Tail(self.input_size[0], self.arrays).evidence(*map(tf.constant, outputs))
        maps = [(e.numpy()[..., 0] - mean) / deviation for e, (mean, deviation) in
                zip(found, self.arrays["peaks"].tolist(), strict=True)]
        return {name: self.views.join_maps(z, images.shape) for name, z in zip(SOURCES, maps, strict=True)}

    def also_normal(self, images: Iterable[np.ndarray]) -> "AnomalyDetector":
        """A detector that takes these images for normal, too; nothing but its threshold differs.

        Args:
            images: normal images that were called anomalous, uint8 RGB (H, W, 3) of any sizes; or (N, H, W, 3).

        Raises:
            ValueError: no image, or what is none.
        """
        peaks = [self._peak(image) for image in images]
        if not peaks:
            raise ValueError("Expected at least one image that is normal, too. Received: none")
        usual, threshold = self.arrays["levels"]
        known = np.append(self.arrays["normal_peaks"], peaks).astype(np.float32)
        limit = normality.limit(known, self.meta["false_positives"])
        # The limit leaves out what lies far off the others, which is what was called anomalous.
        levels = np.array([usual, max(threshold, limit, (1 + CORRECTION) * max(peaks))])
        meta = self.meta | {"n_corrections": self.meta.get("n_corrections", 0) + len(peaks)}
        return AnomalyDetector(self.core, self.arrays | {"normal_peaks": known, "levels": levels}, meta)

    def _peak(self, image):
        usual, threshold = self.arrays["levels"]
        return usual + (threshold - usual) * float(self.explain(image).scores[0])

    def classifier(self) -> keras.Model:
        """images → cosine scores (N, K) of `CLASS_NAMES`: what ArcFace learnt, for Grad-CAM to differentiate."""
        embedding = networks.wrap(self.core.inputs[0], self.core.outputs[4], like=self.core)
        return angular.with_prototypes(embedding, self.arrays["class_prototypes"])

    def save(self, folder: str | os.PathLike, **info) -> None:
        """Write the detector into the folder (made if need be), and ``info``, as JSON, into its ``meta.json``."""
        meta = self.meta | info | {"format": FORMAT, "kind": "anomaly", "versions": repro.versions()}
        files = {WEIGHTS_FILE: self.core.save_weights, ARRAYS_FILE: lambda file: np.savez(file, **self.arrays)}
        self.meta = model_folder.write(folder, files, meta=meta)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "AnomalyDetector":
        """Read what `save` wrote; ``hf://OWNER/NAME`` names a folder at the Hugging Face hub.

        Raises:
            FileNotFoundError: no such folder, or a file is missing.
            ValueError: a file is truncated, foreign, or belongs to another model.
        """
        folder = hub.local(folder)
        meta = model_folder.read(folder, lambda meta: meta["kind"] == "anomaly" and meta["format"] == FORMAT)
        with np.load(folder / ARRAYS_FILE, allow_pickle=False) as file:
            arrays = dict(file)
        core = build(model_folder.spec(folder, meta))
        core.load_weights(folder / WEIGHTS_FILE)
        return cls(core, arrays, meta)


def _check_settings(image_size, steps, false_positives):
    if image_size is not None and (image_size < 16 or image_size % 16):
        raise ValueError(f"image_size must be a multiple of 16. Received: {image_size!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1. Received: {steps!r}")
    if not 0 < false_positives < 0.5:
        raise ValueError(f"false_positives must lie in (0, 0.5). Received: {false_positives!r}")


def _prepare(images, side, region, tile):
    """What the network sees of normal images of any sizes.

    Returns:
        uint8 (M, side, side, 3), of the side that they need where it is None; of each the number of its photo, (M,);
        and the `Views`.
    """
    held, largest, views = [], side or SIDES[-1], None
    for image in map(imaging.check_images, images):
        views = views or Views.of(image.shape[1:], region, tile)
        height, width = views.size(image.shape[1:])
        is_small = side is None and height * width <= largest**2
        held.append(views.cut(image, *((height, width) if is_small else (largest, largest))))
    if len(held) < 2:
        raise ValueError(f"Expected at least 2 normal images, better 20 or more. Received: {len(held)}")
    side = side or side_for(held)
    photos = np.repeat(np.arange(len(held)), [len(part) for part in held])
    return np.concatenate([imaging.resize(part, side, side) for part in held]), photos, views


def _train(spec, weights, halves, *, steps, seed, progress):
    """Train a core on artificial defects, and two more heads, each on one of the halves, to judge the other one.

    Of large images pieces are trained on: small defects stay small, and it takes no longer.

    Returns:
        the core; the two heads; the class prototypes (D, K); and whether Ctrl-C came.
    """
    side = min(spec.image_size, CROP)
    core = build(dataclasses.replace(spec, image_size=side), weights, seed=seed)
    channels = [maps.shape[-1] for maps in core.outputs[1:4]]
    heads = [map_head(channels, seed=seed + half) for half in (1, 2)]
    head = angular.ArcFace(len(CLASS_NAMES))
    head.build(core.outputs[4].shape)
    head.kernel.assign(keras.initializers.GlorotUniform(seed)(head.kernel.shape))
    step = training_step(core, heads, head, steps=steps)
    batches = _batches(halves, side=side, batch_size=16 if weights else 32, steps=steps, seed=seed)
    losses, start, interrupted = [], time.perf_counter(), False
    try:
        for number, batch in enumerate(batches, 1):
            losses.append(float(step(*map(tf.constant, batch))))
            if number % max(1, steps // 10) == 0:
                progress({"loss": float(np.mean(losses))} | repro.pace(number, steps, start))
                losses.clear()
    except KeyboardInterrupt:
        interrupted = True
    if side < spec.image_size:
        pieces, core = core, build(spec, seed=seed)
        core.set_weights(pieces.get_weights())
    return core, heads, head.kernel.numpy(), interrupted


def _unseen_logits(core, heads, images, photos):
    """Logits of each image from the head that has not trained on its photo: float32 (M, g, g, 1)."""
    logits = np.empty((len(images), *core.outputs[0].shape[1:]), np.float32)
    for half, head in enumerate(heads):
        unseen = photos % 2 != half
        judge = networks.wrap(core.inputs[0], head(core.outputs[1:4]), like=core)
        logits[unseen] = networks.forward(judge, images[unseen], batch_size=32)
    return logits


def _batches(halves, *, side, batch_size, steps, seed):
    """``steps`` batches: images uint8 (B, side, side, 3), masks bool (B, side, side), labels int32 (B,).

    Each half of a batch is made of images of one of the halves.
    """

    def piece(images, rng):
        top, left = rng.integers(0, images.shape[1] - side + 1, 2)
        return images[rng.integers(len(images)), top : top + side, left : left + side]

    def example(images, rng):
        image = vary(piece(images, rng), rng)
        mask, label = np.zeros(image.shape[:2], bool), 0
        if rng.random() < DEFECTIVE:
            kind = rng.integers(len(defects.KINDS))
            for _ in range(rng.integers(1, 4)):
                image, changed = defects.add_defect(image, piece(images, rng), rng=rng, kind=defects.KINDS[kind])
                mask |= changed
            label = 1 + kind if mask.any() else 0
        return image, mask, label

    def batch(step):
        rng = np.random.default_rng([seed, step])
        examples = [example(halves[2 * i >= batch_size], rng) for i in range(batch_size)]
        images, masks, labels = zip(*examples, strict=True)
        return np.stack(images), np.stack(masks), np.array(labels, np.int32)

    return augment.prefetch(batch, steps)
