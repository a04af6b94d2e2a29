"""The anomaly detector on tiny networks: its formula, its threshold, its files, its answers to bad input."""

import csv
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from utils import anomaly, export, imaging, networks, runtime
from utils.__main__ import main
from utils.anomaly import AnomalyDetector
from utils.commands import demo
from utils.networks.detector import DISTANCE_WEIGHT
from utils.render import rings

SIZE = 32
TINY = {"image_size": SIZE, "steps": 2}


@pytest.fixture(scope="module")
def normal():
    return rings.render_rings([rings.NORMAL] * 12, SIZE)[0]


@pytest.fixture(scope="module")
def detector(normal):
    return AnomalyDetector.fit(normal, **TINY)


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "rings"
    detector.save(folder)
    export.export_float(detector, folder / runtime.FLOAT_FILE)
    return folder


def test_shapes_types_and_ranges(detector, rng):
    images = rng.integers(0, 255, (3, 40, 50, 3)).astype(np.uint8)
    result = detector.explain(images)
    assert result.scores.shape == (3,) and result.is_anomaly.dtype == bool
    assert result.heatmaps.dtype == np.float32 and result.heatmaps.shape == (3, 40, 50)
    assert np.isfinite(result.scores).all() and (result.heatmaps >= 0).all() and (result.heatmaps < 1).all()
    assert result.names == tuple("anomaly" if score > 1 else "normal" for score in result.scores)
    np.testing.assert_allclose(detector.explain(images[1]).scores[0], result.scores[1], rtol=1e-4)


def test_maps_have_at_least_an_eighth_of_the_resolution(detector):
    assert detector.core.outputs[0].shape[1] >= SIZE / 8


def tail(usual, threshold):
    """A tail on 1 + 1 feature channels whose distance is |fine + coarse - 2|."""
    return anomaly.Tail(4, {
        "projection": np.ones((2, 1), np.float32), "offset": np.zeros(1, np.float32),
        "prototypes": np.array([[2.0], [50.0]], np.float32), "moments": np.array([[1.0, 2.0], [0.5, 1.0]]),
        "levels": np.array([usual, threshold]),
    })


def test_the_formula_by_hand():
    logits, fine, coarse = (tf.fill((1, side, side, 1), value) for side, value in ((4, 5.0), (2, 3.0), (1, 0.5)))
    # 3x3 means at the border leave out what lies beyond; distance |3 + 0.5 - 2| = 1.5.
    np.testing.assert_allclose(tail(0, 1).distance(fine, coarse), np.full((1, 2, 2, 1), 1.5), rtol=1e-5)
    a = (5 - 1) / 2 + DISTANCE_WEIGHT * (1.5 - 0.5) / 1
    outputs = tail(usual=a - 0.5, threshold=a + 0.5)(logits, fine, coarse)
    np.testing.assert_allclose(outputs["scores"], [0.5], rtol=1e-4)
    np.testing.assert_allclose(outputs["heatmap"], np.full((1, 4, 4), 0.5**4 / (1 + 0.5**4)), rtol=1e-4)
    at_threshold = tail(usual=a - 1, threshold=a)(logits, fine, coarse)
    np.testing.assert_allclose(at_threshold["heatmap"], np.full((1, 4, 4), 0.5), rtol=1e-4)
    assert not tail(usual=a, threshold=a + 1)(logits, fine, coarse)["heatmap"].numpy().any()


def test_the_threshold_is_a_prediction_limit(rng):
    known = rng.normal(3, 2, 400)
    assert np.mean(rng.normal(3, 2, 20_000) > anomaly._limit(known, 0.05)) == pytest.approx(0.05, abs=0.02)
    assert anomaly._limit(known[:5], 0.01) > anomaly._limit(known[:5], 0.05)
    assert anomaly._limit(np.append(known, 90.0), 0.01) == pytest.approx(anomaly._limit(known, 0.01))
    assert anomaly._limit(np.ones(5), 0.01) == pytest.approx(1)


def test_saved_and_loaded_it_says_the_same(detector, saved, normal):
    loaded = AnomalyDetector.load(saved)
    expected, result = detector.explain(normal), loaded.explain(normal)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-6)
    np.testing.assert_allclose(result.heatmaps, expected.heatmaps, atol=1e-6)
    meta = json.loads((saved / "meta.json").read_text())
    assert meta["kind"] == "anomaly" and meta["false_positives"] == 0.01 and meta["n_images"] == 12


def test_the_exported_file_says_the_same(detector, saved, normal):
    explainer = runtime.Explainer(saved / runtime.FLOAT_FILE, num_threads=1)
    assert explainer.kind == "anomaly" and explainer.class_names == ("normal", "anomaly")
    images = imaging.resize(normal, 50, 40)
    expected, result = detector.explain(images), explainer.explain(images)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-3)
    np.testing.assert_allclose(result.heatmaps, expected.heatmaps, atol=1e-3)


