"""What an explanation costs: every way to one, beside the bare forward pass it needs and beside exact Grad-CAM.

Ratios tell more than milliseconds, and they are fair: the methods of one configuration take turns in one process. Each
number of threads has a process of its own, because TensorFlow takes that number only once.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from utils import repro  # isort: skip  first: it imports TensorFlow quietly
import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from utils import data, export, gradcam, imaging, networks, runtime
from utils.faster_gradcam import FasterGradCAM, feature_network

EXACT = "exact Grad-CAM"
WAYS = ("Keras", "LiteRT float32", "LiteRT int8")  # to an explanation without a gradient
METHODS = (EXACT, *(f"{way} {what}" for way in WAYS for what in ("explain", "forward")))
LARGE = (224, 224)  # measured beside the network's own size
BATCH_SIZES = (1, 32)
THREADS = (1, 2)
ROUNDS = 9
TURN_SECONDS = 0.05  # a short method is called again and again for that long when it is its turn
N_CALIBRATION = 40  # speed does not depend on it
FORWARD_FLOAT, FORWARD_INT8 = "forward.tflite", "forward_int8.tflite"
HANDS = Path(__file__).resolve().parents[2] / "data" / "hands"
CPU_INFO = Path("/proc/cpuinfo")  # of Linux
THREAD_VARIABLES = (
    "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM",
)  # fmt: skip


def run(
    model_folder: str | os.PathLike, rounds: int = ROUNDS, progress: Callable[[str], None] = lambda text: None
) -> dict:
    """Measure a model at its own image size and at 224x224, with batches of 1 and 32, on one and on two threads.

    A frame is uint8 and has the network's size. Explanations give label and heat map, forward passes the embedding.

    Args:
        model_folder: what `FasterGradCAM.save` wrote.
        rounds: turns of each method.
        progress: called with a sentence before each step; the steps take about a minute each.

    Returns:
        dict, ready for JSON: "model", "machine", "rounds", and "configurations", a list of dicts with "image_size",
        "threads", "batch_size", "milliseconds" (by method the three quartiles of the time an image takes) and "ratios".
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1. Received: {rounds!r}")
    faster = FasterGradCAM.load(model_folder)
    # A network that is not from the registry cannot be built at another size.
    sizes = dict.fromkeys((faster.image_size, LARGE) if faster.network.spec else (faster.image_size,))
    configurations = []
    for size in sizes:
        name = f"{size[0]}x{size[1]}"
        with tempfile.TemporaryDirectory() as folder:
            progress(f"{name}: exporting")
            _export(at_size(faster, size), Path(folder))
            for n_threads in THREADS:
                progress(f"{name}: measuring, threads: {n_threads}")
                configurations += _in_process(n_threads, os.path.abspath(model_folder), size, folder, rounds)
    return {
        "model": {"name": Path(model_folder).name, "layer": faster.meta["layer"], "network": faster.meta["network"]},
        "machine": machine(), "rounds": rounds, "configurations": configurations,
    }  # fmt: skip


def at_size(faster: FasterGradCAM, size: tuple[int, int]) -> FasterGradCAM:
    """The same explainer for square images of another size: kernels, clusters and weights do not depend on it."""
    if faster.image_size == tuple(size):
        return faster
    spec = replace(faster.network.spec, image_size=size[0])
    network = feature_network(spec, faster.meta)
    network.set_weights(faster.network.get_weights())
    return FasterGradCAM(
        network, faster.class_names, faster.prototypes, faster.centroids, faster.cluster_classes, faster.mean_weights,
        faster.contrast, faster.detail_weights, faster.meta,
    )  # fmt: skip


def frames(n_images: int, size: tuple[int, int]) -> np.ndarray:
    """The first of the shipped hands, uint8 (N, H, W, 3)."""
    return imaging.resize(data.load_folder(HANDS, image_size=max(size)).images[:n_images], *size)


def time_in_turn(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a call, for each function one figure a round: all of them once to warm up, then in turn.

    A turn lasts `TURN_SECONDS`, or one call that takes longer. Its figure is the median of the calls but the first,
    which finds the caches filled by another function.
    """
    for call in runs.values():
        call()
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, call in runs.items():
            turn = []
            while sum(turn) < TURN_SECONDS:
                start = time.perf_counter()
                call()
                turn.append(time.perf_counter() - start)
            seconds[name].append(float(np.median(turn[1:] or turn)))
    return seconds


def ratios(milliseconds: dict[str, list[float]]) -> dict[str, float]:
    """Of the medians: each explanation over its bare forward pass, and exact Grad-CAM over each explanation."""
    median = {name: quartiles[1] for name, quartiles in milliseconds.items()}
    cost = {f"{way} explain / forward": median[f"{way} explain"] / median[f"{way} forward"] for way in WAYS}
    gain = {f"exact / {way} explain": median[EXACT] / median[f"{way} explain"] for way in WAYS}
    return {name: round(value, 3) for name, value in (cost | gain).items()}


def machine() -> dict:
    """CPU, cores, system and versions of what ran on it."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": next(models, platform.processor() or platform.machine()), "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}", "versions": repro.versions(),
    }  # fmt: skip


