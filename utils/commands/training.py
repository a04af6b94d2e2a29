"""From a recipe to a model: load the sources, join them, build the network, train it and fit its clusters."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils import arcface, augment, data, networks, repro
from utils.commands import common
from utils.commands.common import SOURCES
from utils.commands.recipe import Recipe
from utils.faster_gradcam import FasterGradCAM, check_settings
from utils.metrics import faithfulness
from utils.networks import replicas
from utils.repro import keras
from utils.storage import hub

DETAILS = ["objects", "layer", "none"]  # what "auto" chooses from
N_TRIED, N_JUDGES = 500, 48  # training images that each is fitted to, and images that choose

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


def build_network(recipe: Recipe) -> tuple[keras.Model, dict[str, dict]]:
    """The untrained network, and {kind of details: layers of the heat maps and details, as `FasterGradCAM.fit` takes}.

    There are several kinds where the recipe says "auto".

    Raises:
        ValueError: the recipe cannot work.
    """
    check_settings(recipe.clusters, recipe.top_channels, recipe.weighting)
    repro.seed_everything(recipe.seed)
    spec = networks.Spec(
        backbone=recipe.backbone, image_size=recipe.image_size, alpha=recipe.alpha, output_stride=recipe.output_stride,
        embedding_size=recipe.embedding_size, last_layer=recipe.last_layer, local_contrast=recipe.local_contrast,
    )
    earlier = _earlier_model(recipe)
    weights = None if earlier or recipe.weights == "none" else recipe.weights
    network = networks.embedding_network(spec, weights=weights, seed=recipe.seed)
    if earlier:
        networks.continue_from(network, earlier.network)
    layer = {"layer": recipe.layer or networks.default_layer(network)}
    kinds = {kind: layer | _finer_layers(recipe, kind) for kind in _kinds(recipe)}
    networks.check_layers(network, list(dict.fromkeys(keras.tree.flatten(kinds))))
    return network, kinds


def _earlier_model(recipe):
    """The model whose training goes on, where the recipe's weights are a model folder; else None."""
    folder = hub.local(recipe.weights)
    is_folder = recipe.weights not in ("none", "imagenet") and folder.is_dir()
    return FasterGradCAM.load(folder) if is_folder else None


def _kinds(recipe):
    """The details that can be meant: the one that the recipe names, or for "auto" all that can work."""
    if recipe.weighting != "contrast":
        return ["none"]  # there is nothing to sharpen with
    if recipe.details != "auto":
        return [recipe.details]
    if recipe.detail_layer:
        return ["layer"]
    has_rim = recipe.image_size >= 3 * recipe.output_stride  # without one nobody knows what objects are
    return DETAILS if has_rim else [kind for kind in DETAILS if kind != "objects"]


def _finer_layers(recipe, kind):
    finer = networks.BACKBONES[recipe.backbone].finer_layers
    if recipe.detail_layer:
        return {"detail_layer": recipe.detail_layer}
    return {"objects": {"object_layers": list(finer)}, "layer": {"detail_layer": finer[0]}, "none": {}}[kind]


def train_model(
    untrained: tuple[keras.Model, dict], dataset: data.Dataset, recipe: Recipe, *, checkpoint: Path | None = None,
    progress: Callable[[dict], None] = lambda entry: None,
) -> tuple[arcface.Training, FasterGradCAM]:
    """Train what `build_network` built on the dataset's training part; then fit clusters to what it saw.

    Of several kinds of details that one is taken which `choose` finds on the images that did not train.
    """
    network, kinds = untrained
    settings = recipe.chosen_by_weights()
    backgrounds = augment.render_backgrounds(recipe.image_size, seed=recipe.seed, strength=settings["augmentation"])
    earlier = _earlier_model(recipe)
    known = earlier and earlier.class_names == dataset.class_names
    with replicas.strategy().scope():
        training = arcface.train(
            network, dataset, steps=recipe.steps, batch_size=recipe.batch_size, scale=recipe.scale,
            margin=recipe.margin, backgrounds=backgrounds, evaluations=min(10, recipe.steps), seed=recipe.seed,
            progress=progress, robust=recipe.robust, average=recipe.average, keep=recipe.keep, patience=recipe.patience,
            checkpoint=checkpoint, prototypes=earlier.prototypes if known else None, **settings,
        )

    def fit(layers, part):
        return _fit(training.network, part, recipe, layers=layers, backgrounds=backgrounds)

    if len(kinds) == 1:
        return training, fit(*kinds.values(), dataset)
    few = replace(dataset, train=_some_of_each_class(dataset, N_TRIED))
    models = {kind: fit(layers, few) for kind, layers in kinds.items() if kind != "none"}
    models["none"] = models["layer"].reweighted(recipe.weighting, recipe.top_channels)  # the same without its layer
    kind, losses = choose(models, dataset)
    faster = models[kind] if len(few.train) == len(dataset.train) else fit(kinds[kind], dataset)
    faster.meta["embedding_loss"] = losses
    return training, faster


def _fit(network, dataset, recipe, *, layers, backgrounds):
    """Clusters of the training images. What objects are is learnt from the photos as they are, from their rim."""
    how = {"seed": recipe.seed, "strength": recipe.chosen_by_weights()["augmentation"], "robust": recipe.robust}
    if "object_layers" in layers:
        seen = {"images": dataset.images[dataset.train]}
    else:
        seen = {"images": augment.views(dataset, backgrounds=backgrounds, **how), "backgrounds": backgrounds}
    with replicas.strategy().scope():
        return FasterGradCAM.fit(
            network, labels=dataset.labels[dataset.train], class_names=dataset.class_names, seed=recipe.seed,
            n_clusters=recipe.clusters, top_channels=recipe.top_channels, weighting=recipe.weighting, **layers, **seen,
        )


def choose(models: dict[str, FasterGradCAM], dataset: data.Dataset) -> tuple[str, dict[str, float]]:
    """Which of these models has the maps that the network needs most: its name, and the measure of all.

    It is `faithfulness.embedding_loss`, the mean over at most `N_JUDGES` images that did not train, or where there are
    none over those that did. It needs no mask. Of equally good ones it is the first.
    """
    has_map = np.array(dataset.class_names)[dataset.labels] != data.NONE
    unseen, seen = (part[has_map[part]] for part in (dataset.test, dataset.train))
    judges = unseen if len(unseen) else seen
    images, losses = dataset.images[judges[common.spread(len(judges), N_JUDGES)]], {}
    for name, model in models.items():
        heatmaps = model.explain(images).heatmaps
        loss = faithfulness.embedding_loss(lambda batch, model=model: model.explain(batch).embeddings, images, heatmaps)
        losses[name] = round(float(loss.mean()), 4)
    return max(losses, key=losses.get), losses


def _some_of_each_class(dataset, n):
    """About n of the training images, sorted int indices, of each class as many, at least one; all, if they are few."""
    if len(dataset.train) <= n:
        return dataset.train
    labels = dataset.labels[dataset.train]
    members = [dataset.train[labels == label] for label in np.unique(labels)]
    share = max(1, n // len(members))
    return np.sort(np.concatenate([part[common.spread(len(part), share)] for part in members]))
