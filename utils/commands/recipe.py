"""From a recipe to a model: what `python -m utils train` does once, and cross-validation again for every fold.

A recipe is the namespace of that command's options; a model folder keeps it in ``meta.json`` as "training".
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from utils import repro  # isort: skip  first: it imports TensorFlow quietly
import keras
import numpy as np

from utils import arcface, augment, data, networks
from utils.faster_gradcam import FasterGradCAM, check_settings

SOURCES = ("janken", "synthetic")  # any other name is a folder
# A network that has seen nothing yet learns from large steps, and not at all from images that hide most of themselves.
FROM_SCRATCH = {"learning_rate": 3e-3, "augmentation": 0.2}
FROM_WEIGHTS = {"learning_rate": 2e-4, "augmentation": 1.0}


def of(faster: FasterGradCAM) -> Namespace:
    """How a model was trained, as far as its folder tells: at least enough to load images for it."""
    untold = {"data": [], "n_images": 600, "variety": 1.0, "seed": 0, "detail_layer": None}
    return Namespace(**untold | faster.meta.get("training", {}) | {"image_size": faster.image_size[0]})


def load(source: str, recipe) -> data.Dataset:
    """Photos, rendered hands or a folder of classes, as the recipe wants them."""
    if source in SOURCES:
        return data.load_janken(source, recipe.image_size, n_images=recipe.n_images, variety=recipe.variety, seed=recipe.seed)
    return data.load_folder(source, recipe.image_size, seed=recipe.seed)


def load_others(tested: str, folders: list[str], recipe) -> list[data.Dataset]:
    """What the recipe trains on beside the tested source; ``folders`` tells where those of its names lie."""
    paths = {Path(folder).name: folder for folder in folders}
    return [load(paths.get(source, source), recipe) for source in recipe.data if source != tested]


def join(sources: list[data.Dataset], recipe) -> data.Dataset:
    """What the network trains on: all sources, with guessed masks where there are none, and the class *none*."""
    dataset = data.join(*map(data.guess_masks, sources))
    return data.add_none(dataset, seed=recipe.seed) if recipe.none else dataset


def build(recipe) -> tuple[keras.Model, str, str | None]:
    """The untrained network and the names of the layers of its heat maps and of their details.

    Raises:
        ValueError: the recipe cannot work.
    """
    check_settings(recipe.clusters, recipe.top_channels, recipe.weighting)
    repro.seed_everything(recipe.seed)
    spec = networks.Spec(
        recipe.backbone, recipe.image_size, recipe.alpha, recipe.output_stride, recipe.embedding_size, recipe.last_layer
    )
    network = networks.embedding_network(spec, None if recipe.weights == "none" else recipe.weights, seed=recipe.seed)
    layer, detail_layer = recipe.layer or networks.default_layer(network), recipe.detail_layer
    if detail_layer is None and recipe.weighting == "contrast":
        detail_layer = networks.BACKBONES[spec.backbone].detail_layer
    networks.check_layers(network, [layer, *([detail_layer] if detail_layer else [])])
    return network, layer, detail_layer


def fit(
    network, layer: str, detail_layer: str | None, dataset: data.Dataset, recipe,
    progress: Callable[[dict], None] = lambda entry: None,
) -> tuple[arcface.Training, FasterGradCAM]:  # fmt: skip
    """Train the network on the dataset's training part, then fit clusters to what it saw."""
    defaults = FROM_SCRATCH if recipe.weights == "none" else FROM_WEIGHTS
    chosen = {name: getattr(recipe, name) for name in defaults}
    settings = {name: defaults[name] if value is None else value for name, value in chosen.items()}
    training = arcface.train(
        network, dataset, steps=recipe.steps, batch_size=recipe.batch_size, scale=recipe.scale, margin=recipe.margin,
        evaluations=min(10, recipe.steps), seed=recipe.seed, progress=progress, **settings,
    )  # fmt: skip
    augmentation = settings["augmentation"]
    backgrounds = augment.render_backgrounds(recipe.image_size, seed=recipe.seed, strength=augmentation)
    faster = FasterGradCAM.fit(
        training.network, augment.views(dataset, backgrounds=backgrounds, seed=recipe.seed, strength=augmentation),
        dataset.labels[dataset.train], dataset.class_names, layer=layer, n_clusters=recipe.clusters, top_channels=recipe.top_channels,
        weighting=recipe.weighting, detail_layer=detail_layer, backgrounds=backgrounds, seed=recipe.seed,
    )  # fmt: skip
    return training, faster


def cross_validate(
    tested: data.Dataset, others: list[data.Dataset], recipe, n_folds: int
) -> Iterator[tuple[FasterGradCAM, np.ndarray]]:
    """For each fold of ``tested`` a model that was trained on its other folds and on ``others``.

    A fold is a contiguous block of each class, because neighbouring photos are near duplicates.

    Yields:
        The model, and the indices of the images it has not seen.
    """
    fold = data.folds(tested.labels, n_folds)
    for k in range(n_folds):
        part = replace(tested, train=np.flatnonzero(fold != k), test=np.flatnonzero(fold == k))
        dataset = join([part, *others], recipe)
        yield fit(*build(recipe), dataset, recipe)[1], part.test
