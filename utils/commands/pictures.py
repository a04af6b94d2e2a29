"""Why a network says what it says: pictures for each image, class and layer, a ranked list and a manifest.

For each image, class and layer there is ``{base}_{rank}_{id}_{name}_{probability}_{kind}.png``: the heat map over the
image (kind: the method), the grey heat map, the image times the heat map (segmented) and Guided Grad-CAM; with several
layers, the layer's name stands before the kind. For each image there is ``{base}_guided_bprop.png``. ``manifest.json``
names them all, with the versions of what made them.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from utils import arcface, gradcam, heatmap, imaging, networks, repro, runtime
from utils.commands import common
from utils.repro import keras

MANIFEST = "manifest.json"
LINE = ("rank", "id", "name")  # what is reported of a class, between file and probability
LONGEST_NAME = 240  # bytes, of a picture without its suffix
LONGEST = 4  # times as long as the smallest side may the other be; Score-CAM of VGG then takes 6.5 GB


def explain_files(
    files: Iterable[tuple[Path, str]], network: keras.Model, *, class_names: Sequence[str], out: Path,
    method: str = "gradcam", layers: Sequence[str] = (), class_ids: Sequence[int] | None = None, top_n: int = 1,
    smallest_side: int | None = None, report: Callable[[str], None] = print,
) -> dict:
    """Explain the best classes of each image, or the ones asked for; write into ``out``, return the manifest.

    Args:
        files: paths, each with the name for what is made of it, as `imaging.image_files` gives them.
        network: images of 0..255 → class scores, with its preprocessing inside.
        class_names: one for each score.
        method: one of `gradcam.METHODS`.
        layers: names of the layers that give the maps; empty: `networks.default_layer`.
        class_ids: classes to explain; None: the ``top_n`` best of each image.
        smallest_side: in pixels, for networks of any size: images keep their aspect. None: the network's own size.
        report: called with a line for each class: file, rank, id, name and probability.

    Raises:
        ValueError: unknown method, layer or class id, or none of the images could be explained.
    """
    layers = list(layers) or [networks.default_layer(network)]
    _check(network, layers, top_n, smallest_side)
    entries, skipped, names = [], [], [*map(imaging.printable, class_names)]
    for path, base, image in imaging.read_or_skip(files, skipped):
        try:
            seen = _as_seen(path, image, network, smallest_side)
        except ValueError as error:
            skipped.append(str(error))
            continue
        entry = _explain_image(
            image, seen, base=base, network=network, class_names=names, out=out, method=method, layers=layers,
            class_ids=class_ids, top_n=top_n,
        )
        entries.append({"file": imaging.printable(path.name)} | entry)
        for found in entry["classes"]:
            report(common.columns([path, *(found[key] for key in LINE), f"{found['probability']:.3f}"]))
    if not entries:
        raise ValueError(f"None of the images could be explained: {common.first_of(skipped)}")
    manifest = {
        "network": network.name, "method": method, "layers": layers, "versions": repro.versions(),
        "smallest_side": smallest_side, "images": entries, "skipped": skipped,
    }
    with imaging.atomic_write(out / MANIFEST) as draft:
        draft.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _check(network, layers, top_n, smallest_side):
    """Raise ValueError for what cannot be; methods and class ids are checked with the first image."""
    networks.check_layers(network, layers)
    if top_n < 1:
        raise ValueError(f"top_n must be at least 1. Received: {top_n!r}")
    if smallest_side and any(network.inputs[0].shape[1:3]):
        raise ValueError(f"smallest_side needs a network for any size. Received: images {network.inputs[0].shape}")


def _as_seen(path, image, network, smallest_side):
    """The image (H, W, 3) as the network sees it: (1, height, width, 3)."""
    given = image.shape[:2]
    if smallest_side and max(given) > LONGEST * min(given):
        file = imaging.printable(path)
        raise ValueError(f"Cannot keep the aspect of {file}: {given[1]}x{given[0]} is longer than {LONGEST} to 1.")
    if smallest_side:
        size = (round(side * smallest_side / min(given)) for side in given)
    else:
        size = (side or own for side, own in zip(network.inputs[0].shape[1:3], given, strict=True))
    return imaging.resize(image[None], *size)


def _probabilities(network, images):
    """Of each class, float (K,): softmax of the logits; for embedding networks the cosine scores as they are."""
    scores = networks.forward(network, images)[0].astype(np.float64)
    return scores if isinstance(network.layers[-1], arcface.ArcFace) else runtime.softmax(scores)


def _explain_image(image, seen, *, base, network, class_names, out, method, layers, class_ids, top_n):
    """Write the pictures of one image, of which the network sees ``seen``; returns its part of the manifest."""
    shares = _probabilities(network, seen)
    ranked = [int(k) for k in np.argsort(-shares, kind="stable")]
    chosen = class_ids or ranked[:top_n]
    # Whatever cannot be is said by these, before anything is written.
    maps = {k: gradcam.explain_layers(network, seen, layers=layers, targets=k, method=method) for k in chosen}
    entry = {"classes": [], "guided_bprop": f"{base}_guided_bprop.png"}
    guided = {}
    try:
        for k in {ranked[0], *chosen}:
            guided[k] = gradcam.guided_backprop(network, seen, targets=k)
        best = imaging.resize(guided[ranked[0]], *image.shape[:2])[0]
        imaging.write_image(out / entry["guided_bprop"], _relief(best))
        del best  # of a photo it is large
    except ValueError as error:  # a network without ReLU has no guided backpropagation
        entry |= {"guided_bprop": None, "no_guided_bprop": str(error)}
    for k in chosen:
        rank = 1 + ranked.index(k)
        stem = f"{base}_{rank}_{k}_{_file_part(class_names[k])}_{shares[k]:.3f}"
        files = {}
        for layer in layers:
            prefix = f"{_file_part(layer)}_" if len(layers) > 1 else ""
            for kind, picture in _draw(image, maps[k][layer], guided.get(k), method):  # one at a time: they are large
                name = imaging.file_name(f"{stem}_{_file_part(prefix + kind)}", LONGEST_NAME)
                files[prefix + kind] = f"{name}.png"
                imaging.write_image(out / files[prefix + kind], picture)
        probability = round(float(shares[k]), 6)
        entry["classes"].append({
            "rank": rank, "id": k, "name": class_names[k], "probability": probability, "files": files,
        })
    return entry


def _draw(image, heat, guided, method):
    """Yield kind and picture of a map (1, h, w) and, if there is one, of a guided gradient (1, h, w, 3)."""
    heat = imaging.resize(heat, *image.shape[:2])[0]
    yield method, heatmap.overlay(image, heat)
    yield "heatmap", heatmap.grey(heat)
    yield "segmented", heatmap.segment(image, heat)
    if guided is not None:  # Guided Grad-CAM is the product (arXiv 1610.02391, section 3.2)
        guided = imaging.resize(guided, *image.shape[:2])[0]
        yield "guided_gradcam", _relief(guided * heat[..., None])


def _relief(gradient):
    """Signed values (H, W, 3) as a picture, grey where they are 0."""
    strongest = max(np.percentile(np.abs(gradient), 98, overwrite_input=True), 1e-12)  # few pixels would grey the rest
    scaled = gradient / strongest
    np.clip(scaled, -1, 1, out=scaled)
    scaled *= 127.5  # in place: of a photo this is large
    scaled += 127.5
    return np.round(scaled, out=scaled).astype(np.uint8)


def _file_part(name):
    """A name without what file systems do not take."""
    return re.sub(r"[^\w+.-]+", "_", name)
