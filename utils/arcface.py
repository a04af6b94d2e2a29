"""ArcFace (arXiv 1801.07698): the layer, and the one `train` that notebooks and command line both call."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from utils import augment, data, networks, repro

FEW = 100  # training images of a class and source; of fewer, holding some out costs more than it tells
HIDDEN = 0.2  # share of the class *none* that shows objects of the other classes, blurred away


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


@dataclass(frozen=True)
class Training:
    """What `train` returns.

    Attributes:
        network: keras.Model, float32 images (N, S, S, 3) of 0..255 → cosine scores (N, K); the best weights.
        history: one dict an evaluation: step, loss (with margin, mean since the last evaluation), validation_loss and
            validation_accuracy (both without label and margin), seconds and seconds_left.
        best_step: the step whose weights were kept; 0 if none was evaluated.
        interrupted: True if Ctrl-C ended the training before its last step.
    """

    network: keras.Model
    history: list[dict]
    best_step: int
    interrupted: bool


def train(
    network: keras.Model,
    dataset: data.Dataset,
    steps: int = 400,
    batch_size: int = 32,
    learning_rate: float = 2e-4,
    scale: float = 30.0,
    margin: float = 0.3,
    augmentation: float = 1.0,
    evaluations: int = 10,
    seed: int = 0,
    progress: Callable[[dict], None] = lambda entry: None,
) -> Training:
    """Train an embedding network in place with ArcFace, on the dataset's training images only.

    Adam (amsgrad, as in the original) with a cosine-decayed learning rate; batches hold every class equally often, but
    *none* half as often, because a missed object is worse than one seen where there is none; of a class they hold every
    source (see `data.join`) equally often. Augmentation as in `utils.augment`. Seeds and deterministic kernels are set
    for the whole process (`repro.seed_everything`). A contiguous eighth of each class and source is held out to choose
    the best weights (highest accuracy, of equals the latest). Where every class has a source of 100 training images or
    more, smaller sources train with all of theirs. Ctrl-C ends the training and keeps these.

    Args:
        network: float32 (N, S, S, 3) → embedding (N, D), from `networks.embedding_network` or your own.
        dataset: images of the network's size; masks, where known, allow new backgrounds.
        steps: number of gradient steps.
        augmentation: strength of the random change, 0 (mirroring only) to 1 (see `utils.augment`).
        evaluations: how often the validation images are looked at on the way.
        progress: called after each evaluation with the newest entry of the history.

    Raises:
        ValueError: sizes that do not fit, one class only, no training image, or settings out of range.
    """
    _check_training(network, dataset, steps, batch_size, evaluations, augmentation)
    repro.seed_everything(seed)
    head = ArcFace(len(dataset.class_names), scale, margin, name="arcface")
    # This call comes first: Keras' `layer.input` means the first, and it has to be the embedding alone.
    scores = keras.Model(network.inputs[0], head(network.outputs[0]), name=f"{network.name}_arcface")
    scores.spec = getattr(network, "spec", None)
    label = keras.Input((), dtype="int32", name="label")
    trainer = keras.Model([network.inputs[0], label], head(network.outputs[0], label))
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps), amsgrad=True)
    optimizer.build(trainer.trainable_variables)  # else the first step creates them, and everything is traced twice
    trainer.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # on a CPU, XLA takes longer to compile than the whole training
    )

    sources = np.zeros_like(dataset.labels) if dataset.sources is None else dataset.sources
    kinds = dataset.labels * (sources.max() + 1) + sources
    fit_part, held_out = _validation(dataset.labels[dataset.train], kinds[dataset.train], seed)
    held_out = dataset.train[held_out if len(held_out) else fit_part]  # one image a class: nothing else to judge by
    look_at = set(np.linspace(0, steps, evaluations + 1).round().astype(int)[1:])
    history, losses, best, interrupted = [], [], (0, 0, None), False
    start = time.perf_counter()
    try:
        batches = _batches(dataset, sources, dataset.train[fit_part], batch_size, steps, augmentation, seed)
        for step, (images, labels) in enumerate(batches, 1):
            losses.append(trainer.train_on_batch([images, labels], labels))
            if step not in look_at:
                continue
            cosines = networks.forward(scores, dataset.images[held_out])
            accuracy = float(np.mean(cosines.argmax(axis=1) == dataset.labels[held_out]))
            seconds = time.perf_counter() - start
            history.append({
                "step": step, "loss": float(np.mean(losses)), "validation_accuracy": accuracy,
                "validation_loss": _cross_entropy(scale * cosines, dataset.labels[held_out]),
                "seconds": seconds, "seconds_left": seconds / step * (steps - step),
            })  # fmt: skip
            losses.clear()
            # By loss, which a few confident errors drive, early weights win, and they know new people and rooms less.
            if accuracy >= best[0] and np.isfinite(cosines).all():
                best = accuracy, step, scores.get_weights()
            progress(history[-1])
    except KeyboardInterrupt:
        interrupted = True
    if best[2] is not None:
        scores.set_weights(best[2])
    elif not interrupted:
        raise ValueError(f"The training diverged; take a lower learning rate. Received: {learning_rate!r}")
    return Training(scores, history, best[1], interrupted)


def accuracy(network: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose most similar prototype is that of their label. Neither label nor margin enters a score."""
    return float(np.mean(networks.forward(network, images).argmax(axis=1) == labels))


