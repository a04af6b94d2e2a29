"""Known defects on disk: which layouts are read, what is measured, what is said of bad ones."""

import json

import numpy as np
import pytest

from utils import anomaly, export, imaging, runtime
from utils.__main__ import main
from utils.commands import defect_data, judging
from utils.render import rings

SIZE = 32


def write(folder, images, suffix=""):
    for n, image in enumerate(images):
        imaging.write_image(folder / f"{n:03}{suffix}.png", image)


def grey(masks):
    return [mask.astype(np.uint8)[..., None].repeat(3, axis=-1) * 255 for mask in masks]


@pytest.fixture(scope="module")
def images():
    normal, _ = rings.render_rings([rings.NORMAL] * 12, 48)
    broken, masks = rings.render_rings(["cross", "dot"] * 3, 48, seed=5)
    return normal, broken, masks


@pytest.fixture
def mvtec(images, tmp_path):
    normal, broken, masks = images
    product = tmp_path / "data" / "ring"
    write(product / "train" / "good", normal[:8])
    write(product / "test" / "good", normal[8:])
    for kind, which in (("cross", slice(0, None, 2)), ("dot", slice(1, None, 2))):
        write(product / "test" / kind, broken[which])
        write(product / "ground_truth" / kind, grey(masks[which]), "_mask")
    return product


