"""ArcFace against hand-computed values; training on a toy problem."""

import math
from dataclasses import replace

import keras
import numpy as np
import pytest

from utils import arcface, data
from utils.arcface import ArcFace
from utils.networks import loop


def layer_with(prototypes, **settings):
    layer = ArcFace(len(prototypes[0]), **settings)
    layer.build((None, len(prototypes)))
    layer.set_weights([np.array(prototypes, np.float32)])
    return layer


def at_angles(*degrees):
    """Unit embeddings in the plane; with prototype (1, 0) the angle is θ of class 0."""
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], np.float32)


def test_scores_are_cosines_row_by_row_and_class_by_class():
    layer = layer_with([[2.0, 0.0], [0.0, 0.5]])  # prototypes (1, 0) and (0, 1) after normalisation
    embeddings = np.array([[3.0, 4.0], [0.1, 0.0]], np.float32)
    np.testing.assert_allclose(layer(embeddings), [[0.6, 0.8], [1.0, 0.0]], atol=1e-6)


def test_logits_are_scale_times_cos_of_theta_plus_margin_for_the_own_class_only():
    layer = layer_with([[1.0, 0.0], [0.0, 1.0]], scale=10.0, margin=0.5)
    theta = math.radians(30)
    expected = [
        [10 * math.cos(theta + 0.5), 10 * math.sin(theta)],
        [10 * math.cos(theta), 10 * math.cos(math.pi / 3 + 0.5)],
    ]
    np.testing.assert_allclose(layer(at_angles(30, 30), np.array([0, 1])), expected, rtol=1e-5)


def test_margin_zero_is_the_cosine_softmax(rng):
    layer = layer_with(rng.normal(size=(5, 4)), scale=7.0, margin=0.0)
    embeddings, labels = rng.normal(size=(6, 5)).astype(np.float32), rng.integers(4, size=6)
    np.testing.assert_allclose(layer(embeddings, labels), 7.0 * np.asarray(layer(embeddings)), atol=1e-5)


def test_beyond_pi_a_worse_angle_never_pays():
    layer = layer_with([[1.0, 0.0], [0.0, 1.0]], scale=1.0, margin=0.5)
    logits = np.asarray(layer(at_angles(*range(0, 181)), np.zeros(181, int)))[:, 0]
    assert (np.diff(logits) < 0).all()
    assert logits[-1] == pytest.approx(-1 - 0.5 * math.sin(0.5), abs=1e-3)


def test_easy_margin_leaves_angles_over_ninety_degrees_alone():
    layer = layer_with([[1.0, 0.0], [0.0, 1.0]], scale=1.0, margin=0.5, easy_margin=True)
    logits = np.asarray(layer(at_angles(60, 120), np.zeros(2, int)))[:, 0]
    np.testing.assert_allclose(logits, [math.cos(math.radians(60) + 0.5), math.cos(math.radians(120))], rtol=1e-5)


