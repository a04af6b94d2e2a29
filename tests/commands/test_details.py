"""What sharpens the maps of a training: chosen by what is known about its photos."""

from dataclasses import replace

import numpy as np
import pytest

from utils import data
from utils.commands import training
from utils.commands.recipe import Recipe

RECIPE = Recipe(backbone="small_resnet", weights="none", image_size=64, steps=1, batch_size=6, clusters=1)


@pytest.fixture
def photos(rng):
    """Two classes of three photos."""
    images = rng.integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    names = tuple(map(str, range(6)))
    everything = np.arange(6)
    return data.Dataset(images, everything % 2, ("a", "b"), None, train=everything, test=everything[:0], names=names)


def test_auto_is_objects_where_masks_are_not_known(photos):
    known = replace(photos, masks=np.ones((6, 64, 64), bool))
    assert training.with_details(RECIPE, [photos]).details == "objects"
    assert training.with_details(RECIPE, [known, photos]).details == "objects"
    assert training.with_details(RECIPE, [known]).details == "layer"
    for change in ({"detail_layer": "stage_1"}, {"image_size": 32}):  # asked for, and maps without a rim
        assert training.with_details(replace(RECIPE, **change), [photos]).details == "layer"
    assert training.with_details(replace(RECIPE, details="none"), [photos]).details == "none"


@pytest.mark.parametrize("details", ["objects", "layer", "none"])
def test_a_training_with_each(photos, details):
    recipe = replace(RECIPE, details=details)
    _, faster = training.train_model(training.build_network(recipe), data.guess_masks(photos), recipe)
    assert (faster.discriminant is not None, faster.detail_weights is not None) == (
        details == "objects", details == "layer"
    )
    assert np.isfinite(faster.explain(photos.images).heatmaps).all()


def test_without_contrast_there_is_nothing_to_sharpen_with():
    _, layers = training.build_network(replace(RECIPE, weighting="all", details="objects"))
    assert list(layers) == ["layer"]