def _check_training(network, dataset, steps, batch_size, evaluations, augmentation):
    networks.check_network(network)
    size = network.inputs[0].shape[1:]
    if dataset.images.shape[1:] != size:
        raise ValueError(f"The network takes images of shape {size}. Received: {dataset.images.shape[1:]}")
    present = np.unique(dataset.labels[dataset.train])
    if len(dataset.class_names) < 2 or len(present) < len(dataset.class_names):
        raise ValueError(
            "Training needs at least two classes and a training image of each. "
            f"Received: classes {dataset.class_names}, training images of {[dataset.class_names[i] for i in present]}"
        )
    if steps < 1 or batch_size < 1 or not 1 <= evaluations <= steps:
        raise ValueError(
            "steps, batch_size and evaluations must be positive, and evaluations at most steps. "
            f"Received: steps={steps!r}, batch_size={batch_size!r}, evaluations={evaluations!r}"
        )
    if not 0 <= augmentation <= 1:
        raise ValueError(f"augmentation must lie in [0, 1]. Received: {augmentation!r}")


def _validation(labels, kinds, seed):
    """Indices of what trains and of what is held out; kinds: int (N,), the class and source of each image.

    Sources of fewer than FEW images train with all of them, if every class has another source to judge by.
    """
    fit_part, held_out = data.split(kinds, test_fraction=1 / 8, seed=seed)
    plenty = held_out[np.bincount(kinds)[kinds[held_out]] >= FEW]
    if set(labels[plenty]) != set(labels):
        return fit_part, held_out
    return np.setdiff1d(np.arange(len(kinds)), plenty), plenty


def _batches(dataset, sources, indices, batch_size, steps, augmentation, seed):
    """Yield ``steps`` augmented batches; a thread prepares the next one while the network trains on this one."""
    parts = {}  # (class, source): its images
    for index in indices:
        parts.setdefault((dataset.labels[index], sources[index]), []).append(index)
    by_class = [[part for (label, _), part in parts.items() if label == k] for k in range(len(dataset.class_names))]
    none = dataset.class_names.index(data.NONE) if data.NONE in dataset.class_names else -1
    order = np.array([*range(len(by_class)), *(k for k in range(len(by_class)) if k != none)])  # each twice, none once
    known = np.zeros(len(dataset.labels)) if dataset.masks is None else dataset.masks.mean(axis=(1, 2))
    hideable = indices[(dataset.labels[indices] != none) & (known[indices] > 0) & (known[indices] < 1)]
    backgrounds = augment.render_backgrounds(dataset.images.shape[1], seed, augmentation)

    def batch(step):
        rng = np.random.default_rng([seed, step])
        first = step * batch_size if batch_size < 2 * len(order) else 0  # too few for all: take turns
        labels = order[(first + rng.permutation(batch_size)) % len(order)]
        hidden = (labels == none) & (rng.random(batch_size) < HIDDEN * augmentation) & (len(hideable) > 0)
        chosen = [
            rng.choice(hideable if hide else by_class[k][rng.integers(len(by_class[k]))])
            for k, hide in zip(labels, hidden, strict=True)
        ]
        masks = [None] * batch_size if dataset.masks is None else dataset.masks[chosen]
        images = [
            augment.augment(dataset.images[j], mask, backgrounds, rng, augmentation, hide)
            for j, mask, hide in zip(chosen, masks, hidden, strict=True)
        ]
        return np.stack(images), labels.astype(np.int32)

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(batch, 0)
        for step in range(1, steps + 1):
            ready, coming = coming.result(), pool.submit(batch, step)
            yield ready


def _cross_entropy(logits, labels):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))
