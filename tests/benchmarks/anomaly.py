"""How well the anomaly detector finds and shows defects that it has never seen, and what that costs.

    python tests/benchmarks/anomaly.py circles [--seeds 0 1 2]   # drawn rings, from scratch
    python tests/benchmarks/anomaly.py photos                    # photos of scikit-image with pasted damage
    python tests/benchmarks/anomaly.py real --data FOLDER        # real defects, each source of evidence alone
    python tests/benchmarks/anomaly.py tiles --data FOLDER       # the same, 12 pixels wide in photos of 2,000
    python tests/benchmarks/anomaly.py speed                     # beside a bare forward pass, and as LiteRT

Measures: AUROC of images and of pixels, AP of pixels (all together), AUPRO up to a false-positive rate of 0.3. Beside
the detector the patch memory (after PatchCore, arXiv 2106.08265): features of two resolutions, 1/8 and 1/16, averaged
over 3×3 cells and brought to the finer grid, 5,000 random patches of the normal images, distance to the nearest one,
Gaussian blur of σ = 4 pixels at 224; on the detector's own network, and where there are ImageNet weights on MobileNetV2
with these, blocks 6 and 13.

Photos: pieces of brick, grass, gravel and the moon from anywhere in the photo, every second mirrored; and coins, coffee
and camera, taken anew a little askew. 60 normal images to fit, 48 normal and 48 damaged ones to judge by: cracks in
half of them, scratches, stains and spots. Needs ImageNet weights in $IMAGENET_WEIGHTS and: pip install scikit-image
"""

import argparse
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np

from utils import anomaly, imaging, metrics, networks, repro, runtime
from utils.commands import defect_data, judging
from utils.commands.anomaly import find_normal
from utils.networks.normality import peaks
from utils.render import rings
from utils.repro import keras, tf

COLUMNS = ("image AUROC", "pixel AUROC", "pixel AP", "AUPRO")
N_FIT, N_TEST, SIZE = 200, 200, 96
TEXTURES, OBJECTS = ("brick", "grass", "gravel", "moon"), ("coins", "coffee", "camera")
DAMAGE = ("scratch", "crack", "stain", "crack", "spot", "crack")
MEMORY_LAYERS = anomaly.LAYERS["mobilenet_v2"][1:]
PHOTO_SIZE, N_PHOTOS, N_PHOTOS_TEST = 224, 60, 48
LARGE, TINY, N_MOSAICS, N_TINY = 2000, 12, 20, 20


def patch_memory(network, layers, normal, images):
    """Scores (N,) and maps (N, S, S) of the baseline; images of any size."""
    side = network.inputs[0].shape[1]
    model = keras.Model(network.inputs[0], [networks.get_layer(network, name).output for name in layers])

    def features(batch):
        parts = networks.forward(model, imaging.resize(batch, side, side))
        fine, coarse = (tf.nn.avg_pool2d(part, 3, 1, "SAME") for part in parts)
        return tf.concat([fine, tf.image.resize(coarse, fine.shape[1:3])], -1)

    batches = [features(normal[i : i + 32]) for i in range(0, len(normal), 32)]
    patches = tf.reshape(tf.concat(batches, 0), (-1, batches[0].shape[-1])).numpy()
    chosen = np.random.default_rng(0).choice(len(patches), min(5000, len(patches)), replace=False)
    memory, maps = patches[chosen], []
    for i in range(0, len(images), 16):
        found = features(images[i : i + 16])
        flat = tf.reshape(found, (-1, found.shape[-1]))
        nearest = tf.reduce_min((memory**2).sum(axis=1) - 2 * tf.matmul(flat, memory, transpose_b=True), 1)
        distances = tf.sqrt(tf.nn.relu(nearest + tf.reduce_sum(flat**2, 1)))
        maps.append(tf.reshape(distances, found.shape[:3]).numpy())
    maps = imaging.resize(np.concatenate(maps), *images.shape[1:3])
    sigma = 4 * images.shape[1] / 224
    maps = np.stack([cv2.GaussianBlur(heat, (0, 0), sigma) for heat in maps])
    return maps.max(axis=(1, 2)), maps


