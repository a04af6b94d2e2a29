"""FasterGradCAM: agreement with exact Grad-CAM, clusters of every size, save and load, bad input."""

import json
import os

import keras
import numpy as np
import pytest

from utils import gradcam, heatmap, imaging, networks
from utils.arcface import ArcFace
from utils.faster_gradcam import CLUSTERS_FILE, NETWORK_FILE, WEIGHTS_FILE, FasterGradCAM
from utils.networks.discriminant import keep_largest
from utils.networks.model_folder import META_FILE

SIZE = 12


@pytest.fixture(scope="module")
def images():
    """Twelve noisy images, reddish, greenish and bluish in turn."""
    images = np.random.default_rng(0).integers(0, 100, (12, SIZE, SIZE, 3))
    images[np.arange(12), ..., np.arange(12) % 3] += 150
    return images.astype(np.uint8)


@pytest.fixture(scope="module")
def network(images):
    """A random network whose prototypes lie so among the images that each of three classes is predicted."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(x)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="early")(x)
    x = keras.layers.Conv2D(6, 3, activation="relu", name="late")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    embedding = keras.Model(inputs, keras.layers.Dense(5, name="embedding")(x))
    head = ArcFace(3)
    classifier = keras.Model(inputs, head(embedding.output))
    head.set_weights([np.linalg.pinv(networks.forward(embedding, images)) @ np.eye(3)[np.arange(12) % 3]])
    return classifier


@pytest.fixture(scope="module")
def labels(network, images):
    """What the network says, so that every image finds its own cluster."""
    labels = networks.forward(network, images).argmax(axis=1)
    assert set(labels) == {0, 1, 2}
    return labels


@pytest.mark.parametrize("layer", ["early", "late"])
def test_one_image_a_cluster_and_all_channels_is_exact_gradcam(network, images, labels, layer):
    faster = FasterGradCAM.fit(network, images, labels, layer=layer, n_clusters=len(images))
    exact = gradcam.explain(network, images, layer=layer, targets=labels)
    explanation = faster.explain(images)
    np.testing.assert_array_equal(explanation.labels, labels)
    np.testing.assert_allclose(explanation.heatmaps, exact, atol=1e-5)


def test_channel_weights_are_the_mean_over_the_cluster(network, images, labels):
    faster = FasterGradCAM.fit(network, images, labels, n_clusters=1)
    k = np.bincount(labels).argmax()
    harvest = gradcam.harvest(network, [(images[labels == k], labels[labels == k])])
    row = np.flatnonzero(faster.clusters.classes == k)
    np.testing.assert_allclose(faster.channel_weights[row[0]], harvest.channel_weights.mean(axis=0), atol=1e-6)
    unit = harvest.embeddings / np.linalg.norm(harvest.embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(faster.clusters.centroids[row[0]], unit.mean(axis=0), atol=1e-5)


def test_an_explanation_is_what_the_formula_says(network, images, labels):
    faster = FasterGradCAM.fit(network, images, labels, n_clusters=2)
    result = faster.explain(images)
    assert result.scores.shape == (12, 3) and np.abs(result.scores).max() <= 1 + 1e-6
    np.testing.assert_allclose(result.scores, networks.forward(network, images), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(result.embeddings, axis=1), 1, atol=1e-5)
    for n in range(12):
        own = np.flatnonzero(faster.clusters.classes == result.labels[n])
        nearest = own[np.linalg.norm(faster.clusters.centroids[own] - result.embeddings[n], axis=1).argmin()]
        assert result.clusters[n] == nearest
    assert result.heatmaps.dtype == np.float32 and result.heatmaps.min() >= 0 and result.heatmaps.max() <= 1


def test_more_clusters_than_images_duplicates_and_a_class_of_one_image(network, images, labels):
    doubled = np.concatenate([images, images[:4], images[:4]])
    faster = FasterGradCAM.fit(network, doubled, np.concatenate([labels, labels[:4], labels[:4]]), n_clusters=100)
    assert len(faster.clusters.centroids) == len(faster.clusters.classes) == 12  # no duplicate, no empty cluster
    assert np.isfinite(faster.channel_weights).all() and set(faster.clusters.classes) == {0, 1, 2}


def test_none_has_no_cluster_no_heat_and_no_box(network, images, labels):
    k = int(np.bincount(labels).argmax())
    names = tuple("none" if i == k else f"class_{i}" for i in range(3))
    result = FasterGradCAM.fit(network, images, labels, class_names=names, n_clusters=2).explain(images)
    is_none = result.labels == k
    assert is_none.any() and not result.heatmaps[is_none].any()
    assert (result.clusters[is_none] == -1).all() and (result.clusters[~is_none] >= 0).all()


def test_top_channels_keeps_the_largest_signed_weights():
    weights = np.array([[0.1, -5.0, 3.0, 0.2], [4.0, 1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(keep_largest(weights, 2), [[0, 0, 3, 0.2], [4, 0, 0, 3]])
    np.testing.assert_array_equal(keep_largest(weights, 50), weights)


def test_positive_weights_and_contrast_by_hand(network, images, labels):
    names = ("a", "b", "none")
    plain = FasterGradCAM.fit(network, images, labels, names, layer="early", n_clusters=2)
    fitted = FasterGradCAM.fit(network, images, labels, names, layer="early", n_clusters=2, weighting="contrast")
    np.testing.assert_array_equal(plain.channel_weights, plain.clusters.mean_weights)
    positive = plain.reweighted("positive")
    np.testing.assert_array_equal(positive.channel_weights, np.maximum(plain.clusters.mean_weights, 0))
    gap = networks.forward(plain.network, images)[0].mean(axis=(1, 2))
    classes, none = gap[labels < 2], gap[labels == 2]
    contrast = np.maximum((classes.mean(0) - none.mean(0)) / (classes.var(0) + none.var(0)), 0)
    np.testing.assert_allclose(fitted.contrast, contrast, rtol=1e-4)
    means = plain.clusters.mean_weights
    drawn_together = np.stack([(row + means.mean(axis=0)) / 2 for row in means])
    np.testing.assert_allclose(fitted.channel_weights, np.maximum(drawn_together, 0) * contrast, rtol=1e-4)
    top = fitted.reweighted("all", 3)
    assert top.meta["top_channels"] == 3 and ((top.channel_weights != 0).sum(axis=1) == 3).all()
    np.testing.assert_array_equal(fitted.reweighted().channel_weights, plain.channel_weights)


def test_contrast_takes_backgrounds_or_else_the_rim(network, images, labels):
    black = np.zeros((3, 20, 20, 3), np.uint8)
    faster = FasterGradCAM.fit(network, images, labels, weighting="contrast", backgrounds=black)
    assert faster.contrast.shape == faster.channel_weights.shape[1:] and np.isfinite(faster.contrast).all()
    faster = FasterGradCAM.fit(network, images, labels, layer="early", weighting="contrast")
    cells = faster.network(images.astype(np.float32))[0].numpy()
    inside = cells[:, 1:4, 1:4].reshape(-1, 8)  # of 5 x 5 cells
    at_rim = np.concatenate([cells[:, (0, 4)].reshape(-1, 8), cells[:, 1:4, (0, 4)].reshape(-1, 8)])
    contrast = np.maximum((inside.mean(0) - at_rim.mean(0)) / (inside.var(0) + at_rim.var(0)), 0)
    np.testing.assert_allclose(faster.contrast, contrast, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="fitted with backgrounds"):
        FasterGradCAM.fit(network, images, labels).reweighted("contrast")
    with pytest.raises(ValueError, match="weighting must be one of"):
        FasterGradCAM.fit(network, images, labels, weighting="negative")


def test_object_layers_by_hand(network, images, labels, tmp_path):
    how = {"layer": "late", "n_clusters": 2, "weighting": "contrast"}
    plain = FasterGradCAM.fit(network, images, labels, **how)
    faster = FasterGradCAM.fit(network, images, labels, object_layers=["early"], **how)
    maps, _, early = (output.numpy() for output in faster.network(images.astype(np.float32)))
    coarse = np.einsum("nhwc,nc->nhw", maps, faster.channel_weights[faster.explain(images).clusters])
    coarse = np.maximum(coarse, 0).astype(np.float32)
    late_odds, early_odds = maps @ faster.discriminant.weights[0], early @ faster.discriminant.weights[1]
    odds = imaging.resize(late_odds, 5, 5) + early_odds + faster.discriminant.bias
    raw = np.sqrt(imaging.resize(coarse, 5, 5) * np.log1p(np.exp(odds)))
    result = faster.explain(images)
    np.testing.assert_allclose(result.heatmaps, heatmap.normalise_and_resize(raw, SIZE, SIZE), atol=1e-4)

    without = faster.reweighted("contrast")
    np.testing.assert_array_equal(without.explain(images).heatmaps, plain.explain(images).heatmaps)
    assert without.discriminant is None and faster.reweighted("all", detail=True).discriminant is faster.discriminant
    faster.save(tmp_path / "model")
    loaded = FasterGradCAM.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.explain(images).heatmaps, result.heatmaps)
    with pytest.raises(ValueError, match="Received: both"):
        FasterGradCAM.fit(network, images, labels, detail_layer="early", object_layers=["early"])


def test_details_by_hand(network, images, labels):
    names = ("a", "b", "none")
    how = {"layer": "late", "n_clusters": 2, "weighting": "contrast"}
    plain = FasterGradCAM.fit(network, images, labels, names, **how)
    faster = FasterGradCAM.fit(network, images, labels, names, detail_layer="early", **how)
    early, late = (keras.Model(network.input, network.get_layer(name).output) for name in ("early", "late"))
    gap = networks.forward(early, images).mean(axis=(1, 2))
    hands, none = gap[labels < 2], gap[labels == 2]
    contrast = np.maximum((hands.mean(0) - none.mean(0)) / (hands.var(0) + none.var(0)), 0)
    harvest = gradcam.harvest(network, [(images[labels < 2], labels[labels < 2])], layer="early")
    weights = np.maximum(harvest.channel_weights.mean(axis=0), 0) * contrast
    np.testing.assert_allclose(faster.detail_weights, weights, rtol=1e-4)
    np.testing.assert_array_equal(faster.channel_weights, plain.channel_weights)

    result = faster.explain(images)
    shown = np.flatnonzero(result.clusters >= 0)
    assert 0 < len(shown) < 12 and not result.heatmaps[labels == 2].any()
    coarse = np.einsum("nhwc,nc->nhw", networks.forward(late, images), faster.channel_weights[result.clusters])
    fine = np.maximum(networks.forward(early, images) @ weights, 0)
    assert coarse.shape[1:] == (3, 3) and fine.shape[1:] == (5, 5)
    raw = np.sqrt(imaging.resize(np.maximum(coarse, 0).astype(np.float32), 5, 5)) * fine
    np.testing.assert_allclose(result.heatmaps[shown], heatmap.normalise_and_resize(raw, SIZE, SIZE)[shown], atol=1e-4)

    np.testing.assert_array_equal(
        faster.reweighted("contrast").explain(images).heatmaps, plain.explain(images).heatmaps
    )
    kept = faster.reweighted("all", 3, detail=True)
    assert kept.meta["detail_layer"] == "early" and kept.explain(images).heatmaps.any()
    with pytest.raises(ValueError, match="fitted with a detail layer"):
        plain.reweighted(detail=True)


def test_any_size_and_one_image(network, images, labels):
    faster = FasterGradCAM.fit(network, images, labels)
    assert faster.explain(np.full((40, 7, 3), 128, np.uint8)).heatmaps.shape == (1, 40, 7)
    one, many = faster.explain(images[2]), faster.explain(images, batch_size=5)
    np.testing.assert_allclose(one.heatmaps[0], many.heatmaps[2], atol=1e-5)


def test_a_network_without_a_head_takes_class_means_as_prototypes(network, images, labels):
    embedding = keras.Model(network.input, network.get_layer("embedding").output)
    faster = FasterGradCAM.fit(embedding, images, labels)
    result = faster.explain(images)
    for k in range(3):
        mean = result.embeddings[labels == k].mean(axis=0)
        np.testing.assert_allclose(faster.prototypes[:, k], mean / np.linalg.norm(mean), atol=1e-5)


def registered(seed=0, **settings):
    spec = networks.Spec("small_resnet", image_size=32, embedding_size=4)
    embedding = networks.embedding_network(spec, seed=seed)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 255, (6, 32, 32, 3)).astype(np.uint8)
    return FasterGradCAM.fit(embedding, images, np.arange(6) % 2, ("a", "b"), n_clusters=2, **settings), images


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    faster, images = registered()
    folder = tmp_path_factory.mktemp("model") / "new" / "folder"
    faster.save(folder, accuracy=0.5)
    return faster, images, folder


def copy(folder, target):
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def assert_same(first, second):
    for name in ("labels", "scores", "heatmaps", "clusters", "embeddings"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-6)
    assert first.class_names == second.class_names


def test_round_trip(saved):
    faster, images, folder = saved
    assert sorted(file.name for file in folder.iterdir()) == sorted([CLUSTERS_FILE, META_FILE, WEIGHTS_FILE])
    loaded = FasterGradCAM.load(folder)
    assert_same(faster.explain(images), loaded.explain(images))
    meta = json.loads((folder / META_FILE).read_text())
    assert meta["accuracy"] == 0.5 and meta["class_names"] == ["a", "b"] and meta["layer"] == "stage_3_block_1_relu"
    assert loaded.network.spec == faster.network.spec


def test_round_trip_with_details(tmp_path):
    faster, images = registered(detail_layer="stage_2_block_1_relu", backgrounds=np.zeros((2, 32, 32, 3), np.uint8))
    faster.save(tmp_path)
    loaded = FasterGradCAM.load(tmp_path)
    np.testing.assert_array_equal(loaded.detail_weights, faster.detail_weights)
    assert_same(faster.explain(images), loaded.explain(images))


def test_a_loaded_explainer_is_explained_exactly_too(saved):
    faster, images, folder = saved
    classifier = FasterGradCAM.load(folder).classifier()
    np.testing.assert_allclose(networks.forward(classifier, images), faster.explain(images).scores, atol=1e-5)
    assert gradcam.explain(classifier, images).shape == (6, 32, 32)


def test_round_trip_of_a_network_that_is_not_ours(network, images, labels, tmp_path):
    faster = FasterGradCAM.fit(network, images, labels)
    faster.save(tmp_path)
    assert (tmp_path / NETWORK_FILE).exists()
    assert_same(faster.explain(images), FasterGradCAM.load(tmp_path).explain(images))


def test_saving_again_replaces_the_model_and_keeps_other_files(saved, tmp_path):
    _, images, folder = saved
    target = copy(folder, tmp_path / "model")
    (target / "MODEL_CARD.md").write_text("mine")
    other, _ = registered(seed=1)
    other.save(target)
    assert (target / "MODEL_CARD.md").read_text() == "mine"
    assert_same(other.explain(images), FasterGradCAM.load(target).explain(images))


def test_a_full_disk_leaves_the_old_model(saved, tmp_path, monkeypatch):
    faster, images, folder = saved
    target = copy(folder, tmp_path / "model")
    before = sorted(file.name for file in target.iterdir())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        registered(seed=1)[0].save(target)
    assert sorted(file.name for file in target.iterdir()) == before
    assert_same(faster.explain(images), FasterGradCAM.load(target).explain(images))


@pytest.mark.parametrize("name", [CLUSTERS_FILE, META_FILE, WEIGHTS_FILE])
def test_a_missing_truncated_or_foreign_file_is_named(saved, tmp_path, name):
    _, _, folder = saved
    missing = copy(folder, tmp_path / "missing")
    (missing / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        FasterGradCAM.load(missing)
    truncated = copy(folder, tmp_path / "truncated")
    os.truncate(truncated / name, (truncated / name).stat().st_size // 2)
    with pytest.raises(ValueError, match=name):
        FasterGradCAM.load(truncated)
    foreign = copy(folder, tmp_path / "foreign")
    (foreign / name).write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match=name):
        FasterGradCAM.load(foreign)


@pytest.mark.parametrize(
    "change", [{"network": {"unknown": 1}}, {"class_names": ["a"]}, {"layer": "stage_1_relu"}, {"format": 99}]
)
def test_meta_data_of_another_model(saved, tmp_path, change):
    target = copy(saved[2], tmp_path / "model")
    meta = json.loads((target / META_FILE).read_text())
    (target / META_FILE).write_text(json.dumps(meta | change))
    with pytest.raises(ValueError, match=META_FILE):
        FasterGradCAM.load(target)


def test_a_classifier_is_not_taken_for_an_embedding(network, images, labels):
    classifier = keras.Model(network.input, keras.layers.Dense(3, activation="softmax")(network.layers[-2].output))
    with pytest.raises(ValueError, match="ends in a softmax"):
        FasterGradCAM.fit(classifier, images, labels)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a model folder"):
        FasterGradCAM.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "images, sentence",
    [
        (np.zeros((2, SIZE, SIZE, 3), np.float32), "floats are not accepted"),
        (np.zeros((0, SIZE, SIZE, 3), np.uint8), "at least one image"),
        (np.zeros((SIZE, SIZE), np.uint8), "expected uint8 RGB"),
        (np.zeros((2, SIZE, SIZE, 4), np.uint8), "alpha"),
    ],
)
def test_bad_images(saved, images, sentence):
    with pytest.raises(ValueError, match=sentence):
        saved[0].explain(images)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"labels": np.zeros(11, int)}, "one integer label for each of the 12"),
        ({"labels": np.zeros(12)}, "dtype float64"),
        ({"labels": np.zeros(12, int), "class_names": ("a", "b", "c")}, r"no image of \['b', 'c'\]"),
        ({"labels": np.full(12, 5), "class_names": ("a",)}, r"Labels must lie in 0\.\.0"),
        ({"labels": np.zeros(12, int), "class_names": ("none",)}, "besides 'none'"),
        ({"labels": np.arange(12) % 2}, "The network has 3 classes"),
        ({"labels": np.arange(12) % 3, "n_clusters": 0}, "n_clusters must be an integer of at least 1"),
        ({"labels": np.arange(12) % 3, "top_channels": 2.5}, "top_channels must be an integer"),
        ({"labels": np.arange(12) % 3, "class_names": ("a", "a", "b")}, "Class names must differ"),
        ({"labels": np.arange(12) % 3, "layer": "missing"}, r"choose one of \['early', 'late'\]"),
        (
            {"labels": np.arange(12) % 3, "detail_layer": "missing", "class_names": ("a", "b", "none")},
            r"choose one of \['early', 'late'\]",
        ),
    ],
)
def test_bad_fits(network, images, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        FasterGradCAM.fit(network, images, **change)


def test_a_layer_inside_a_nested_model_is_refused(rng):
    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="maps")], name="inner")
    network = keras.Sequential([keras.Input((8, 8, 3)), inner, keras.layers.GlobalAveragePooling2D()])
    images = rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    with pytest.raises(ValueError, match="not inside a nested model; .* Received: 'inner/maps'"):
        FasterGradCAM.fit(network, images, np.arange(4) % 2)
