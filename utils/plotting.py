"""Figures for the notebooks. Every function returns a closed matplotlib Figure: a notebook shows it as its output."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from sklearn.decomposition import PCA
from sklearn.metrics import roc_curve

COLORMAP = "turbo"  # as in utils.heatmap
DPI = 120
COLOURS = plt.get_cmap("tab10").colors


def image_grid(rows: list[list[np.ndarray]], row_titles=None, *, titles=None, boxes=None, width: float = 9.0) -> Figure:
    """Pictures in rows and columns. Beside rows of heat maps, and only there, stands the colour bar.

    Args:
        rows: each row a list of images, uint8 RGB (H, W, 3) or grey (H, W), of masks, bool (H, W), or of heat maps,
            float (H, W) in [0, 1]. Masks are drawn black and white; only heat maps are coloured.
        row_titles: one text per row, written at its left.
        titles: like rows, the text above each picture. None or "" where there is none; the last rows may be left out.
        boxes: like rows, (x0, y0, x1, y1) or None.
        width: of the figure in inches.
    """
    heat = [any(image.dtype.kind == "f" for image in row) for row in rows]
    titles = [[] if row is None else list(row) for row in titles or ()] + [[]] * len(rows)
    n_columns = max(map(len, rows))
    for_bars = 0.7 * any(heat)
    tile = (width - for_bars - 0.3 * bool(row_titles)) / n_columns
    height = len(rows) * (tile + 0.03) + sum(0.22 for row in titles if any(row))
    figure, axes = plt.subplots(len(rows), n_columns, figsize=(width, height), squeeze=False, dpi=DPI)
    figure.set_layout_engine("constrained", rect=(0, 0, 1 - for_bars / width, 1))
    for i, row in enumerate(rows):
        for ax in axes[i, len(row) :]:
            ax.set_axis_off()
        for ax, image in zip(axes[i], row, strict=False):
            _draw(ax, image)
        for ax, title in zip(axes[i], titles[i], strict=False):
            ax.set_title(title, fontsize=9)
        for ax, box in zip(axes[i], boxes[i] if boxes else (), strict=False):
            if box:
                _draw_box(ax, *box)
        if row_titles:
            axes[i][0].set_ylabel(row_titles[i], fontsize=10)
    _add_colour_bars(figure, [axes[first:end] for first, end in _runs(heat)])
    plt.close(figure)
    return figure


def _draw(ax, image):
    coloured = image.dtype.kind == "f"
    highest = 255 if image.dtype == np.uint8 else 1
    ax.imshow(image, cmap=COLORMAP if coloured else "gray", vmin=0, vmax=highest)
    ax.set(xticks=[], yticks=[])


def _draw_box(ax, x0, y0, x1, y1):
    for colour, thickness in (("white", 3), ("crimson", 1.5)):
        ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, color=colour, lw=thickness))


def _runs(flags):
    """First and one past the last place of each run of true flags."""
    return np.flatnonzero(np.diff([False, *flags, False])).reshape(-1, 2)


def _add_colour_bars(figure, blocks):
    """A colour bar of heat maps beside each block of rows of axes, as high as the pictures are."""
    figure.draw_without_rendering()  # now the places of the pictures are known
    figure.set_layout_engine("none")
    width = figure.get_figwidth()
    for block in blocks:
        top, bottom, right = (block[i, j].get_position() for i, j in ((0, 0), (-1, 0), (0, -1)))
        place = figure.add_axes([right.x1 + 0.08 / width, bottom.y0, 0.12 / width, top.y1 - bottom.y0])
        scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), COLORMAP)
        figure.colorbar(scale, cax=place, label="heat", ticks=(0, 0.5, 1), format="{x:g}")


def training_curves(history: list[dict]) -> Figure:
    """Loss (with margin) and validation accuracy (without label and margin) over the training's steps."""
    steps = [entry["done"] for entry in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained", dpi=DPI)
    left.plot(steps, [entry["loss"] for entry in history], "o-", color=COLOURS[0])
    left.set(title="training loss (with margin)", xlabel="training step", ylabel="loss, logarithmic", yscale="log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    right.plot(steps, [entry["validation_accuracy"] for entry in history], "o-", color=COLOURS[1])
    right.set(
        title="validation accuracy (no label, no margin)", xlabel="training step", ylabel="accuracy", ylim=(0, 1.03)
    )
    for ax in (left, right):
        ax.grid(alpha=0.3)
    plt.close(figure)
    return figure


def embedding_space(embeddings, labels, *, class_names, centroids=None, prototypes=None) -> Figure:
    """The embedding space in 2-D: the two principal components of the unit embeddings.

    Args:
        embeddings: float (N, D), unit length; labels: int (N,).
        centroids: float (M, D), drawn as crosses; prototypes: float (D, K), drawn as stars.
    """
    pca = PCA(2).fit(embeddings)
    figure, ax = plt.subplots(figsize=(9, 4.2), layout="constrained", dpi=DPI)
    for k, name in enumerate(class_names):
        points = pca.transform(embeddings[labels == k])
        ax.scatter(*points.T, s=12, alpha=0.5, color=COLOURS[k], label=name)
    if centroids is not None:
        ax.scatter(*pca.transform(centroids).T, marker="X", s=70, color="black", edgecolor="white", label="centroid")
    if prototypes is not None:
        ax.scatter(
            *pca.transform(prototypes.T).T, marker="*", s=220, color=COLOURS[: len(class_names)], edgecolor="black",
            label="class prototype",
        )
    shares = pca.explained_variance_ratio_
    ax.set(
        title="embeddings, projected onto their two principal components",
        xlabel=f"component 1 ({shares[0]:.0%} of the variance)", ylabel=f"component 2 ({shares[1]:.0%})",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    ax.grid(alpha=0.3)
    plt.close(figure)
    return figure


def anomaly_scores(scores: np.ndarray, defective: np.ndarray, *, threshold: float = 1.0) -> Figure:
    """Histogram of anomaly scores with the threshold, and the corner of the ROC curve with a dot for the threshold.

    Args:
        scores: float (N,); defective: bool (N,).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2), layout="constrained", dpi=DPI)
    bins = np.linspace(scores.min(), scores.max(), 50)
    for kind, name in enumerate(("normal", "defective")):
        left.hist(scores[defective == kind], bins, alpha=0.6, color=COLOURS[kind], label=name)
    left.axvline(threshold, color="0.2", ls="--", label="threshold")
    left.set(title="histogram of the scores", xlabel="score", ylabel="images")
    left.legend(frameon=False)
    false_positives, found, _ = roc_curve(defective, scores)
    right.plot(false_positives, found, color=COLOURS[0])
    at_threshold = [(scores > threshold)[defective == kind].mean() for kind in (False, True)]
    right.plot(*at_threshold, "o", color="0.2", label="threshold")
    x_end, y_start = max(0.3, at_threshold[0] + 0.1), min(0.7, at_threshold[1] - 0.1)
    right.set(
        title="ROC curve, its upper left corner", xlabel="share of false alarms", ylabel="share of defects found",
        xlim=(-0.02, x_end), ylim=(y_start, 1.01),
    )
    right.legend(loc="lower right", frameon=False)
    right.grid(alpha=0.3)
    plt.close(figure)
    return figure


def layer_scores(
    scores: dict[str, list[float]], layers: list[str], *, measure: str, baselines: dict[str, float] | None = None,
    xlabel: str = "layer, from early to late",
) -> Figure:
    """A line per method over the layers; baselines as dashed lines."""
    figure, ax = plt.subplots(figsize=(9, 3.6), layout="constrained", dpi=DPI)
    for i, (method, values) in enumerate(scores.items()):
        ax.plot(values, "o-", color=COLOURS[i], label=method)
    for i, (name, value) in enumerate((baselines or {}).items()):
        ax.axhline(value, color="0.3", ls=("--", ":")[i % 2], label=name)
    lowest = min(map(min, scores.values()))
    ax.set(title=f"{measure}, layer by layer", xlabel=xlabel, ylabel=measure, ylim=(None if lowest < 0 else 0, None))
    ax.set_xticks(range(len(layers)), layers, rotation=40, ha="right", fontsize=8)
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    plt.close(figure)
    return figure


def mosaic(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Join pictures into larger ones, all at once: rows of arrays (N, h, w, 3) or masks (N, h, w) → (N, H, W[, 3])."""
    return np.concatenate([np.concatenate(row, axis=2) for row in rows], axis=1)