def test_gradients_are_finite_at_the_prototype_opposite_of_it_and_at_zero():
    import tensorflow as tf

    layer = layer_with([[1.0, 0.0], [0.0, 1.0]], margin=0.5)
    embeddings = tf.Variable([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(embeddings, np.zeros(3, int)))
    assert np.isfinite(loss) and np.isfinite(tape.gradient(loss, embeddings)).all()


def test_serialises(tmp_path, rng):
    inputs = keras.Input((5,))
    model = keras.Model(inputs, ArcFace(3, scale=12.0, margin=0.2, easy_margin=True)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.layers[-1].get_config() == model.layers[-1].get_config()
    x = rng.normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(model(x), loaded(x))


@pytest.mark.parametrize("settings", [{"n_classes": 0}, {"n_classes": 2, "scale": 0}, {"n_classes": 2, "margin": 3.2}])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="Received: "):
        ArcFace(**settings)


def toy_dataset(n=24, size=32):
    """Two classes, red and green squares on grey, masks known."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], n // 2)
    images = rng.integers(90, 120, (n, size, size, 3)).astype(np.uint8)
    masks = np.zeros((n, size, size), bool)
    masks[:, 8:24, 8:24] = True
    for image, label in zip(images, labels, strict=True):
        image[8:24, 8:24, label] = 250
    return data.Dataset(images, labels, ("red", "green"), masks, *data.split(labels), tuple(map(str, range(n))))


def toy_network(seed=0, size=32):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(x)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


def test_training_learns_and_reports_accuracy_without_label_and_margin():
    dataset, seen = toy_dataset(), []
    training = arcface.train(
        toy_network(), dataset, steps=60, batch_size=8, learning_rate=1e-2, evaluations=3, progress=seen.append
    )
    assert [entry["done"] for entry in training.history] == [20, 40, 60]
    assert [entry["done"] for entry in seen] == [5, 20, 40, 60]
    assert seen[0].keys() == {"loss", "done", "total", "seconds", "seconds_left"} and seen[0]["seconds_left"] > 0
    assert training.best_step in (20, 40, 60) and not training.interrupted
    assert seen[-1]["seconds_left"] == 0
    scores = training.network(dataset.images[dataset.test].astype(np.float32)).numpy()
    assert np.abs(scores).max() <= 1 + 1e-6  # cosines: no scale, no margin
    accuracy = arcface.accuracy(training.network, dataset.images[dataset.test], dataset.labels[dataset.test])
    assert accuracy == np.mean(scores.argmax(axis=1) == dataset.labels[dataset.test]) == 1.0


def test_a_training_ends_when_it_has_long_been_perfect(tmp_path):
    how = {"batch_size": 8, "learning_rate": 1e-2, "evaluations": 20}
    whole = arcface.train(toy_network(), toy_dataset(), steps=200, **how)
    perfect = [entry["validation_accuracy"] == 1 for entry in whole.history]
    last = next(i for i in range(3, 21) if all(perfect[i - 3 : i]))
    assert last < 20
    stopped = arcface.train(toy_network(), toy_dataset(), steps=200, patience=3, checkpoint=tmp_path / "c.npz", **how)
    assert len(stopped.history) == last and stopped.best_step == 10 * last and not stopped.interrupted
    again = arcface.train(toy_network(), toy_dataset(), steps=200, patience=3, checkpoint=tmp_path / "c.npz", **how)
    assert len(again.history) == last  # from its last checkpoint on there is nothing left to do
    for a, b in zip(stopped.network.get_weights(), again.network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_same_seed_gives_the_same_weights():
    runs = [arcface.train(toy_network(), toy_dataset(), steps=4, batch_size=4, evaluations=1, seed=3) for _ in range(2)]
    for first, second in zip(*(run.network.get_weights() for run in runs), strict=True):
        np.testing.assert_array_equal(first, second)


def test_test_images_play_no_part_in_training():
    dataset = toy_dataset()
    first = arcface.train(toy_network(), dataset, steps=3, batch_size=4, evaluations=1).network.get_weights()
    dataset.images[dataset.test] = 0
    second = arcface.train(toy_network(), dataset, steps=3, batch_size=4, evaluations=1).network.get_weights()
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_ctrl_c_keeps_the_best_weights_so_far():
    kept = []

    def press_ctrl_c(entry):
        kept.append(entry["done"])
        if entry["done"] == 20:
            raise KeyboardInterrupt

    training = arcface.train(
        toy_network(), toy_dataset(), steps=400, batch_size=8, learning_rate=1e-2, evaluations=40, progress=press_ctrl_c
    )
    assert training.interrupted and training.best_step in (10, 20) and kept == [5, 10, 20]
    dataset = toy_dataset()
    accuracies = [e["validation_accuracy"] for e in training.history]
    assert training.best_step == 10 * (2 - accuracies[::-1].index(max(accuracies)))  # the latest of equals
    assert np.isfinite(training.network(dataset.images[:2].astype(np.float32))).all()


def test_a_training_that_diverges_says_so():
    with pytest.raises(ValueError, match="take a lower learning rate. Received: nan"):
        arcface.train(toy_network(), toy_dataset(), steps=2, batch_size=4, evaluations=1, learning_rate=float("nan"))


def test_one_image_a_class_and_no_masks_train():
    images = toy_dataset().images[[0, -1]]
    dataset = data.Dataset(images, np.array([0, 1]), ("a", "b"), None, np.array([0, 1]), np.array([], int), ("a", "b"))
    training = arcface.train(toy_network(), dataset, steps=2, batch_size=2, evaluations=1)
    assert len(training.history) == 1


def test_validation_spares_few_photos_where_every_class_has_more():
    sizes = [120, arcface.FEW - 1, arcface.FEW]
    sources, n = np.repeat([0, 1, 0], sizes), sum(sizes)
    images, everything = np.zeros((n, 1, 1, 3), np.uint8), (np.arange(n), np.array([], int), ("",) * n)
    kinds = np.repeat([0, 1, 2], sizes)
    dataset = data.Dataset(images, kinds // 2, ("a", "b"), None, *everything, sources=sources)  # two sources of "a"
    fitted, held_out = arcface._split(dataset, seed=0)
    assert np.bincount(kinds[held_out]).tolist() == [15, 0, 13]
    assert sorted([*fitted, *held_out]) == list(range(n))
    for block in (held_out[:15], held_out[15:]):
        np.testing.assert_array_equal(block, block[0] + np.arange(len(block)))
    _, held_out = arcface._split(replace(dataset, labels=kinds, class_names=("a", "b", "c")), seed=0)
    assert set(kinds[held_out]) == {0, 1, 2}  # the second class has only these


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"images": np.zeros((24, 16, 16, 3), np.uint8)}, r"takes images of shape \(32, 32, 3\)"),
        ({"class_names": ("only",), "labels": np.zeros(24, int)}, "at least two classes"),
        ({"train": np.arange(12)}, r"training images of \['red'\]"),
    ],
)
def test_data_that_cannot_train(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        arcface.train(toy_network(), replace(toy_dataset(), **change), steps=1, evaluations=1)


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"batch_size": 0}, {"steps": 3, "evaluations": 4}, {"patience": -1}, {"average": -1}]
)
def test_training_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=f"Received: .*'{[*settings][-1]}': {[*settings.values()][-1]}"):
        arcface.train(toy_network(), toy_dataset(), **settings)


def test_a_training_goes_on_from_known_prototypes():
    """At learning rate 0 they stay as they are."""
    known = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    how = {"steps": 1, "batch_size": 4, "evaluations": 1, "learning_rate": 0.0}
    training = arcface.train(toy_network(), toy_dataset(), prototypes=known, **how)
    np.testing.assert_array_equal(training.network.layers[-1].get_weights()[0], known)


def test_a_share_of_the_weights_before_is_kept():
    """WiSE-FT: half the way from the weights before to those of the same training without it."""
    before, known = toy_network().get_weights(), np.eye(4, 2, dtype=np.float32)
    how = {"steps": 4, "batch_size": 4, "evaluations": 1, "learning_rate": 1e-2, "prototypes": known}
    whole, half = (arcface.train(toy_network(), toy_dataset(), keep=keep, **how) for keep in (0.0, 0.5))
    for old, new, kept in zip(
        [*before, known], whole.network.get_weights(), half.network.get_weights(), strict=True
    ):
        np.testing.assert_allclose(kept, (old + new) / 2, atol=1e-6)


@pytest.mark.parametrize("keep, prototypes", [(1.0, np.eye(4, 2)), (-0.1, np.eye(4, 2)), (0.5, None)])
def test_what_cannot_be_kept(keep, prototypes):
    with pytest.raises(ValueError, match="keep must lie in"):
        arcface.train(toy_network(), toy_dataset(), steps=1, evaluations=1, keep=keep, prototypes=prototypes)


def test_mean_weights_by_hand():
    """Of 0, 8 and 4 with shares of a half: 0, 4, 4."""
    mean = None
    for value in (0.0, 8.0, 4.0):
        mean = loop.blend(mean, [np.array([value])], 0.5)
    assert mean == [np.array([4.0])]


def test_a_training_keeps_the_mean_of_its_last_weights_and_goes_on_with_the_newest():
    """Over the last 10 steps it is what the step had; over more it lies between."""
    how = {"steps": 20, "batch_size": 4, "evaluations": 2, "learning_rate": 1e-2}
    plain, short, long = (arcface.train(toy_network(), toy_dataset(), average=n, **how) for n in (0, 10, 1000))
    for a, b, c in zip(*(run.network.get_weights() for run in (plain, short, long)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
        assert c.shape == a.shape
    losses = [[entry["loss"] for entry in run.history] for run in (plain, long)]
    assert losses[0] == losses[1]
    differ = zip(plain.network.get_weights(), long.network.get_weights(), strict=True)
    assert any(not np.allclose(a, c) for a, c in differ)
