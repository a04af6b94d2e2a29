"""The whole explainer as one LiteRT file: RGB 0..255 in; scores, embedding, cluster and heat map out.

That graph holds what `FasterGradCAM.explain` computes; prototypes, centroids and channel weights are constants in it.
An anomaly detector becomes such a file, too, of which anomaly score and heat map come out.
Only the resize of the image before it, and of the small heat map behind it, stays outside.
"""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np

from utils import imaging, networks, repro, runtime
from utils.anomaly import AnomalyDetector
from utils.faster_gradcam import FasterGradCAM
from utils.networks import cells, evidence, files
from utils.networks.files import ConverterError, convert, quantise
from utils.networks.tail import TAIL, ExplanationTail
from utils.repro import keras

N_CALIBRATION = 100


def export_float(model: FasterGradCAM | AnomalyDetector, path: str | os.PathLike) -> Path:
    """Write the explainer, or anomaly detector, as a float32 LiteRT file for one image at a time.

    Args:
        path: where it goes.

    Raises:
        ValueError: Keras is too old to export, or LiteRT cannot run the network: then it names the layer.

    Example:
        >>> import tempfile
        >>> model = FasterGradCAM.load("data/models/janken")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_float(model, Path(folder) / "explainer.tflite").name
        'explainer.tflite'
    """
    image = keras.Input(batch_shape=(1, *model.input_size, 3), name="image")
    metadata = {"precision": "float32", "image_size": list(model.input_size), "versions": repro.versions()}
    if isinstance(model, AnomalyDetector):
        outputs = dict(zip(runtime.OUTPUTS["anomaly"], model.network(image), strict=True))
        metadata |= {"kind": "anomaly", "class_names": list(runtime.VERDICTS)}
        metadata |= {"false_positives": model.meta["false_positives"], "views": model.views.asdict()}
    else:
        metadata |= {"class_names": list(model.class_names), "layer": model.meta["layer"]}
        network, tail = model.network, cells.linear_tail(cells.embedding_of(model.network))
        if tail and "/" not in tail.layer:  # not in a nested model
            maps = networks.get_layer(network, tail.layer).output
            *results, maps = networks.wrap(network.inputs[0], [*network.outputs, maps], like=network)(image)
            outputs = ExplanationTail(model)(*results) | cells.AsOutputs(tail, name=f"{TAIL}_cells")(maps)
            shown = networks.window(network, tail.layer, *model.input_size)
            metadata["cells"] = {"grid": maps.shape[1:3], "window": shown, "outline": shown == model.window}
        else:
            outputs = ExplanationTail(model)(*network(image))
    try:
        content = convert(keras.Model(image, outputs))
    except ConverterError:
        raise _refusal(model) from None
    return _write(path, content, metadata, model)


def export_int8(float_file: str | os.PathLike, images: np.ndarray, path: str | os.PathLike, *, seed: int = 0) -> Path:
    """Quantise an exported float file: weights and activations of the network in int8, its tail stays float.

    Args:
        float_file: what `export_float` wrote.
        images: uint8 RGB (N, H, W, 3) to calibrate on, 100 of them are drawn: training images, of all classes, or for
            a detector normal ones, cut as its views say.
        path: where it goes.
        seed: of the draw.

    Raises:
        FileNotFoundError, ValueError: as of `runtime.read_metadata`, or images that are none.
    """
    images, metadata = imaging.check_images(images), runtime.read_metadata(float_file)
    chosen = np.random.default_rng(seed).permutation(len(images))[:N_CALIBRATION]
    samples = imaging.resize(images[chosen], *metadata["image_size"])
    content = Path(float_file).read_bytes()[: metadata["bytes"]]
    # The converter gives the outputs, and so the tail's last operators, names of its own.
    content = quantise(content, samples, float_parts=(TAIL, evidence.TAIL, "StatefulPartitionedCall"))
    return _write(path, content, metadata | {"precision": "int8"})


def _write(path, content, metadata, model=None):
    """The flatbuffer with its metadata in a zip archive behind it; a file appears as a whole, and tried, or not at all.

    With a model it is compared with that on an image.
    """
    path = Path(path)
    digest = hashlib.sha256(content).hexdigest()
    metadata = metadata | {"format": runtime.FORMAT, "bytes": len(content), "sha256": digest}
    with imaging.atomic_write(path) as draft:
        draft.write_bytes(content)
        with zipfile.ZipFile(draft, "a") as archive:
            # A fixed date, so that equal models give equal files.
            entry = zipfile.ZipInfo(runtime.METADATA_FILE, date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, json.dumps(metadata, indent=1, sort_keys=True))
        _try_out(draft, metadata, model)
    return path


def _try_out(path, metadata, model):
    """ValueError unless the file runs, and says of an image what the model says."""
    try:
        explainer = runtime.Explainer(path)
        size = np.maximum(metadata["image_size"], explainer.views.smallest())
        image = np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype(np.uint8)
        scores = explainer.explain(image).scores
    except RuntimeError:
        scores = np.array(np.nan)
    if not np.isfinite(scores).all() or (model and not np.allclose(scores, model.explain(image).scores, 0.01, 0.01)):
        raise _refusal(model)


def _refusal(model):
    layer = files.not_in_litert(model.network) if model else None
    blame = f"; to blame is {layer}" if layer else ""
    return ValueError(f"LiteRT does not run this network as Keras does{blame}. Nothing was written.")
