"""What is shipped in data/: the model does what its card says, on images and photos it has not seen."""

import dataclasses

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated

from utils import data, imaging, metrics, runtime, similarity
from utils.commands import training
from utils.commands.common import DEFAULT_MODEL
from utils.commands.recipe import Recipe
from utils.faster_gradcam import FasterGradCAM
from utils.render import hands

FLOAT, INT8 = DEFAULT_MODEL / runtime.FLOAT_FILE, DEFAULT_MODEL / runtime.INT8_FILE
HANDS = DEFAULT_MODEL.parents[1] / "hands"


@pytest.fixture(scope="module")
def faster():
    return FasterGradCAM.load(DEFAULT_MODEL)


def test_the_frozen_hands_are_named_and_found(faster):
    dataset = data.load_folder(HANDS, 160)
    assert np.bincount(dataset.labels).tolist() == [10] * 4 and dataset.skipped == ()
    result = faster.explain(dataset.images)
    truth = np.array(dataset.class_names)[dataset.labels]
    assert np.mean(np.array(result.names) == truth) >= 0.85
    hands = truth != data.NONE
    share = metrics.heat_in_mask(result.heatmaps[hands], dataset.masks[hands]).mean()
    assert share > 1.5 * dataset.masks[hands].mean()


@pytest.mark.real
def test_held_out_photos_are_named_and_found(faster, janken_dataset, monkeypatch):
    monkeypatch.setenv("JANKEN_DATASET", str(janken_dataset))
    dataset = training.load_source("janken", Recipe.of(faster))
    test = dataset.test
    result = faster.explain(dataset.images[test])
    truth = np.array(dataset.class_names)[dataset.labels[test]]
    assert np.mean(np.array(result.names) == truth) >= 0.97
    masks = dataset.masks[test]
    gaussian = np.repeat(metrics.centre_gaussian(*masks.shape[1:])[None], len(masks), axis=0)
    assert metrics.heat_in_mask(result.heatmaps, masks).mean() > metrics.heat_in_mask(gaussian, masks).mean()


def test_it_tells_how_to_train_it_again(faster):
    recipe = dataclasses.replace(Recipe.of(faster), weights="none")
    network, kinds = training.build_network(recipe)
    assert network.spec == faster.network.spec
    assert kinds == {"layer": {name: faster.meta[name] for name in ("layer", "detail_layer")}}


def test_the_folder_is_small_and_has_a_card():
    files = {path.name: path.stat().st_size for path in DEFAULT_MODEL.iterdir()}
    assert sum(files.values()) <= 24e6
    assert set(files) == {
        "MODEL_CARD.md", "explainer.tflite", "explainer_int8.tflite", "faster_gradcam.npz", "meta.json",
        "network.weights.h5",
    }
    assert files["explainer_int8.tflite"] <= 0.35 * files["explainer.tflite"]
    assert str(DEFAULT_MODEL.parents[2]) not in (DEFAULT_MODEL / "meta.json").read_text()


@pytest.mark.parametrize("size", [(96, 96), (48, 64), (120, 80), (240, 320), (131, 97)])
def test_the_float_file_explains_as_keras_does(faster, size):
    gestures = [name for name in (*hands.GESTURES, hands.NONE) for _ in range(25)]
    images = imaging.resize(hands.render_hands(gestures, image_size=96, seed=sum(size))[0], *size)
    keras_result, result = faster.explain(images), runtime.Explainer(FLOAT).explain(images)
    np.testing.assert_array_equal(result.labels, keras_result.labels)
    np.testing.assert_array_equal(result.clusters, keras_result.clusters)
    np.testing.assert_allclose(result.heatmaps, keras_result.heatmaps, atol=1e-3)


@pytest.mark.real
def test_int8_agrees_with_float_on_held_out_photos(faster, janken_dataset, monkeypatch):
    monkeypatch.setenv("JANKEN_DATASET", str(janken_dataset))
    dataset = training.load_source("janken", Recipe.of(faster))
    photos = dataset.images[dataset.test]
    exact, quantised = (runtime.Explainer(file).explain(photos) for file in (FLOAT, INT8))
    assert np.mean(exact.labels == quantised.labels) >= 0.99
    agreement = metrics.pearson(exact.heatmaps, quantised.heatmaps)
    assert agreement.mean() >= 0.98 and agreement.min() >= 0.90


def test_two_images_are_compared_as_keras_does(faster):
    dataset = data.load_folder(HANDS, 160)
    explainers = [runtime.Explainer(file) for file in (FLOAT, INT8)]
    for a, b in dataset.images[[0, 15, 31, 5, 33, 8]].reshape(3, 2, 160, 160, 3):
        exact, ours, int8 = similarity.compare(faster, a, b), *(explainer.compare(a, b) for explainer in explainers)
        np.testing.assert_allclose(ours.pairs, exact.pairs, atol=1e-5)
        np.testing.assert_allclose(ours.heatmap_a, exact.heatmap_a, atol=1e-3)
        for result in (exact, ours, int8):
            np.testing.assert_allclose([result.pairs.sum(), result.shares_b.sum()], result.score, atol=1e-5)
        assert np.corrcoef(int8.shares_a.ravel(), exact.shares_a.ravel())[0, 1] > 0.9
        assert int8.score == pytest.approx(exact.score, abs=0.08)


def test_the_files_hold_the_projection_once():
    """What `compare` multiplies the cells by are the weights of the network's own dense layer, 576 x 128."""
    for file, n_bytes in ((FLOAT, 4), (INT8, 1)):
        model = schema_py_generated.ModelT.InitFromPackedBuf(file.read_bytes())
        sizes = [0 if buffer.data is None else len(buffer.data) for buffer in model.buffers]
        assert sizes.count(576 * 128 * n_bytes) == 1 and (n_bytes == 4 or 576 * 128 * 4 not in sizes)
