"""Rows on the disk against the same rows in memory: reading, data sets, training and fit."""

import tempfile
import threading

import keras
import numpy as np
import pytest

from utils import arcface, augment, data, gradcam, imaging
from utils.faster_gradcam import FasterGradCAM
from utils.networks import angular, clusters
from utils.render.masks import foreground_masks
from utils.storage import store

VALUES = np.random.default_rng(0).integers(0, 256, (300, 5, 4, 3)).astype(np.uint8)


@pytest.fixture
def on_disk(monkeypatch):
    """Everything goes to the disk, and what is chosen stays there."""
    monkeypatch.setattr(store, "LIMIT", 10)


def test_few_bytes_are_a_plain_array_and_many_are_stored(monkeypatch):
    halves = VALUES[:100], VALUES[100:]
    monkeypatch.setattr(store, "LIMIT", VALUES.nbytes)
    assert type(store.keep(halves)) is np.ndarray
    monkeypatch.setattr(store, "LIMIT", VALUES.nbytes - 1)
    kept = store.keep(halves)
    assert type(kept) is store.Stored and len(kept) == 300
    assert (kept.shape, kept.dtype, kept.ndim, kept.size) == (VALUES.shape, np.uint8, 4, VALUES.size)
    np.testing.assert_array_equal(kept, VALUES)


NUMBERS = [5, 2, 2], np.arange(20), np.arange(300) % 3 == 0, np.array([], int)
KEYS = [0, -1, np.int64(7), slice(3, 9), slice(None, None, 50), *NUMBERS]


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
@pytest.mark.parametrize("values", [VALUES, VALUES[..., 0] > 99, VALUES[:, 0, 0, 0] / np.float32(3)], ids="abc")
def test_stored_rows_are_indexed_as_an_array(key, values, on_disk):
    stored = store.keep([values])
    np.testing.assert_array_equal(stored[key], values[key])
    assert np.asarray(stored[key]).dtype == values.dtype
    many = isinstance(key, list | np.ndarray) and values[key].nbytes > 10
    assert isinstance(stored[key], store.Stored) == many  # a slice is always read
    np.testing.assert_array_equal(stored[::-1][::2], values[::-1][::2])


def test_a_choice_of_a_choice_reads_the_same_file(on_disk):
    stored = store.keep([VALUES])
    chosen = stored[np.arange(300) % 2 == 1][np.array([3, 1])]
    np.testing.assert_array_equal(chosen, VALUES[[7, 3]])
    assert chosen._file is stored._file


@pytest.mark.parametrize("key", [300, -301, [0, 300], (0, 0)])
def test_what_is_not_there_cannot_be_read(key, on_disk):
    with pytest.raises(IndexError):
        store.keep([VALUES])[key]


