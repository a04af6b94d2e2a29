"""Why two images are alike: the exact shares against gradients of the cosine, on the shipped model.

    python tests/benchmarks/similarity.py maps --janken FOLDER --masks FOLDER [--rooms FOLDER...]
    python tests/benchmarks/similarity.py speed
    python tests/benchmarks/similarity.py search

`maps` deletes and inserts fifths of the cells of one image of a pair and asks the network again, compares the maps with
masks, and with each other. Grad-CAM of the cosine is what pytorch-grad-cam does for embeddings: the gradient of the
cosine with the other image's embedding, ReLU; behind global pooling it equals gradient × activation but for that ReLU.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from utils import data, imaging, metrics, runtime, similarity
from utils.commands import image_index
from utils.commands.common import DEFAULT_MODEL
from utils.networks import cells
from utils.render import hand_pose, hands

FLOAT, INT8 = DEFAULT_MODEL / runtime.FLOAT_FILE, DEFAULT_MODEL / runtime.INT8_FILE
HANDS = DEFAULT_MODEL.parents[1] / "hands"
N_PAIRS, PART = 200, 0.2
PER_CLASS = 10  # photos of a room
N_FINGERS, SEED = 60, 77001  # renders per class; no training used this seed


def photos(folder, per_class=None):
    """Images (N, 96, 96, 3), class names (N,) and file stems of the gestures in a folder."""
    found = [(f, name) for name in hands.GESTURES for f in _some(imaging.images_in(folder / name), per_class)]
    images = np.stack([imaging.resize(imaging.read_image(f)[None], 96, 96)[0] for f, _ in found])
    return images, np.array([name for _, name in found]), [f.stem for f, _ in found]


def _some(files, n):
    return files if n is None else [files[i] for i in np.linspace(0, len(files) - 1, n).astype(int)]


def draw_pairs(names, n, *, alike, rng):
    """Pairs of different images, of one class, of two classes, or (None) of any."""
    pairs = []
    while len(pairs) < n:
        i, j = rng.integers(0, len(names), 2)
        if i != j and (alike is None or (names[i] == names[j]) == alike):
            pairs.append((i, j))
    return pairs


def maps_of(explainer, a, b, rng):
    """Maps (h, w) of a by each way, and the comparison."""
    result = similarity.compare(explainer, a, b)
    product = result.shares_a - result.score * (result.shares_a + result.losses_a)  # gradient × activation
    outline = result.a.outline
    return result, {
        "exact": result.shares_a,
        "exact, with details": np.sqrt(np.maximum(result.shares_a, 0)) * outline,
        "gradient x activation": product,
        "Grad-CAM of the cosine": np.maximum(product, 0),
        "centre": metrics.centre_gaussian(*result.shares_a.shape),
        "random": rng.random(result.shares_a.shape, np.float32),
    }


def ask(explainer, images, unit):
    """Cosine of images with a unit embedding."""
    return explainer.explain(images).embeddings @ unit


def blank(image, gone):
    """The image with the cells gone, bool (h, w), blurred away."""
    mask = np.kron(gone, np.ones((image.shape[0] // gone.shape[0], image.shape[1] // gone.shape[1])))[..., None] > 0
    return np.where(mask, imaging.blur_away(np.float32(image)).round().astype(np.uint8), image)


def delete_and_insert(explainer, image, unit, maps):
    """Per way: similarity without the most similar fifth, with that alone, and the mean while tenths come in."""
    results = {}
    for way, own in maps.items():
        places = metrics.ranks(own[None])[0]  # 0 is the hottest
        counts = [round(PART * own.size), *np.linspace(0, own.size, 11).round().astype(int)]
        kept = [places >= counts[0], *(places < count for count in counts)]
        scores = ask(explainer, np.stack([blank(image, ~mask) for mask in kept]), unit)
        results[way] = scores[0], scores[1], np.trapezoid(scores[2:], dx=0.1)
    return results


def quality(explainer, sets, alike, seed=0):
    rng, found, scores = np.random.default_rng(seed), {}, []
    share = -(-N_PAIRS // len(sets))
    for images, names in sets.values():
        for i, j in draw_pairs(names, share, alike=alike, rng=rng):
            result, maps = maps_of(explainer, images[i], images[j], rng)
            scores.append(result.score)
            unit = result.b.embedding / result.b.length
            for way, values in delete_and_insert(explainer, images[i], unit, maps).items():
                found.setdefault(way, []).append(values)
    kind = {True: "one class", False: "two classes", None: "any"}[alike]
    print(f"\n{len(scores)} pairs of {kind}, mean similarity {np.mean(scores):.3f}")
    print("| | without a fifth | with a fifth alone | while they come in |\n|---|---:|---:|---:|")
    for way, values in found.items():
        print(f"| {way} | " + " | ".join(f"{value:.3f}" for value in np.mean(values, axis=0)) + " |")


def localisation(explainer, images, names, masks, seed=0):
    """Pixel AP of pairs of one class, and how far the ways agree."""
    rng, found, agreement = np.random.default_rng(seed), {}, []
    pairs = draw_pairs(names, N_PAIRS, alike=True, rng=rng)
    for i, j in pairs:
        result, maps = maps_of(explainer, images[i], images[j], rng)
        for way, own in maps.items():
            found.setdefault(way, []).append(imaging.resize(np.float32(np.maximum(own, 0))[None], 96, 96)[0])
        found.setdefault("as drawn", []).append(np.maximum(result.heatmap_a, 0))
        ways = [maps[way].ravel()[None, None] for way in ("exact", "gradient x activation")]
        agreement.append(metrics.spearman(*ways)[0])
    truth = masks[[i for i, _ in pairs]]
    print(f"\nPixel AP, {len(pairs)} pairs of one class: " + ", ".join(
        f"{way} {metrics.pixel_ap(np.stack(maps), truth).mean():.3f}" for way, maps in found.items()
    ))
    print(f"rank correlation of exact and gradient x activation {np.mean(agreement):.3f}")


def finger_masks(names, seed):
    """Images and masks of the fingers, bool (N, 96, 96): as hands are drawn, but all other parts count as a sleeve."""
    whole = hands._rasterise

    def fingers_only(*view):
        depth, parts = whole(*view)
        return depth, np.where((parts > 0) & (parts < hand_pose.FIRST_BONE), np.uint8(hand_pose.SLEEVE), parts)

    images, _ = hands.render_hands(names, 96, seed=seed)
    with mock.patch.object(hands, "_rasterise", fingers_only):
        return images, hands.render_hands(names, 96, seed=seed)[1]


def fingers(explainer, seed=0):
    import cv2

    names = np.array([name for name in hands.GESTURES for _ in range(N_FINGERS)])
    images, masks = finger_masks(list(names), SEED)
    pairs = [(i, j) for i, j in draw_pairs(names, 2 * N_PAIRS, alike=False, rng=np.random.default_rng(seed))]
    pairs = [(i, j) for i, j in pairs if masks[i].any()][:N_PAIRS]
    results = [explainer.compare(images[i], images[j]) for i, j in pairs]
    against = np.stack([np.maximum(result.difference_a, 0) for result in results])
    truth = masks[[i for i, _ in pairs]]
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    near = np.stack([cv2.dilate(mask.astype(np.uint8), disk) > 0 for mask in truth])
    centre = np.repeat(metrics.centre_gaussian(96, 96)[None], len(pairs), axis=0)
    print(f"\nWhat speaks against it on the fingers, {len(pairs)} pairs of two classes, renders:")
    for way, heat in (("drawn", against), ("centre", centre)):
        strict, loose = (metrics.pointing_game(heat, mask).mean() for mask in (truth, near))
        precision = metrics.pixel_ap(heat, truth).mean()
        print(f"{way}: pointing {strict:.3f}, within 3 pixels {loose:.3f}, pixel AP {precision:.3f}")


def run_maps(options):
    explainer = runtime.Explainer(FLOAT)
    images, names, stems = photos(options.janken)
    sets = {"janken": (images, names)}
    if options.rooms:
        parts = [photos(room, PER_CLASS)[:2] for room in options.rooms]
        sets["rooms"] = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    sets["hands"] = photos(HANDS)[:2]
    for alike in (True, False, None):
        quality(explainer, sets, alike)
    files = [options.masks / f"{name}_{stem}.png" for name, stem in zip(names, stems, strict=True)]
    masks = np.stack([imaging.resize((imaging.read_image(file)[..., 0] > 127)[None], 96, 96)[0] for file in files])
    localisation(explainer, images, names, masks)
    fingers(explainer)


def run_speed(_, rounds=150):
    from utils import gradcam
    from utils.faster_gradcam import FasterGradCAM
    from utils.repro import tf

    photo = [np.random.default_rng(i).integers(0, 256, (240, 320, 3)).astype(np.uint8) for i in range(2)]
    small = [imaging.resize(image[None], 96, 96)[0] for image in photo]
    faster, times = FasterGradCAM.load(DEFAULT_MODEL), {}
    network, other = cells.embedding_of(faster.network), faster.explain(small[1]).embeddings[0]
    runs = {}

    def to_other(embeddings):
        return tf.linalg.matvec(tf.math.l2_normalize(embeddings, axis=1), other)

    for name, file in (("float32", FLOAT), ("int8", INT8)):
        own = runtime.Explainer(file)
        for size, images in (("96 x 96", small), ("240 x 320", photo)):
            runs[f"{name} explain {size}"] = lambda own=own, images=images: own.explain(images[0])
            runs[f"{name} compare {size}"] = lambda own=own, images=images: own.compare(*images)
            runs[f"{name} compare, maps {size}"] = lambda own=own, images=images: own.compare(*images).heatmap_a
            runs[f"{name} compare, table {size}"] = lambda own=own, images=images: own.compare(*images).pairs
    runs["Keras compare"] = lambda: similarity.compare(faster, *small)
    runs["Keras, gradient of the cosine, one image"] = lambda: gradcam.explain(network, small[0], targets=to_other)
    for turn in range(rounds):
        for name, run in runs.items():
            if turn < 3 or name[0] in "fi" or turn % 20 == 0:
                start = time.perf_counter()
                run()
                times.setdefault(name, []).append(time.perf_counter() - start)
    for name, values in times.items():
        print(f"{name}: {1e3 * np.median(values[3:]):.2f} ms (lowest tenth {1e3 * np.percentile(values[3:], 10):.2f})")


def run_search(_, n=100_000):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = image_index.Index(Path("."), "", [{"name": str(i)} for i in range(n)], vectors)
    times = []
    for i in range(50):
        start = time.perf_counter()
        index.nearest(vectors[i], 12)
        times.append(time.perf_counter() - start)
    print(f"search of {n:,}: {1e3 * np.median(times):.1f} ms (lowest tenth {1e3 * np.percentile(times, 10):.1f})")
    images = data.load_folder(HANDS, 160).images
    explainer = runtime.Explainer(FLOAT)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        n_images = 10_000
        for i in range(n_images):
            imaging.write_image(folder / "photos" / f"{i}.jpg", images[i % len(images)])
        files = image_index.files_below(folder / "photos", [])
        for turn in range(2):
            start = time.perf_counter()
            for file in files[:2000]:
                explainer.explain(imaging.read_image(file))
            rate = 2000 / (time.perf_counter() - start)
            start, before = time.perf_counter(), _resident()
            image_index.update(folder / f"index_{turn}", folder / "photos", files, explainer)
            index_rate = n_images / (time.perf_counter() - start)
            print(f"index {index_rate:.0f} images/s, explain with reading {rate:.0f}: {index_rate / rate:.2f} times;"
                  f" memory {before:.0f} MB before, {_resident():.0f} after {n_images:,} images")


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    maps = parts.add_parser("maps")
    maps.add_argument("--janken", type=Path, required=True)
    maps.add_argument("--masks", type=Path, required=True)
    maps.add_argument("--rooms", type=Path, nargs="*", default=[])
    maps.set_defaults(run=run_maps)
    parts.add_parser("speed").set_defaults(run=run_speed)
    parts.add_parser("search").set_defaults(run=run_search)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
