"""utils.data: odd and broken files, folders of classes, the janken download, hand masks, splits."""

import http.server
import io
import os
import subprocess
import sys
import threading
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils import data

RED, GREEN = (200, 20, 30), (20, 180, 40)


def photo(height=24, width=32, colour=RED):
    """Uint8 (height, width, 3): one colour, the left half of the top row white, so that its orientation shows."""
    image = np.full((height, width, 3), colour, np.uint8)
    image[: height // 2, : width // 2] = 255
    return image


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def sentence(error):
    """The message of a caught error, which must be one sentence on one line."""
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message.replace("[..., ", "")
    return message


@pytest.fixture
def folder(tmp_path):
    """Two classes of three photos."""
    for name, colour in {"cat": RED, "dog": GREEN}.items():
        for number in (1, 2, 10):
            write(tmp_path / "photos" / name / f"IMG_{number}.png", photo(colour=colour))
    return tmp_path / "photos"


# --- read_image --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_read_image_of_odd_size(tmp_path, size):
    image = data.read_image(write(tmp_path / "a.png", np.full((*size, 3), RED, np.uint8)))
    assert image.dtype == np.uint8 and image.shape == (*size, 3) and (image == RED).all()


def test_read_image_converts_every_mode_to_rgb(tmp_path):
    image = photo()
    pillow = Image.fromarray(image)
    assert np.array_equal(data.read_image(write(tmp_path / "palette.png", pillow.quantize(4))), image)
    grey = data.read_image(write(tmp_path / "grey.png", pillow.convert("L")))
    assert np.array_equal(grey, np.stack([np.asarray(pillow.convert("L"))] * 3, axis=-1))
    one_bit = data.read_image(write(tmp_path / "bit.png", pillow.convert("1", dither=0)))
    assert set(np.unique(one_bit)) == {0, 255}
    cmyk = data.read_image(write(tmp_path / "cmyk.jpg", pillow.convert("CMYK"), quality=95))
    assert np.abs(cmyk.astype(int) - image).mean() < 5


def test_read_image_lays_transparent_pixels_over_white(tmp_path):
    rgba = np.dstack([photo(), np.full((24, 32), 255, np.uint8)])
    rgba[:, 16:, 3], rgba[:, 16:, :3] = 0, 0
    image = data.read_image(write(tmp_path / "rgba.png", rgba))
    assert (image[:, 16:] == 255).all() and np.array_equal(image[:, :16], photo()[:, :16])
    palette = Image.fromarray(photo()).quantize(4)
    transparent = data.read_image(write(tmp_path / "p.png", palette, transparency=palette.getpixel((31, 23))))
    assert (transparent == 255).all()


def test_read_image_scales_sixteen_bits(tmp_path):
    values = np.array([[0, 257, 128 * 257, 40000, 65535]], np.uint16)
    grey = data.read_image(write(tmp_path / "grey.png", values))
    assert grey[0, :, 0].tolist() == [0, 1, 128, 156, 255]
    for n_channels in (3, 4):
        colour = np.repeat(values[..., None], n_channels, axis=-1)
        colour[..., 3:] = 65535
        cv2.imwrite(str(tmp_path / "colour.png"), colour)
        image = data.read_image(tmp_path / "colour.png")
        assert np.abs(image[0, :, 0].astype(int) - [0, 1, 128, 156, 255]).max() <= 1


def test_read_image_applies_the_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image = data.read_image(write(tmp_path / "turned.jpg", photo(), exif=exif, quality=95))
    assert image.shape == (32, 24, 3)
    assert np.abs(image.astype(int) - np.rot90(photo(), -1)).mean() < 5


def test_read_image_of_a_hundred_megapixels(tmp_path):
    path = write(tmp_path / "big.png", Image.new("1", (10000, 10000), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = data.read_image(path)
    assert image.shape == (10000, 10000, 3) and (image[5000, 5000] == 255).all()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zero.jpg", "empty (0 bytes)"),
        ("text.jpg", "not an image"),
        ("half.jpg", "truncated"),
        ("half.png", "truncated"),
        ("huge.png", "pixels"),
        ("float.tif", "floating-point"),
    ],
)
def test_read_image_says_why_it_cannot(tmp_path, name, reason):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / name
    if name == "huge.png":
        write(path, Image.new("1", (18000, 10000)), compress_level=1)
    elif name == "float.tif":
        write(path, Image.fromarray(np.zeros((4, 4), np.float32)))
    elif name.startswith("half"):
        path.write_bytes((whole := write(path, noise).read_bytes())[: len(whole) // 2])
    else:
        path.write_text("" if name == "zero.jpg" else "This is no picture.")
    with pytest.raises(ValueError) as error:
        data.read_image(path)
    assert name in sentence(error).replace(str(tmp_path), "") and reason in str(error.value)


def test_read_image_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image file .*nothing.png"):
        data.read_image(tmp_path / "nothing.png")


# --- arrays ------------------------------------------------------------------------------------------------------


def test_check_images_accepts_one_image_and_a_batch():
    assert data.check_images(photo()).shape == (1, 24, 32, 3)
    batch = photo()[None]
    assert data.check_images(batch) is batch
    assert data.check_images([photo(), photo()]).shape == (2, 24, 32, 3)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (photo() / 255, "floats are not accepted"),
        (np.full((4, 4, 3), np.nan, np.float32), "NaN"),
        (photo().astype(np.int64), "int64"),
        (photo()[..., 0], "grey"),
        (np.zeros((2, 4, 4, 4), np.uint8), "alpha"),
        (np.zeros((4, 4, 1), np.uint8), "(4, 4, 1)"),
        (np.zeros((0, 4, 4, 3), np.uint8), "at least one image"),
        (np.zeros((2, 0, 4, 3), np.uint8), "at least one image"),
        ([photo(4, 4), photo(5, 5)], "different shapes"),
        (None, "object"),
    ],
)
def test_check_images_says_what_it_received(images, says):
    with pytest.raises(ValueError) as error:
        data.check_images(images)
    assert says in sentence(error) and "expected uint8 RGB" in str(error.value)


def test_resize_averages_down_and_interpolates_up():
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    blocks = image.reshape(2, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    assert np.abs(data.resize(image, 4, 4) - blocks).max() <= 0.5
    assert np.array_equal(data.resize(image, 8, 8), image)
    step = np.array([[[0.0, 1.0]]], np.float32)
    assert data.resize(step, 1, 4).ravel().tolist() == [0, 0.25, 0.75, 1]
    mixed = data.resize(image, 4, 16)  # the rows shrink, the columns grow
    rows = image.reshape(2, 4, 2, 8, 3).mean(axis=2)
    assert mixed.shape == (2, 4, 16, 3) and np.abs(mixed[:, :, 0] - rows[:, :, 0]).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_resize_of_odd_sizes(size):
    assert (data.resize(np.full((1, *size, 3), RED, np.uint8), 96, 96) == RED).all()
    assert data.resize(np.ones((1, *size), np.float32), 7, 9).shape == (1, 7, 9)


def test_resize_keeps_the_dtype():
    mask = np.zeros((1, 8, 8), bool)
    mask[:, :, 3:] = True
    small = data.resize(mask, 4, 4)
    assert small.dtype == bool and small[0, 0].tolist() == [False, True, True, True]
    assert data.resize(np.zeros((0, 8, 8, 3), np.uint8), 4, 4).shape == (0, 4, 4, 3)


@pytest.mark.parametrize(
    ("images", "height"),
    [(photo(), 4), (np.zeros((2, 4, 4)), 4), (photo()[None], 0), (np.zeros((1, 0, 4), np.float32), 4)],
)
def test_resize_refuses_what_does_not_fit(images, height):
    with pytest.raises(ValueError, match="Cannot resize"):
        data.resize(images, height, 4)


def test_replace_background():
    image, background, mask = photo(8, 8, RED), photo(8, 8, GREEN), np.zeros((8, 8), bool)
    assert np.array_equal(data.replace_background(image, mask, background), background)
    assert np.array_equal(data.replace_background(image, ~mask, background), image)
    mask[:, 4:] = True
    mixed = data.replace_background(image, mask, background)[-1, :, 0]
    assert (mixed[:3] == GREEN[0]).all() and (mixed[5:] == RED[0]).all()
    assert GREEN[0] < mixed[3] < mixed[4] < RED[0]  # a soft edge
    with pytest.raises(ValueError, match="Received image"):
        data.replace_background(image, mask.astype(np.uint8), background)
    with pytest.raises(ValueError, match="Received image"):
        data.replace_background(image, mask[:4], background)


# --- hand masks --------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_hand_mask_agrees_with_the_truth(janken_dataset, janken_masks):
    paths = sorted(p for p in janken_dataset.glob("*/*") if p.suffix.lower() == ".jpg")

    def iou(path):
        mask = data.hand_mask(data.read_image(path))
        truth = np.asarray(Image.open(janken_masks / f"{path.parent.name}_{path.stem}.png").convert("L")) > 127
        return (mask & truth).sum() / (mask | truth).sum()

    ious = [iou(path) for path in paths]
    assert len(ious) == 167 and np.mean(ious) >= 0.95 and min(ious) >= 0.85


def test_hand_mask_depends_on_the_image_alone():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60, 80, 3), np.uint8) for _ in range(8)]
    masks = [data.hand_mask(image) for image in images]
    with ThreadPoolExecutor(3) as pool:
        again = list(pool.map(data.hand_mask, reversed(images)))
    assert all(np.array_equal(a, b) for a, b in zip(masks, reversed(again), strict=True))


