"""The recipe: what a model folder tells of it, and what suits the weights. `test_main` trains by it."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from utils.commands.common import DEFAULT_MODEL
from utils.commands.recipe import Recipe


def model(**meta):
    return SimpleNamespace(meta=meta, input_size=(96, 96))


def test_a_model_that_does_not_tell_its_recipe_gets_one_that_loads_images():
    told = {"data": ["janken"], "variety": 0.5, "image_size": 64, "best_step": 3, "of_tomorrow": True}
    expected = Recipe(data=("janken",), variety=0.5, image_size=96, n_images=600)
    assert Recipe.of(model(training=told)) == expected
    assert Recipe.of(model()) == Recipe(n_images=600)


def test_the_shipped_model_tells_its_whole_recipe():
    told = json.loads((DEFAULT_MODEL / "meta.json").read_text())["training"]
    of_shipped = Recipe.of(model(training=told))
    stored = of_shipped.stored()
    told = {name: value for name, value in told.items() if name not in ("best_step", "interrupted")}
    assert stored == told
    assert of_shipped.data[:3] == ("janken", "synthetic", "signs") and of_shipped.steps == 400


def test_a_stored_recipe_names_no_folder_of_this_machine():
    stored = Recipe(data=("/somewhere/photos", "janken"), weights="/somewhere/my.h5").stored()
    assert stored["data"] == ["photos", "janken"] and stored["weights"] == "my.h5"
    assert stored.keys() == asdict(Recipe()).keys() and json.loads(json.dumps(stored)) == stored


@pytest.mark.parametrize(
    "weights, given, expected",
    [("none", None, (3e-3, 0.2)), ("imagenet", None, (2e-4, 1.0)), ("my.h5", None, (2e-4, 1.0)), ("none", 0, (0, 0))],
)
def test_defaults_from_scratch_and_from_weights(weights, given, expected):
    """A 0 that was asked for is a 0."""
    settings = Recipe(weights=weights, learning_rate=given, augmentation=given).chosen_by_weights()
    assert (settings["learning_rate"], settings["augmentation"]) == expected