def measure(scores, maps, masks):
    """The four figures."""
    defective = masks.any(axis=(1, 2))
    images = metrics.image_auroc(scores, defective)
    return images, metrics.pixel_auroc(maps, masks), metrics.pxap(maps, masks), metrics.aupro(maps, masks)


def show(name, values, more=""):
    print(f"{name:34s}" + "".join(f"{value:13.4f}" for value in values) + f"  {more}", flush=True)


def imagenet(side):
    """MobileNetV2 with ImageNet weights, None where there are none."""
    spec = networks.Spec(image_size=side, last_layer=networks.DEFAULT_LAYER)
    try:
        return networks.embedding_network(spec, "imagenet")
    except FileNotFoundError:
        return None


def backbone(detector):
    """The detector's network as a plain one, for the baseline, and its two layers."""
    core = detector.core
    return core, anomaly.LAYERS[detector.meta["network"]["backbone"]][1:]


def judge_circles(options):
    rows = {}
    print(" " * 34 + "".join(f"{name:>13s}" for name in COLUMNS))
    for seed in options.seeds:
        normal, _ = rings.render_rings([rings.NORMAL] * N_FIT, SIZE, seed=1000 + seed)
        kinds = [rings.NORMAL] * N_TEST + [rings.DEFECTS[i % len(rings.DEFECTS)] for i in range(N_TEST)]
        images, masks = rings.render_rings(kinds, SIZE, seed=2000 + seed)
        detector = anomaly.AnomalyDetector.fit(normal, seed=seed, steps=options.steps)
        result = detector.explain(images)
        missing = np.array([kind in (rings.NORMAL, "missing piece") for kind in kinds])
        defective = masks.any(axis=(1, 2))
        false_positives = result.is_anomaly[~defective].mean()
        cold = result.heatmaps[~defective].mean() / result.heatmaps[masks].mean()
        alone = metrics.image_auroc(result.scores[missing], defective[missing])
        values = [*measure(result.scores, result.heatmaps, masks), alone, false_positives, cold]
        rows.setdefault("detector", []).append(values)
        show(f"detector, seed {seed}", values[:4], "missing piece {:.4f}, false positives {:.3f}, heat of normal "
             "images / inside defects {:.4f}".format(*values[4:]))
        networks_tried = {"patch memory, same network": backbone(detector)}
        if network := imagenet(PHOTO_SIZE):
            networks_tried["patch memory, ImageNet at 224"] = network, MEMORY_LAYERS
        for name, (network, layers) in networks_tried.items():
            values = measure(*patch_memory(network, layers, normal, images), masks)
            rows.setdefault(name, []).append(values)
            show(f"{name}, seed {seed}", values)
    for name, values in rows.items():
        mean = np.mean(values, axis=0)
        show(f"{name}, mean", mean[:4], " ".join(f"{value:.4f}" for value in mean[4:]))


def photo(name):
    import skimage.data

    return imaging.read_image(Path(skimage.data.__file__).with_name(f"{name}.png"))


def take(picture, is_texture, rng):
    """A normal image (S, S, 3) of a photo: a piece of it, or nearly all of it, a little askew."""
    height, width = picture.shape[:2]
    if is_texture:
        side = int(rng.uniform(0.36, 0.44) * min(height, width))
        x, y = rng.integers(0, width - side), rng.integers(0, height - side)
    else:
        side = int(0.9 * min(height, width))
        x, y = int((width - side) / 2 + rng.integers(-15, 15)), rng.integers(0, height - side)
    view = imaging.resize(picture[None, y : y + side, x : x + side], PHOTO_SIZE, PHOTO_SIZE)[0]
    if is_texture:
        view = view[:, :: rng.choice([-1, 1])]
    else:
        warp = cv2.getRotationMatrix2D((PHOTO_SIZE / 2,) * 2, rng.uniform(-3, 3), 1.06)
        view = cv2.warpAffine(view, warp, (PHOTO_SIZE,) * 2, borderMode=cv2.BORDER_REFLECT_101)
    return np.clip(view * rng.uniform(0.96, 1.04) + rng.normal(0, 1, view.shape), 0, 255).astype(np.uint8)