@pytest.fixture(scope="module")
def model(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    detector = anomaly.AnomalyDetector.fit(images[0], image_size=SIZE, steps=2)
    detector.save(folder)
    export.export_float(detector, folder / runtime.FLOAT_FILE)
    return folder


def test_the_layout_of_mvtec(mvtec, images):
    (product,) = defect_data.find_products(mvtec)
    assert [found.name for found in defect_data.find_products(mvtec.parent)] == [product.name] == ["ring"]
    assert len(product.normal) == 4 and product.kinds == ["cross"] * 3 + ["dot"] * 3
    read = [defect_data.read_mask(mask, images[1][0]) for mask in product.masks]
    np.testing.assert_array_equal(read, images[2][[0, 2, 4, 1, 3, 5]])


def test_the_layout_with_masks_beside(images, tmp_path):
    normal, broken, masks = images
    write(tmp_path / "train", normal[:8])
    write(tmp_path / "test" / "normal", normal[8:])
    write(tmp_path / "test" / "defect", broken)
    write(tmp_path / "masks", grey(masks[:5]))
    (product,) = defect_data.find_products(tmp_path)
    assert [None if mask is None else mask.name for mask in product.masks] == [f"{n:03}.png" for n in range(5)] + [None]
    assert not defect_data.read_mask(None, broken[0]).any()


@pytest.mark.slow
def test_a_region_and_tiles(mvtec, tmp_path, capsys):
    """The model folder and the exported file look at the same part of a photo."""
    mask = np.zeros((48, 48, 3), np.uint8)
    mask[4:44, 4:44] = 255
    imaging.write_image(tmp_path / "look.png", mask)
    arguments = ["--weights", "none", "--image-size", "32", "--steps", "2", "--tile", "30"]
    roi = ["--roi", str(tmp_path / "look.png")]
    assert main(["anomaly", "fit", str(mvtec / "train"), "--out", str(tmp_path / "m"), *arguments, *roi]) == 0
    photo = imaging.read_image(mvtec / "test" / "cross" / "000.png")
    expected = anomaly.AnomalyDetector.load(tmp_path / "m").explain(photo)
    found = runtime.Explainer(tmp_path / "m" / runtime.FLOAT_FILE).explain(photo)
    np.testing.assert_allclose(found.heatmaps, expected.heatmaps, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3)
    assert not found.heatmaps[0, :4].any() and not found.heatmaps[0, :, 44:].any() and found.heatmaps.any()


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--roi", "60", "0", "70", "40"], "holds no pixel of the photos, of 48 × 48"),
        (["--roi", "1", "2", "3"], "left, top, right and bottom in pixels, or the file of a mask. Received: 1 2 3"),
        (["--roi", "nowhere.png"], "There is no image file nowhere.png"),
        (["--tile", "49"], "must fit into what is looked at, 48 × 48"),
    ],
)
def test_a_region_or_tiles_that_cannot_be(mvtec, tmp_path, capsys, arguments, problem):
    assert main(["anomaly", "fit", str(mvtec / "train"), "--out", str(tmp_path / "m"), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert problem in error


def test_what_is_measured(mvtec, model, tmp_path, capsys):
    arguments = [str(mvtec), "--model", str(model), "--json", str(tmp_path / "n.json"), "--sheets", str(tmp_path / "s")]
    assert main(["anomaly", "evaluate", *arguments]) == 0
    (row,) = json.loads((tmp_path / "n.json").read_text())["products"]
    assert row["name"] == "ring" and set(judging.COLUMNS) <= set(row)
    assert all(0 <= row[name] <= 1 for name in judging.COLUMNS if name != "milliseconds")
    assert "ring" in capsys.readouterr().out and imaging.read_image(tmp_path / "s" / "ring.png").any()


@pytest.mark.slow
def test_a_data_set_without_a_model_is_learnt(mvtec, model, tmp_path, capsys, monkeypatch):
    learnt = []

    def fit(images, **settings):
        learnt.extend(images)
        return anomaly.AnomalyDetector.load(model)

    monkeypatch.setattr(anomaly.AnomalyDetector, "fit", fit)
    numbers = tmp_path / "n.json"
    assert main(["anomaly", "evaluate", str(mvtec), "--weights", "none", "--int8", "--json", str(numbers)]) == 0
    table = capsys.readouterr().out
    assert table.count(" ring |") == 2 and "normal images; saved in" in table and len(learnt) == 8
    found = json.loads(numbers.read_text())
    verdicts = [found[name][0]["anomalous"] for name in ("products", "int8")]
    assert f"the same verdict on {np.mean(np.equal(*verdicts)):.1%} of the images" in table


def test_the_threshold_by_hand():
    scores, defective = np.array([0.5, 1.5, 2.0, 0.9]), np.array([False, False, True, True])
    found = judging.image_measures(scores, defective)
    assert found == {"image_auroc": 0.75, "f1": 0.5, "found": 0.5, "false_alarms": 0.5}


def test_a_small_defect_stays_in_a_smaller_mask():
    mask = np.zeros((90, 90), bool)
    mask[40:42, 40:42] = True
    assert judging.shrink(mask, (9, 9)).sum() == 1 and not judging.shrink(mask & False, (9, 9)).any()


def test_the_mean_is_over_products_with_a_value():
    row = dict.fromkeys(judging.COLUMNS, 0.5)
    lines = judging.table([row | {"name": "a"}, row | {"name": "b", "image_auroc": 1.0, "aupro": None}]).splitlines()
    assert "mean" in lines[-1] and "0.750" in lines[-1] and "–" in lines[-2]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda product: (product / "test" / "good").rename(product / "test" / "odd"), "no normal image"),
        (lambda product: [(product / "test" / k).rename(product / k) for k in ("dot", "cross")], "no defective image"),
        (lambda product: (product / "train").rename(product / "learn"), "has train/ and test/"),
        (lambda product: imaging.write_image(
            product / "ground_truth" / "dot" / "000_mask.png", np.zeros((9, 8, 3), np.uint8)), "8 × 9 and 48 × 48"),
    ],
)
def test_bad_data_sets(spoil, message, mvtec, model, capsys):
    spoil(mvtec)
    assert main(["anomaly", "evaluate", str(mvtec), "--model", str(model)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


def test_corrections_on_the_command_line(model, images, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write(tmp_path / "fine", images[1])
    assert main(["anomaly", "fit", "--out", str(folder), "--also-normal", str(tmp_path / "fine")]) == 0
    assert "6 images" in capsys.readouterr().out
    result = [runtime.Explainer(folder / runtime.FLOAT_FILE).explain(image) for image in images[1]]
    assert not any(one.is_anomaly[0] for one in result)
    assert main(["anomaly", "fit", "--out", str(folder)]) == 2
    assert "--also-normal" in capsys.readouterr().err


def test_what_is_missing_is_told_before_the_training(mvtec, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(anomaly.AnomalyDetector, "fit", lambda *_, **__: pytest.fail("trained"))
    fit = ["anomaly", "fit", str(mvtec), "--out", str(tmp_path / "model"), "--also-normal", str(tmp_path / "nowhere")]
    assert main(fit) == 2 and "nowhere" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["anomaly", "evaluate", str(mvtec), "--json", str(tmp_path / "file" / "numbers.json")]) == 2
