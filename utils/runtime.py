"""Run an exported explainer where there is no TensorFlow: ai-edge-litert, NumPy and OpenCV are enough.

The file comes from `utils.export`: a LiteRT graph from RGB 0..255 to scores, embedding, cluster and heat map, or to
anomaly score and heat map, and behind it a zip archive that says what the numbers mean.
"""

import hashlib
import json
import math
import os
import sys
import time
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from utils import imaging, similarity
from utils.similarity import Cells, Comparison
from utils.storage import hub
from utils.views import Views

FLOAT_FILE, INT8_FILE, META_FILE = "explainer.tflite", "explainer_int8.tflite", "meta.json"  # in a model folder
FORMAT = 1
METADATA_FILE = "faster_gradcam.json"  # in the archive
OUTPUTS = {  # of the graph, by kind
    "label": ("scores", "embedding", "cluster", "heatmap"),
    "anomaly": ("scores", "heatmap"),
}
CELLS = ("cells", "outline")  # further outputs, beside "projection", of files that can compare
VERDICTS = ("normal", "anomaly")


@dataclass(frozen=True, eq=False)  # == of arrays has no single answer
class Explanation:
    """Labels and heat maps of N images.

    Attributes:
        labels: int (N,), index into ``class_names``.
        class_names: tuple of K names.
        scores: float32 (N, K), cosine similarity to each class prototype, in [-1, 1].
        heatmaps: float32 (N, H, W) in [0, 1], of the input's size; all zeros where the label is *none* or nothing
            speaks for the class.
        clusters: int (N,), the cluster whose channel weights made the map; -1 for *none*.
        embeddings: float32 (N, D), unit length.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    scores: np.ndarray
    heatmaps: np.ndarray
    clusters: np.ndarray
    embeddings: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """The predicted class name of each image."""
        return tuple(self.class_names[label] for label in self.labels)

    def probabilities(self, scale: float = 30.0) -> np.ndarray:
        """Softmax of scale · cosine, float64 (N, K); scale: of the ArcFace layer that the network was trained with."""
        return softmax(scale * self.scores.astype(np.float64))


@dataclass(frozen=True, eq=False)
class AnomalyResult:
    """Anomalies in N images.

    Attributes:
        scores: float32 (N,); 1 is the threshold, normal images score below.
        heatmaps: float32 (N, H, W) in [0, 1), of the input's size; 1/2 is as hot as an image's hottest place has to be
            for the image to be called anomalous. Comparable between images.
    """

    scores: np.ndarray
    heatmaps: np.ndarray

    @property
    def is_anomaly(self) -> np.ndarray:
        """bool (N,): the score is higher than that of all but the stated share of normal images."""
        return self.scores > 1

    @property
    def names(self) -> tuple[str, ...]:
        """ "normal" or "anomaly" for each image."""
        return tuple(VERDICTS[verdict] for verdict in self.is_anomaly.astype(int))


class Explainer:
    """One exported file, ready to explain. Not for use by several threads at once.

    Attributes:
        kind: "label" or "anomaly": what it finds.
        class_names: tuple of K names; of anomalies `VERDICTS`.
        input_size: height and width the network works at, in pixels.
        precision: "float32" or "int8".
        metadata: dict, all that the file says about itself.
        projection: float32 (C, D), from maps to embedding, see `similarity`; None: the file has none.
        network_seconds: time the graph took in the last call of `explain`, mean over its images.
        views: what the network sees of a photo.

    Example:
        >>> from utils import imaging
        >>> from utils.runtime import Explainer
        >>> explainer = Explainer("data/models/janken/explainer.tflite", num_threads=2)
        >>> explainer.explain(imaging.read_image("data/hands/gu/00.jpg")).names
        ('gu',)
    """

    def __init__(self, path: str | os.PathLike, num_threads: int = 2):
        """Load an ``explainer.tflite`` or ``explainer_int8.tflite``, also ``hf://OWNER/NAME/explainer.tflite``.

        Args:
            num_threads: CPU threads of the network.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is truncated or damaged, not an explainer, or ``num_threads`` is not positive.
        """
        if not isinstance(num_threads, int) or num_threads < 1:
            raise ValueError(f"num_threads must be an integer of at least 1. Received: {num_threads!r}")
        path = hub.local(path)
        self.metadata = read_metadata(path)
        self.kind = self.metadata.get("kind", "label")
        self.class_names = tuple(map(imaging.printable, self.metadata["class_names"]))
        self.input_size = tuple(self.metadata["image_size"])
        self.precision, self.views = self.metadata["precision"], Views.from_dict(self.metadata.get("views", {}))
        self.network_seconds = math.nan
        with silent_stderr():  # it announces its CPU kernels there
            self._interpreter = Interpreter(os.fsencode(path), num_threads=num_threads)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.tensor(self._interpreter.get_input_details()[0]["index"])
        details = self._interpreter.get_signature_runner().get_output_details()
        self._outputs = [details[name]["index"] for name in OUTPUTS[self.kind]]
        self._cells = {name: self._interpreter.tensor(details[name]["index"]) for name in CELLS if name in details}
        named, self.projection = {tensor["name"]: tensor for tensor in self._interpreter.get_tensor_details()}, None
        if part := (named | details).get("projection"):  # constant float32 (D, C), or int8 with a scale per row
            scales = part["quantization_parameters"]["scales"]
            weights = self._interpreter.get_tensor(part["index"]).T * (scales if len(scales) else np.float32(1))
            self.projection = np.ascontiguousarray(weights, np.float32)

    def explain(self, images: np.ndarray) -> Explanation | AnomalyResult:
        """Label (or anomaly score) and heat map of each image, uint8 RGB (N, H, W, 3) or (H, W, 3) of any size."""
        images = imaging.check_images(images)
        self.network_seconds = 0.0
        parts = [self._run(image) for image in self.views.cut(images, *self.input_size)]
        self.network_seconds /= len(images)
        # A single image, the camera's case, is spared the copy.
        results = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        if self.kind == "anomaly":
            return AnomalyResult(*self.views.join(*results, images.shape))
        scores, embeddings, clusters, heatmaps = results
        return Explanation(
            labels=scores.argmax(axis=1), class_names=self.class_names, scores=scores, clusters=clusters,
            embeddings=embeddings, heatmaps=imaging.resize(heatmaps, *images.shape[1:3]),
        )

    def cells(self, image: np.ndarray) -> Cells:
        """An image uint8 RGB (H, W, 3) as the cells its embedding is the sum of; ValueError if the file has none."""
        if "cells" not in self.metadata:
            reason = "it was exported before there was `compare`, or its embedding is no sum over cells"
            raise ValueError(f"This file cannot compare: {reason}; `python -m utils export` writes it anew.")
        (resized,), about = imaging.resize(imaging.check_images(image)[:1], *self.input_size), self.metadata["cells"]
        self._invoke(resized)
        maps = self._cells["cells"]()[0].copy()  # a view, as long as nothing else runs
        outline = self._cells["outline"]()[0].copy() if about["outline"] and "outline" in self._cells else None
        size, window = np.shape(image)[-3:-1], tuple(about["window"])
        maps = maps.reshape(*about["grid"], -1)
        return Cells(maps, size, projection=self.projection, outline=outline, window=window)

    def compare(self, a: np.ndarray, b: np.ndarray, *, details: bool = True) -> Comparison:
        """Why two images are alike; arguments and errors as of `similarity.compare`."""
        return similarity.compare(self, a, b, details=details)

    def _invoke(self, image):
        self._input()[0] = image  # uint8 to float32
        start = time.perf_counter()
        self._interpreter.invoke()
        self.network_seconds += time.perf_counter() - start

    def _run(self, image):
        self._invoke(image)
        return [self._interpreter.get_tensor(output) for output in self._outputs]


def read_metadata(path: str | os.PathLike) -> dict:
    """What an exported file says about itself, after a check that the file is whole.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or damaged, or not an explainer of this version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no explainer file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read(METADATA_FILE))
        with path.open("rb") as file:
            checksum = hashlib.sha256(file.read(metadata["bytes"])).hexdigest()
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not an explainer file, or it is truncated: no metadata found at its end."
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} was written by another version of Faster-Grad-CAM; export the model again.")
    if metadata.get("kind", "label") not in OUTPUTS:
        raise ValueError(f"{path} is of a kind that this version of Faster-Grad-CAM does not know.")
    if metadata["sha256"] != checksum:
        raise ValueError(f"{path} is damaged: its checksum differs.")
    return metadata


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """exp(logits) / Σ exp(logits) along an axis, float; large logits do not overflow.

    Example:
        >>> softmax(np.array([0.0, 0.0])).tolist()
        [0.5, 0.5]
    """
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


@contextmanager
def silent_stderr():
    """Send what C++ code writes to file descriptor 2, open or closed, to nowhere; Python exceptions pass through."""
    with suppress(AttributeError, ValueError, OSError):  # there is none, it is closed, nobody reads it
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        kept = os.dup(nowhere)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
