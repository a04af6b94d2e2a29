"""`benchmarks.rooms`: what its columns count, and that no fold trains on a room that it is tested on."""

from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks import rooms

from utils.commands import training
from utils.commands.recipe import Recipe

NAMES = ("choki", "gu", "pa", "none")


def test_the_columns_by_hand():
    """A gu; a gu called none though gu is the best gesture; a pa called gu; none called pa; none."""
    truth = np.array(["gu", "gu", "pa", "none", "none"])
    scores = np.array([[0, 9, 1, 2], [0, 5, 1, 9], [0, 9, 8, 1], [0, 0, 9, 1], [0, 0, 1, 9]], float)
    expected = {"3-way": 2 / 3, "4-way": 1 / 3, "called none": 1 / 3, "none": 1 / 2}
    assert rooms.measure(scores, truth, NAMES) == pytest.approx(expected)
    assert np.isnan(rooms.measure(scores[:3], truth[:3], NAMES)["none"])


def test_no_model_trains_on_the_rooms_that_it_is_tested_on(monkeypatch):
    trained, model = [], SimpleNamespace()
    monkeypatch.setattr(training, "load_source", lambda source, recipe: source)
    monkeypatch.setattr(training, "join_sources", lambda sources, recipe: trained.append(sources))
    monkeypatch.setattr(training, "build_network", lambda recipe: None)
    monkeypatch.setattr(training, "train_model", lambda untrained, dataset, recipe: (None, model))
    recipe = Recipe(data=("janken", "signs", "attic", "cellar"))
    held_out = ["photos/attic"]
    assert rooms.train_without(held_out, ["photos/attic", "photos/cellar"], ["my/signs"], recipe) is model
    assert trained == [["janken", "my/signs", "photos/cellar"]]
