"""What one worker of ``bulk`` does: it holds one explainer of one thread and turns pieces of the source into parts.

Ray starts it, on this machine or on another. It needs no TensorFlow, and gets the model as bytes.
"""

import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from utils import heatmap, imaging
from utils.commands import annotate, bulk_parts, bulk_source
from utils.runtime import AnomalyResult, Explainer


@dataclass(frozen=True)
class Job:
    """All that a worker has to know but the model.

    Attributes:
        source: what to read; the pieces come one by one.
        out: where the parts go, a folder or an address, the same for all workers.
        settings: what becomes a box.
        embeddings, heatmaps: whether they are written as well.
    """

    source: bulk_source.Source
    out: str
    settings: annotate.Settings
    embeddings: bool
    heatmaps: bool


class Worker:
    """Called with the numbers of some pieces, it writes their parts and says what it did."""

    def __init__(self, job: Job, model: bytes):
        self.job = job
        cv2.setNumThreads(1)
        pa.set_cpu_count(1)
        with tempfile.TemporaryDirectory() as folder:  # the runtime keeps what it has opened
            file = Path(folder, "explainer.tflite")
            file.write_bytes(model)
            self.explainer = Explainer(file, num_threads=1)
        how = {"embeddings": job.embeddings, "heatmaps": job.heatmaps}
        self.schema = bulk_parts.schema(self.explainer.kind, **how)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """batch: "number" and "piece" (n,) → of each its number, images, unreadable ones, times and node."""
        pieces = zip(batch["number"], batch["piece"], strict=True)
        done = [self._finish(int(number), bulk_source.Piece.unpack(piece)) for number, piece in pieces]
        return {name: np.array([entry[name] for entry in done]) for name in done[0]}

    def _finish(self, number, piece):
        began, counts = time.time(), {"images": 0, "unreadable": 0}
        # A worker that was killed may have done it: its other pieces are handed out again together with this one.
        if not bulk_parts.is_there(self.job.out, number):
            rows = self._rows(piece, counts)
            bulk_parts.write(self.job.out, number, schema=self.schema, rows=rows)
        return {"number": number, "began": began, "ended": time.time(), "node": _node()} | counts

    def _rows(self, piece, counts):
        for item in bulk_source.items(self.job.source, piece):
            row = self.row(item)
            counts["images"] += 1
            counts["unreadable"] += row.get("unreadable") is not None
            yield row

    def row(self, item: bulk_source.Item) -> dict:
        """The row of an image; columns that do not apply are left out."""
        row = {"name": imaging.printable(item.name), "bytes": item.file.size, "time": item.file.time}
        try:
            with warnings.catch_warnings(action="ignore"):  # as in `imaging.read_image`
                image = bulk_source.read(item)
            result = self._explain(image)
        except (ValueError, OSError) as error:
            return row | {"unreadable": imaging.printable(error)}
        size = image.shape[:2]
        row |= {"height": size[0], "width": size[1]}
        if isinstance(result, AnomalyResult):
            row |= _anomaly(result, size, self.job.settings)
        else:
            row |= annotate.judge(result, size, self.job.settings) | {"embedding": result.embeddings[0]}
        row |= {"box_scores": row.pop("scores", []), "rejected": row.pop("reason", None)}
        if self.job.heatmaps:
            row["heatmap"] = cv2.imencode(".png", heatmap.grey(result.heatmaps[0]))[1].tobytes()
        return {"boxes": [], "polygons": []} | row

    def _explain(self, image):
        """On the network's grid; what looks at a part, or at tiles, needs the photo's own pixels."""
        size = self.explainer.input_size
        if self.explainer.views.is_whole:
            return self.explainer.explain(imaging.resize(image[None], *size))
        result = self.explainer.explain(image)
        return replace(result, heatmaps=imaging.resize(result.heatmaps, *size))


def _node():
    """The id of the Ray node that this process is on; "" without Ray."""
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else ""


def _anomaly(result, size, settings):
    """Verdict, score and, round what is hotter than the threshold, boxes."""
    heat = result.heatmaps[0]
    peak = float(heat.max())
    boxes = []
    if result.is_anomaly[0] and peak > 0.5:
        how = {"n_boxes": settings.n_boxes, "min_area": settings.min_area}
        boxes = heatmap.boxes(heat, threshold=0.5 / peak, **how)
    verdict = {"label": result.names[0], "anomaly_score": float(result.scores[0])}
    return verdict | annotate.on_photo(boxes, heat.shape, size)
