"""utils.imaging: odd and broken files, what counts as an image, the one resize."""

import warnings

import cv2
import numpy as np
import pytest
from PIL import Image
from samples import RED, photo, sentence, write

from utils import imaging

# --- read_image --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_read_image_of_odd_size(tmp_path, size):
    image = imaging.read_image(write(tmp_path / "a.png", np.full((*size, 3), RED, np.uint8)))
    assert image.dtype == np.uint8 and image.shape == (*size, 3) and (image == RED).all()


def test_read_image_converts_every_mode_to_rgb(tmp_path):
    image = photo()
    pillow = Image.fromarray(image)
    assert np.array_equal(imaging.read_image(write(tmp_path / "palette.png", pillow.quantize(4))), image)
    grey = imaging.read_image(write(tmp_path / "grey.png", pillow.convert("L")))
    assert np.array_equal(grey, np.stack([np.asarray(pillow.convert("L"))] * 3, axis=-1))
    one_bit = imaging.read_image(write(tmp_path / "bit.png", pillow.convert("1", dither=0)))
    assert set(np.unique(one_bit)) == {0, 255}
    cmyk = imaging.read_image(write(tmp_path / "cmyk.jpg", pillow.convert("CMYK"), quality=95))
    assert np.abs(cmyk.astype(int) - image).mean() < 5


def test_read_image_lays_transparent_pixels_over_white(tmp_path):
    rgba = np.dstack([photo(), np.full((24, 32), 255, np.uint8)])
    rgba[:, 16:, 3], rgba[:, 16:, :3] = 0, 0
    image = imaging.read_image(write(tmp_path / "rgba.png", rgba))
    assert (image[:, 16:] == 255).all() and np.array_equal(image[:, :16], photo()[:, :16])
    palette = Image.fromarray(photo()).quantize(4)
    transparent = imaging.read_image(write(tmp_path / "p.png", palette, transparency=palette.getpixel((31, 23))))
    assert (transparent == 255).all()


def test_read_image_scales_sixteen_bits(tmp_path):
    values = np.array([[0, 257, 128 * 257, 40000, 65535]], np.uint16)
    grey = imaging.read_image(write(tmp_path / "grey.png", values))
    assert grey[0, :, 0].tolist() == [0, 1, 128, 156, 255]
    for n_channels in (3, 4):
        colour = np.repeat(values[..., None], n_channels, axis=-1)
        colour[..., 3:] = 65535
        cv2.imwrite(str(tmp_path / "colour.png"), colour)
        image = imaging.read_image(tmp_path / "colour.png")
        assert np.abs(image[0, :, 0].astype(int) - [0, 1, 128, 156, 255]).max() <= 1


def test_read_image_applies_the_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image = imaging.read_image(write(tmp_path / "turned.jpg", photo(), exif=exif, quality=95))
    assert image.shape == (32, 24, 3)
    assert np.abs(image.astype(int) - np.rot90(photo(), -1)).mean() < 5


def test_read_image_of_a_hundred_megapixels(tmp_path):
    path = write(tmp_path / "big.png", Image.new("1", (10000, 10000), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = imaging.read_image(path)
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
        imaging.read_image(path)
    assert name in sentence(error).replace(str(tmp_path), "") and reason in str(error.value)


def test_read_image_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image file .*nothing.png"):
        imaging.read_image(tmp_path / "nothing.png")


# --- arrays ------------------------------------------------------------------------------------------------------


def test_check_images_accepts_one_image_and_a_batch():
    assert imaging.check_images(photo()).shape == (1, 24, 32, 3)
    batch = photo()[None]
    assert imaging.check_images(batch) is batch
    assert imaging.check_images([photo(), photo()]).shape == (2, 24, 32, 3)


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
        imaging.check_images(images)
    assert says in sentence(error) and "expected uint8 RGB" in str(error.value)


def test_resize_averages_down_and_interpolates_up():
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    blocks = image.reshape(2, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    assert np.abs(imaging.resize(image, 4, 4) - blocks).max() <= 0.5
    assert np.array_equal(imaging.resize(image, 8, 8), image)
    step = np.array([[[0.0, 1.0]]], np.float32)
    assert imaging.resize(step, 1, 4).ravel().tolist() == [0, 0.25, 0.75, 1]
    mixed = imaging.resize(image, 4, 16)  # the rows shrink, the columns grow
    rows = image.reshape(2, 4, 2, 8, 3).mean(axis=2)
    assert mixed.shape == (2, 4, 16, 3) and np.abs(mixed[:, :, 0] - rows[:, :, 0]).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_resize_of_odd_sizes(size):
    assert (imaging.resize(np.full((1, *size, 3), RED, np.uint8), 96, 96) == RED).all()
    assert imaging.resize(np.ones((1, *size), np.float32), 7, 9).shape == (1, 7, 9)


def test_resize_keeps_the_dtype():
    mask = np.zeros((1, 8, 8), bool)
    mask[:, :, 3:] = True
    small = imaging.resize(mask, 4, 4)
    assert small.dtype == bool and small[0, 0].tolist() == [False, True, True, True]
    assert imaging.resize(np.zeros((0, 8, 8, 3), np.uint8), 4, 4).shape == (0, 4, 4, 3)


@pytest.mark.parametrize(
    ("images", "height"),
    [(photo(), 4), (np.zeros((2, 4, 5)), 4), (photo()[None], 0), (np.zeros((1, 0, 4), np.float32), 4)],
)
def test_resize_refuses_what_does_not_fit(images, height):
    with pytest.raises(ValueError, match="Cannot resize"):
        imaging.resize(images, height, 4)