def wander(rng, n, step, turn):
    """Points of a path, int32 (n + 1, 2), in sixteenths of a pixel."""
    angles = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, turn, n + 1))
    points = rng.uniform(0.15, 0.85, 2) + step * np.cumsum(np.stack([np.cos(angles), np.sin(angles)], 1), 0)
    return np.round(points * PHOTO_SIZE * 16).astype(np.int32)


def damage(image, kind, rng):
    """The image with a defect, and its mask."""
    side, tone, plane = len(image), image.reshape(-1, 3).mean(axis=0), np.zeros(image.shape[:2], np.float32)
    if kind == "scratch":
        path = wander(rng, 20, rng.uniform(0.01, 0.03), 0.08)
        cv2.polylines(plane, [path], False, 1.0, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
        colour, opacity, soft = tone + rng.choice([-1, 1]) * rng.uniform(50, 110), rng.uniform(0.5, 0.95), 0.6
    elif kind == "crack":
        for _ in range(rng.integers(1, 3)):
            path = wander(rng, 40, 0.015, 0.5)
            branch = wander(rng, 15, 0.015, 0.4)
            for start, end in zip(path[:-1], path[1:], strict=True):
                cv2.line(plane, start.tolist(), end.tolist(), 1.0, int(rng.integers(2, 7)), cv2.LINE_AA, 4)
            cv2.polylines(plane, [branch - branch[0] + path[rng.integers(5, 30)]], False, 1.0, 2, cv2.LINE_AA, 4)
        colour, opacity, soft = tone * rng.uniform(0.2, 0.5), rng.uniform(0.6, 0.95), 0.8
    elif kind == "stain":
        uneven = cv2.resize(rng.random((8, 8), np.float32), (side, side), interpolation=cv2.INTER_CUBIC) - 0.5
        y, x = np.mgrid[:side, :side] - rng.uniform(0.2, 0.8, (2, 1, 1)) * side
        plane = (np.hypot(x, y) / (side * rng.uniform(0.06, 0.16)) + uneven < 1).astype(np.float32)
        colour, opacity, soft = tone * rng.choice([0.45, 1.7]) + rng.normal(0, 15, 3), rng.uniform(0.25, 0.5), 2.5
    else:
        centre, radius = rng.uniform(0.1, 0.9, 2) * side, rng.uniform(0.02, 0.05) * side
        cv2.circle(plane, np.round(centre * 16).astype(int).tolist(), round(radius * 16), 1.0, -1, cv2.LINE_AA, 4)
        colour, opacity, soft = tone + rng.choice([-1, 1]) * rng.uniform(60, 120), rng.uniform(0.5, 0.9), 1.5
    grain = image - cv2.GaussianBlur(image, (0, 0), 4.0).astype(float)
    share = opacity * cv2.GaussianBlur(plane, (0, 0), soft)[..., None]
    changed = image * (1 - share) + share * (np.clip(colour, 0, 255) + 0.5 * grain)
    return np.clip(changed, 0, 255).astype(np.uint8), plane >= 0.5


def photos(name):
    """Normal images to fit, images to judge by, their masks."""
    picture, is_texture, rng = photo(name), name in TEXTURES, np.random.default_rng(sum(map(ord, name)))
    views = np.stack([take(picture, is_texture, rng) for _ in range(N_PHOTOS + 2 * N_PHOTOS_TEST)])
    normal, images = views[:N_PHOTOS], views[N_PHOTOS:]
    masks = np.zeros(images.shape[:3], bool)
    for i in range(N_PHOTOS_TEST, len(images)):
        images[i], masks[i] = damage(images[i], DAMAGE[i % len(DAMAGE)], rng)
    return normal, images, masks


def judge_photos(options):
    rows, network = {"detector": [], "patch memory": []}, imagenet(PHOTO_SIZE)
    if network is None:
        sys.exit("photos needs ImageNet weights in $IMAGENET_WEIGHTS.")
    print(" " * 34 + "".join(f"{name:>13s}" for name in COLUMNS))
    for name in options.names:
        normal, images, masks = photos(name)
        values = measure(*patch_memory(network, MEMORY_LAYERS, normal, images), masks)
        show(f"patch memory, {name}", values)
        rows["patch memory"].append(values)
        detector = anomaly.AnomalyDetector.fit(normal, "imagenet", steps=options.steps)
        result = detector.explain(images)
        values = measure(result.scores, result.heatmaps, masks)
        false_positives = result.is_anomaly[:N_PHOTOS_TEST].mean()
        show(f"detector, {name}", values, f"false positives {false_positives:.3f}")
        rows["detector"].append(values)
    for name, values in rows.items():
        show(f"{name}, mean", np.mean(values, axis=0))


def real(product):
    """Normal images to fit, a list; images to judge by, uint8, and masks, bool, at 224 × 224."""
    side = PHOTO_SIZE, PHOTO_SIZE
    normal = [imaging.read_image(path) for path in find_normal(product.train)]
    paths, masks = product.normal + product.defective, [None] * len(product.normal) + product.masks
    images = [imaging.read_image(path) for path in paths]
    masks = [judging.shrink(defect_data.read_mask(m, image), side) for m, image in zip(masks, images, strict=True)]
    return normal, images, np.stack(masks)


def judge_real(options):
    """Data sets of real defects: the detector, its sources alone, the patch memory on 224 × 224."""
    rows, network, side = {}, imagenet(PHOTO_SIZE), (PHOTO_SIZE, PHOTO_SIZE)
    if network is None:
        sys.exit("real needs ImageNet weights in $IMAGENET_WEIGHTS.")
    print(" " * 34 + "".join(f"{name:>13s}" for name in COLUMNS))
    for product in defect_data.find_products(options.data):
        normal, images, masks = real(product)
        small, seen = (np.concatenate([imaging.resize(x[None], *side) for x in part]) for part in (normal, images))
        values = measure(*patch_memory(network, MEMORY_LAYERS, small, seen), masks)
        show(f"patch memory, {product.name}", values)
        rows.setdefault("patch memory", []).append(values)
        for seed in options.seeds:
            start = time.perf_counter()
            detector = anomaly.AnomalyDetector.fit(normal, "imagenet", seed=seed, steps=options.steps)
            seconds = time.perf_counter() - start
            found = [detector.explain(image) for image in images]
            maps = np.concatenate([imaging.resize(one.heatmaps, *side) for one in found])
            scores = np.concatenate([one.scores for one in found])
            at = judging.image_measures(scores, masks.any(axis=(1, 2)))
            values = [*measure(scores, maps, masks), at["found"], at["false_alarms"]]
            show(f"detector, seed {seed}", values[:4], "found {:.3f}, false alarms {:.3f}, at {} pixels, fit {:.0f} s"
                 .format(*values[4:], detector.input_size[0], seconds))
            rows.setdefault("detector", []).append(values)
            for name, z in _evidence(detector, images, side).items():
                values = measure(peaks(z[..., None]), z - z.min(), masks)
                show(f"  {name} alone", values)
                rows.setdefault(name, []).append(values)
    for name, values in rows.items():
        mean = np.mean(values, axis=0)
        show(f"{name}, mean", mean[:4], " ".join(f"{value:.3f}" for value in mean[4:]))


def _evidence(detector, images, side):
    found = [{name: imaging.resize(z, *side) for name, z in detector.evidence(image).items()} for image in images]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def mosaics(product, n, rng):
    """Photos of `LARGE` × `LARGE`, each of random normal images of a data set side by side; and further ones, each with
    a real defect, `TINY` × `TINY` pixels large."""
    side = LARGE // 4
    normal = [imaging.resize(imaging.read_image(path)[None], side, side)[0] for path in find_normal(product.train)]

    def mosaic():
        chosen = [normal[i] for i in rng.integers(len(normal), size=16)]
        return np.vstack([np.hstack(chosen[4 * row : 4 * row + 4]) for row in range(4)])

    known = [pair for pair in zip(product.defective, product.masks, strict=True) if pair[1]]
    photos = [mosaic() for _ in range(N_MOSAICS + 2 * n)]
    for photo, (path, mask) in zip(photos[N_MOSAICS + n :], rng.permutation(known), strict=False):
        image = imaging.read_image(path)
        x, y, width, height = cv2.boundingRect(defect_data.read_mask(mask, image).astype(np.uint8))
        tiny = imaging.resize(image[None, y : y + height, x : x + width], TINY, TINY)[0]
        y, x = rng.integers(0, LARGE - TINY, 2)
        photo[y : y + TINY, x : x + TINY] = tiny
    return photos[:N_MOSAICS], photos[N_MOSAICS:]


def judge_tiles(options):
    """Image AUROC where defects are tiny: photos squeezed into the input, and cut into tiles."""
    for product in defect_data.find_products(options.data):
        normal, images = mosaics(product, N_TINY, np.random.default_rng(0))
        defective = np.arange(len(images)) >= N_TINY
        for name, how in (("squeezed to 224", {"image_size": PHOTO_SIZE}), ("tiles of 224", {"tile": PHOTO_SIZE})):
            start = time.perf_counter()
            detector = anomaly.AnomalyDetector.fit(normal, "imagenet", seed=options.seeds[0], **how)
            middle = time.perf_counter()
            scores = np.array([detector.explain(image).scores[0] for image in images])
            at = judging.image_measures(scores, defective)
            print(
                f"{product.name}, {name}: image AUROC {at['image_auroc']:.3f}, found {at['found']:.2f}, false alarms "
                f"{at['false_alarms']:.2f}, fit {middle - start:.0f} s, "
                f"{(time.perf_counter() - middle) / len(images):.2f} s an image", flush=True
            )


def judge_speed(options):
    """The whole `explain` beside the bare forward pass of the network up to where the detector ends; LiteRT."""
    import tempfile

    from utils import export

    rng = np.random.default_rng(0)
    for weights, side in ((None, 96), ("imagenet" if imagenet(PHOTO_SIZE) else None, 224)):
        frame = rng.integers(0, 255, (side, side, 3)).astype(np.uint8)
        detector = anomaly.AnomalyDetector.fit(frame[None].repeat(4, 0), weights, image_size=side, steps=1)
        core = detector.core
        bare = keras.Model(core.inputs[0], core.outputs[3:])
        tensor = tf.constant(frame[None], tf.float32)
        run = networks.compiled(bare)
        with tempfile.TemporaryDirectory() as folder:
            explainer = runtime.Explainer(export.export_float(detector, Path(folder) / "a.tflite"), num_threads=2)
            turns = repro.time_in_turn(
                {
                    "bare forward": lambda run=run, tensor=tensor: [part.numpy() for part in run(tensor)],
                    "explain": lambda detector=detector, frame=frame: detector.explain(frame),
                    "LiteRT explain": lambda explainer=explainer, frame=frame: explainer.explain(frame),
                },
                options.rounds,
            )
        seconds = {name: np.median(values) for name, values in turns.items()}
        ratio = seconds["explain"] / seconds["bare forward"]
        times = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in seconds.items())
        print(f"{core.name} {detector.meta['network']['backbone']} at {side}: {times}; ratio {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("circles", "photos", "real", "tiles", "speed"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--names", nargs="+", default=[*TEXTURES, *OBJECTS], help="photos to take")
    parser.add_argument("--data", type=Path, help="folder of data sets, as `anomaly evaluate` takes it")
    parser.add_argument("--steps", type=int, help="of the training")
    parser.add_argument("--rounds", type=int, default=51)
    options = parser.parse_args()
    judges = {
        "circles": judge_circles, "photos": judge_photos, "real": judge_real, "tiles": judge_tiles, "speed": judge_speed
    }
    judges[options.what](options)


if __name__ == "__main__":
    main()