def test_the_demo_draws_score_and_threshold(saved, normal):
    result = runtime.Explainer(saved / runtime.FLOAT_FILE).explain(normal[0])
    meter = demo.Meter()
    meter.count(0.001)
    line = json.loads(demo.report(result, meter, 0))
    assert line["label"] == result.names[0] and line["score"] == pytest.approx(float(result.scores[0]), abs=1e-3)
    heat = np.zeros((1, 60, 80), np.float32)
    heat[0, 20:30, 40:60], heat[0, :10, :10] = 0.9, 0.4
    hot = runtime.AnomalyResult(np.array([1.7], np.float32), heat)
    assert demo.find_box(hot) == (40, 20, 60, 30)  # what stays below the threshold is in no box
    assert demo.find_box(runtime.AnomalyResult(hot.scores, heat / 2)) is None
    picture = demo.draw_result(np.zeros((60, 80, 3), np.uint8), hot, "box", rates=(1.0, 1.0))
    assert picture.shape == (60, 80, 3) and picture.any()


def test_the_same_seed_gives_the_same_detector(detector, normal):
    again = AnomalyDetector.fit(normal, **TINY)
    np.testing.assert_allclose(again.explain(normal).scores, detector.explain(normal).scores, rtol=1e-3)


def test_the_classifier_knows_the_kinds(detector, normal):
    cosines = networks.forward(detector.classifier(), normal)
    assert cosines.shape == (12, len(anomaly.CLASS_NAMES)) and (np.abs(cosines) <= 1 + 1e-6).all()


def test_images_of_several_sizes(normal):
    images = [normal[0], imaging.resize(normal[1:2], 60, 45)[0], *normal[2:4]]
    result = AnomalyDetector.fit(images, **TINY).explain(normal)
    assert np.isfinite(result.scores).all()


def test_identical_images_stay_normal(normal):
    same = normal[:1].repeat(9, axis=0)
    result = AnomalyDetector.fit(same, **TINY).explain(same)
    assert not result.is_anomaly.any() and result.heatmaps.mean() < 0.2


def test_a_weights_file_is_taken_and_kept(normal, tmp_path):
    original = keras.applications.MobileNetV2(input_shape=(224, 224, 3), include_top=False, weights=None)
    original.save_weights(tmp_path / "mine.weights.h5")
    detector = AnomalyDetector.fit(normal[:3], tmp_path / "mine.weights.h5", **TINY)
    name = "block_5_project"
    np.testing.assert_array_equal(
        detector.core.get_layer(name).get_weights()[0], original.get_layer(name).get_weights()[0]
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least 2 normal images"),
        (np.zeros((1, 40, 40, 3), np.uint8), "Received: 1"),
        (np.zeros((4, 40, 40, 3), np.float32), "floats"),
        ([np.zeros((40, 40), np.uint8)] * 2, "grey"),
    ],
)
def test_what_is_not_enough_or_no_image(images, message):
    with pytest.raises(ValueError, match=message):
        AnomalyDetector.fit(images, **TINY)


@pytest.mark.parametrize(("setting", "value"), [("image_size", 50), ("steps", 0), ("false_positives", 0.7)])
def test_settings_out_of_range(setting, value, normal):
    with pytest.raises(ValueError, match=f"{setting}.*Received"):
        AnomalyDetector.fit(normal, **TINY | {setting: value})


def test_foreign_and_damaged_folders(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a model folder"):
        AnomalyDetector.load(tmp_path)
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / anomaly.ARRAYS_FILE).write_bytes(b"")
    with pytest.raises(ValueError, match="its checksum differs"):
        AnomalyDetector.load(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 1, "sha256": {}}')
    with pytest.raises(ValueError, match="damaged"):
        AnomalyDetector.load(tmp_path)


def test_the_command_line(tmp_path, normal, capsys):
    for i, image in enumerate(normal):
        imaging.write_image(tmp_path / "normal" / ("a" if i % 2 else "b/c") / f"{i}.png", image)
    (tmp_path / "normal" / "a" / "broken.png").write_bytes(b"no image")
    fit = ["anomaly", "fit", str(tmp_path / "normal"), "--out", str(tmp_path / "model"), "--weights", "none"]
    assert main([*fit, "--image-size", str(SIZE), "--steps", "2"]) == 0
    printed = capsys.readouterr()
    assert "learnt 12 normal images" in printed.out and "skipped 1 of 13" in printed.err
    out = tmp_path / "out"
    images = [str(tmp_path / "normal" / "a"), "--model", str(tmp_path / "model")]
    assert main(["anomaly", "explain", *images, "--out", str(out)]) == 0
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {row["is_anomaly"] for row in rows} <= {"0", "1"}
    for row in rows:
        assert (float(row["score"]) > 1) == (row["is_anomaly"] == "1")
    mask = imaging.read_image(out / "1_mask.png")
    assert mask.shape == (SIZE, SIZE, 3) and set(np.unique(mask)) <= {0, 255} and (out / "1_overlay.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "{}/nowhere"], "no folder"),
        (["fit", "{}"], "no image file"),
        (["explain", "{}/nowhere.png", "--model", "{}"], "no file"),
    ],
)
def test_the_command_line_on_bad_input(arguments, message, tmp_path, capsys):
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert main(["anomaly", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
