"""Training with ArcFace (arXiv 1801.07698): the one `train` that notebooks and command line both call."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import augment, data, networks, repro
from utils.networks import loop, replicas
from utils.networks.angular import ArcFace
from utils.repro import keras
from utils.runtime import softmax

FEW = 100  # training images of a class and source; of fewer, holding some out costs more than it tells


@dataclass(frozen=True, eq=False)
class Training:
    """What `train` returns.

    Attributes:
        network: keras.Model, float32 images (N, S, S, 3) of 0..255 → cosine scores (N, K); the best weights.
        history: one dict per evaluation: done and total (steps), loss (with margin, mean since the last evaluation),
            validation_loss and validation_accuracy (both without label and margin), seconds and seconds_left.
        best_step: the step whose weights were kept; 0 if none was evaluated.
        interrupted: True if Ctrl-C ended the training before its last step.
    """

    network: keras.Model
    history: list[dict]
    best_step: int
    interrupted: bool


def train(
    network: keras.Model, dataset: data.Dataset, *, steps: int = 400, batch_size: int = 32, learning_rate: float = 2e-4,
    scale: float = 30.0, margin: float = 0.3, augmentation: float = 1.0, robust: bool = False,
    backgrounds: np.ndarray | None = None, prototypes: np.ndarray | None = None, evaluations: int = 10, seed: int = 0,
    average: int = 0, keep: float = 0.0, patience: int = 0, checkpoint: Path | None = None,
    progress: Callable[[dict], None] = lambda entry: None,
) -> Training:
    """Train an embedding network in place with ArcFace, on the dataset's training images only.

    Adam (amsgrad, as in the original) with a cosine-decayed learning rate, on `augment.batches`. Sets seeds and
    deterministic kernels for the whole process (`repro.seed_everything`). A contiguous eighth of each class and source
    is held out to choose the best weights (highest accuracy, the latest of equals). Where every class has a source of
    100 training images or more, smaller sources train with all. Ctrl-C keeps the best weights so far.

    Args:
        network: float32 (N, S, S, 3) → embedding (N, D), from `networks.embedding_network` or your own.
        dataset: images of the network's size; masks, where known, allow new backgrounds.
        steps: number of gradient steps; scale, margin: of `ArcFace`.
        augmentation: strength of random change, 0 (mirroring only) to 1; robust: for other rooms (`augment.augment`).
        backgrounds: what objects are put in front of, uint8 (B, S, S, 3); None: `augment.render_backgrounds`.
        prototypes: float32 (D, K) to start from, of a model whose training goes on; None: random ones.
        average: keep the exponential mean of the weights of about as many last steps; 0: the weights themselves.
        keep: share, in [0, 1), of what the weights were before: a model that goes on forgets less (arXiv 2109.01903).
        evaluations: how often the held-out images are looked at on the way.
        patience: end when so many evaluations in a row were perfect; 0: take all steps.
        checkpoint: file for the state at each evaluation; where it exists the training goes on from it.
        progress: called after each evaluation with the newest entry of the history, after a few steps with the pace.

    Raises:
        OSError: another worker is lost.
        ValueError: sizes that do not fit, one class only, no training image, or settings out of range.

    Example:
        >>> from utils import arcface, data, networks
        >>> dataset = data.load_janken("synthetic", image_size=32, n_images=30)
        >>> network = networks.embedding_network(networks.Spec("small_resnet", image_size=32))
        >>> training = arcface.train(network, dataset, steps=2, evaluations=1)
        >>> training.network.output_shape
        (None, 3)
    """
    sizes = {"steps": steps, "batch_size": batch_size, "evaluations": evaluations}
    _check_training(network, dataset, augmentation, sizes=sizes, counts={"average": average, "patience": patience})
    if not 0 <= keep < 1 or keep and prototypes is None:
        raise ValueError(f"keep must lie in [0, 1), and above 0 a model of the same classes go on. Received: {keep!r}")
    repro.seed_everything(seed)
    if backgrounds is None:
        backgrounds = augment.render_backgrounds(dataset.images.shape[1], seed=seed, strength=augmentation)
    scores, trainer = _models(network, ArcFace(len(dataset.class_names), scale, margin, name="arcface"), prototypes)
    before = scores.get_weights() if keep else None
    settings = {
        "batch_size": batch_size, "steps": steps, "seed": seed, "strength": augmentation, "robust": robust,
        "learning_rate": learning_rate, "average": average, "looks": evaluations, "scale": scale, "margin": margin,
    }
    how = {"backgrounds": backgrounds, "patience": patience, "checkpoint": checkpoint, "progress": progress}
    history, best, interrupted = _run(scores, trainer, dataset, settings=settings, **how)
    if best:
        scores.set_weights(loop.blend(before, best.weights, 1 - keep))
    elif not interrupted:
        raise ValueError(f"The training diverged; take a lower learning rate. Received: {learning_rate!r}")
    return Training(scores, history, best.entry["done"] if best else 0, interrupted)


def accuracy(network: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose most similar prototype is that of their label. Neither label nor margin enters a score."""
    return float(np.mean(networks.forward(network, images).argmax(axis=1) == labels))


