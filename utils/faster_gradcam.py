"""Explanations at the price of a forward pass: channel weights averaged per cluster of the embedding space.

After Adapting Grad-CAM for Embedding Networks (arXiv 2001.06538) and Faster-Grad-CAM (shinmura0, 2020). With the unit
embedding ê of an image, feature maps A and the clusters' centroids m_k and mean channel weights W_k,

    class  y = argmax_j cos(e, w_j)        cluster  k = argmin over the clusters of y of ‖ê − m_k‖
    heat map  ReLU(Σ_c W_kc · A_c) / max

The mean gradient weights w_k of a cluster say what a little more of a channel would do to the score, not what the
channel responds to. With "contrast" they are multiplied by that, which costs nothing later:

    W_kc = max((w_kc + w̄_c) / 2, 0) · max(s_c, 0)     s_c = (mean GAP_c of classes − of backgrounds) / (both variances)

Each cluster is shrunk half way to w̄, the mean of all. GAP_c is a channel's mean over an image: s_c is large where the
channel reliably fires more on the classes' images than on images without an object. It needs no mask. A detail layer,
earlier and finer, with feature maps B and one weight per channel, sharpens the outline of the deep map M:

    heat map  √M · F / max     F = Σ_c v_c · B_c     v_c = max(mean of w_c over all images, 0) · max(s_c, 0)

Only what is hot in both maps is hot: F adds no place that does not speak for the class. Under the root the sharper
outline counts for more than the blurred one of M. Where backgrounds are not known, the rim of the photos themselves
takes their place, and a discriminant over several layers that of the detail layer (see `networks.discriminant`):

    heat map  √(M · F) / max     F = log(1 + exp Σ_l z_l)
"""

import os
from collections.abc import Callable, Sequence

import numpy as np

from utils import gradcam, heatmap, imaging, networks, repro
from utils.data import NONE
from utils.networks import angular, model_folder
from utils.networks.clusters import Clusters, unit
from utils.networks.discriminant import Discriminant, contrasts, weigh
from utils.repro import keras
from utils.runtime import Explanation
from utils.storage import hub, store

FORMAT = 1
WEIGHTINGS = ("all", "positive", "contrast")
WEIGHTS_FILE, NETWORK_FILE, CLUSTERS_FILE = "network.weights.h5", "network.keras", "faster_gradcam.npz"


