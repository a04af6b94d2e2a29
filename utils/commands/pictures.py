"""Why a network says what it says: pictures for each image, class and layer, a ranked list and a manifest.

For each image, class and layer there is ``{base}_{rank}_{id}_{name}_{probability}_{kind}.png``: the heat map over the
image (kind: the method), the grey heat map, the image times the heat map (segmented) and Guided Grad-CAM; with several
layers, the layer's name stands before the kind. For each image there is ``{base}_guided_bprop.png``. ``manifest.json``
names them all, with the versions of what made them. Where a sum of classes is explained, the pictures are named
``{base}_{the sum}_{kind}.png``.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from utils import arcface, gradcam, heatmap, imaging, networks, repro, runtime
from utils.commands import common
from utils.networks import targets
from utils.repro import keras, tf

MANIFEST = "manifest.json"
LINE = ("rank", "id", "name")  # what is reported of a class, between file and value
VALUES = ("score", "probability")  # of a sum of classes, and of a class
ACTIVATIONS = {"softmax": runtime.softmax, "sigmoid": lambda z: 0.5 + 0.5 * np.tanh(z / 2), "none": lambda z: z}
LONGEST_NAME = 240  # bytes, of a picture without its suffix
LONGEST = 4  # times as long as the smallest side may the other be; Score-CAM of VGG then takes 6.5 GB


def explain_files(
    files: Iterable[tuple[Path, str]], network: keras.Model, *, class_names: Sequence[str], out: Path,
    method: str = "gradcam", layers: Sequence[str] = (), class_ids: Sequence[int] | None = None, top_n: int = 1,
    target: str | None = None, activation: str | None = None, look: dict | None = None,
    smallest_side: int | None = None, report: Callable[[str], None] = print,
) -> dict:
    """Explain the best classes of each image, or what is asked for; write into ``out``, return the manifest.

    Args:
        files: paths, each with the name for what is made of it, as `imaging.image_files` gives them.
        network: images of 0..255 → class scores, with its preprocessing inside; class_names: one for each score.
        method, layers: of `gradcam.METHODS`; names, empty: `networks.default_layer`.
        class_ids: classes to explain; None: the ``top_n`` best of each image; or target: see `networks.targets.parse`.
        activation: of `ACTIVATIONS`, makes probabilities of scores; see `probabilities`.
        look: opacity and colormap, as of `heatmap.overlay`; report: called with a line for each class.
        smallest_side: in pixels, for networks of any size: images keep their aspect. None: the network's own size.

    Raises:
        ValueError: unknown method, layer or class id, or none of the images could be explained.
    """
    layers = list(layers) or [networks.default_layer(network)]
    _check(network, layers, top_n, smallest_side)
    entries, skipped, names = [], [], [*map(imaging.printable, class_names)]
    what = {"network": network, "out": out, "method": method, "layers": layers, "look": look or {}}
    for path, base, image in imaging.read_or_skip(files, skipped):
        try:
            seen = _as_seen(path, image, network, smallest_side)
        except ValueError as error:
            skipped.append(str(error))
            continue
        wish = {"class_ids": class_ids, "top_n": top_n, "activation": activation}
        found = [_in_words(network, seen, names, target)] if target else _classes(network, seen, names, **wish)
        entry = _explain_image(image, seen, base=base, found=found, **what)
        entries.append({"file": imaging.printable(path.name)} | entry)
        for one in entry["classes"]:
            report(common.columns([path, *(one[k] for k in LINE if k in one), f"{one[VALUES[not target]]:.3f}"]))
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


def probabilities(network: keras.Model, images: np.ndarray, activation: str | None = None) -> np.ndarray:
    """Of the first image's classes, float (K,): the output, if the network ends in a softmax, sigmoid or ArcFace.

    Else what the activation makes of it; None: softmax, or sigmoid if there is one score.
    """
    scores = networks.forward(network, images)[0].astype(np.float64)
    if scores.ndim != 1:
        raise ValueError(f"The network has no score for each class: name a --target. Received: {network.output_shape}")
    if isinstance(network.layers[-1], arcface.ArcFace) or networks.find_logits(network):
        return scores
    return ACTIVATIONS[activation or ("softmax" if len(scores) > 1 else "sigmoid")](scores)


def _classes(network, seen, class_names, *, class_ids, top_n, activation):
    """The classes to explain: target, part of a file name, and what the manifest says of them."""
    shares = probabilities(network, seen, activation)
    ranked = [int(k) for k in np.argsort(-shares, kind="stable")]
    chosen = class_ids or ranked[:top_n]
    if min(chosen) < 0 or max(chosen) >= len(shares):
        raise ValueError(f"Class ids must lie in 0..{len(shares) - 1}. Received: {min(chosen)}..{max(chosen)}")
    found = []
    for k in chosen:
        rank, name, share = 1 + ranked.index(k), class_names[k], float(shares[k])
        entry = {"rank": rank, "id": k, "name": name, "probability": round(share, 6)}
        found.append((k, f"{rank}_{k}_{_file_part(name)}_{share:.3f}", entry))
    return found


def _in_words(network, seen, class_names, target):
    """As one of `_classes`: a sum of them."""
    function = targets.parse(target, class_names)
    scores = networks.scores(network, *networks.run_layer_by_layer(network, tf.cast(seen, tf.float32)))
    score = float(function(tf.cast(scores, tf.float32))[0])
    return function, _file_part(target), {"name": imaging.printable(target), "score": round(score, 6)}


def _explain_image(image, seen, *, base, found, network, out, method, layers, look):
    """Write the pictures of one image, of which the network sees ``seen``; returns its part of the manifest."""
    # Whatever cannot be is said by these, before anything is written.
    maps = [gradcam.explain_layers(network, seen, layers=layers, targets=k, method=method) for k, *_ in found]
    entry = {"classes": [], "guided_bprop": f"{base}_guided_bprop.png"}
    guided = [None] * len(found)
    try:
        guided = [gradcam.guided_backprop(network, seen, targets=k) for k, *_ in found]
        ranks = [what.get("rank", 1) for *_, what in found]  # a sum of classes has none
        best = guided[ranks.index(1)] if 1 in ranks else gradcam.guided_backprop(network, seen)
        imaging.write_image(out / entry["guided_bprop"], _relief(imaging.resize(best, *image.shape[:2])[0]))
    except ValueError as error:  # a network without ReLU has no guided backpropagation
        entry |= {"guided_bprop": None, "no_guided_bprop": str(error)}
    for (_, stem, what), own, own_guided in zip(found, maps, guided, strict=True):
        files = {}
        for layer in layers:
            prefix = f"{_file_part(layer)}_" if len(layers) > 1 else ""
            for kind, picture in _draw(image, own[layer], own_guided, method=method, look=look):  # one at a time
                name = imaging.file_name(f"{base}_{stem}_{_file_part(prefix + kind)}", LONGEST_NAME)
                files[prefix + kind] = f"{name}.png"
                imaging.write_image(out / files[prefix + kind], picture)
        entry["classes"].append(what | {"files": files})
    return entry


def _draw(image, heat, guided, *, method, look):
    """Yield kind and picture of a map (1, h, w) and, if there is one, of a guided gradient (1, h, w, 3)."""
    heat = imaging.resize(heat, *image.shape[:2])[0]
    yield method, heatmap.overlay(image, heat, **look)
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
