"""What sharpens the maps of a training: the one that matters most to the network on images that did not train."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from utils import data
from utils.commands import training
from utils.commands.recipe import Recipe

RECIPE = Recipe(backbone="small_resnet", weights="none", image_size=64, steps=1, batch_size=6, clusters=1)
FINER = {"objects": {"object_layers"}, "layer": {"detail_layer"}, "none": set()}


@pytest.fixture
def photos(rng):
    """Two classes of three photos."""
    images = rng.integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    names = tuple(map(str, range(6)))
    everything = np.arange(6)
    return data.Dataset(images, everything % 2, ("a", "b"), None, train=everything, test=everything[:0], names=names)


@pytest.mark.parametrize("change, kinds", [
    ({}, ["objects", "layer", "none"]), ({"details": "none"}, ["none"]), ({"detail_layer": "stage_1"}, ["layer"]),
    ({"image_size": 32}, ["layer", "none"]),  # maps without a rim
    ({"weighting": "all", "details": "objects"}, ["none"]),  # without contrast there is nothing to sharpen with
])
def test_what_auto_chooses_from(change, kinds):
    _, layers = training.build_network(replace(RECIPE, **change))
    assert list(layers) == kinds
    assert [set(own) - {"layer"} for own in layers.values()] == [FINER[kind] for kind in kinds]


class Half(SimpleNamespace):
    """A model whose map is one half of the image, and whose embedding is how varied the left half is, beside 10."""

    def explain(self, images):
        heat = np.zeros(images.shape[:3], np.float32)
        heat[:, :, self.columns] = 1
        varied = images[:, :, :32].astype(float).std(axis=(1, 2, 3))
        return SimpleNamespace(heatmaps=heat, embeddings=np.stack([varied, np.full(len(images), 10)], axis=1))


def test_the_map_that_the_network_needs_is_chosen(photos):
    models = {"right": Half(columns=slice(32, 64)), "left": Half(columns=slice(0, 32))}
    everything = np.arange(6)
    for part in ({}, {"train": everything[:3], "test": everything[3:]}, {"class_names": ("a", "none")}):
        chosen, losses = training.choose(models, replace(photos, **part))
        assert chosen == "left" and losses["left"] > losses["right"] == 0
    same = {"first": models["left"], "second": models["left"]}
    assert training.choose(same, photos)[0] == "first"


def test_a_training_chooses_and_tells(photos):
    recipe = replace(RECIPE, details="auto")
    _, faster = training.train_model(training.build_network(recipe), data.guess_masks(photos), recipe)
    losses = faster.meta["embedding_loss"]
    chosen = max(losses, key=losses.get)
    assert list(losses) == training.DETAILS
    assert {name for name in ("detail_layer", "object_layers") if faster.meta[name]} == FINER[chosen]
    assert (faster.discriminant is not None, faster.detail_weights is not None) == (
        chosen == "objects", chosen == "layer"
    )
    assert np.isfinite(faster.explain(photos.images).heatmaps).all()


def test_of_many_images_some_are_tried_and_all_are_used(photos, monkeypatch):
    monkeypatch.setattr(training, "N_TRIED", 4)
    rare = replace(photos, labels=np.array([0, 0, 0, 0, 1, 0]))
    assert training._some_of_each_class(rare, 4).tolist() == [0, 4, 5]
    assert training._some_of_each_class(rare, 1).tolist() == [0, 4]  # no class may be missing
    _, faster = training.train_model(training.build_network(RECIPE), data.guess_masks(photos), RECIPE)
    assert faster.meta["n_images"] == 6 and "embedding_loss" in faster.meta
