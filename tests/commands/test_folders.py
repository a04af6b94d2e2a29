"""A folder means the same to every command: what is taken of it, and that the rest is counted and named."""

import json
import weakref

import numpy as np
import pytest
from PIL import Image
from samples import GREEN, RED, photo, write

from utils import data, imaging, runtime
from utils.__main__ import main
from utils.anomaly import AnomalyDetector
from utils.commands import common
from utils.commands.anomaly import find_normal
from utils.commands.sources import open_source

MVTEC = ["train/good/000.png", "train/good/001.png"], [
    "test/good/000.png", "test/broken_large/000.png", "ground_truth/broken_large/000_mask.png", "overview.png",
]
LAYOUTS = {  # files to be learnt, and others
    "MVTec": MVTEC,
    "MVTec, several categories": tuple([f"{c}/{f}" for c in ("bottle", "cable") for f in files] for files in MVTEC),
    "MVTec AD 2": (["train/good/0.png"], [
        "validation/good/1.png", "test_public/good/2.png", "test_public/bad/3.png", "test_public/ground_truth/bad/3.png"
    ]),
    "VisA": (["Data/Images/Normal/0.JPG"], ["Data/Images/Anomaly/0.JPG", "Data/Masks/Anomaly/0.png"]),
    "BTAD": (["train/ok/0.bmp"], ["test/ok/1.bmp", "test/ko/2.bmp", "ground_truth/ko/2.png"]),
    "good and bad": (["good/0.png"], ["bad/1.png", "mask/1.png"]),
    "of one's own, with what went wrong": (["0.png", "night/1.png", "b/c/2.png"], ["Defects/3.png", "NG/4.png"]),
    "masks beside images": (["Part0.jpg", "sub/1.png"], ["Part0_label.bmp", "sub/1_mask.png"]),
    "masks of their own": (["0.png", "1.png"], ["masks/0.png", "masks/1.png"]),
    "leavings of systems": (["0.png", "a/1.png"], [
        ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/._0.png", "a/.hidden/x.png", "._0.png", "a/@eaDir/1.png",
    ]),
}


@pytest.mark.parametrize(("taken", "others"), LAYOUTS.values(), ids=LAYOUTS)
def test_only_what_is_normal_is_learnt(taken, others, tmp_path):
    for name in [*taken, *others]:
        write(tmp_path / name, photo())
    assert sorted(path.relative_to(tmp_path).as_posix() for path in find_normal(tmp_path)) == sorted(taken)


def test_what_is_not_learnt_is_named(tmp_path, capsys):
    for name in MVTEC[0] + MVTEC[1]:
        write(tmp_path / name, photo())
    (tmp_path / "Thumbs.db").touch()
    (tmp_path / "license.txt").touch()
    find_normal(tmp_path)
    names = [f"{tmp_path}/{name}" for name in ("ground_truth/", "license.txt", "overview.png", "test/")]
    assert capsys.readouterr().err == f"left out 4: {', '.join(names)}\n"
    assert [path.name for path in find_normal(tmp_path / "test" / "broken_large")] == ["000.png"]  # asked for by name


