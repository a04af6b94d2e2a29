"""Images as arrays: read, check, resize, write. Needs NumPy, OpenCV and Pillow, and no TensorFlow.

Images are uint8 RGB (H, W, 3). OpenCV's BGR never leaves the function that read it.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from utils.storage.store import Stored

# Suffixes treated as images. Files that Pillow cannot read are reported, never silently dropped.
IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm",
    ".pbm", ".tga", ".jp2", ".heic", ".avif",
}
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")  # of images without a suffix
SYSTEM = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini"}  # leave these
MASK_FOLDERS = {"masks", "ground_truth"}
MASK_NAME = re.compile(r"^(mask|gt)[-_ .]|[-_ .](masks?|gt|labels?|seg(mentation)?|ground_?truth)$")  # of x_mask
WHOLE = (0.0, 1.0, 0.0, 1.0)  # of an image: top, bottom, left, right
EXPECTED = "expected uint8 RGB of shape (N, H, W, 3) or (H, W, 3)"


def read_image(path: str | Path) -> np.ndarray:
    """Read a file as uint8 RGB (H, W, 3), turned upright as its EXIF orientation says.

    Transparent pixels are laid over white, 16 bits are scaled to 8, CMYK is converted, of an animation the first frame
    is taken. Up to 178 megapixels, Pillow's bound against decompression bombs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an image, truncated, or too big.

    Example:
        >>> read_image("data/hands/gu/00.jpg").shape
        (160, 160, 3)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of big images and odd metadata; what matters raises
        return decode(Path(path))


def decode(path: Path, content=None) -> np.ndarray:
    """`read_image` without its ``catch_warnings``, which is not safe in threads; ``content``: the file, open."""
    # Pillow, because OpenCV returns the upper half of a truncated photo without a word.
    if content is None and not path.is_file():
        raise FileNotFoundError(f"There is no image file {printable(path)}.")
    if (path.stat().st_size if content is None else content.seek(0, os.SEEK_END)) == 0:
        raise ValueError(f"Cannot read {printable(path)}: the file is empty (0 bytes).")
    try:
        with Image.open(content or path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except Image.UnidentifiedImageError:
        raise ValueError(f"Cannot read {printable(path)}: it is not an image in a known format.") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        problem = str(error).rstrip(".") or type(error).__name__
        raise ValueError(printable(f"Cannot read {path}: {problem}.")) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Pillow image of any mode → uint8 RGB (H, W, 3)."""
    if image.mode == "F":
        raise ValueError("it holds floating-point pixels, expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        grey = (np.clip(np.asarray(image, np.int32), 0, 65535) + 128) // 257
        return cv2.cvtColor(grey.astype(np.uint8), cv2.COLOR_GRAY2RGB)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def read_or_skip(files: Iterable[tuple[Path, str]], skipped: list[str]) -> Iterator[tuple[Path, str, np.ndarray]]:
    """Path, name and image of each of these `image_files`; what cannot be read is ``skipped``, a sentence for each."""
    for path, name in files:
        try:
            image = read_image(path)
        except (ValueError, OSError) as error:
            skipped.append(str(error))
        else:
            yield path, name, image


def image_files(paths: Sequence[str | Path], left_out: list[Path] | None = None) -> list[tuple[Path, str]]:
    """Expand paths and folders (not recursively) to pairs of a file and a name that no other pair has.

    The names are `unique_names` of the stems; ``left_out`` is as of `images_in`.

    Raises:
        FileNotFoundError: a path does not exist, or there is no image file at all.
    """
    paths = [Path(path) for path in paths]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise FileNotFoundError(f"There is no file {', '.join(missing)}.")
    files = [f for path in paths for f in (images_in(path, left_out) if path.is_dir() else [path])]
    if not files:
        raise FileNotFoundError(f"There is no image file in {', '.join(map(str, paths))}.")
    return list(zip(files, unique_names(file.stem for file in files), strict=True))


def unique_names(stems: Iterable[str]) -> Iterator[str]:
    """`file_name` of each; a repeated one gets a number: photo, photo_2."""
    taken = set()
    for stem in map(file_name, stems):
        numbers = (f"{stem}_{n}" if n > 1 else stem for n in count(1))
        taken.add(name := next(name for name in numbers if name not in taken))
        yield name


def images_in(folder: Path, left_out: list[Path] | None = None) -> list[Path]:
    """The image files in a folder, in natural order (IMG_2 before IMG_10).

    To ``left_out`` is appended what else is there: sub-folders, no images, and masks, as x_mask.png beside x.jpg.
    """
    found = entries(folder)
    images = [f for f in found if is_image(f)]
    stems = {f.stem.lower() for f in images}
    images = [f for f in images if not is_mask(f.stem.lower(), stems)]
    if left_out is not None:
        left_out += sorted(set(found) - set(images))
    return images


def is_mask(stem: str, stems: Container[str]) -> bool:
    """Whether a stem in small letters names a mask of one of the others beside it, as x_mask of x."""
    plain = MASK_NAME.sub("", stem)
    return plain != stem and plain in stems


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in natural order, without what is hidden or a system's own."""
    return sorted(
        (f for f in folder.iterdir() if f.name[0] != "." and f.name.lower() not in SYSTEM),
        key=lambda f: ([int(p) if p.isdecimal() else p.lower() for p in re.split(r"(\d+)", f.name)], f.name),
    )


def is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix or, if it has none, by its first bytes."""
    suffix = path.suffix.lower().rstrip()
    if any(map(str.isalpha, suffix)) or not (path.is_file() and os.access(path, os.R_OK)):
        return suffix in IMAGE_SUFFIXES
    with path.open("rb") as file:
        return file.read(4).startswith(BEGINNINGS)


def printable(text: object) -> str:
    """Text from outside without what fonts, terminals, lists and XML refuse: a newline becomes %0A, half an é %DCE9."""
    return "".join(c if c.isprintable() or c in "\u00a0\u3000" else f"%{ord(c):02X}" for c in str(text))


def file_name(text: str, longest: int = 180) -> str:
    """`printable` text that every file system takes; cut to so many bytes, it ends in a hash of the whole."""
    name = re.sub(r"^[\s.]+|\s+$", "", printable(text).replace("/", "%2F")) or "_"
    content, end = name.encode(), f"~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name if len(content) <= longest else content[: longest - len(end)].decode(errors="ignore") + end


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a draft path that is renamed to ``path`` on success, so that nobody sees half a file; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{file_name(path.name, 240)}.part")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 RGB (H, W, 3) or grey (H, W) in the format the suffix names; the file appears as a whole or not."""
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"An image file must end in one of {', '.join(IMAGE_SUFFIXES)}. Received: {path}")
    with atomic_write(path) as draft:
        Image.fromarray(image).save(draft, Image.registered_extensions()[path.suffix.lower()], quality=95)


