"""Speed of the page in a headless Chromium, whose camera shows rendered hands at 240 x 180, 30 a second.

    npm install --prefix out/litertjs @litertjs/core@2.5.3
    python tests/benchmarks/page.py

First frame: from opening the page to the first explanation, best of three. Network: the quickest tenth of the frames,
beside that of one thread of `runtime.Explainer` at the same pace.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import browser
import numpy as np

from utils import imaging, runtime
from utils.commands.common import DEFAULT_MODEL
from utils.render import hands


def open_page(chromium, address):
    """A page that explains the camera, and the seconds until its first frame."""
    tab, start = chromium.tab(camera=True, before=browser.RECORD), time.monotonic()
    tab.open(address)
    tab.click("#start")
    tab.wait("results.length")
    return tab, time.monotonic() - start


def measure(chromium, address, file):
    tab, *seconds = open_page(chromium, address)
    for _ in range(2):
        tab.close()
        tab, again = open_page(chromium, address)
        seconds.append(again)
    explainer, alone, rates = runtime.Explainer(file, 1), [], []
    image = np.zeros((*explainer.input_size, 3), np.uint8)
    for i in range(300):
        time.sleep(0.03)
        explainer.explain(image)
        alone.append(1000 * explainer.network_seconds)
        if i % 30 == 29:
            rates.append(float(tab.run("document.getElementById('rates').textContent").split()[0]))
    network = np.quantile(tab.run("results.map(({result}) => result.milliseconds)"), 0.1)
    tab.close()
    print(
        f"{file.name}: first frame {min(seconds):.1f} s; {np.median(rates):.0f} frames a second, at best "
        f"{max(rates):.0f}; network {network:.1f} ms, {network / np.quantile(alone, 0.1):.1f} x one thread"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    options = parser.parse_args()
    images = hands.render_hands([*hands.GESTURES, hands.NONE] * 25, image_size=240, seed=8)[0]
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder, "hands.y4m")
        browser.write_film(film, imaging.resize(images, 180, 240))
        chromium = browser.Browser(film)
        try:
            for name in (runtime.FLOAT_FILE, runtime.INT8_FILE):
                with browser.serve(options.model / name) as address:
                    measure(chromium, address, options.model / name)
        finally:
            chromium.close()


if __name__ == "__main__":
    main()
