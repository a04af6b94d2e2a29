"""Figures for the notebooks. Every function returns a closed matplotlib Figure: a notebook shows it as its output."""

import base64
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.decomposition import PCA
from sklearn.metrics import roc_curve

COLORMAP = "turbo"  # as in utils.heatmap
COLOURS = plt.get_cmap("tab10").colors
WIDGET = "application/vnd.jupyter.widget-view+json"


def image_grid(
    rows: list[list[np.ndarray]], row_titles=None, titles=None, boxes=None, heat: bool = False, width: float = 9.0
) -> Figure:
    """Pictures in rows and columns.

    Args:
        rows: each row a list of images, uint8 RGB (H, W, 3), or heat maps, float (H, W) in [0, 1].
        row_titles: one text a row, written at its left.
        titles: like rows, the text above each picture (None: no text).
        boxes: like rows, (x0, y0, x1, y1) or None.
        heat: draw the colour bar of the heat maps.
        width: of the figure in inches.
    """
    n_columns = max(map(len, rows))
    tile = width * (0.91 if heat else 0.99) / n_columns  # the colour bar takes the rest
    height = len(rows) * (tile + 0.04) + sum(0.22 for row in titles or () if any(row))
    figure, axes = plt.subplots(
        len(rows), n_columns, figsize=(width, height), squeeze=False, layout="constrained", dpi=80
    )
    for i, row in enumerate(rows):
        for j, ax in enumerate(axes[i]):
            ax.set_xticks([])
            ax.set_yticks([])
            if j >= len(row):
                ax.set_axis_off()
                continue
            ax.imshow(row[j], cmap=COLORMAP, vmin=0, vmax=1 if row[j].dtype.kind == "f" else 255)
            if titles and titles[i] and titles[i][j]:
                ax.set_title(titles[i][j], fontsize=9)
            if boxes and boxes[i] and boxes[i][j]:
                x0, y0, x1, y1 = boxes[i][j]
                ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, color="white", lw=3))
                ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, color="crimson", lw=1.5))
        if row_titles:
            axes[i][0].set_ylabel(row_titles[i], fontsize=10)
    if heat:
        scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), COLORMAP)
        figure.colorbar(scale, ax=axes, label="heat", fraction=0.02, pad=0.01)
    plt.close(figure)
    return figure