def table(result: dict) -> str:
    """The result of `run` as two Markdown tables, times and ratios, below a line about the machine."""
    host, configurations = result["machine"], result["configurations"]
    versions = ", ".join(
        f"{name} {host['versions'][name]}" for name in ("python", "tensorflow", "keras", "ai-edge-litert")
    )
    cases = [
        [f"{c['image_size'][0]}x{c['image_size'][1]}", str(c["threads"]), str(c["batch_size"])] for c in configurations
    ]
    times = [[_quartiles(c["milliseconds"][method]) for method in METHODS] for c in configurations]
    shares = [[f"{value:.2f}" for value in c["ratios"].values()] for c in configurations]
    return "\n".join([
        f"{host['cpu']}, {host['cores']} cores, {host['system']}; {versions}; {result['rounds']} rounds.",
        "", "Milliseconds an image, median (quartiles):", "",
        *markdown(["image", "threads", "batch", *METHODS], [a + b for a, b in zip(cases, times, strict=True)]),
        "", "Ratios of the medians:", "",
        *markdown(["image", "threads", "batch", *configurations[0]["ratios"]],
                  [a + b for a, b in zip(cases, shares, strict=True)]),
    ])  # fmt: skip


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, its columns aligned at the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = [f"{'-' * (width - 1)}:" for width in widths]
    return [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, rule, *rows)
    ]


def _quartiles(values):
    lower, median, upper = (f"{value:.3g}" for value in values)
    return f"{median} ({lower}–{upper})"


def _export(faster, folder):
    """Write the explainer and the bare network, in float32 and in int8."""
    images = frames(N_CALIBRATION, faster.image_size)
    export.export_float(faster, folder / runtime.FLOAT_FILE)
    export.export_int8(folder / runtime.FLOAT_FILE, images, folder / runtime.INT8_FILE)
    # The bare network goes the same way into the same form: one image, float in and out.
    image = keras.Input(batch_shape=(1, *faster.image_size, 3), name="image")
    forward = export.convert(keras.Model(image, faster.network(image)[1]))
    (folder / FORWARD_FLOAT).write_bytes(forward)
    (folder / FORWARD_INT8).write_bytes(export.quantise(forward, images))


def _in_process(n_threads, *arguments):
    """`_measure` in a process that has that many threads."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(n_threads))
    command = [sys.executable, "-m", "utils.commands.benchmark", json.dumps([*arguments, n_threads])]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(model_folder, size, folder, rounds, n_threads):
    """The configurations of one image size and one number of threads."""
    faster, folder = at_size(FasterGradCAM.load(model_folder), size), Path(folder)
    classifier, layer = faster.classifier(), faster.meta["layer"]
    embedding = keras.Model(faster.network.inputs[0], faster.network.outputs[1])
    float32, int8 = (runtime.Explainer(folder / name, n_threads) for name in (runtime.FLOAT_FILE, runtime.INT8_FILE))
    calls = (
        lambda images: gradcam.explain(classifier, images, layer=layer),
        faster.explain,
        lambda images: networks.forward(embedding, images),
        float32.explain,
        _litert_forward(folder / FORWARD_FLOAT, n_threads),
        int8.explain,
        _litert_forward(folder / FORWARD_INT8, n_threads),
    )
    configurations = []
    for batch_size in BATCH_SIZES:
        images = frames(batch_size, size)
        runs = {name: partial(call, images) for name, call in zip(METHODS, calls, strict=True)}
        milliseconds = {
            name: (np.percentile(seconds, (25, 50, 75)) * 1000 / batch_size).round(4).tolist()
            for name, seconds in time_in_turn(runs, rounds).items()
        }
        configurations.append({
            "image_size": size, "threads": n_threads, "batch_size": batch_size, "milliseconds": milliseconds,
            "ratios": ratios(milliseconds),
        })  # fmt: skip
    return configurations


def _litert_forward(path, n_threads):
    """images → embeddings of a bare network, image by image as `runtime.Explainer` does it."""
    with runtime.silent_stderr():
        interpreter = Interpreter(os.fspath(path), num_threads=n_threads)
        interpreter.allocate_tensors()
    image_in = interpreter.tensor(interpreter.get_input_details()[0]["index"])
    output = interpreter.get_output_details()[0]["index"]

    def embed(image):
        image_in()[0] = image  # uint8 to float32
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return lambda images: np.concatenate([embed(image) for image in images])


if __name__ == "__main__":
    print(json.dumps(_measure(*json.loads(sys.argv[1]))))
