"""Recipes: what the folds of a cross-validation hold. The training itself is tested through the command line."""

from argparse import Namespace

import numpy as np
import pytest

from utils import data
from utils.commands import recipe


def dataset(class_names, n_images):
    """Images whose grey value is their number, with a mask each."""
    images = np.arange(n_images, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    masks = np.zeros((n_images, 32, 32), bool)
    masks[:, 8:24, 8:24] = True
    labels = np.sort(np.arange(n_images) % len(class_names))
    names = tuple(map(str, range(n_images)))
    return data.Dataset(images, labels, class_names, masks, *data.split(labels), names)


def test_a_model_that_does_not_tell_its_recipe_gets_one_that_loads_images():
    told = {"data": ["janken"], "variety": 0.5, "image_size": 64}
    saved = Namespace(meta={"training": told}, image_size=(96, 96))
    assert vars(recipe.of(saved)) == {"n_images": 600, "seed": 0, "detail_layer": None} | told | {"image_size": 96}
    assert recipe.of(Namespace(meta={}, image_size=(96, 96))).data == []


@pytest.mark.parametrize(
    "weights, given, expected",
    [("none", None, (3e-3, 0.2)), ("imagenet", None, (2e-4, 1.0)), ("none", 0, (0, 0))],
)
def test_defaults_from_scratch_and_from_weights(weights, given, expected, monkeypatch):
    """A 0 that was asked for is a 0."""
    seen = {}

    def train(*_, **settings):
        seen.update(settings)
        raise InterruptedError

    monkeypatch.setattr(recipe.arcface, "train", train)
    asked = Namespace(
        weights=weights, learning_rate=given, augmentation=given, steps=3, batch_size=2, scale=30, margin=0.1, seed=0
    )
    with pytest.raises(InterruptedError):
        recipe.fit(None, "layer", None, None, asked)
    assert (seen["learning_rate"], seen["augmentation"]) == expected


def test_no_fold_trains_on_what_it_is_tested_on(monkeypatch):
    fitted = []
    monkeypatch.setattr(recipe, "build", lambda options: ("network", "layer"))
    monkeypatch.setattr(recipe, "fit", lambda network, layer, joined, options: (None, fitted.append(joined)))
    photos, renders = dataset(("gu", "pa"), 20), dataset(("gu", "pa"), 10)
    tested = [unseen for _, unseen in recipe.cross_validate(photos, [renders], Namespace(none=True, seed=0), 5)]
    np.testing.assert_array_equal(np.sort(np.concatenate(tested)), np.arange(20))
    for joined, unseen in zip(fitted, tested, strict=True):
        assert joined.class_names == ("gu", "pa", "none") and joined.sources.max() == 2
        photos_trained = joined.train[joined.sources[joined.train] == 0]
        np.testing.assert_array_equal(photos_trained, np.setdiff1d(np.arange(20), unseen))
        assert set(photos.labels[unseen]) == {0, 1}  # a block of each class