@pytest.mark.parametrize("folder", ["masks", "ground_truth", "Ground_Truth", "x"])
def test_a_folder_without_normal_images_is_refused(folder, tmp_path, capsys):
    write(tmp_path / folder / ("test" if folder == "x" else "broken") / "000_mask.png", photo())
    assert main(["anomaly", "fit", str(tmp_path / folder), "--out", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: There is no image file of a normal thing in ") and "train/good" in error
    assert not (tmp_path / "model").exists()


def test_a_link_back_to_the_folder_above_is_not_followed(tmp_path):
    write(tmp_path / "a" / "0.png", photo())
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert [path.name for path in find_normal(tmp_path)] == ["0.png"]


@pytest.mark.parametrize(
    ("files", "beside"),
    [
        (["train/good/0.png", "test/good/0.png", "test/hole/1.png", "ground_truth/hole/1.png"], "good, hole"),
        (["train/cat/0.png", "train/dog/0.png", "val/cat/1.png", "val/dog/1.png"], "cat, dog"),
        (["a/images/0.png", "a/masks/0.png", "b/images/1.png"], "images, masks"),
    ],
)
def test_a_folder_of_parts_is_no_folder_of_classes(files, beside, tmp_path, capsys):
    for name in files:
        write(tmp_path / "data" / name, photo())
    assert main(["train", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and f"no readable image beside its sub-folders {beside}, expected" in error


def test_classes_are_photos_without_masks_and_leavings(tmp_path):
    for name, colour in {"cat/a.jpg": RED, "cat/b": RED, "dog/c.jfif": GREEN, "dog/d.tga": GREEN}.items():
        write(tmp_path / name, photo(colour=colour), format=None if "." in name else "PNG")
    left_out = ["cat/a_mask.png", "dog/c-gt.png", "dog/old/e.png", "ground_truth/cat/a.png", "stray.png"]
    for name in [*left_out, "__MACOSX/cat/a.jpg", ".ipynb_checkpoints/a.jpg", "dog/._c.jpg"]:
        write(tmp_path / name, photo())
    for name in ("cat/notes.txt", "cat/Thumbs.db", "dog/desktop.ini"):
        (tmp_path / name).touch()
    dataset = data.load_folder(tmp_path, image_size=16)
    assert dataset.class_names == ("cat", "dog") and dataset.names == ("cat/a.jpg", "cat/b", "dog/c.jfif", "dog/d.tga")
    assert np.abs(dataset.images[:, -1, -1].astype(int) - [RED, RED, GREEN, GREEN]).max() < 8
    names = {path.relative_to(tmp_path).as_posix() for path in dataset.left_out}
    assert names == {"cat/a_mask.png", "cat/notes.txt", "dog/c-gt.png", "dog/old", "ground_truth", "stray.png"}


def test_lists_of_images_take_and_name_the_same(tmp_path, capsys):
    for name in ("a.jpg", "a_mask.png", "b.JFIF", "c.tga", "sub/d.png", ".ipynb_checkpoints/a.png", "__MACOSX/x.png"):
        write(tmp_path / name, photo())
    write(tmp_path / "IMG 2024.10.02", photo(), format="JPEG")  # .02 is no suffix
    for name in ("notes.txt", "README", "model.h5"):
        (tmp_path / name).write_text("no image")
    taken = [path.name for path, _ in common.find_images([tmp_path])]
    assert taken == ["a.jpg", "b.JFIF", "c.tga", "IMG 2024.10.02"]
    names = [f"{tmp_path}/{name}" for name in ("README", "a_mask.png", "model.h5", "notes.txt", "sub/")]
    assert capsys.readouterr().err == f"left out 5: {', '.join(names)}\n"
    source = open_source(str(tmp_path))
    assert sum(1 for _ in source) == 4 and source.skipped == 0 and "left out 5" in capsys.readouterr().err
    assert main(["annotate", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "of 4 images" in (captured := capsys.readouterr()).out and "left out 5" in captured.err


def test_what_is_left_out_is_named_up_to_five(tmp_path, capsys):
    common.report_left_out([tmp_path / f"{i}.txt" for i in range(7)])
    assert capsys.readouterr().err.endswith("4.txt and 2 more\n")
    common.report_left_out([])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_an_image_without_a_suffix_is_told_by_its_first_bytes(format, tmp_path):
    assert imaging.is_image(write(tmp_path / "photo", photo(), format=format))
    assert not imaging.is_image(write(tmp_path / "photo.bak", photo(), format=format))  # a copy of another
    (tmp_path / "Makefile").write_text("all:")
    assert not imaging.is_image(tmp_path / "Makefile") and not imaging.is_image(tmp_path / "nothing")


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".tga", ".dib", ".pnm", ".pbm", ".jp2", ".JPG", ".jpg "])
def test_a_suffix_that_pillow_reads_is_an_image(suffix, tmp_path):
    format = {".pbm": "PPM", ".jpg ": "JPEG"}.get(suffix)
    path = write(tmp_path / f"photo{suffix}", photo(), format=format)
    assert imaging.images_in(tmp_path) == [path]
    with Image.open(path) as image:
        assert np.array_equal(imaging.read_image(path), np.asarray(image.convert("RGB")))


# --- memory ------------------------------------------------------------------------------------------------------


class Alive:
    """Reads images by a given function and knows how many of them are in memory, and how many were at most."""

    def __init__(self, read):
        self.read, self.references, self.most = read, [], 0

    def __call__(self, path):
        image = self.read(path)
        self.references.append(weakref.ref(image))
        self.most = max(self.most, sum(reference() is not None for reference in self.references))
        return image


@pytest.fixture
def photos(tmp_path, rng):
    for i in range(12):
        write(tmp_path / "photos" / f"class_{i % 2}" / f"{i}.png", rng.integers(0, 256, (70, 90, 3), np.uint8))
    return tmp_path / "photos"


@pytest.mark.slow
def test_fit_holds_no_more_than_two_photos(photos, tmp_path, monkeypatch):
    alive = Alive(imaging.read_image)
    monkeypatch.setattr(imaging, "read_image", alive)
    settings = ["--weights", "none", "--image-size", "32", "--steps", "1", "--out", str(tmp_path / "model")]
    assert main(["anomaly", "fit", str(photos), *settings]) == 0
    assert len(alive.references) == 12 and alive.most <= 2  # the one before, while the next is read
    assert runtime.Explainer(tmp_path / "model" / runtime.FLOAT_FILE).kind == "anomaly"
    assert json.loads((tmp_path / "model" / "meta.json").read_text())["n_images"] == 12


@pytest.mark.parametrize("n_cores", [1, 64])
def test_training_data_hold_no_more_photos_than_threads(n_cores, photos, monkeypatch):
    alive = Alive(imaging.decode)
    monkeypatch.setattr(imaging, "decode", alive)
    monkeypatch.setattr("os.cpu_count", lambda: n_cores)
    assert data.load_folder(photos, image_size=8).images.shape == (12, 8, 8, 3)
    assert alive.most <= min(n_cores, 4) + 1


@pytest.mark.slow
def test_a_detector_is_the_same_wherever_its_photos_are_shrunk(photos):
    images = [imaging.read_image(path) for path in sorted(photos.rglob("*.png"))]
    shrunk = [imaging.resize(image[None], 32, 32)[0] for image in images]
    how = {"image_size": 32, "steps": 1}
    detectors = [AnomalyDetector.fit(given, **how) for given in (images, iter(images), np.stack(shrunk))]
    for detector in detectors[1:]:
        assert detector.meta == detectors[0].meta
        for name, array in detectors[0].arrays.items():
            np.testing.assert_array_equal(detector.arrays[name], array)
