"""A model knows the data it was trained on by their fingerprints, whatever the folders are called."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from samples import write

from utils import data
from utils.__main__ import main
from utils.commands import comparison, training
from utils.commands.common import DEFAULT_MODEL
from utils.commands.recipe import Recipe, data_name
from utils.faster_gradcam import FasterGradCAM

TINY = [
    "--weights", "none", "--backbone", "small_resnet", "--image-size", "32", "--embedding-size", "8", "--steps", "1",
    "--batch-size", "4", "--weighting", "all", "--clusters", "1",
]


def make_photos(folder, seed):
    rng = np.random.default_rng(seed)
    for name in ("cat", "dog"):
        for i in range(3):
            write(folder / name / f"{i}.png", rng.integers(0, 256, (20, 24, 3), np.uint8))
    return folder


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos", 0)


def faster(*folders, names=None, **meta):
    """What is asked of a model that was trained on these folders."""
    recipe = Recipe(image_size=16)
    names = [data_name(str(folder)) for folder in folders] if names is None else names
    fingerprints = [training.load_source(str(folder), recipe).fingerprint for folder in folders]
    meta = {"training": {"data": names}, training.FINGERPRINTS: fingerprints} | meta
    return SimpleNamespace(meta=meta, input_size=(16, 16))


def old(*names):
    """A model that remembers names only."""
    return SimpleNamespace(meta={"training": {"data": list(names)}, "data_fingerprint": "0" * 16}, input_size=(16, 16))


def is_seen(model, source):
    return training.is_seen(model, str(source), training.load_source(str(source), Recipe.of(model)))


@pytest.mark.parametrize("source", [".", "./", "../photos", "cat/..", "{}", "{}/", "../photos/../photos/."])
def test_a_folder_has_a_name_however_it_is_spelled(source, photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert data_name(source.format(photos)) == "photos"


@pytest.mark.parametrize(
    ("source", "name"),
    [("janken", "janken"), ("./janken", "janken/"), ("/x/synthetic", "synthetic/"), ("~/a b", "a b")],
)
def test_a_folder_is_not_taken_for_a_source_of_its_name(source, name):
    assert data_name(source) == name and Recipe(data=(source,)).stored()["data"] == [name]


def test_the_same_images_are_known_by_any_name(photos, tmp_path, monkeypatch):
    model = faster(photos)
    copy = shutil.copytree(photos, tmp_path / "elsewhere" / "renamed")
    (tmp_path / "link").symlink_to(photos, target_is_directory=True)
    monkeypatch.chdir(photos)
    assert all(is_seen(model, source) for source in (photos, copy, tmp_path / "link", "."))


def test_other_images_of_the_same_name_are_not_known(photos, tmp_path, monkeypatch):
    model = faster(photos)
    other = make_photos(tmp_path / "other" / "photos", 1)
    fewer = shutil.copytree(photos, tmp_path / "fewer" / "photos")
    (fewer / "cat" / "0.png").unlink()
    swapped = shutil.copytree(photos, tmp_path / "swapped" / "photos")
    shutil.move(swapped / "cat" / "0.png", swapped / "dog" / "00.png")
    assert not any(is_seen(model, folder) for folder in (other, fewer, swapped))
    monkeypatch.chdir(other)
    assert not is_seen(model, ".")


def test_two_folders_of_one_name_are_both_known(photos, tmp_path):
    other = make_photos(tmp_path / "other" / "photos", 1)
    model = faster(photos, other)
    assert is_seen(model, photos) and is_seen(model, other)
    assert not is_seen(model, make_photos(tmp_path / "third" / "photos", 2))


def test_rendered_hands_are_known_by_name():
    model = faster(names=["synthetic", "janken/"])
    dataset = data.load_janken("synthetic", image_size=32, n_images=6)
    assert training.is_seen(model, "synthetic", dataset) and not training.is_seen(model, "janken", dataset)


def test_a_model_without_fingerprints_knows_names(photos, tmp_path, monkeypatch):
    model, other = old("photos"), make_photos(tmp_path / "other" / "photos", 1)
    assert is_seen(model, photos) and is_seen(model, other) and not is_seen(old("x"), photos)
    monkeypatch.chdir(tmp_path)
    (found,) = training.find_sources(model, tmp_path / "model")
    assert found.fingerprint == training.load_source(str(photos), Recipe.of(model)).fingerprint


@pytest.mark.parametrize("place", ["photos/..", "photos", "photos/cat", "model", "else"])
def test_training_data_are_found_here_and_beside_the_model(place, photos, tmp_path, monkeypatch):
    for name in ("model", "else"):
        (tmp_path / name).mkdir()
    model = faster(photos)
    monkeypatch.chdir(tmp_path / place)
    (found,) = training.find_sources(model, tmp_path / "model")
    assert found.fingerprint == model.meta[training.FINGERPRINTS][0]


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        (lambda photos: faster(photos), "photos"),  # what has this name here holds other images
        (lambda photos: faster(photos, names=["gone"]), "gone"),
        (lambda photos: faster(photos, names=[""]), "a folder without a name"),
        (lambda photos: old(""), "a folder without a name"),  # trained on "."
        (lambda photos: old(".."), ".."),
        (lambda photos: old("janken", "gone"), "gone"),  # before the photos are looked for
        (lambda photos: old(), "any"),
    ],
)
def test_other_folders_are_not_taken_for_training_data(model, missing, photos, tmp_path, monkeypatch):
    model = model(photos)
    elsewhere = tmp_path / "elsewhere" / "here"
    make_photos(elsewhere, 2)  # itself a folder of classes
    make_photos(elsewhere / "photos", 3)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(data, "download_janken", lambda: pytest.fail("looked for the photos"))
    with pytest.raises(ValueError) as error:
        training.find_sources(model, tmp_path / "models" / "mine")
    assert str(error.value) == f"int8 needs training images; name them with --data. Not found: {missing}"


def test_a_folder_of_that_name_may_be_anything(photos, tmp_path, monkeypatch):
    model = faster(photos)
    here = tmp_path / "else" / "where"
    write(here / "photos" / "1.png", np.zeros((4, 4, 3), np.uint8))
    monkeypatch.chdir(here)
    with pytest.raises(ValueError, match="Not found: photos"):
        training.find_sources(model, here / "model")


def test_the_shipped_model_still_asks_for_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(DEFAULT_MODEL, tmp_path / "model")
    assert main(["export", str(model)]) == 2
    missing = "signs, hands_cgi, bestofone, lebanon-fingers, longhong-asl, seeel-asl, subhi-fingers, t32-asl"
    problem = f"error: int8 needs training images; name them with --data. Not found: {missing}\n"
    assert capsys.readouterr().err == problem


def test_on_the_command_line(photos, tmp_path, monkeypatch, capsys):
    """Trained on ``.``: held-out images of the same data, all images of others."""
    looked_at = []
    result = {"accuracy": 1.0, "n_images": 0, "own": None, "measures": {"x": {}}}
    monkeypatch.setattr(comparison, "measure", lambda *asked: looked_at.append(len(asked[2])) or result)
    monkeypatch.chdir(photos)
    model = str(tmp_path / "model")
    assert main(["train", "--data", ".", "--out", model, *TINY]) == 0
    meta = json.loads((tmp_path / "model" / "meta.json").read_text())
    assert meta["training"]["data"] == ["photos"]
    assert meta[training.FINGERPRINTS] == [data.load_folder(photos, image_size=32).fingerprint]
    monkeypatch.chdir(tmp_path)
    loaded = FasterGradCAM.load(model)
    monkeypatch.setattr(FasterGradCAM, "load", lambda folder: loaded)  # once is enough
    shutil.copytree(photos, tmp_path / "renamed")
    make_photos(tmp_path / "other" / "photos", 1)
    for source in ("photos", "renamed", "other/photos"):
        assert main(["evaluate", "--model", model, "--data", source]) == 0
    assert looked_at == [2, 2, 6]
    said = "other/photos is not as the model knows it: all its images count as unseen"
    assert capsys.readouterr().err.splitlines() == [said]