class FasterGradCAM:
    """A network and the channel weights of its clusters. Make one with `fit` or `load`.

    Attributes:
        network: keras.Model, float32 images (N, S, S, 3) of 0..255 → [feature maps (N, h, w, C), embedding (N, D)],
            and the feature maps (N, h', w', C') of the detail layer, or of the object layers, if there are any.
        class_names: tuple of K names. The class "none", if there is one, has no cluster and gets a map of zeros.
        prototypes: float32 (D, K), unit columns.
        clusters: `Clusters`.
        contrast: float32 (C,), max(s, 0) of each channel; None if it was not asked for and there were no backgrounds.
        channel_weights: float32 (M, C), made of mean weights and contrast: what the heat maps are computed with.
        detail_weights: float32 (C',), those of the detail layer; None without one.
        discriminant: `Discriminant` of the layer and the object layers; None without any.
        meta: dict, what `save` writes beside the arrays.

    Example:
        >>> from utils import imaging
        >>> from utils.faster_gradcam import FasterGradCAM
        >>> model = FasterGradCAM.load("data/models/janken")
        >>> result = model.explain(imaging.read_image("data/hands/pa/00.jpg"))
        >>> result.names, result.heatmaps.shape
        (('pa',), (1, 160, 160))
    """

    def __init__(
        self, network: keras.Model, class_names: Sequence[str], *, prototypes: np.ndarray, clusters: Clusters,
        contrast: np.ndarray | None, detail_weights: np.ndarray | None, meta: dict,
        discriminant: Discriminant | None = None,
    ):
        self.network, self.class_names = network, tuple(class_names)
        self.prototypes, self.clusters = prototypes, clusters
        self.contrast, self.detail_weights, self.discriminant = contrast, detail_weights, discriminant
        self.channel_weights = weigh(clusters.mean_weights, contrast, meta["weighting"], meta["top_channels"])
        self.meta = meta

    @classmethod
    def fit(
        cls, network: keras.Model, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None = None, *,
        layer: str | None = None, n_clusters: int = 10, top_channels: int | None = None, weighting: str = "all",
        detail_layer: str | None = None, object_layers: Sequence[str] = (), backgrounds: np.ndarray | None = None,
        seed: int = 0, progress: Callable[[dict], None] = lambda entry: None,
    ) -> "FasterGradCAM":
        """Harvest the images' channel weights, cluster their embeddings class by class, average per cluster.

        Args:
            network: images → cosine scores, as `arcface.train` returns it; or any network images → embedding (N, D):
                then a class's prototype is the mean unit embedding of its images.
            images: uint8 (N, H, W, 3), or a `store.Stored`, that the network was trained on; resized to its size.
            labels: int (N,), each class with at least one image.
            class_names: names of the K classes; "class_0", ... if None. One named "none" gets no cluster.
            layer, detail_layer: layers of the maps A (None: `networks.default_layer`) and B (None: no details).
            n_clusters: clusters **per class**; a class with fewer distinct embeddings gets that many.
            top_channels: keep so many of the largest (signed) weights per cluster; 50: the paper's setting; None: all.
            weighting: "all" mean weights as they are, "positive" ones only, or "contrast", the formula above.
            object_layers: finer layers, whose cells, with those of ``layer``, tell an object from its surroundings.
            backgrounds: uint8 (B, H, W, 3) without an object, for contrast and details. None: the images of *none*, or
                if there are none of them, what lies at the rim of the images.
            seed: of k-means.
            progress: called after each batch of the harvest, see `gradcam.harvest`.
        """
        check_settings(n_clusters, top_channels, weighting)
        images, labels, class_names = _check_fit(images, labels, class_names)
        layers = _check_layers(network, [layer, detail_layer, *object_layers])
        if detail_layer and object_layers:
            raise ValueError("Expected a detail_layer or object_layers. Received: both")
        none = np.array(class_names)[labels] == NONE  # *none* has no map
        if backgrounds is None and none.any():
            backgrounds = images[none]
        images = _resized(images, *network.inputs[0].shape[1:3])
        classifier = _classifier(network, images, labels, class_names)
        head, images, labels = classifier.layers[-1], images[~none], labels[~none]

        harvest = _harvest(classifier, images, labels, layer=layers[0], progress=progress)
        found = np.asarray(harvest.embeddings), harvest.channel_weights, labels
        clusters = Clusters.fit(*found, n_clusters=n_clusters, seed=seed)
        contrast = dict.fromkeys(layers)
        if backgrounds is not None or weighting == "contrast" or detail_layer:
            contrast = contrasts(classifier, layers[: 1 + bool(detail_layer)], images, backgrounds)
        detail_weights = None
        if detail_layer:
            mean_weights = _harvest(classifier, images, labels, layer=detail_layer).channel_weights.mean(axis=0)
            detail_weights = weigh(mean_weights[None], contrast[detail_layer], "contrast", None)[0]
        meta = {
            "layer": layers[0], "detail_layer": detail_layer, "object_layers": list(object_layers),
            "n_clusters": int(n_clusters), "weighting": weighting,
            "top_channels": None if top_channels is None else int(top_channels), "seed": int(seed),
            "n_images": len(images),
        }
        model = cls(
            _features(classifier, layers, head.input, name=network.name), class_names, clusters=clusters,
            prototypes=unit(head.kernel.numpy(), axis=0), contrast=contrast[layers[0]], detail_weights=detail_weights,
            meta=meta,
        )
        if object_layers:
            model.discriminant = Discriminant.fit(model._maps_and_heat(images))
        return model

    def reweighted(
        self, weighting: str = "all", top_channels: int | None = None, *, detail: bool = False
    ) -> "FasterGradCAM":
        """The same network and clusters with channel weights of another kind.

        Args:
            weighting, top_channels: as in `fit`.
            detail: keep the detail layer, or the object layers.
        """
        check_settings(self.meta["n_clusters"], top_channels, weighting)
        if detail and not self.has_details:
            raise ValueError("detail=True needs a model that was fitted with a detail layer or with object layers.")
        network, meta = self.network, self.meta | {"weighting": weighting, "top_channels": top_channels}
        if not detail:
            meta |= {"detail_layer": None, "object_layers": []}
            network = networks.wrap(network.inputs[0], network.outputs[:2], like=network)
        return FasterGradCAM(
            network, self.class_names, prototypes=self.prototypes, clusters=self.clusters, contrast=self.contrast,
            detail_weights=self.detail_weights if detail else None,
            discriminant=self.discriminant if detail else None, meta=meta,
        )

    @property
    def has_details(self) -> bool:
        """Whether a detail layer, or object layers, sharpen the maps."""
        return self.detail_weights is not None or self.discriminant is not None

    @property
    def layers(self) -> list[str]:
        """Names of the layer of the maps and of the finer ones."""
        return _layers(self.meta)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width the network works at, in pixels."""
        return self.network.inputs[0].shape[1:3]

    @property
    def window(self) -> networks.Window:
        """What part of the image the maps show."""
        return networks.window(self.network, self.meta["layer"], *self.input_size)

    def explain(self, images: np.ndarray, batch_size: int = 128) -> Explanation:
        """Label and heat map of each image, uint8 RGB (N, H, W, 3) or (H, W, 3) of any size; forward passes only."""
        images = imaging.check_images(images)
        height, width = images.shape[1:3]
        resized = imaging.resize(images, *self.input_size)
        maps, embeddings, *finer = networks.forward(self.network, resized, batch_size=batch_size)
        embeddings = unit(embeddings)
        scores, labels, clusters = self._find(embeddings)
        heatmaps = imaging.resize(self.heat_maps(clusters, maps, *finer), height, width)
        return Explanation(
            labels=labels, class_names=self.class_names, scores=scores, heatmaps=heatmaps, clusters=clusters,
            embeddings=embeddings,
        )

    def _find(self, embeddings):
        """Of unit embeddings (N, D) the scores (N, K), the label and the nearest cluster of that; -1 if it has none."""
        scores = embeddings @ self.prototypes
        labels = scores.argmax(axis=1)
        # ‖ê − m‖² = 1 − 2 ê·m + ‖m‖², and the 1 does not change which is nearest.
        centroids = self.clusters.centroids
        distances = (centroids**2).sum(axis=1) - 2 * embeddings @ centroids.T  # (N, M)
        distances[labels[:, None] != self.clusters.classes] = np.inf
        return scores, labels, np.where(np.isinf(distances).all(axis=1), -1, distances.argmin(axis=1))

    def heat_maps(self, clusters: np.ndarray, maps: np.ndarray, *finer: np.ndarray) -> np.ndarray:
        """The formula alone: heat maps float32 (N, H, W) in [0, 1], of the network's image size.

        Args:
            clusters: int (N,); -1, for *none*, gives a map of zeros.
            maps: float32 (N, h, w, C), first output of the network.
            finer: float32 (N, h', w', C'), its outputs from the third on, if it has any.
        """
        raw_maps = self._coarse(clusters, maps)
        if self.has_details:
            outline = self.outline(maps, *finer)
            raw_maps = np.sqrt(imaging.resize(raw_maps, *outline.shape[1:])) * outline
        return heatmap.normalise_and_resize(raw_maps, *self.input_size, window=self.window)

    def outline(self, maps: np.ndarray, *finer: np.ndarray) -> np.ndarray:
        """What sharpens √M, (N, h', w'), of all `layers`' maps: F of the detail layer, or √F of the object layers."""
        if self.discriminant:
            return np.sqrt(self.discriminant([maps, *finer]))
        return np.maximum(finer[0] @ self.detail_weights, 0)

    def _coarse(self, clusters, maps):
        """ReLU(Σ_c W_kc · A_c), float32 (N, h, w)."""
        weights = np.where(clusters[:, None] < 0, 0, self.channel_weights[clusters])  # (N, C)
        raw_maps = np.matmul(maps.reshape(len(maps), -1, maps.shape[-1]), weights[..., None])
        return np.maximum(raw_maps.reshape(maps.shape[:3]), 0)

    def _maps_and_heat(self, images):
        """Of images of the network's size, a batch at a time, all layers' maps and the heat of the coarse one."""
        for i in range(0, len(images), gradcam.BATCH_SIZE):
            maps, embeddings, *finer = networks.forward(self.network, images[i : i + gradcam.BATCH_SIZE])
            yield [maps, *finer], self._coarse(self._find(unit(embeddings))[2], maps)

    def classifier(self) -> keras.Model:
        """images → cosine scores (N, K): what exact Grad-CAM differentiates, with this explainer's prototypes."""
        embedding = networks.wrap(self.network.inputs[0], self.network.outputs[1], like=self.network)
        return angular.with_prototypes(embedding, self.prototypes)

    def save(self, folder: str | os.PathLike, **info) -> None:
        """Write network, clusters and ``meta.json`` into the folder (made if need be).

        ``info`` goes into ``meta.json``, such as the measured accuracy; it must be JSON. ValueError if the network
        cannot be read back, which names the layer; then nothing is written.
        """
        spec = self.network.spec
        arrays = {
            "prototypes": self.prototypes, "centroids": self.clusters.centroids, "contrast": self.contrast,
            "cluster_classes": self.clusters.classes, "mean_weights": self.clusters.mean_weights,
            "detail_weights": self.detail_weights,
        } | (self.discriminant.arrays() if self.discriminant else {})
        arrays = {name: array for name, array in arrays.items() if array is not None}
        meta = self.meta | info | {
            "format": FORMAT, "class_names": list(self.class_names), "image_size": list(self.input_size),
            "network": None if spec is None else spec.asdict(), "versions": repro.versions(),
        }
        network_file = {WEIGHTS_FILE: self.network.save_weights} if spec else {NETWORK_FILE: self.network.save}
        writers = network_file | {CLUSTERS_FILE: lambda file: np.savez(file, **arrays)}
        self.meta = model_folder.write(folder, writers, meta=meta, try_out=self._try_out)

    def _try_out(self, folder):
        """ValueError unless what was written can be loaded and sees an image as this model does."""
        image = np.random.default_rng(0).integers(0, 256, (1, *self.input_size, 3)).astype(np.float32)
        try:
            embedding = FasterGradCAM.load(folder).network(image, training=False)[1]
        except (ValueError, TypeError) as error:
            raise ValueError(
                "The network cannot be read back from a file; use no lambda, but layers of Keras, or own classes "
                "that keras.saving.register_keras_serializable knows. Nothing was written. To blame is "
                f"{networks.not_in_keras(self.network) or self.network.name}"
            ) from error
        if not np.allclose(embedding, self.network(image, training=False)[1], rtol=1e-3, atol=1e-3):
            raise ValueError("Read back from a file the network gives other embeddings. Nothing was written.")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "FasterGradCAM":
        """Read what `save` wrote; ``hf://OWNER/NAME`` names a folder at the Hugging Face hub.

        Raises:
            FileNotFoundError: no such folder, or a file is missing.
            ValueError: a file is truncated, foreign, or belongs to another model.
        """
        folder = hub.local(folder)
        meta = model_folder.read(folder, _is_ours)
        with np.load(folder / CLUSTERS_FILE, allow_pickle=False) as file:
            arrays = dict(file)
        if meta["network"]:
            network = feature_network(model_folder.spec(folder, meta), meta)
            network.load_weights(folder / WEIGHTS_FILE)
        else:
            network = keras.saving.load_model(folder / NETWORK_FILE, compile=False, safe_mode=True)
            network.spec = None
        discriminant, detail_weights = Discriminant.of(arrays), arrays.get("detail_weights")
        finer = discriminant.weights[1:] if discriminant else [] if detail_weights is None else [detail_weights]
        fits = len(meta["class_names"]) == arrays["prototypes"].shape[1]
        n_channels = [maps.shape[-1] for maps in (network.outputs[0], *network.outputs[2:])]
        if not fits or n_channels != [weights.shape[-1] for weights in (arrays["mean_weights"], *finer)]:
            file = folder / model_folder.META_FILE
            raise ValueError(f"{file} belongs to another model: its class names or its layer do not fit.")
        return cls(
            network, meta["class_names"], prototypes=arrays["prototypes"],
            clusters=Clusters(arrays["centroids"], arrays["cluster_classes"], arrays["mean_weights"]),
            contrast=arrays.get("contrast"), detail_weights=detail_weights, discriminant=discriminant, meta=meta,
        )


def feature_network(spec: networks.Spec, meta: dict) -> keras.Model:
    """The network that `FasterGradCAM` explains with, untrained; ``meta`` names its layers."""
    embedding = networks.embedding_network(spec)
    return _features(embedding, _layers(meta), embedding.output, name=spec.backbone)


def _layers(meta):
    return [name for name in (meta["layer"], meta.get("detail_layer"), *meta.get("object_layers", ())) if name]


def check_settings(n_clusters: int, top_channels: int | None, weighting: str) -> None:
    """ValueError unless `FasterGradCAM.fit` can work with these."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {WEIGHTINGS}. Received: {weighting!r}")
    for name, value in (("n_clusters", n_clusters), ("top_channels", top_channels)):
        if value is not None and (not isinstance(value, (int, np.integer)) or value < 1):
            raise ValueError(f"{name} must be an integer of at least 1. Received: {value!r}")


def _check_fit(images, labels, class_names):
    images, labels = imaging.check_images(images), np.asarray(labels)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"Expected one integer label for each of the {len(images)} images. "
            f"Received: shape {labels.shape}, dtype {labels.dtype}"
        )
    if class_names is None:
        class_names = [f"class_{k}" for k in range(labels.max() + 1)]
    missing = [name for k, name in enumerate(class_names) if not (labels == k).any()]
    if missing or labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"Labels must lie in 0..{len(class_names) - 1}, with at least one image of each class. "
            f"Received: {labels.min()}..{labels.max()}, no image of {missing}"
        )
    if set(class_names) == {NONE}:
        raise ValueError(f"Expected at least one class besides {NONE!r}. Received: {class_names}")
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"Class names must differ. Received: {class_names}")
    return images, labels, tuple(class_names)


def _check_layers(network, layers):
    """Names of the layer of the maps and of the finer ones, if there are any."""
    networks.check_network(network)
    if None in (shape := network.inputs[0].shape[1:]) or shape[2] != 3:
        raise ValueError(f"FasterGradCAM needs a network of RGB images of one size, (H, W, 3). Received: {shape}")
    layers = [layers[0] or networks.default_layer(network), *filter(None, layers[1:])]
    for name in layers:
        if "/" in name:
            raise ValueError(
                "FasterGradCAM needs its layers in the network itself, not inside a nested model; call the nested "
                f"model's layers in one functional model, or explain with `gradcam`. Received: {name!r}"
            )
    networks.check_layers(network, layers)
    if len({networks.window(network, name, *network.inputs[0].shape[1:3]) for name in layers}) > 1:
        raise ValueError(f"Expected layers that show the same part of the image. Received: {layers}")
    return layers


def _classifier(network, images, labels, class_names):
    """The network with prototypes: its own, or where it ends in an embedding, the mean unit embedding per class."""
    n_classes = len(class_names)
    if not isinstance(network.layers[-1], angular.ArcFace):
        if networks.find_logits(network):
            raise ValueError(
                "Expected a network that ends in ArcFace or in an embedding. "
                f"Received: {network.name!r}, which ends in a softmax or sigmoid; pass the model up to there"
            )
        embeddings = unit(networks.forward(network, images))
        means = [embeddings[labels == k].mean(axis=0) for k in range(n_classes)]
        return angular.with_prototypes(network, np.stack(means, axis=1))
    if network.layers[-1].n_classes != n_classes:
        raise ValueError(f"The network has {network.layers[-1].n_classes} classes. Received: class names {class_names}")
    return network


def _harvest(classifier, images, labels, *, layer, progress=lambda entry: None):
    starts = range(0, len(images), gradcam.BATCH_SIZE)
    batches = ((images[i : i + gradcam.BATCH_SIZE], labels[i : i + gradcam.BATCH_SIZE]) for i in starts)
    return gradcam.harvest(classifier, batches, layer=layer, progress=progress)


def _resized(images, height, width):
    if images.shape[1:3] == (height, width):
        return images
    return store.keep(imaging.resize(part, height, width) for part in store.parts(images))


def _features(classifier, layers, embedding, *, name):
    """The network images → [maps of the first layer, embedding, maps of the finer ones]."""
    first, *finer = (networks.get_layer(classifier, layer).output for layer in layers)
    return networks.wrap(classifier.inputs[0], [first, embedding, *finer], like=classifier, name=name)


def _is_ours(meta):
    files = {CLUSTERS_FILE, WEIGHTS_FILE if meta["network"] else NETWORK_FILE}
    return meta["format"] == FORMAT and set(meta["sha256"]) == files and {"class_names", "layer"} <= set(meta)
