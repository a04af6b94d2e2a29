"""Cross-validation of `benchmarks.generality`: what the folds hold, and how their results are pooled."""

import numpy as np
from benchmarks import generality

from utils import data
from utils.commands import training
from utils.commands.recipe import Recipe


def dataset(class_names, n_images):
    """Images whose grey value is their number, with a mask each."""
    images = np.arange(n_images, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    masks = np.zeros((n_images, 32, 32), bool)
    masks[:, 8:24, 8:24] = True
    labels = np.sort(np.arange(n_images) % len(class_names))
    names = tuple(map(str, range(n_images)))
    return data.Dataset(images, labels, class_names, masks, *data.split(labels), names)


def test_no_fold_trains_on_what_it_is_tested_on(monkeypatch):
    fitted = []
    monkeypatch.setattr(training, "build_network", lambda recipe: "untrained")
    monkeypatch.setattr(training, "train_model", lambda untrained, joined, recipe: (None, fitted.append(joined)))
    photos, renders = dataset(("gu", "pa"), 20), dataset(("gu", "pa"), 10)
    tested = [unseen for _, unseen in generality.cross_validate(photos, [renders], Recipe(none=True), 5)]
    np.testing.assert_array_equal(np.sort(np.concatenate(tested)), np.arange(20))
    for joined, unseen in zip(fitted, tested, strict=True):
        assert joined.class_names == ("gu", "pa", "none") and joined.sources.max() == 2
        photos_trained = joined.train[joined.sources[joined.train] == 0]
        np.testing.assert_array_equal(photos_trained, np.setdiff1d(np.arange(20), unseen))
        assert set(photos.labels[unseen]) == {0, 1}  # a block of each class


def result(n_images, accuracy, **measures):
    return {"n_images": n_images, "accuracy": accuracy, "own": "clusters, contrast",
            "measures": {"clusters, contrast": measures}}


def test_pooling_weighs_by_the_number_of_images():
    pooled = generality.pool([result(10, 1.0, keep=0.5, AP=None), result(30, 0.9, keep=0.9, AP=0.4)])
    assert pooled["n_images"] == 40 and pooled["accuracy"] == 0.925 and "cpu" in pooled["machine"]
    assert pooled["measures"] == {"clusters, contrast": {"keep": 0.8, "AP": 0.4}}
    assert generality.pool([result(3, 1.0, AP=None)])["measures"]["clusters, contrast"]["AP"] is None
