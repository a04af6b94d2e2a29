"""Small pictures and what else several tests share."""

import numpy as np
from PIL import Image

RED, GREEN = (200, 20, 30), (20, 180, 40)


def photo(height=24, width=32, colour=RED):
    """Uint8 (height, width, 3): one colour, the left half of the top row white, so that its orientation shows."""
    image = np.full((height, width, 3), colour, np.uint8)
    image[: height // 2, : width // 2] = 255
    return image


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def sentence(error):
    """The message of a caught error, which must be one sentence on one line."""
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message.replace("[..., ", "")
    return message


def write_detector(folder, scale=1.0):
    """A folder with an exported file that finds anomalies: what is red, in images of 32 × 32; scores up to scale."""
    from utils import export, runtime
    from utils.repro import keras

    image = keras.Input(batch_shape=(1, 32, 32, 3), name="image")
    heat = image[..., 0] / 255.0
    network = keras.Model(image, {"scores": scale * keras.ops.max(heat, axis=(1, 2)), "heatmap": heat})
    metadata = {"precision": "float32", "image_size": [32, 32], "kind": "anomaly", "class_names": runtime.VERDICTS}
    export._write(folder / runtime.FLOAT_FILE, export.convert(network), metadata)
    return folder