def test_hand_mask_refuses_what_is_no_image():
    for image in (photo() / 255, photo()[..., 0]):
        with pytest.raises(ValueError, match="expected uint8 RGB"):
            data.hand_mask(image)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (2, 2), (5, 3)])
def test_hand_mask_of_odd_sizes(size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for image in (noise, np.full_like(noise, 128)):
        mask = data.hand_mask(image)
        assert mask.shape == size and mask.dtype == bool
    assert not mask.any()  # one colour, no hand


# --- folds and splits --------------------------------------------------------------------------------------------


def test_folds_are_contiguous_blocks_of_each_class():
    labels = np.array([0] * 50 + [1] * 66 + [2] * 51)
    for label in range(3):
        fold = data.folds(labels)[labels == label]
        assert (np.diff(fold) >= 0).all() and set(fold) == set(range(5))
        assert np.ptp(np.bincount(fold)) <= 1
    mixed = data.folds(np.tile([0, 1], 10), n_folds=2)  # classes interleaved: still blocks of each class
    assert mixed.tolist() == [0] * 10 + [1] * 10
    assert len(set(data.folds([7, 7, 7]))) == 3
    with pytest.raises(ValueError, match="n_folds=1"):
        data.folds(labels, 1)


@pytest.mark.parametrize("seed", range(4))
def test_split_is_a_partition_into_blocks(seed):
    labels = np.array([0] * 50 + [1] * 66 + [2] * 51 + [3] + [4] * 2)
    train, test = data.split(labels, seed=seed)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    assert set(labels[train]) == set(range(5)) and 3 not in labels[test]
    for label in range(3):
        block = test[labels[test] == label]
        assert (np.diff(block) == 1).all() and abs(len(block) - 0.2 * (labels == label).sum()) < 1
    assert all(np.array_equal(a, b) for a, b in zip((train, test), data.split(labels, seed=seed), strict=True))


def test_split_takes_other_blocks_with_other_seeds_and_other_fractions():
    labels = np.zeros(40, int)
    assert len({tuple(data.split(labels, seed=seed)[1]) for seed in range(60)}) == 5
    assert [len(data.split(labels, fraction)[1]) for fraction in (0.125, 0.25, 0.5)] == [5, 10, 20]
    for fraction in (0, 0.9, -1):
        with pytest.raises(ValueError, match="test_fraction"):
            data.split(labels, fraction)


# --- a folder of classes -----------------------------------------------------------------------------------------


def test_load_folder(folder):
    (folder / ".hidden").mkdir()
    (folder / "cat" / "notes.txt").write_text("no picture, and no picture by its name")
    dataset = data.load_folder(folder, image_size=40)
    assert dataset.class_names == ("cat", "dog") and dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.names[:3] == ("cat/IMG_1.png", "cat/IMG_2.png", "cat/IMG_10.png")  # natural order
    assert dataset.images.shape == (6, 40, 40, 3) and dataset.images.dtype == np.uint8
    assert dataset.images[0, -1, -1].tolist() == list(RED) and dataset.images[5, -1, -1].tolist() == list(GREEN)
    assert dataset.masks is None and dataset.skipped == ()
    assert len(dataset.train) == 4 and len(dataset.test) == 2
    assert dataset.fingerprint == data.load_folder(str(folder), image_size=40).fingerprint
    assert dataset.fingerprint != replace(dataset, labels=1 - dataset.labels).fingerprint


def test_load_folder_with_masks(folder):
    for path in sorted(folder.glob("*/*.png")):
        mask = np.zeros((24, 32), np.uint8)
        mask[:, 16:] = 255
        write(folder / "masks" / path.parent.name / path.name, mask)
    dataset = data.load_folder(folder, image_size=8)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.masks.dtype == bool and (dataset.masks == (np.arange(8) >= 4)).all()
    write(folder / "masks/dog/IMG_2.png", np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError) as error:
        data.load_folder(folder)
    assert "IMG_2.png has shape (5, 5)" in sentence(error)
    (folder / "masks/dog/IMG_2.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.load_folder(folder)
    assert "There is no mask" in sentence(error)


def test_load_folder_skips_and_names_what_it_cannot_read(folder):
    (folder / "cat" / "zero.jpg").touch()
    (folder / "dog" / "text.jpg").write_text("no picture")
    for number in range(5):
        (folder / "dog" / f"half{number}.png").write_bytes((folder / "dog" / "IMG_1.png").read_bytes()[:60])
    with pytest.warns(UserWarning, match="Skipped 7 unreadable images: cat/zero.jpg: .*; and 2 more") as caught:
        dataset = data.load_folder(folder)
    assert caught[0].filename == __file__
    assert len(dataset.images) == len(dataset.labels) == len(dataset.names) == 6
    assert len(dataset.skipped) == 7 and dataset.skipped[0] == "cat/zero.jpg: the file is empty (0 bytes)"
    assert "dog/text.jpg: it is not an image in a known format" in dataset.skipped


def test_load_folder_shows_no_warning_of_pillow(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(folder / "cat" / "IMG_1.png").close()
    data.load_folder(folder)  # pytest would turn that warning into an error
    data.read_image(folder / "cat" / "IMG_1.png")


def test_load_folder_says_what_is_wrong(folder, tmp_path):
    def complaint(path, error_type=ValueError):
        with pytest.raises(error_type) as error:
            data.load_folder(path)
        return sentence(error)

    assert "There is no folder" in complaint(tmp_path / "nowhere", FileNotFoundError)
    assert "at least two classes" in complaint(folder / "cat")
    for path in (folder / "dog").iterdir():
        path.write_bytes(b"")
    assert "no readable image" in complaint(folder)
    for path in (folder / "dog").iterdir():
        path.unlink()
    assert "no readable image" in complaint(folder)
    (folder / "dog").rmdir()
    assert "one class, cat" in complaint(folder)


def test_load_folder_with_a_class_of_one_image(folder):
    write(folder / "bird" / "only.png", photo())
    dataset = data.load_folder(folder)
    assert dataset.names[0] == "bird/only.png" and 0 in dataset.train and 0 not in dataset.test


# --- janken ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_photos(monkeypatch, tmp_path):
    """A machine without the photos; returns its cache."""
    monkeypatch.delenv("JANKEN_DATASET", raising=False)
    monkeypatch.delenv("FASTER_GRAD_CAM_OFFLINE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "faster-grad-cam"


@pytest.mark.real
def test_load_janken_photos(janken_dataset, monkeypatch):
    monkeypatch.setenv("JANKEN_DATASET", str(janken_dataset))
    dataset = data.load_janken()
    assert dataset.class_names == ("choki", "gu", "pa") and np.bincount(dataset.labels).tolist() == [66, 50, 51]
    assert dataset.images.shape == (167, 96, 96, 3) and dataset.masks.shape == (167, 96, 96)
    assert 0.1 < dataset.masks.mean() < 0.5 and len(dataset.test) == 33


def test_load_janken_synthetic_needs_no_network(no_photos, monkeypatch):
    monkeypatch.setenv("FASTER_GRAD_CAM_OFFLINE", "1")
    dataset = data.load_janken("synthetic", image_size=64, n_images=20, seed=3)
    assert dataset.images.shape == (20, 64, 64, 3) and dataset.masks.shape == (20, 64, 64)
    assert np.bincount(dataset.labels).tolist() == [7, 7, 6] and dataset.names[-1] == "pa_0019"
    assert dataset.masks.any(axis=(1, 2)).all() and len(set(dataset.names)) == 20
    again = data.load_janken("synthetic", image_size=64, n_images=20, seed=3)
    assert dataset.fingerprint == again.fingerprint


def test_load_janken_says_what_is_wrong(no_photos, monkeypatch, folder):
    with pytest.raises(ValueError, match='"janken" or "synthetic"'):
        data.load_janken("webcam")
    with pytest.raises(ValueError, match="n_images=2"):
        data.load_janken("synthetic", n_images=2)
    monkeypatch.setenv("JANKEN_DATASET", str(folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match="JANKEN_DATASET is .*nowhere, expected a folder"):
        data.load_janken()
    monkeypatch.setenv("JANKEN_DATASET", str(folder))
    with pytest.raises(ValueError, match="cat, dog, expected choki, gu, pa"):
        data.load_janken()


def test_offline_says_what_to_set(no_photos, monkeypatch):
    monkeypatch.setenv("FASTER_GRAD_CAM_OFFLINE", "1")
    with pytest.raises(FileNotFoundError) as error:
        data.load_janken()
    assert "$JANKEN_DATASET" in sentence(error) and 'source="synthetic"' in str(error.value)
    assert not no_photos.exists()


# --- the download, from a server of our own ----------------------------------------------------------------------


def archive(members):
    """A zip archive in memory, of {name: bytes}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def fake_members():
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "JPEG")
    photos = {f"repo-0017/{name}/IMG_{i}.JPG": buffer.getvalue() for name in ("choki", "gu", "pa") for i in range(3)}
    return photos | {"repo-0017/README.md": b"read me", "repo-0017/other/IMG_1.JPG": b"", "repo-0017/gu/run.sh": b"rm"}


@pytest.fixture
def serve():
    """``serve(body, sent=None, length=True)`` → URL that answers with the first ``sent`` bytes of the body."""
    answer = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/missing":
                return self.send_error(404)
            self.send_response(200)
            if answer["length"]:
                self.send_header("Content-Length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"][: answer["sent"]])

        def log_message(self, *_):
            pass

    def start(body, sent=None, length=True):
        answer.update(body=body, sent=sent, length=length)
        return f"http://127.0.0.1:{server.server_port}/archive.zip"

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield start
        server.shutdown()


@pytest.fixture
def fake_hash(monkeypatch, tmp_path):
    """Let the verification expect the photos of ``fake_members``."""
    for name, content in fake_members().items():
        if name.endswith(".JPG") and "other" not in name:
            path = tmp_path / "expected" / name.removeprefix("repo-0017/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    monkeypatch.setattr(data, "JANKEN_SHA256", data._digest(tmp_path / "expected"))


def test_download_and_load(serve, no_photos, fake_hash):
    target = data.download_janken(serve(archive(fake_members()), length=False))
    assert target == no_photos / "janken-0017a6838d24" and list(no_photos.iterdir()) == [target]
    found = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert found == [f"{name}/IMG_{i}.JPG" for name in ("choki", "gu", "pa") for i in range(3)]
    assert data.download_janken("http://127.0.0.1:9/never-asked") == target
    (target / "etc").mkdir()
    dataset = data.load_janken(image_size=32)  # from the cache
    assert dataset.images.shape == (9, 32, 32, 3) and dataset.class_names == ("choki", "gu", "pa")
    (target / "gu" / "IMG_0.JPG").unlink()
    with pytest.raises(ValueError, match="has been changed"):
        data.load_janken()


@pytest.mark.real
def test_download_of_the_real_photos_is_verified(serve, no_photos, janken_dataset):
    paths = [path for path in janken_dataset.glob("*/*") if path.suffix.lower() == ".jpg"]
    photos = {f"janken_dataset-0017/{path.relative_to(janken_dataset)}": path.read_bytes() for path in paths}
    target = data.download_janken(serve(archive(photos)))
    assert len(list(target.glob("*/*"))) == 167


def test_downloads_at_once_do_not_disturb_each_other(serve, no_photos, fake_hash):
    url = serve(archive(fake_members()))
    with ThreadPoolExecutor(6) as pool:
        targets = set(pool.map(lambda _: data.download_janken(url), range(6)))
    assert len(targets) == 1 and list(no_photos.iterdir()) == list(targets)
    assert len(list(targets.pop().glob("*/*"))) == 9


def link_members():
    link = zipfile.ZipInfo("repo-0017/gu/link.jpg")
    link.external_attr = 0o120777 << 16
    return fake_members() | {link: b"/etc/passwd"}


def test_download_does_not_extract_links(serve, no_photos, fake_hash):
    target = data.download_janken(serve(archive(link_members())))
    assert not (target / "gu" / "link.jpg").exists()


@pytest.mark.parametrize(
    "evil", ["../evil.jpg", "repo-0017/gu/../../../evil.jpg", "/tmp/evil.jpg", "repo\\..\\evil.jpg"]
)
def test_download_refuses_members_that_leave_the_folder(serve, no_photos, fake_hash, evil):
    url = serve(archive(fake_members() | {evil: b"evil"}))
    with pytest.raises(ValueError) as error:
        data.download_janken(url)
    assert "evil.jpg" in sentence(error)
    assert not list(no_photos.parent.rglob("*evil*")) and not list(no_photos.iterdir())


def test_download_refuses_wrong_and_broken_content(serve, no_photos, fake_hash, monkeypatch):
    members = fake_members()
    body = archive(members)

    def complaint(url, error_type=ValueError):
        with pytest.raises(error_type) as error:
            data.download_janken(url)
        assert not list(no_photos.iterdir())  # nothing half-made, nothing temporary
        return sentence(error)

    assert "SHA-256" in complaint(serve(archive(members | {"repo-0017/gu/IMG_1.JPG": b"other"})))
    assert "SHA-256" in complaint(serve(archive({"repo-0017/README.md": b""})))
    assert "not an intact zip archive" in complaint(serve(b"<html>log in</html>"))
    damaged = bytearray(body)
    damaged[60:120] = bytes(60)
    assert "not an intact zip archive" in complaint(serve(bytes(damaged)))
    assert "not an intact zip archive" in complaint(serve(body, sent=len(body) // 2, length=False))
    assert f"{len(body) // 2} of {len(body)} bytes" in complaint(serve(body, sent=len(body) // 2), ConnectionError)
    assert "404" in complaint(serve(body).replace("archive.zip", "missing"), ConnectionError)
    monkeypatch.setattr(data, "JANKEN_MAX_BYTES", 5000)
    bomb = archive({"repo-0017/gu/IMG_1.JPG": bytes(100_000)})
    assert len(bomb) < 5000 and "more than 5000 bytes" in complaint(serve(bomb))


def test_download_without_a_server(no_photos):
    with pytest.raises(ConnectionError) as error:
        data.download_janken("http://127.0.0.1:9/archive.zip")
    assert "Could not download http://127.0.0.1:9/archive.zip" in sentence(error)
    assert not list(no_photos.iterdir())


# --- putting data sets together ----------------------------------------------------------------------------------


def test_add_none(folder):
    plain = data.load_folder(folder, image_size=64)
    dataset = data.add_none(plain, seed=1)
    assert dataset.class_names == ("cat", "dog", "none") and dataset.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert dataset.masks is None and dataset.names[-1] == "none_0002" and dataset.images.dtype == np.uint8
    assert np.array_equal(np.sort(np.concatenate([dataset.train, dataset.test])), np.arange(9))
    assert set(dataset.labels[dataset.test]) == {0, 1, 2}
    assert np.array_equal(dataset.images, data.add_none(plain, seed=1).images)
    assert data.add_none(dataset) is dataset
    masked = data.add_none(replace(plain, masks=np.ones((6, 64, 64), bool)), n_images=5)
    assert masked.masks[:6].all() and not masked.masks[6:].any() and len(masked.images) == 11
    with pytest.raises(ValueError, match="n_images=0"):
        data.add_none(plain, n_images=0)


def test_join(folder):
    one = data.load_folder(folder, image_size=16)
    two = replace(one, masks=np.ones((6, 16, 16), bool), skipped=("x.jpg: it is empty",))
    both = data.join(one, two)
    assert len(both.images) == 12 and both.masks is None and both.names == one.names * 2
    assert np.array_equal(both.train, np.concatenate([one.train, one.train + 6]))
    assert np.array_equal(both.test, np.concatenate([one.test, one.test + 6]))
    assert both.skipped == two.skipped and data.join(two, two, two).masks.shape == (18, 16, 16)
    with pytest.raises(ValueError, match="datasets of classes and sizes"):
        data.join(one, replace(one, class_names=("a", "b")))
    with pytest.raises(ValueError, match="datasets of classes and sizes"):
        data.join(one, data.load_folder(folder, image_size=17))


def test_import_needs_neither_tensorflow_nor_scikit_learn():
    code = "import sys; from utils import data; print({'tensorflow', 'keras', 'sklearn', 'scipy'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "set()", done.stderr
