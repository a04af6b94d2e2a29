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
from utils.networks import detector as detector_net
from utils.networks import evidence, normality
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
    np.testing.assert_allclose(detector.explain(images[1]).scores[0], result.scores[1], rtol=1e-3)


def test_maps_have_at_least_an_eighth_of_the_resolution(detector):
    assert detector.core.outputs[0].shape[1] >= SIZE / 8


def tail(usual, threshold):
    """A tail on 1 channel a map: projected features are the sum of the maps, patches 2 and 50, the usual 3 ± 2."""
    arrays = {"peaks": np.array([[1.0, 2.0]] + [[0.5, 1.0]] * 4), "n_trusted": 5}
    arrays["levels"] = np.array([usual, threshold])
    for scale, maps in evidence.SCALES.items():
        values = {
            "projection": np.ones((len(maps), 1)), "offset": np.zeros(1), "patches": np.array([[2.0], [50.0]]),
            "mean": np.full((2, 2, 1) if scale == "fine" else (1, 1, 1), 3.0), "inverse_variance": np.array(0.25),
        }
        arrays |= {f"{scale}_{name}": value.astype(np.float32) for name, value in values.items()}
    return evidence.Tail(8, arrays)


def maps_of(*values):
    return [tf.fill((1, side, side, 1), value) for side, value in zip((4, 4, 2, 1), values, strict=True)]


def test_the_formula_by_hand():
    maps = maps_of(5.0, 1.0, 3.0, 0.5)
    # 3x3 means at the border leave out what lies beyond. Fine: 1 + 3 + 0.5, to 2 and 3; coarse: 0.5.
    expected = [5, 2.5, 1.5 / 2, 1.5, 2.5 / 2]
    found = tail(0, 1).evidence(*maps)
    for source, one, value in zip(evidence.SOURCES, found, expected, strict=True):
        np.testing.assert_allclose(one, np.full((1, 4, 4, 1), value), rtol=1e-5, err_msg=source)
    z = np.array([(5 - 1) / 2, *(value - 0.5 for value in expected[1:])])
    a = np.log1p(np.log1p(np.exp(z)).sum())
    outputs = tail(usual=a - 0.5, threshold=a + 0.5)(*maps)
    np.testing.assert_allclose(outputs["scores"], [0.5], rtol=1e-4)
    np.testing.assert_allclose(outputs["heatmap"], np.full((1, 8, 8), 0.5**4 / (1 + 0.5**4)), rtol=1e-3)
    at_threshold = tail(usual=a - 1, threshold=a)(*maps)
    np.testing.assert_allclose(at_threshold["heatmap"], np.full((1, 8, 8), 0.5), rtol=1e-4)
    assert not tail(usual=a + 1e-4, threshold=a + 1)(*maps)["heatmap"].numpy().any()


def test_evidence_that_says_nothing_adds_next_to_nothing(rng):
    useful, useless = rng.normal(size=(2, 1, 9, 9, 1)).astype(np.float32)
    useful[0, 4, 4] = 30
    alone = evidence.combine([useful], [[3, 1]]).numpy()
    both = evidence.combine([useful, useless], [[3, 1], [useless.max() + 5, 1]]).numpy()
    assert np.abs(both - alone).max() < 0.01
    np.testing.assert_allclose(alone[0, 4, 4], np.log(28), rtol=1e-5)
    assert np.isfinite(evidence.combine([useful], [[0, 1e-4]])).all()


def test_features_from_scratch_are_not_trusted(detector, normal):
    outputs = [tf.constant(part) for part in networks.forward(detector.core, normal)[:4]]
    mean, deviation = detector.arrays["peaks"][0]
    a = np.log1p(np.logaddexp(0, (outputs[0].numpy() - mean) / deviation))
    usual, threshold = detector.arrays["levels"]
    expected = (normality.peaks(a.astype(np.float32)) - usual) / (threshold - usual)
    np.testing.assert_allclose(detector.explain(normal).scores, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("photos", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 2]])
