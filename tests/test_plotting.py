"""What the figures of the notebooks show: colours, colour bars, axes; the slider."""


import matplotlib.pyplot as plt
import numpy as np
import pytest

from utils import plotting

PNG = b"\x89PNG\r\n"


@pytest.fixture
def pictures():
    """An image, a mask and a heat map of the same place."""
    mask = np.zeros((8, 8), bool)
    mask[2:4, 5:7] = True
    return np.full((8, 8, 3), 90, np.uint8), mask, mask.astype(np.float32) / 2


def drawn(ax):
    """The colours of a picture: uint8 RGBA (H, W, 4)."""
    (image,) = ax.images
    return image.to_rgba(image.get_array(), bytes=True)


def test_masks_are_black_and_white_and_heat_is_coloured_from_0_to_1(pictures):
    image, mask, heat = pictures
    axes = plotting.image_grid([[image, mask, heat, np.uint8(mask) * 128]]).axes
    assert (drawn(axes[0])[..., :3] == 90).all()
    np.testing.assert_array_equal(drawn(axes[1])[..., 0], np.where(mask, 255, 0))
    np.testing.assert_array_equal(drawn(axes[3])[..., 0], np.where(mask, 128, 0))  # not stretched
    for ax in (axes[1], axes[3]):
        assert (np.ptp(drawn(ax)[..., :3], axis=-1) == 0).all()
    half, nothing = (plt.get_cmap("turbo")(value, bytes=True) for value in (0.5, 0.0))
    np.testing.assert_array_equal(drawn(axes[2]), np.where(mask[..., None], half, nothing))  # not stretched either


@pytest.mark.parametrize("kind", [0, 1])
def test_without_heat_there_is_no_colour_bar(pictures, kind):
    figure = plotting.image_grid([[pictures[kind]] * 2] * 2, ["above", "below"])
    assert len(figure.axes) == 4


def test_colour_bar_stands_beside_the_rows_of_heat_only(pictures):
    image, mask, heat = pictures
    titles = [["an image"] * 2, ["heat"] * 2]
    figure = plotting.image_grid([[image] * 2, [heat] * 2, [heat], [mask] * 2], list("abcd"), titles=titles)
    *axes, bar = figure.axes
    figure.canvas.draw()
    first, last, where = axes[2].get_position(), axes[4].get_position(), bar.get_position()
    assert (where.y0, where.y1) == pytest.approx((last.y0, first.y1))
    assert where.y1 < axes[0].get_position().y0 and where.y0 > axes[6].get_position().y1
    assert where.x0 > axes[3].get_position().x1
    assert bar.get_ylim() == (0, 1) and bar.get_ylabel() == "heat"


def test_rows_of_heat_apart_have_a_colour_bar_each(pictures):
    image, _, heat = pictures
    *axes, upper, lower = plotting.image_grid([[heat], [image], [heat]]).axes
    for ax, bar in ((axes[0], upper), (axes[2], lower)):
        assert (bar.get_position().y0, bar.get_position().y1) == pytest.approx(ax.get_position().intervaly)


def test_titles_may_be_left_out_and_boxes_are_drawn(pictures):
    image, mask, _ = pictures
    figure = plotting.image_grid(
        [[image, mask], [mask]], titles=[np.array(["first", ""]), None], boxes=[[None, (1, 2, 4, 8)], [None]]
    )
    assert [ax.get_title() for ax in figure.axes] == ["first", "", "", ""]
    assert [len(ax.patches) for ax in figure.axes] == [0, 2, 0, 0]
    assert figure.axes[1].patches[1].get_bbox().extents.tolist() == [0.5, 1.5, 3.5, 7.5]
    assert figure.axes[2].axison and not figure.axes[3].axison


def tick_labels(figure):
    figure.canvas.draw()
    return [label.get_text() for label in figure.axes[0].get_yticklabels(which="both")]


@pytest.mark.parametrize("losses", [(0.62, 0.41, 0.33), (11.3, 2.2, 0.4), (0.35, 0.34, 0.32)])
def test_training_curves_have_labels_and_plain_numbers(losses):
    history = [{"done": 10 * i, "loss": loss, "validation_accuracy": 0.9} for i, loss in enumerate(losses)]
    figure = plotting.training_curves(history)
    labels = [text for text in tick_labels(figure) if text]
    assert len(labels) >= 3 and all(float(text) > 0 and "e" not in text for text in labels)
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_title() for ax in figure.axes)


def test_layer_scores_names_both_axes():
    settings = {"measure": "heat in mask", "baselines": {"centre": 0.2}}
    (ax,) = plotting.layer_scores({"gradcam": [0.1, 0.4]}, ["early", "late"], **settings).axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer, from early to late", "heat in mask")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["early", "late"]
    (ax,) = plotting.layer_scores({"gradcam": [1, -0.4]}, ["a", "b"], measure="correlation", xlabel="shuffled").axes
    assert ax.get_xlabel() == "shuffled" and ax.get_ylim()[0] < -0.4


@pytest.mark.parametrize("scores, dot", [([0, 0.5, 1.1, 1.2], (0, 1)), ([1.5, 1.6, 0.1, 0.2], (1, 0))])
def test_the_threshold_lies_within_the_roc_plot_which_says_that_it_is_cut(scores, dot):
    left, right = plotting.anomaly_scores(np.array(scores), np.array([False, False, True, True])).axes
    assert tuple(np.ravel(right.lines[1].get_data())) == dot
    assert right.get_xlim()[0] < dot[0] < right.get_xlim()[1] and right.get_ylim()[0] < dot[1] < right.get_ylim()[1]
    assert "corner" in right.get_title()
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_title() for ax in (left, right))


def test_mosaic_puts_each_picture_where_it_stands():
    upper, lower = np.array([[[1, 2]], [[5, 6]]]), np.array([[[3], [4]], [[7], [8]]])  # two of 1 x 2, two of 2 x 1
    masks = plotting.mosaic([[upper], [lower, lower]])
    np.testing.assert_array_equal(masks, [[[1, 2], [3, 3], [4, 4]], [[5, 6], [7, 7], [8, 8]]])
    images = plotting.mosaic([[np.zeros((4, 2, 3, 3)), np.ones((4, 2, 1, 3))]])
    assert images.shape == (4, 2, 4, 3) and images[..., 3, :].all() and not images[..., :3, :].any()
