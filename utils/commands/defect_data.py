"""Data sets of defects on disk: normal images to learn from, others to judge by, and masks of what is wrong in them.

    PRODUCT/train/good/*   test/good/*     test/<kind>/*    ground_truth/<kind>/<stem>[_mask].png    as MVTec AD has it
    PRODUCT/train/*        test/normal/*   test/<kind>/*    masks/<stem>.png
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import imaging

GOOD = re.compile(
    r"(good|ok|normals?|nominal|(defect|fault)s?[-_ ]?free|(no|non|without)[-_ ]?(defect|fault)(s|ive|y)?)"
    r"([-_ ]?(images|parts|samples|photos|\d+))?", re.I
)
MASKS = re.compile(r"ground_?truths?|gt|masks?", re.I)


@dataclass(frozen=True, eq=False)
class Product:
    """Paths of a data set of one product; ``masks`` has None where there is none."""

    name: str
    train: Path
    normal: list[Path]
    defective: list[Path]
    kinds: list[str]
    masks: list[Path | None]


def find_products(folder: Path) -> list[Product]:
    """The product in the folder, or those in its sub-folders.

    Raises:
        FileNotFoundError: there is none, or one has no normal or no defective image to judge by.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}, expected one with train/ and test/.")
    found = [path for path in [folder, *imaging.entries(folder)] if all((path / x).is_dir() for x in ("train", "test"))]
    if not found:
        raise FileNotFoundError(f"Neither {folder} nor a folder in it has train/ and test/.")
    return [_product(path) for path in found]


def read_mask(path: Path | None, image: np.ndarray) -> np.ndarray:
    """The mask of a defect, bool (H, W) as large as the image (H, W, 3); all False without a path.

    Raises:
        ValueError: no image, or of another size.
    """
    if path is None:
        return np.zeros(image.shape[:2], bool)
    mask = imaging.read_image(path).max(axis=-1) > 127
    if mask.shape != image.shape[:2]:
        sizes = " and ".join(f"{width} × {height}" for height, width in (mask.shape, image.shape[:2]))
        raise ValueError(f"The mask {path} has another size than its image: {sizes} pixels.")
    return mask


def _product(folder):
    kinds = [path for path in imaging.entries(folder / "test") if path.is_dir()]
    normal = [file for path in kinds if GOOD.fullmatch(path.name) for file in imaging.images_in(path)]
    pairs = [(file, path.name) for path in kinds if not GOOD.fullmatch(path.name) for file in imaging.images_in(path)]
    for files, what in ((normal, "normal"), (pairs, "defective")):
        if not files:
            raise FileNotFoundError(
                f"There is no {what} image in {folder / 'test'}, expected test/good and test/<kind of defect>."
            )
    roots = [path for path in imaging.entries(folder) if path.is_dir() and MASKS.fullmatch(path.name)]
    masks = {}
    for root in roots:
        for place in [root, *imaging.entries(root)]:
            for file in imaging.images_in(place) if place.is_dir() else ():
                masks[place.name if place != root else None, re.sub(r"_mask$", "", file.stem)] = file
    found = [masks.get((kind, file.stem), masks.get((None, file.stem))) for file, kind in pairs]
    files, names = ([pair[n] for pair in pairs] for n in (0, 1))
    return Product(
        name=folder.resolve().name, train=folder / "train", normal=normal, defective=files, kinds=names, masks=found
    )