def _check_training(network, dataset, augmentation, *, sizes, counts):
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
    if min(sizes.values()) < 1 or sizes["evaluations"] > sizes["steps"]:
        raise ValueError(f"{', '.join(sizes)} must be positive, and evaluations at most steps. Received: {sizes}")
    if min(counts.values()) < 0:
        raise ValueError(f"{' and '.join(counts)} must be 0 or more. Received: {counts}")
    if not 0 <= augmentation <= 1:
        raise ValueError(f"augmentation must lie in [0, 1]. Received: {augmentation!r}")


def _run(scores, trainer, dataset, *, settings, backgrounds, patience, checkpoint, progress):
    """The training itself, from its checkpoint on where there is one."""
    steps, seed = settings["steps"], settings["seed"]
    decay = keras.optimizers.schedules.CosineDecay(settings["learning_rate"], steps)
    optimizer = keras.optimizers.Adam(decay, amsgrad=True)
    step_by = replicas.stepper(trainer, optimizer)
    about = settings | {"images": dataset.fingerprint}
    kept = loop.Checkpoint(checkpoint, [*trainer.variables, *optimizer.variables], settings=about)
    begin = kept.restore()
    fitted, held_out = _split(dataset, seed)
    how = {name: settings[name] for name in ("batch_size", "steps", "seed", "strength", "robust")}
    batches = augment.batches(dataset, fitted, backgrounds=backgrounds, done=loop.done(begin), **how)
    look_at = np.linspace(0, steps, settings["looks"] + 1).round().astype(int)[1:].tolist()
    return loop.run(
        scores, step_by, batches, lambda: _validate(scores, dataset, held_out, settings["scale"]), look_at=look_at,
        average=settings["average"], patience=patience, progress=progress, begin=begin, save=kept.save,
    )


def _models(network, head, prototypes=None):
    """images → cosine scores; and images, labels → logits with the margin. They share all weights."""
    # This call comes first: Keras' `layer.input` means the first, and it has to be the embedding alone.
    scores = networks.wrap(network.inputs[0], head(network.outputs[0]), like=network, name=f"{network.name}_arcface")
    if prototypes is not None:
        head.set_weights([prototypes])
    label = keras.Input((), dtype="int32", name="label")
    return scores, keras.Model([network.inputs[0], label], head(network.outputs[0], label))


def _split(dataset, seed):
    """Indices into the dataset: of the training images that are fitted, and of those held out to choose by.

    Sources of fewer than `FEW` images train with all of them, if every class has another source to judge by.
    """
    labels, sources = dataset.labels[dataset.train], dataset.known_sources
    kinds = labels * (sources.max() + 1) + sources[dataset.train]
    fitted, held_out = data.split(kinds, test_fraction=1 / 8, seed=seed)
    plenty = held_out[np.bincount(kinds)[kinds[held_out]] >= FEW]
    if set(labels[plenty]) == set(labels):
        fitted, held_out = np.setdiff1d(np.arange(len(kinds)), plenty), plenty
    if not len(held_out):  # one image per class: nothing else to judge by
        held_out = fitted
    return dataset.train[fitted], dataset.train[held_out]


def _validate(scores, dataset, held_out, scale):
    """Accuracy and cross-entropy of the held-out images."""
    cosines, labels = networks.forward(scores, dataset.images[held_out]), dataset.labels[held_out]
    own = np.log(softmax(scale * cosines.astype(np.float64)))[np.arange(len(labels)), labels]
    accuracy = float(np.mean(cosines.argmax(axis=1) == labels))
    return {"validation_loss": float(-np.mean(own)), "validation_accuracy": accuracy}
