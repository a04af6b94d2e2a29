"""``explain`` with a network of one's own, from a file: names, targets in words, activations, and how pictures look."""

import json

import keras
import numpy as np
import pytest
from small_networks import two_by_two

from utils import heatmap, imaging, networks
from utils.__main__ import main
from utils.commands import own_network, pictures

SIZE = 16
NAMES = ["cat", "dog", "great white shark"]


def build(n_classes=3, end=None):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(6, 3, activation="relu", name="maps")(keras.layers.Rescaling(1 / 255)(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(n_classes, end, name="head")(x))


@pytest.fixture
def photo(tmp_path, rng):
    imaging.write_image(tmp_path / "photo.png", rng.integers(0, 256, (20, 30, 3)).astype(np.uint8))
    return tmp_path / "photo.png"


@pytest.fixture
def files(tmp_path, photo):
    """Photo, network and names, as arguments."""
    build().save(tmp_path / "own.keras")
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    return [str(photo), "--network", str(tmp_path / "own.keras"), "--classes", str(tmp_path / "names.txt")]


def explain(arguments, out, *more):
    code = main(["explain", *arguments, "--out", str(out), *more])
    return code, json.loads((out / "manifest.json").read_text())["images"][0]["classes"]


def test_the_best_classes_by_their_names(files, tmp_path, capsys):
    code, found = explain(files, tmp_path / "out", "--top-n", "3")
    assert code == 0 and [entry["rank"] for entry in found] == [1, 2, 3]
    assert {entry["name"] for entry in found} == set(NAMES)
    assert sum(entry["probability"] for entry in found) == pytest.approx(1, abs=1e-5)
    assert "great white shark" in capsys.readouterr().out
    assert all((tmp_path / "out" / name).is_file() for entry in found for name in entry["files"].values())


def test_a_target_in_words_and_what_lowers_it(files, tmp_path, photo, capsys):
    image = imaging.resize(imaging.read_image(photo)[None], SIZE, SIZE)
    logits = networks.forward(build(), image)[0]
    for target, score in (("cat - dog", logits[0] - logits[1]), ("-2", -logits[2])):
        _, found = explain(files, tmp_path / target.strip("-"), f"--target={target}")
        assert found[0]["name"] == target and found[0]["score"] == pytest.approx(score, abs=1e-4)
        assert f"{target}\t{score:.3f}" in capsys.readouterr().out
    assert (tmp_path / "cat - dog" / "photo_cat_-_dog_heatmap.png").is_file()


@pytest.mark.parametrize("end", [None, "sigmoid"])
def test_one_unit_and_what_makes_probabilities_of_scores(end, rng):
    image, network = rng.integers(0, 256, (1, SIZE, SIZE, 3)), build(1, end)
    score = float(network(image)[0, 0])
    expected = score if end else 1 / (1 + np.exp(-score))
    assert pictures.probabilities(network, image) == pytest.approx([expected], abs=1e-6)
    assert pictures.probabilities(network, image, "none") == pytest.approx([score], abs=1e-6)
    many = build(3)(image).numpy()[0]
    sigmoid = pictures.probabilities(build(3), image, "sigmoid")
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-many)), atol=1e-6)


def test_opacity_and_colour_map(files, tmp_path, photo):
    image = imaging.read_image(photo)
    _, found = explain(files, tmp_path / "plain", "--opacity", "0")
    np.testing.assert_array_equal(imaging.read_image(tmp_path / "plain" / found[0]["files"]["gradcam"]), image)
    _, found = explain(files, tmp_path / "out", "--opacity", "1", "--colormap", "bone")
    heat = imaging.read_image(tmp_path / "out" / found[0]["files"]["heatmap"])[..., 0].astype(float) / 255
    picture = imaging.read_image(tmp_path / "out" / found[0]["files"]["gradcam"])
    np.testing.assert_array_equal(picture, heatmap.overlay(image, heat, 1, colormap="bone"))
    for wrong in ({"opacity": 2}, {"opacity": 0.5, "colormap": "rainbows"}):
        with pytest.raises(ValueError, match="Expected an opacity in 0..1 and a colour map of OpenCV"):
            heatmap.overlay(image, heat, **wrong)


def test_an_output_of_a_network_with_two(tmp_path, photo):
    two_by_two().save(tmp_path / "both.keras")
    with pytest.raises(ValueError, match="but one. Received: None"):
        own_network.read(tmp_path / "both.keras", "kind")
    image = keras.Input((12, 12, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    ends = [keras.layers.Dense(3, name="a")(x), keras.layers.Dense(2, name="b")(x)]
    keras.Model(image, ends).save(tmp_path / "own.keras")
    arguments = [str(photo), "--network", str(tmp_path / "own.keras")]
    for output in ("b", "1"):
        code, found = explain(arguments, tmp_path / output, "--output", output)
        assert code == 0 and found[0]["name"] in ("class_0", "class_1")


def test_code_that_a_file_brings_along_is_not_run(tmp_path, photo, capsys):
    image = keras.Input((8, 8, 3))
    maps = keras.layers.Lambda(lambda x: x * 2)(keras.layers.Conv2D(2, 3)(image))
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(maps)).save(tmp_path / "code.keras")
    out = tmp_path / "out"
    assert main(["explain", str(photo), "--network", str(tmp_path / "code.keras"), "--out", str(out)]) == 2
    assert "as a Keras network" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    "change, sentence",
    [
        (["--target", "cat - bird"], "The target names a class that is not there"),
        (["--class-id", "3"], "Class ids must lie in 0..2. Received: 3..3"),
        (["--opacity", "1.5"], "--opacity must lie in 0..1. Received: 1.5"),
        (["--output", "none"], "Expected one of the outputs ['head'], or its index. Received: 'none'"),
        (["--classes", "missing.txt"], "There is no file of class names missing.txt."),
        (["--network", "missing.keras"], "There is no network file missing.keras."),
        (["--network", "vgg16"], "--classes needs --network with a .keras file"),
        (["--keep-aspect"], "--keep-aspect needs a network of the list"),
    ],
)
def test_wrong_options_get_one_sentence(files, tmp_path, change, sentence, capsys):
    assert main(["explain", *files, "--out", str(tmp_path / "out"), *change]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_wrong_names_and_damaged_files(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match="Expected 3 class names, one per line. Received: 2 in names.txt"):
        own_network.class_names(build(), tmp_path / "names.txt")
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="Expected class names as UTF-8 text"):
        own_network.class_names(build(), tmp_path / "names.txt")
    (tmp_path / "net.keras").write_bytes(b"not a network")
    with pytest.raises(ValueError, match="Cannot read .*net.keras as a Keras network"):
        own_network.read(tmp_path / "net.keras")