def test_a_photo_is_judged_by_the_others_alone(rng, photos):
    maps, photos = rng.normal(size=(5, 3, 3, 4)).astype(np.float16), np.array(photos)
    patches, owners = normality._memory(maps, seed=0)
    assert len(patches) == 45 and sorted(owners) == sorted(np.repeat(np.arange(5), 9))
    near = normality._nearest_of_others(maps, patches, photos, photos[owners])
    place, numbers = normality._places(maps, photos)[0], maps.astype(np.float64)
    for i in range(5):
        others = numbers[photos != photos[i]]
        gaps = np.linalg.norm(numbers[i][:, :, None] - others.reshape(-1, 4), axis=-1)
        np.testing.assert_allclose(near[i, ..., 0], gaps.min(axis=-1), rtol=1e-3)
        variance = others.var(axis=0) + normality.SHARED * numbers.var(axis=(0, 1, 2))
        expected = np.sqrt(((numbers[i] - others.mean(axis=0)) ** 2 / variance).mean(axis=-1))
        np.testing.assert_allclose(place[i, ..., 0], expected, rtol=1e-3)


def test_a_memory_covers_what_is_rare():
    maps = np.zeros((4, 30, 30, 2), np.float16)
    maps[2, 7, 7], maps[0, :, 15:] = (9, 9), (1, 0)
    patches, owners = normality._memory(maps, seed=0)
    assert sorted(map(tuple, patches.tolist())) == [(0, 0), (1, 0), (9, 9)]
    assert owners[patches[:, 0] == 9] == [2]


def test_the_tail_says_of_new_images_what_was_fitted(detector, normal):
    """An independent computation of place evidence, from the core's maps."""
    outputs = networks.forward(detector.core, normal)
    tail = evidence.Tail(SIZE, detector.arrays)
    features = np.asarray(tail.project("coarse", [tf.constant(maps) for maps in outputs[1:4]]))
    np.testing.assert_allclose(features.mean(axis=0), detector.arrays["coarse_mean"], atol=2e-2)
    assert (1 / detector.arrays["coarse_inverse_variance"] > features.var(axis=0) * 0.98).all()


def test_evidence_of_each_source(detector, normal):
    found = detector.evidence(imaging.resize(normal[:2], 40, 50))
    assert tuple(found) == evidence.SOURCES
    assert all(z.shape == (2, 40, 50) and z.dtype == np.float32 for z in found.values())


def test_a_correction_moves_the_threshold_and_nothing_else(detector, normal):
    usual, threshold = detector.arrays["levels"]
    odd = normal[np.argsort(detector.explain(normal).scores)[-2:]]
    lower = usual + (threshold - usual) * detector.explain(odd).scores.min() / 2
    detector = AnomalyDetector(detector.core, detector.arrays | {"levels": np.array([usual, lower])}, detector.meta)
    assert detector.explain(odd).is_anomaly.all()
    mended = detector.also_normal(odd)
    result, before = mended.explain(odd), detector.explain(odd)
    assert not result.is_anomaly.any() and result.scores.max() <= 1
    (usual, t), (same, old) = mended.arrays["levels"], detector.arrays["levels"]
    assert usual == same and t > old
    np.testing.assert_allclose(result.scores * (t - usual), before.scores * (old - usual), rtol=1e-3)
    changed = {name for name in detector.arrays if not np.array_equal(detector.arrays[name], mended.arrays[name])}
    assert changed == {"levels", "normal_peaks"} and mended.meta["n_corrections"] == 2
    assert mended.also_normal(normal[:1]).meta["n_corrections"] == 3
    with pytest.raises(ValueError, match="at least one"):
        detector.also_normal([])


def test_the_input_is_as_large_as_the_detail_needs(rng):
    coarse = imaging.resize(rng.integers(0, 255, (1, 20, 30, 3)).astype(np.uint8), 800, 1200)
    noise = rng.integers(0, 255, (1, 600, 700, 3)).astype(np.uint8)
    assert detector_net.side_for([coarse]) == detector_net.side_for([coarse[:, :100, :100]]) == 224
    assert detector_net.side_for([noise[:, :300, :340]]) == 320
    assert detector_net.side_for([noise]) == detector_net.side_for([coarse, noise, noise]) == 448
    assert detector_net.side_for([noise, coarse, coarse]) == 224
    assert detector_net.side_for([np.full((1, 999, 999, 3), 7, np.uint8)]) == 224


