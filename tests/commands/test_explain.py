"""Pictures and manifest of `utils.commands.pictures`, on a small random network."""

import json
import re

import keras
import numpy as np
import pytest
from PIL import Image

from utils import imaging, networks
from utils.commands import pictures

NAMES = ("cat", "great white shark", "tabby, tabby cat")
SIZE = 16


def explain(files, network, out, **settings):
    return pictures.explain_files(files, network, out=out, **{"class_names": NAMES, "report": str} | settings)


def build(activation, size=SIZE):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, activation=activation, name="early")(x)
    x = keras.layers.Conv2D(6, 3, activation=activation, name="late")(x)
    x = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x)


@pytest.fixture(scope="module")
def network():
    return build("relu")


@pytest.fixture
def files(tmp_path, rng):
    for name in ("a", "b"):
        image = rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
        imaging.write_image(tmp_path / "photos" / f"{name}.png", image)
    return imaging.image_files([tmp_path / "photos"])


def test_pictures_of_the_best_classes_and_a_manifest(network, files, tmp_path):
    lines = []
    out = tmp_path / "out"
    manifest = explain(files, network, out, method="layercam", layers=["late"], top_n=2, report=lines.append)
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert manifest["method"] == "layercam" and manifest["layers"] == ["late"] and manifest["versions"]["keras"]
    assert [entry["file"] for entry in manifest["images"]] == ["a.png", "b.png"]
    assert len(lines) == 4 and lines[0].split("\t")[1] == "1"
    written = {path.name for path in out.iterdir()}
    named = {name for entry in manifest["images"] for found in entry["classes"] for name in found["files"].values()}
    assert written == named | {"manifest.json", "a_guided_bprop.png", "b_guided_bprop.png"}
    assert len(named) == 2 * 2 * 4
    pattern = r"[ab]_[12]_[012]_(cat|great_white_shark|tabby_tabby_cat)_[01]\.\d{3}_"
    assert all(re.fullmatch(pattern + "(layercam|heatmap|segmented|guided_gradcam).png", name) for name in named)
    for name in written - {"manifest.json"}:
        with Image.open(out / name) as picture:
            assert picture.size == (30, 20) and picture.mode == ("L" if "heatmap" in name else "RGB")


def test_the_rank_is_that_of_the_probability(network, files, tmp_path):
    manifest = explain(files, network, tmp_path / "out", class_ids=[2, 0, 1])
    image = imaging.resize(imaging.read_image(files[0][0])[None], SIZE, SIZE)
    logits = networks.forward(network, image)[0].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum()
    found = manifest["images"][0]["classes"]
    assert [entry["id"] for entry in found] == [2, 0, 1]
    for entry in found:
        assert entry["rank"] == 1 + (shares > shares[entry["id"]]).sum()
        assert entry["probability"] == pytest.approx(shares[entry["id"]], abs=1e-5)


def test_several_layers_stand_in_the_names(network, files, tmp_path):
    manifest = explain(files[:1], network, tmp_path / "out", layers=["early", "late"])
    kinds = set(manifest["images"][0]["classes"][0]["files"])
    parts = ("gradcam", "heatmap", "segmented", "guided_gradcam")
    assert kinds == {f"{layer}_{part}" for layer in ("early", "late") for part in parts}


def test_a_network_without_relu_has_no_guided_pictures(files, tmp_path):
    manifest = explain(files[:1], build("swish"), tmp_path / "out")
    entry = manifest["images"][0]
    assert entry["guided_bprop"] is None and "no_guided_bprop" in entry
    assert set(entry["classes"][0]["files"]) == {"gradcam", "heatmap", "segmented"}


def test_unreadable_files_are_named(network, files, tmp_path):
    (tmp_path / "photos" / "c.png").write_text("no image")
    broken = (tmp_path / "photos" / "c.png", "c")
    manifest = explain([*files, broken], network, tmp_path / "out")
    assert len(manifest["images"]) == 2 and "c.png" in manifest["skipped"][0]
    with pytest.raises(ValueError, match="None of the images could be explained"):
        explain([broken], network, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.fixture(scope="module")
def any_size():
    return build("relu", size=None)


def softmax_of(network, image, height, width):
    logits = networks.forward(network, imaging.resize(image[None], height, width))[0].astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("shape, size", [((20, 30), (16, 24)), ((30, 20), (24, 16)), ((8, 31), (16, 62))])
def test_the_aspect_is_kept_and_the_smallest_side_is_the_networks(any_size, shape, size, tmp_path, rng):
    image = rng.integers(0, 8, (*shape, 3)).astype(np.uint8)  # dark: no class takes all
    imaging.write_image(tmp_path / "a.png", image)
    files = [(tmp_path / "a.png", "a")]
    manifest = explain(files, any_size, tmp_path / "out", smallest_side=SIZE, top_n=3)
    assert manifest["smallest_side"] == SIZE
    found = sorted(manifest["images"][0]["classes"], key=lambda entry: entry["id"])
    shares = np.array([entry["probability"] for entry in found])
    np.testing.assert_allclose(shares, softmax_of(any_size, image, *size), atol=1e-5)
    assert abs(shares - softmax_of(any_size, image, SIZE, SIZE)).max() > 1e-4
    for name in [manifest["images"][0]["guided_bprop"], *found[0]["files"].values()]:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == shape[::-1]


def test_of_a_square_image_the_aspect_is_kept_anyway(network, any_size, tmp_path, rng):
    imaging.write_image(tmp_path / "a.png", rng.integers(0, 255, (25, 25, 3)).astype(np.uint8))
    plain, kept = (
        explain([(tmp_path / "a.png", "a")], n, tmp_path / n.name, smallest_side=side)
        for n, side in ((network, None), (any_size, SIZE))
    )
    assert plain["images"] == kept["images"]
    for name in plain["images"][0]["classes"][0]["files"].values():
        pictures = [imaging.read_image(tmp_path / n.name / name).astype(int) for n in (network, any_size)]
        assert abs(pictures[0] - pictures[1]).max() <= 1


def test_an_image_like_a_line_is_skipped_where_the_aspect_is_kept(any_size, files, tmp_path):
    imaging.write_image(tmp_path / "line.png", np.zeros((1, 5000, 3), np.uint8))
    line = (tmp_path / "line.png", "line")
    manifest = explain([*files, line], any_size, tmp_path / "out", smallest_side=SIZE)
    assert len(manifest["images"]) == 2
    assert re.fullmatch(r"Cannot keep the aspect of .*line\.png: 5000x1 is longer than 4 to 1\.", *manifest["skipped"])


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"method": "magic"}, "choose one of"),
        ({"layers": ["none"]}, "choose one of"),
        ({"class_ids": [3]}, "must lie in 0..2"),
        ({"top_n": 0}, "top_n must be at least 1"),
        ({"smallest_side": SIZE}, "smallest_side needs a network for any size"),
    ],
)
def test_bad_settings(network, files, tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        explain(files, network, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
