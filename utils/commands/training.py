"""From a recipe to a model: load the sources, join them, build the network, train it and fit its clusters."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from utils import arcface, augment, data, networks, repro
from utils.commands import common
from utils.commands.common import SOURCES
from utils.commands.recipe import Recipe
from utils.faster_gradcam import FasterGradCAM, check_settings
from utils.networks import replicas
from utils.repro import keras
from utils.storage import hub

FINGERPRINTS = "source_fingerprints"  # in meta.json, in the order of the recipe's data


def load_source(source: str, recipe: Recipe) -> data.Dataset:
    """Photos, rendered hands or a folder of classes, as the recipe wants them."""
    if source not in SOURCES:
        dataset = data.load_folder(source, image_size=recipe.image_size, seed=recipe.seed)
        common.report_left_out(dataset.left_out)
        return dataset
    return data.load_janken(
        source, image_size=recipe.image_size, n_images=recipe.n_images, variety=recipe.variety, seed=recipe.seed
    )


def is_seen(faster: FasterGradCAM, source: str, dataset: data.Dataset) -> bool:
    """Whether the model was trained on this source, of which `load_source` made the dataset.

    A folder is recognised by its fingerprint, whatever its name; of a model that keeps none, by its base name.
    """
    names, fingerprints = Recipe.of(faster).data, faster.meta.get(FINGERPRINTS)
    if fingerprints is None:
        return Path(source).name in names
    return dataset.fingerprint in fingerprints or source in SOURCES and source in names


def find_sources(faster: FasterGradCAM, folder: Path) -> list[data.Dataset]:
    """What the model in this folder was trained on: looked for by name here, around and beside the model's folder.

    Raises:
        ValueError: something is not there, or what has its name holds other images.
    """
    recipe, fingerprints = Recipe.of(faster), faster.meta.get(FINGERPRINTS)
    places = (Path(), Path(".."), folder / "..") if fingerprints else (Path(),)
    folders = {
        i: _find([place / name for place in places], recipe, fingerprints and fingerprints[i])
        for i, name in enumerate(recipe.data) if name not in SOURCES
    }
    missing = [recipe.data[i] or "a folder without a name" for i, dataset in folders.items() if dataset is None]
    if missing or not recipe.data:
        raise ValueError(f"int8 needs training images; name them with --data. Not found: {', '.join(missing) or 'any'}")
    return [folders.get(i) or load_source(name, recipe) for i, name in enumerate(recipe.data)]


def _find(places, recipe, fingerprint):
    """The first of these folders that has the fingerprint, loaded; without one, the first that is there; or None."""
    for place in places:
        if place.name.strip(".") == "" or not place.is_dir():  # of "." and ".." nobody knows which they were
            continue
        if fingerprint is None:
            return load_source(str(place), recipe)
        with warnings.catch_warnings(), contextlib.suppress(ValueError, OSError):
            warnings.simplefilter("ignore")  # a folder of that name may be anything
            dataset = data.load_folder(place, image_size=recipe.image_size, seed=recipe.seed)
            if dataset.fingerprint == fingerprint:
                return dataset
    return None


def join_sources(sources: list[data.Dataset], recipe: Recipe) -> data.Dataset:
    """What the network trains on: all sources, with guessed masks where there are none, and the class *none*."""
    dataset = data.join(*map(data.guess_masks, sources))
    return data.add_none(dataset, seed=recipe.seed) if recipe.none else dataset


def with_details(recipe: Recipe, sources: list[data.Dataset]) -> Recipe:
    """The recipe with "auto" replaced by the details that suit the sources, and the size of the maps."""
    if recipe.details != "auto":
        return recipe
    has_rim = recipe.image_size >= 3 * recipe.output_stride
    known = recipe.detail_layer or all(source.masks is not None for source in sources)
    return replace(recipe, details="objects" if has_rim and not known else "layer")


def build_network(recipe: Recipe) -> tuple[keras.Model, dict]:
    """The untrained network and the layers of its heat maps and details, as `FasterGradCAM.fit` takes them.

    Raises:
        ValueError: the recipe cannot work.
    """
    check_settings(recipe.clusters, recipe.top_channels, recipe.weighting)
    repro.seed_everything(recipe.seed)
    spec = networks.Spec(
        backbone=recipe.backbone, image_size=recipe.image_size, alpha=recipe.alpha, output_stride=recipe.output_stride,
        embedding_size=recipe.embedding_size, last_layer=recipe.last_layer,
    )
    earlier = _earlier_model(recipe)
    weights = None if earlier or recipe.weights == "none" else recipe.weights
    network = networks.embedding_network(spec, weights=weights, seed=recipe.seed)
    if earlier:
        networks.continue_from(network, earlier.network)
    layers = {"layer": recipe.layer or networks.default_layer(network)} | _finer_layers(recipe)
    networks.check_layers(network, keras.tree.flatten(layers))
    return network, layers


def _earlier_model(recipe):
    """The model whose training goes on, where the recipe's weights are a model folder; else None."""
    folder = hub.local(recipe.weights)
    is_folder = recipe.weights not in ("none", "imagenet") and folder.is_dir()
    return FasterGradCAM.load(folder) if is_folder else None


def _finer_layers(recipe):
    finer = networks.BACKBONES[recipe.backbone].finer_layers
    if recipe.detail_layer:
        return {"detail_layer": recipe.detail_layer}
    if recipe.weighting != "contrast" or recipe.details == "none":
        return {}
    if recipe.details == "objects":
        return {"object_layers": list(finer)}
    return {"detail_layer": finer[0]}


def train_model(
    untrained: tuple[keras.Model, dict], dataset: data.Dataset, recipe: Recipe, *, checkpoint: Path | None = None,
    progress: Callable[[dict], None] = lambda entry: None,
) -> tuple[arcface.Training, FasterGradCAM]:
    """Train what `build_network` built on the dataset's training part; then fit clusters to what it saw.

    Objects are learnt from the photos as they are: what lies at their rim takes the place of rendered backgrounds.
    """
    network, layers = untrained
    settings = recipe.chosen_by_weights()
    how = {"seed": recipe.seed, "strength": settings["augmentation"]}
    backgrounds = augment.render_backgrounds(recipe.image_size, **how)
    earlier = _earlier_model(recipe)
    known = earlier and earlier.class_names == dataset.class_names
    with replicas.strategy().scope():
        training = arcface.train(
            network, dataset, steps=recipe.steps, batch_size=recipe.batch_size, scale=recipe.scale,
            margin=recipe.margin, backgrounds=backgrounds, evaluations=min(10, recipe.steps), seed=recipe.seed,
            progress=progress, robust=recipe.robust, average=recipe.average, keep=recipe.keep, patience=recipe.patience,
            checkpoint=checkpoint, prototypes=earlier.prototypes if known else None, **settings,
        )
    if "object_layers" in layers:
        seen = {"images": dataset.images[dataset.train]}
    else:
        images = augment.views(dataset, backgrounds=backgrounds, robust=recipe.robust, **how)
        seen = {"images": images, "backgrounds": backgrounds}
    with replicas.strategy().scope():
        faster = FasterGradCAM.fit(
            training.network, labels=dataset.labels[dataset.train], class_names=dataset.class_names, seed=recipe.seed,
            n_clusters=recipe.clusters, top_channels=recipe.top_channels, weighting=recipe.weighting, **layers, **seen,
        )
    return training, faster