def training_curves(history: list[dict]) -> Figure:
    """Loss (with margin) and validation accuracy (without label and margin) over the training's steps."""
    steps = [entry["step"] for entry in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained", dpi=80)
    left.plot(steps, [entry["loss"] for entry in history], "o-", color=COLOURS[0])
    left.set(title="training loss (with margin)", xlabel="step", yscale="log")
    right.plot(steps, [entry["validation_accuracy"] for entry in history], "o-", color=COLOURS[1])
    right.set(title="validation accuracy (no label, no margin)", xlabel="step", ylim=(0, 1.03))
    for ax in (left, right):
        ax.grid(alpha=0.3)
    plt.close(figure)
    return figure


def embedding_space(embeddings, labels, class_names, centroids=None, prototypes=None) -> Figure:
    """The embedding space in 2-D: the two principal components of the unit embeddings.

    Args:
        embeddings: float (N, D), unit length; labels: int (N,).
        centroids: float (M, D), drawn as crosses; prototypes: float (D, K), drawn as stars.
    """
    pca = PCA(2).fit(embeddings)
    figure, ax = plt.subplots(figsize=(9, 4.2), layout="constrained", dpi=80)
    for k, name in enumerate(class_names):
        points = pca.transform(embeddings[labels == k])
        ax.scatter(*points.T, s=12, alpha=0.5, color=COLOURS[k], label=name)
    if centroids is not None:
        ax.scatter(*pca.transform(centroids).T, marker="X", s=70, color="black", edgecolor="white", label="centroid")
    if prototypes is not None:
        ax.scatter(
            *pca.transform(prototypes.T).T, marker="*", s=220, color=COLOURS[: len(class_names)], edgecolor="black",
            label="class prototype",
        )  # fmt: skip
    shares = pca.explained_variance_ratio_
    ax.set(xlabel=f"component 1 ({shares[0]:.0%} of the variance)", ylabel=f"component 2 ({shares[1]:.0%})")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    ax.grid(alpha=0.3)
    plt.close(figure)
    return figure


def anomaly_scores(scores: np.ndarray, defective: np.ndarray, threshold: float = 1.0) -> Figure:
    """Histogram of anomaly scores with the threshold, and the ROC curve with the place that it takes there.

    Args:
        scores: float (N,); defective: bool (N,).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.9), width_ratios=(2, 1), layout="constrained", dpi=80)
    bins = np.linspace(scores.min(), scores.max(), 50)
    for kind, name in enumerate(("normal", "defective")):
        left.hist(scores[defective == kind], bins, alpha=0.6, color=COLOURS[kind], label=name)
    left.axvline(threshold, color="0.2", ls="--", label="threshold")
    left.set(xlabel="score", ylabel="images")
    left.legend(frameon=False)
    false_positives, found, _ = roc_curve(defective, scores)
    right.plot(false_positives, found, color=COLOURS[0])
    right.plot(*((scores > threshold)[defective == kind].mean() for kind in (False, True)), "o", color="0.2")
    right.set(xlabel="false positives", ylabel="defects found", xlim=(-0.02, 0.3), ylim=(0.7, 1.01))
    right.grid(alpha=0.3)
    plt.close(figure)
    return figure


def layer_scores(scores: dict[str, list[float]], layers: list[str], measure: str, baselines: dict) -> Figure:
    """A line for each method over the layers, early to late; baselines as dashed lines."""
    figure, ax = plt.subplots(figsize=(9, 3.2), layout="constrained", dpi=80)
    for i, (method, values) in enumerate(scores.items()):
        ax.plot(values, "o-", color=COLOURS[i], label=method)
    for i, (name, value) in enumerate(baselines.items()):
        ax.axhline(value, color="0.3", ls=("--", ":")[i % 2], label=name)
    lowest = min(map(min, scores.values()))
    ax.set(ylabel=measure, ylim=(None if lowest < 0 else 0, None))
    ax.set_xticks(range(len(layers)), layers, rotation=40, ha="right", fontsize=8)
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    plt.close(figure)
    return figure


@dataclass(frozen=True)
class Slider:
    """A slider through figures; where there are no widgets (GitHub, a page of HTML, no ipywidgets) one figure instead.

    As the value of a notebook's cell it gives the front end both, which shows the better one that it can.
    """

    options: list[str]  # where the slider stops, its text there
    draw: Callable[[str], Figure]  # of an option; called when the slider comes there for the first time
    otherwise: Figure

    def box(self):
        """The widgets: ipywidgets.VBox of slider and picture."""
        import ipywidgets

        png = functools.cache(lambda option: _png(self.draw(option)))
        slider = ipywidgets.SelectionSlider(options=self.options, layout={"width": "600px"})
        picture = ipywidgets.Image(value=png(slider.value), format="png")
        slider.observe(lambda change: setattr(picture, "value", png(change["new"])), "value")
        return ipywidgets.VBox([slider, picture])

    def _repr_mimebundle_(self, **_) -> dict:
        png = base64.b64encode(_png(self.otherwise)).decode()
        bundle = {"text/plain": f"<Slider with {len(self.options)} stops>", "image/png": png}
        try:
            box = self.box()
        except ImportError:
            return bundle
        return bundle | {WIDGET: {"version_major": 2, "version_minor": 0, "model_id": box.model_id}}


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def benchmark_bars(result: dict) -> Figure:
    """Milliseconds an image of each method, of `benchmark.run`: medians, whiskers at the quartiles."""
    configurations = result["configurations"]
    sizes = sorted({tuple(case["image_size"]) for case in configurations})
    batches, threads = (sorted({case[key] for case in configurations}) for key in ("batch_size", "threads"))
    methods = list(configurations[0]["milliseconds"])
    height = 0.8 / len(threads)
    figure, axes = plt.subplots(
        len(sizes), len(batches), figsize=(11, 0.9 + 3.0 * len(sizes)), squeeze=False, sharex=True, sharey=True,
        layout="constrained", dpi=80,
    )  # fmt: skip
    for case in configurations:
        ax = axes[sizes.index(tuple(case["image_size"]))][batches.index(case["batch_size"])]
        ax.set_title("{}x{}, batch of {}".format(*case["image_size"], case["batch_size"]), fontsize=10)
        i = threads.index(case["threads"])
        lower, median, upper = np.transpose([case["milliseconds"][method] for method in methods])
        ax.barh(
            np.arange(len(methods)) + i * height, median, height, color=COLOURS[i], ecolor="0.2", capsize=2,
            xerr=[median - lower, upper - median], label=f"{case['threads']} thread{'s' * (case['threads'] > 1)}",
        )  # fmt: skip
        for y, (value, end) in enumerate(zip(median, upper, strict=True)):
            ax.annotate(
                f"{value:.3g}", (end, y + i * height), (5, 0), textcoords="offset points", va="center", fontsize=7.5
            )
    for ax in axes.flat:
        ax.set(xscale="log", yticks=np.arange(len(methods)) + height * (len(threads) - 1) / 2, yticklabels=methods)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.margins(x=0.1)
        ax.grid(axis="x", alpha=0.3)
        ax.set_axisbelow(True)
    axes[0][0].invert_yaxis()
    figure.supxlabel("milliseconds an image", fontsize=10)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower right", ncols=len(threads), frameon=False)
    plt.close(figure)
    return figure