def check_images(images: np.ndarray) -> np.ndarray:
    """The one test of image arrays: uint8 RGB (N, H, W, 3), or a single (H, W, 3), comes back as (N, H, W, 3).

    Raises:
        ValueError: anything else; the sentence says what was received and what is expected.
    """
    try:
        images = images if isinstance(images, Stored) else np.asarray(images)
    except ValueError:
        raise ValueError(f"Received images of different shapes, {EXPECTED}: resize them first.") from None
    if images.dtype == np.uint8 and images.ndim in (3, 4) and images.shape[-1] == 3 and images.size:
        return images if images.ndim == 4 else images[None]
    raise ValueError(f"Received {images.dtype} of shape {images.shape}, {EXPECTED}: {_problem(images)}.")


def _problem(images):
    """Why these are no images."""
    if np.issubdtype(images.dtype, np.floating):
        nan = ", some of them NaN" if np.isnan(images).any() else ""
        return f"floats are not accepted{nan}, convert 0..1 with np.round(images * 255).astype(np.uint8)"
    if images.dtype != np.uint8:
        return "convert values 0..255 with images.astype(np.uint8)"
    if images.ndim == 2:
        return "stack a grey image three times, np.stack([image] * 3, axis=-1)"
    if images.ndim in (3, 4) and images.shape[-1] == 4:
        return "drop an alpha channel with images[..., :3]"
    if images.ndim not in (3, 4) or images.shape[-1] != 3:
        return "the shape does not fit"
    return "at least one image and one pixel are needed"


def blur_away(image: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) with nothing left to recognise: Gaussian blur, σ = side / 8. Same dtype."""
    return cv2.GaussianBlur(image, (0, 0), sigmaX=image.shape[1] / 8, sigmaY=image.shape[0] / 8)


def resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """The one resize, used in training, inference and for maps: plain, the aspect is not kept.

    Area filter along an axis that shrinks, bilinear along an axis that grows.

    Args:
        images: uint8 or float32 (N, H, W, 3), or float32 maps (N, H, W), or bool masks (N, H, W); N may be 0.

    Returns:
        The same dtype, (N, height, width[, 3]); the array itself if it has that size. Masks are resized as numbers and
        cut at one half.
    """
    if images.shape[1:3] == (height, width):
        return images
    if images.dtype == bool:
        return resize(images.astype(np.float32), height, width) >= 0.5
    is_rgb = images.ndim == 4 and images.shape[-1] == 3 and images.dtype in (np.uint8, np.float32)
    is_map = images.ndim == 3 and images.dtype == np.float32
    if not (is_rgb or is_map) or min(height, width, *images.shape[1:3]) < 1:
        raise ValueError(
            f"Cannot resize {images.dtype} of shape {images.shape} to {height}x{width}, expected uint8 or float32 "
            "(N, H, W, 3) or float32 or bool (N, H, W), with sides of at least 1."
        )
    resized = np.empty((len(images), height, width, *images.shape[3:]), images.dtype)
    for image, out in zip(images, resized, strict=True):
        h, w = image.shape[:2]
        if (height - h) * (width - w) < 0:  # one axis shrinks, the other grows: the area filter cannot do both
            image = cv2.resize(image, (min(w, width), min(h, height)), interpolation=cv2.INTER_AREA)
        grows = height > h or width > w
        out[...] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR if grows else cv2.INTER_AREA)
    return resized


def placing(grid: tuple[int, int], size: tuple[int, int], window: tuple[float, float, float, float]) -> list:
    """Of rows (H, h) and of columns (W, w): what puts a grid of cells into its window of an image of this size."""
    matrices = []
    for n_cells, n_pixels, (start, end) in zip(grid, size, (window[:2], window[2:]), strict=True):
        place = ((np.arange(n_pixels) + 0.5) / n_pixels - start) / (end - start)  # 0 to 1 inside
        cell = np.clip(place * n_cells - 0.5, 0, n_cells - 1)
        share = np.maximum(1 - np.abs(cell[:, None] - np.arange(n_cells)), 0)  # linear between the middles of cells
        matrices.append(np.where((place[:, None] >= 0) & (place[:, None] <= 1), share, 0).astype(np.float32))
    return matrices