def test_mean_and_variance_along_the_rows(on_disk):
    values = np.random.default_rng(1).normal(3, 2, (500, 7)).astype(np.float32)
    stored = store.keep(np.array_split(values, 9))
    np.testing.assert_allclose(stored.mean(axis=0), values.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(stored.var(axis=0), values.var(axis=0, dtype=np.float64), rtol=1e-6)
    assert stored.mean(axis=0).dtype == np.float32 and stored.mean(axis=0, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(stored.mean(axis=1), values.mean(axis=1))
    np.testing.assert_array_equal(np.mean(stored), values.mean())


def test_all_else_works_as_with_an_array(on_disk):
    stored = store.keep([VALUES])
    for of in (
        lambda x: x / 255, lambda x: 255 - x, lambda x: x == VALUES, lambda x: x.astype(float), lambda x: x.max(axis=0),
        lambda x: np.concatenate([x, VALUES]), lambda x: np.clip(x, 3, 9), lambda x: x.reshape(150, -1), np.median,
    ):
        np.testing.assert_array_equal(of(stored), of(VALUES))
    with pytest.raises(TypeError, match="does not support item assignment"):
        stored[0] = 1


def test_several_threads_read_at_once(on_disk):
    stored, wrong = store.keep([VALUES]), []

    def read(seed):
        for i in np.random.default_rng(seed).integers(300, size=200):
            wrong.extend([i] if (stored[i] != VALUES[i]).any() else [])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_parts_that_come_together_and_nothing_at_all(on_disk):
    first, second = store.keep_each((VALUES[i : i + 1], np.float32([i])) for i in range(300))
    np.testing.assert_array_equal(first, VALUES)
    np.testing.assert_array_equal(second, np.arange(300))
    assert store.keep_each([]) == []
    np.testing.assert_array_equal(store.join([first, VALUES[:2]]), np.concatenate([VALUES, VALUES[:2]]))
    assert store.join([first]) is first
    np.testing.assert_array_equal(np.concatenate([*store.parts(first, 7)]), VALUES)


def test_threads_work_ahead_in_order_and_hand_on_errors():
    assert list(store.ahead(lambda x: x * x, range(100))) == [x * x for x in range(100)]
    started = []
    results = store.ahead(started.append, iter(range(1000)))
    next(results)
    assert len(started) <= store.AHEAD * store.READERS
    results.close()
    with pytest.raises(ZeroDivisionError):
        list(store.ahead(lambda x: 1 / x, [1, 0]))


def test_a_full_disk_is_told_in_one_sentence(on_disk, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="^Cannot keep so many images: No space left on device in .*; name another"):
        store.keep([VALUES])


# --- the same data set, in memory and on the disk ------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    dataset = data.load_janken("synthetic", image_size=32, n_images=30)
    for i, (image, mask) in enumerate(zip(dataset.images, dataset.masks, strict=True)):
        name = dataset.class_names[dataset.labels[i]]
        imaging.write_image(folder / name / f"{i}.png", image)
        imaging.write_image(folder / "masks" / name / f"{i}.png", np.where(mask, np.uint8(255), np.uint8(0)))
    (folder / "pa" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def held(folder):
    with pytest.warns(UserWarning, match="Skipped 1 unreadable"):
        return data.load_folder(folder, image_size=32)


@pytest.fixture
def stored(folder, on_disk):
    with pytest.warns(UserWarning, match="Skipped 1 unreadable"):
        return data.load_folder(folder, image_size=32)


def test_a_folder_is_the_same_data_set(held, stored):
    assert isinstance(stored.images, store.Stored) and isinstance(stored.masks, store.Stored)
    assert isinstance(held.images, np.ndarray)
    assert held.fingerprint == stored.fingerprint and held.skipped == stored.skipped and held.names == stored.names
    for name in ("images", "masks", "labels", "train", "test"):
        np.testing.assert_array_equal(getattr(held, name), getattr(stored, name))
    one, other = (data.add_none(data.join(dataset, dataset), seed=1) for dataset in (held, stored))
    assert one.fingerprint == other.fingerprint
    np.testing.assert_array_equal(foreground_masks(held.images), foreground_masks(stored.images))
    how = {"backgrounds": held.images[:5], "seed": 0}
    np.testing.assert_array_equal(augment.views(held, **how), augment.views(stored, **how))


def test_training_is_the_same(held, stored):
    how = {"steps": 2, "batch_size": 8, "evaluations": 1, "backgrounds": held.images[:5]}
    one, other = (arcface.train(small_network(), dataset, **how).network for dataset in (held, stored))
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


SLOW = [pytest.param({"object_layers": ["first"]}, marks=pytest.mark.slow), pytest.param({}, marks=pytest.mark.slow)]


@pytest.mark.parametrize("details", [{"detail_layer": "first"}, *SLOW], ids=["layer", "objects", "none"])
def test_a_fit_is_the_same(details, held, stored):
    """Clusters bit for bit, means over all images but for rounding; the images are resized, part by part."""
    network, how = small_network(24), {"n_clusters": 2, "weighting": "contrast", "layer": "last"} | details
    one, other = (FasterGradCAM.fit(network, d.images[d.train], d.labels[d.train], **how) for d in (held, stored))
    np.testing.assert_array_equal(one.clusters.centroids, other.clusters.centroids)
    np.testing.assert_allclose(one.channel_weights, other.channel_weights, rtol=1e-5, atol=1e-9)
    images = held.images[held.test]
    np.testing.assert_allclose(one.explain(images).heatmaps, other.explain(images).heatmaps, atol=1e-4)


def small_network(side=32):
    keras.utils.set_random_seed(0)
    x = image = keras.Input((side, side, 3))
    for name, stride in (("first", 4), ("last", 2)):
        x = keras.layers.Conv2D(6, 3, strides=stride, activation="relu", name=name, padding="same")(x / 255)
    return keras.Model(image, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))


def pooled_network():
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    maps = keras.layers.Conv2D(4, 3, name="maps")(image)
    return keras.Model(image, keras.layers.GlobalAveragePooling2D()(maps))


def test_a_harvest_may_be_stored(on_disk):
    network = angular.with_prototypes(pooled_network(), np.ones((4, 2), np.float32))
    images = np.zeros((6, 16, 16, 3), np.uint8)
    found = gradcam.harvest(network, [(images[:4], 0), (images[4:], 1)], layer="maps")
    assert all(isinstance(array, store.Stored) for array in found)
    assert found.channel_weights.shape == (6, 4)


def test_many_embeddings_are_clustered_by_mini_batches(monkeypatch):
    """Four far-off heaps are found either way; duplicates give no more clusters than there are."""
    rng = np.random.default_rng(0)
    heaps = rng.permutation(np.repeat(np.arange(4), 100))
    vectors = (np.eye(4)[heaps] + rng.normal(0, 0.01, (400, 4))).astype(np.float32)
    monkeypatch.setattr(clusters, "MANY", 399)
    found = clusters.k_means(vectors, 4, seed=0)
    assert len({*zip(heaps.tolist(), found.tolist(), strict=True)}) == 4
    assert len(np.unique(clusters.k_means(np.eye(4, dtype=np.float32)[heaps], 9, seed=0))) == 4
    np.testing.assert_array_equal(found, clusters.k_means(vectors, 4, seed=0))
