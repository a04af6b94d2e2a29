"""Images per second of ``bulk`` against as many plain loops round one Explainer of one thread. Needs Ray Data.

    python tests/benchmarks/bulk.py --images 4000 --actors 2

The loops run at the same time, in as many processes as `bulk` has workers, on files of the same kind; both alternate.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils import imaging, runtime  # noqa: E402
from utils.commands.common import DEFAULT_MODEL  # noqa: E402
from utils.render import hands  # noqa: E402

LOOP = """
import sys, time
from pathlib import Path
import cv2
from utils import imaging, runtime
cv2.setNumThreads(1)
explainer = runtime.Explainer(sys.argv[1], num_threads=1)
files = sorted(Path(sys.argv[2]).iterdir())[int(sys.argv[3])::int(sys.argv[4])]
sys.stdin.readline()
start, cpu = time.time(), time.process_time()
for path in files:
    explainer.explain(imaging.read_image(path))
print(start, time.time(), (time.process_time() - cpu) / len(files))
"""
SIDE, DIFFERENT = 160, 200  # pixels; images that are rendered, and then repeated


def render(folder: Path, n_images: int) -> None:
    """JPEG files of rendered hands."""
    names = [("gu", "choki", "pa", "none")[i % 4] for i in range(DIFFERENT)]
    for i, image in enumerate(hands.render_hands(names, SIDE, seed=0)[0]):
        imaging.write_image(folder / f"{i:06d}.jpg", image)
    for i in range(DIFFERENT, n_images):
        (folder / f"{i:06d}.jpg").write_bytes((folder / f"{i % DIFFERENT:06d}.jpg").read_bytes())


def time_loops(folder: Path, n: int) -> tuple[float, float]:
    """Images per second of n loops together, and CPU seconds per image."""
    command = [sys.executable, "-c", LOOP, str(DEFAULT_MODEL / runtime.FLOAT_FILE), str(folder)]
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    loops = [subprocess.Popen([*command, str(i), str(n)], **how) for i in range(n)]
    time.sleep(8)  # until all have loaded
    for loop in loops:
        loop.stdin.write("\n")
        loop.stdin.flush()
    told = [[float(value) for value in loop.communicate()[0].split()] for loop in loops]
    seconds = max(end for _, end, _ in told) - min(start for start, _, _ in told)
    return len(list(folder.iterdir())) / seconds, statistics.mean(cpu for *_, cpu in told)


def time_bulk(folder: Path, n: int) -> float:
    """Images per second of `bulk`, from the first piece to the last."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "utils", "bulk", str(folder), "--out", f"{out}/x", "--actors", str(n)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout
    return float(re.search(r"(\d+) images per second", done)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    loops, bulks = [], []
    with tempfile.TemporaryDirectory() as made:
        render(Path(made), options.images)
        for _ in range(options.rounds):
            loops.append(time_loops(Path(made), options.actors))
            bulks.append(time_bulk(Path(made), options.actors))
            print(f"loops {loops[-1][0]:.0f}   bulk {bulks[-1]:.0f} images per second", flush=True)
    ratio = statistics.median(bulk / loop for (loop, _), bulk in zip(loops, bulks, strict=True))
    cpu = statistics.median(cpu for _, cpu in loops)
    print(f"median ratio {ratio:.2f}; a loop takes {1000 * cpu:.1f} ms of CPU per image")


if __name__ == "__main__":
    main()