def test_images_become_squares_of_one_side(rng):
    images = [rng.integers(0, 255, (side, 500, 3)).astype(np.uint8) for side in (300, 600)]
    for side, expected in ((64, 64), (None, 448)):
        assert anomaly._prepare(images, side, None, None)[0].shape == (2, expected, expected, 3)


def test_large_images_train_in_pieces(rng):
    images = rng.integers(0, 255, (4, 64, 64, 3)).astype(np.uint8)
    images[::2, 0, 0] = 7
    (batch, masks, labels), *_ = anomaly._batches((images[::2], images[1::2]), side=32, batch_size=6, steps=1, seed=0)
    assert batch.shape == (6, 32, 32, 3) and masks.shape == (6, 32, 32) and labels.shape == (6,)
    assert masks.any(axis=(1, 2)).tolist() == (labels > 0).tolist()


def test_the_threshold_is_a_prediction_limit(rng):
    known = rng.normal(3, 2, 400)
    assert np.mean(rng.normal(3, 2, 20_000) > normality.limit(known, 0.05)) == pytest.approx(0.05, abs=0.02)
    assert normality.limit(known[:5], 0.01) > normality.limit(known[:5], 0.05)
    assert normality.limit(np.append(known, 90.0), 0.01) == pytest.approx(normality.limit(known, 0.01))
    assert normality.limit(np.ones(5), 0.01) == pytest.approx(1)


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


@pytest.mark.slow
def test_the_same_seed_gives_the_same_detector(detector, normal):
    again = AnomalyDetector.fit(normal, **TINY)
    np.testing.assert_allclose(again.explain(normal).scores, detector.explain(normal).scores, rtol=1e-3)


def test_the_classifier_knows_the_kinds(detector, normal):
    cosines = networks.forward(detector.classifier(), normal)
    assert cosines.shape == (12, len(anomaly.CLASS_NAMES)) and (np.abs(cosines) <= 1 + 1e-6).all()


@pytest.mark.slow
def test_identical_images_stay_normal(normal):
    same = normal[:1].repeat(9, axis=0)
    result = AnomalyDetector.fit(same, image_size=SIZE, steps=60).explain(same)
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
    (tmp_path / "meta.json").write_text('{"format": 2, "sha256": {}}')
    with pytest.raises(ValueError, match="damaged"):
        AnomalyDetector.load(tmp_path)


def test_the_command_line(tmp_path, normal, capsys):
    for i, image in enumerate(normal):
        imaging.write_image(tmp_path / "normal" / ("a" if i % 2 else "b/c") / f"{i}.png", image)
    (tmp_path / "normal" / "a" / "broken.png").write_bytes(b"no image")
    fit = ["anomaly", "fit", str(tmp_path / "normal"), "--out", str(tmp_path / "model"), "--weights", "none"]
    assert main([*fit, "--image-size", str(SIZE), "--steps", "2", "--int8"]) == 0
    printed = capsys.readouterr()
    assert "learnt 12 normal images" in printed.out and "skipped 1 of 13" in printed.err
    files = [tmp_path / "model" / name for name in (runtime.FLOAT_FILE, runtime.INT8_FILE)]
    (score,), (score_8,) = (runtime.Explainer(file).explain(normal[0]).scores for file in files)
    assert abs(score - score_8) < 0.3 and files[1].stat().st_size < 0.6 * files[0].stat().st_size
    out = tmp_path / "out"
    images = [str(tmp_path / "normal" / "a"), "--int8", "--model", str(tmp_path / "model")]
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
        (["fit", "--int8", "--also-normal", "{}"], "--int8 needs the folder of normal images"),
        (["explain", "{}/nowhere.png", "--model", "{}"], "no file"),
    ],
)
def test_the_command_line_on_bad_input(arguments, message, tmp_path, capsys):
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert main(["anomaly", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
