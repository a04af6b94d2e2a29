"""From a recipe to a model: load the sources, join them, build the network, train it and fit its clusters."""

from collections.abc import Callable

from utils import arcface, augment, data, networks, repro
from utils.commands.common import SOURCES
from utils.commands.recipe import Recipe
from utils.faster_gradcam import FasterGradCAM, check_settings
from utils.repro import keras


def load_source(source: str, recipe: Recipe) -> data.Dataset:
    """Photos, rendered hands or a folder of classes, as the recipe wants them."""
    if source not in SOURCES:
        return data.load_folder(source, image_size=recipe.image_size, seed=recipe.seed)
    return data.load_janken(
        source, image_size=recipe.image_size, n_images=recipe.n_images, variety=recipe.variety, seed=recipe.seed
    )


def join_sources(sources: list[data.Dataset], recipe: Recipe) -> data.Dataset:
    """What the network trains on: all sources, with guessed masks where there are none, and the class *none*."""
    dataset = data.join(*map(data.guess_masks, sources))
    return data.add_none(dataset, seed=recipe.seed) if recipe.none else dataset


def build_network(recipe: Recipe) -> tuple[keras.Model, str, str | None]:
    """The untrained network and the names of the layers of its heat maps and of their details.

    Raises:
        ValueError: the recipe cannot work.
    """
    check_settings(recipe.clusters, recipe.top_channels, recipe.weighting)
    repro.seed_everything(recipe.seed)
    spec = networks.Spec(
        backbone=recipe.backbone, image_size=recipe.image_size, alpha=recipe.alpha, output_stride=recipe.output_stride,
        embedding_size=recipe.embedding_size, last_layer=recipe.last_layer,
    )
    weights = None if recipe.weights == "none" else recipe.weights
    network = networks.embedding_network(spec, weights=weights, seed=recipe.seed)
    layer = recipe.layer or networks.default_layer(network)
    detail_layer = recipe.detail_layer
    if detail_layer is None and recipe.weighting == "contrast":
        detail_layer = networks.BACKBONES[spec.backbone].detail_layer
    networks.check_layers(network, [layer] if detail_layer is None else [layer, detail_layer])
    return network, layer, detail_layer


def train_model(
    untrained: tuple[keras.Model, str, str | None], dataset: data.Dataset, recipe: Recipe, *,
    progress: Callable[[dict], None] = lambda entry: None,
) -> tuple[arcface.Training, FasterGradCAM]:
    """Train what `build_network` built on the dataset's training part, then fit clusters to what it saw."""
    network, layer, detail_layer = untrained
    settings = recipe.chosen_by_weights()
    how = {"seed": recipe.seed, "strength": settings["augmentation"]}
    backgrounds = augment.render_backgrounds(recipe.image_size, **how)
    training = arcface.train(
        network, dataset, steps=recipe.steps, batch_size=recipe.batch_size, scale=recipe.scale, margin=recipe.margin,
        backgrounds=backgrounds, evaluations=min(10, recipe.steps), seed=recipe.seed, progress=progress, **settings,
    )
    seen = augment.views(dataset, backgrounds=backgrounds, **how)
    faster = FasterGradCAM.fit(
        training.network, seen, dataset.labels[dataset.train], dataset.class_names, layer=layer,
        n_clusters=recipe.clusters, top_channels=recipe.top_channels, weighting=recipe.weighting,
        detail_layer=detail_layer, backgrounds=backgrounds, seed=recipe.seed,
    )
    return training, faster
