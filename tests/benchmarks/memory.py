"""Peak resident memory of commands on photos of 12 megapixels, or on very many small ones: it must not grow with them.

    python tests/benchmarks/memory.py              # 200 photos, some minutes
    python tests/benchmarks/memory.py --photos 24
    python tests/benchmarks/memory.py --many 10000 50000 --folder made     # training of 200 steps, harvest and fit

The photos are made in a temporary folder, many small ones in one that is kept. `train` starts from ImageNet weights
where $IMAGENET_WEIGHTS names their folder, else from scratch, where it trains all layers. Each command is a process of
its own; its peak is the one that the system kept for it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils import imaging  # noqa: E402
from utils.render import hands  # noqa: E402

LIMIT, GROWTH = 1.3, 1.05  # GB; from the fewest images to the most
SIDE, DIFFERENT = 96, 1500  # of many images: pixels, and how many are rendered


def make_photos(folder, n_photos, size):
    """Two classes of hands, with noise as a camera's."""
    height, width = size
    noise = np.random.default_rng(0).integers(0, 8, (height, width, 3), np.uint8)
    for i in range(n_photos):
        gesture = hands.GESTURES[i % 2]
        images, _ = hands.render_hands([gesture], 160, seed=i)
        image = imaging.resize(images, height, width)[0]
        imaging.write_image(folder / gesture / f"{i}.jpg", np.minimum(image, 247) + np.roll(noise, i, axis=0))


def make_many(folder, n_images):
    """Hands of three classes with their masks, small: some are rendered, the others are these moved and tinted."""
    names = [hands.GESTURES[i % 3] for i in range(min(DIFFERENT, n_images))]
    rendered = hands.render_hands(names, SIDE, seed=0)
    for i in range(n_images):
        which, rng = i % len(names), np.random.default_rng([1, i])
        shift = rng.integers(-8, 9, 2) if i >= len(names) else (0, 0)
        image, mask = (np.roll(values[which], shift, (0, 1)) for values in rendered)
        image = np.clip(image + rng.integers(-20, 21, 3), 0, 255).astype(np.uint8)
        imaging.write_image(folder / names[which] / f"{i:06d}.jpg", image)
        imaging.write_image(folder / "masks" / names[which] / f"{i:06d}.png", 255 * mask.astype(np.uint8))


def measure_many(numbers, folder, recipe):
    """A training of each number of images; returns those that failed, take more than `LIMIT`, or than the first."""
    print("| images | peak, GB | seconds |\n|---:|---:|---:|")
    failed, least = [], None
    for number in numbers:
        photos = folder / str(number)
        if not photos.exists():
            make_many(photos, number)
        with tempfile.TemporaryDirectory() as out:
            code, gigabytes, seconds = peak(["train", "--data", str(photos), "--steps", "200", "--out", out, *recipe])
        least = least or gigabytes
        print(f"| {number} | {gigabytes:.3f} | {seconds:.0f} |", flush=True)
        failed += [str(number)] if code or gigabytes > min(LIMIT, GROWTH * least) else []
    return failed


def commands(folder, n_steps):
    """Name and arguments of each run; ``explain`` takes the model that ``train`` made."""
    photos, few = [str(folder / "photos" / gesture) for gesture in hands.GESTURES[:2]], ["--steps", str(n_steps)]
    model = str(folder / "model")
    small = ["--weights", "none", "--image-size", "96", *few]
    usual = few if os.environ.get("IMAGENET_WEIGHTS") else small
    return {
        "anomaly fit": ["anomaly", "fit", str(folder / "photos"), "--out", str(folder / "detector"), *small],
        "train": ["train", "--data", str(folder / "photos"), "--out", model, *usual],
        "annotate": ["annotate", *photos, "--out", str(folder / "dataset")],
        "explain": ["explain", *photos, "--model", model, "--out", str(folder / "explained")],
    }


def peak(arguments):
    """Exit code, peak in GB and seconds of a command."""
    start, null = time.perf_counter(), subprocess.DEVNULL
    run = subprocess.Popen([sys.executable, "-m", "utils", *arguments], cwd=ROOT, stdout=null)
    _, status, usage = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    return run.returncode, usage.ru_maxrss * 1024 / 1e9, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=200, metavar="N", help="number of photos (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(3000, 4000), metavar=("H", "W"), help="of a photo")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="of a training (default: %(default)s)")
    parser.add_argument("--many", type=int, nargs="+", metavar="N", help="train on so many small images instead")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="where these are, or will be")
    parser.add_argument("--recipe", default="--backbone small_resnet --weights none", help="how (default: %(default)s)")
    options = parser.parse_args()
    if options.many:
        with tempfile.TemporaryDirectory() as temporary:
            failed = measure_many(options.many, options.folder or Path(temporary), options.recipe.split())
        sys.exit(f"failed, or grew: {', '.join(failed)}" if failed else 0)
    with tempfile.TemporaryDirectory() as temporary:
        folder, failed = Path(temporary), []
        make_photos(folder / "photos", options.photos, options.size)
        print("| command | peak, GB | seconds |\n|---|---:|---:|")
        for name, arguments in commands(folder, options.steps).items():
            code, gigabytes, seconds = peak(arguments)
            print(f"| `{name}` | {gigabytes:.2f} | {seconds:.0f} |", flush=True)
            failed += [name] if code or gigabytes > LIMIT else []
    if failed:
        sys.exit(f"failed, or more than {LIMIT} GB: {', '.join(failed)}")


if __name__ == "__main__":
    main()
