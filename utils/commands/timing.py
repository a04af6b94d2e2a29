"""What an explanation costs, measured for `benchmark`: every way to one, its bare forward pass, exact Grad-CAM.

Ratios tell more than milliseconds, and they are fair: the methods of one configuration take turns in one process. Each
number of threads has a process of its own, because TensorFlow takes that number only once.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from utils import data, export, gradcam, imaging, networks, repro, runtime
from utils.commands import report
from utils.faster_gradcam import FasterGradCAM, feature_network
from utils.repro import keras

EXACT = "exact Grad-CAM"
WAYS = ("Keras", "LiteRT float32", "LiteRT int8")  # to an explanation without a gradient
LARGE = (224, 224)  # measured beside the network's own size
BATCH_SIZES = (1, 32)
THREADS = (1, 2)
ROUNDS = 9
N_CALIBRATION = 40  # speed does not depend on it
FORWARD_FLOAT, FORWARD_INT8 = "forward.tflite", "forward_int8.tflite"
HANDS = Path(__file__).resolve().parents[2] / "data" / "hands"
THREAD_VARIABLES = (
    "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM",
)


def run(
    model_folder: str | os.PathLike, rounds: int = ROUNDS, *, progress: Callable[[dict], None] = lambda entry: None
) -> dict:
    """Measure a model at its own image size and at 224x224, with batches of 1 and 32, on one and on two threads.

    A frame is uint8 and has the network's size. Explanations give label and heat map, forward passes the embedding.

    Args:
        model_folder: what `FasterGradCAM.save` wrote.
        rounds: turns of each method.
        progress: called before each step, of about a minute, with "done" and "total" configurations and "step".

    Returns:
        dict, ready for JSON: "model", "machine", "rounds", and "configurations", a list of dicts with "image_size",
        "threads", "batch_size", "milliseconds" (by method the three quartiles of the time per image) and "ratios".
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1. Received: {rounds!r}")
    faster = FasterGradCAM.load(model_folder)
    # A network that is not from the registry cannot be built at another size.
    sizes = dict.fromkeys((faster.input_size, LARGE) if faster.network.spec else (faster.input_size,))
    total = len(sizes) * len(THREADS) * len(BATCH_SIZES)
    configurations = []
    for size in sizes:
        name = f"{size[0]}x{size[1]}"
        with tempfile.TemporaryDirectory() as folder:
            progress({"done": len(configurations), "total": total, "step": f"{name}: exporting"})
            _export(at_size(faster, size), Path(folder))
            for num_threads in THREADS:
                step = f"{name}: measuring, threads: {num_threads}"
                progress({"done": len(configurations), "total": total, "step": step})
                measure = {"model_folder": os.path.abspath(model_folder), "size": size, "folder": folder}
                configurations += _in_process(measure | {"rounds": rounds, "num_threads": num_threads})
    model = {"name": Path(model_folder).name, "layer": faster.meta["layer"], "network": faster.meta["network"]}
    return {"model": model, "machine": report.machine(), "rounds": rounds, "configurations": configurations}


def at_size(faster: FasterGradCAM, size: tuple[int, int]) -> FasterGradCAM:
    """The same explainer for square images of another size: kernels, clusters and weights do not depend on it."""
    if faster.input_size == tuple(size):
        return faster
    spec = replace(faster.network.spec, image_size=size[0])
    network = feature_network(spec, faster.meta)
    network.set_weights(faster.network.get_weights())
    names = ("class_names", "prototypes", "clusters", "contrast", "detail_weights", "discriminant", "meta")
    return FasterGradCAM(network, **{name: getattr(faster, name) for name in names})


def frames(n_images: int, size: tuple[int, int]) -> np.ndarray:
    """The first of the shipped hands, uint8 (N, H, W, 3)."""
    return imaging.resize(data.load_folder(HANDS, image_size=max(size)).images[:n_images], *size)


def ratios(milliseconds: dict[str, list[float]]) -> dict[str, float]:
    """Of the medians: each explanation over its bare forward pass, and exact Grad-CAM over each explanation."""
    median = {name: quartiles[1] for name, quartiles in milliseconds.items()}
    cost = {f"{way} explain / forward": median[f"{way} explain"] / median[f"{way} forward"] for way in WAYS}
    gain = {f"exact / {way} explain": median[EXACT] / median[f"{way} explain"] for way in WAYS}
    return {name: round(value, 3) for name, value in (cost | gain).items()}


def _export(faster, folder):
    """Write the explainer and the bare network, in float32 and in int8."""
    images = frames(N_CALIBRATION, faster.input_size)
    export.export_float(faster, folder / runtime.FLOAT_FILE)
    export.export_int8(folder / runtime.FLOAT_FILE, images, folder / runtime.INT8_FILE)
    # The bare network goes the same way into the same form: one image, float in and out.
    image = keras.Input(batch_shape=(1, *faster.input_size, 3), name="image")
    forward = export.convert(keras.Model(image, faster.network(image)[1]))
    (folder / FORWARD_FLOAT).write_bytes(forward)
    (folder / FORWARD_INT8).write_bytes(export.quantise(forward, images))


def _in_process(arguments):
    """`_measure` in a process that has that many threads."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(arguments["num_threads"]))
    command = [sys.executable, "-m", "utils.commands.timing", json.dumps(arguments)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(model_folder, size, *, folder, rounds, num_threads):
    """The configurations of one image size and one number of threads."""
    faster = at_size(FasterGradCAM.load(model_folder), size)
    calls = _calls(faster, Path(folder), num_threads)
    configurations = []
    for batch_size in BATCH_SIZES:
        images = frames(batch_size, size)
        seconds = repro.time_in_turn({name: partial(call, images) for name, call in calls.items()}, rounds)
        milliseconds = {
            name: (np.percentile(values, (25, 50, 75)) * 1000 / batch_size).round(4).tolist()
            for name, values in seconds.items()
        }
        configurations.append({
            "image_size": size, "threads": num_threads, "batch_size": batch_size, "milliseconds": milliseconds,
            "ratios": ratios(milliseconds),
        })
    return configurations


def _calls(faster, folder, num_threads):
    """{method: its function of images (N, H, W, 3)}."""
    classifier = faster.classifier()
    embedding = keras.Model(faster.network.inputs[0], faster.network.outputs[1])
    return {
        EXACT: lambda images: gradcam.explain(classifier, images, layer=faster.meta["layer"]),
        "Keras explain": faster.explain,
        "Keras forward": lambda images: networks.forward(embedding, images),
        "LiteRT float32 explain": runtime.Explainer(folder / runtime.FLOAT_FILE, num_threads=num_threads).explain,
        "LiteRT float32 forward": _litert_forward(folder / FORWARD_FLOAT, num_threads),
        "LiteRT int8 explain": runtime.Explainer(folder / runtime.INT8_FILE, num_threads=num_threads).explain,
        "LiteRT int8 forward": _litert_forward(folder / FORWARD_INT8, num_threads),
    }


def _litert_forward(path, num_threads):
    """images → embeddings of a bare network, image by image as `runtime.Explainer` does it."""
    with runtime.silent_stderr():
        interpreter = Interpreter(os.fspath(path), num_threads=num_threads)
        interpreter.allocate_tensors()
    image_in = interpreter.tensor(interpreter.get_input_details()[0]["index"])
    output = interpreter.get_output_details()[0]["index"]

    def embed(image):
        image_in()[0] = image  # uint8 to float32
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return lambda images: np.concatenate([embed(image) for image in images])


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
