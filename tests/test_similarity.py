"""Why two images are alike: by hand, as sums that equal the cosine, and on networks where it is no such sum."""

import keras
import numpy as np
import pytest
from keras import layers

from utils import arcface, gradcam, networks, similarity
from utils.networks import cells
from utils.repro import tf
from utils.similarity import Cells

CLOSE = {"rtol": 0, "atol": 1e-5}


def network(*tail, size=(24, 24), stride=8, channels=6, last="relu"):
    """A random network whose maps are `stride` times smaller than its images."""
    keras.utils.set_random_seed(3)
    image = x = keras.Input((*size, 3))
    x = layers.Rescaling(1 / 127.5, -1.0)(x)
    x = layers.Conv2D(channels, 5, strides=stride, padding="same", activation=last, name="maps")(x)
    for layer in tail:
        x = layer(x)
    return keras.Model(image, x)


def dense(bias=False):
    initial = keras.initializers.RandomNormal(seed=1)
    return layers.Dense(5, use_bias=bias, bias_initializer=initial, kernel_initializer=initial, name="embedding")


def pooling(**settings):
    return layers.GlobalAveragePooling2D(**settings)


TAILS = {
    "pooling": lambda: [pooling()],
    "pooling, dense": lambda: [pooling(), dense()],
    "pooling, dense, bias": lambda: [pooling(), dense(bias=True)],
    "normalised": lambda: [pooling(), dense(), layers.UnitNormalization()],
    "pooling, normalised": lambda: [pooling(), layers.UnitNormalization()],
    "two dense": lambda: [pooling(), dense(), layers.Dropout(0.5), layers.Dense(3, name="second")],
    "dense, batch norm": lambda: [pooling(), dense(), layers.BatchNormalization()],
    "1 x 1 convolution": lambda: [pooling(keepdims=True), layers.Conv2D(4, 1), layers.Flatten()],
    "ArcFace": lambda: [pooling(), dense(), arcface.ArcFace(3)],
}
OTHER_TAILS = {
    "flattened": lambda: [layers.Flatten(), dense()],
    "maximum": lambda: [layers.GlobalMaxPooling2D(), dense()],
    "hidden ReLU": lambda: [pooling(), layers.Dense(8, activation="relu"), dense()],
}


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 24, 24, 3)).astype(np.uint8)


def cosine(model, *images):
    sides = [networks.forward(cells.embedding_of(model), np.array(image)[None])[0] for image in images]
    one, other = (side / np.linalg.norm(side) for side in sides)
    return one @ other


def check_sums(result, score):
    for total in (result.score, result.pairs.sum(), result.shares_a.sum(), result.shares_b.sum()):
        np.testing.assert_allclose(total, score, **CLOSE)
    for losses in (result.losses_a, result.losses_b):
        np.testing.assert_allclose(losses.sum(), 1 - score, **CLOSE)
    sides = result.shares_a.size, result.shares_b.size
    assert result.pairs.shape == sides
    np.testing.assert_allclose(result.pairs.sum(axis=1), result.shares_a.ravel(), **CLOSE)
    np.testing.assert_allclose(result.pairs.sum(axis=0), result.shares_b.ravel(), **CLOSE)


def test_by_hand():
    """Embeddings (2, 0) + (0, 2) + (2, 2) + (0, 0), a quarter of it, and (4, 0) twice: (1, 1) and (2, 0)."""
    a = Cells(np.float32([[[2, 0], [0, 2]], [[2, 2], [0, 0]]]), (4, 4))
    b = Cells(np.float32([[[4, 0], [0, 0]], [[0, 0], [4, 0]]]), (4, 4))
    result, root = similarity.of_cells(a, b), np.sqrt(2)
    np.testing.assert_allclose(result.score, 1 / root, rtol=1e-6)
    np.testing.assert_allclose(result.shares_a, np.array([[1, 0], [1, 0]]) / (2 * root), rtol=1e-6)
    np.testing.assert_allclose(result.shares_b, np.array([[1, 0], [0, 1]]) / (2 * root), rtol=1e-6)
    rows = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]]) / (4 * root)
    np.testing.assert_allclose(result.pairs, rows, rtol=1e-6)
    # Against it: of a what points elsewhere than b, z · (ê − ê′) / ‖e‖ with ê = (1, 1) / √2.
    np.testing.assert_allclose(result.losses_a.ravel(), np.array([1, 1, 2, 0]) / 4 - rows.sum(axis=1), atol=1e-6)
    assert result.match((0, 0)) == (1, 1) and result.is_exact


def test_a_dense_layer_by_hand():
    """W = ((1, 0), (1, 0)): both channels become one number, so that the images are the same to the network."""
    weights = np.float32([[1, 0], [1, 0]])
    a, b = (Cells(np.float32([[values]]) @ weights, (2, 2)) for values in ([3, 0], [1, 4]))
    result = similarity.of_cells(a, b)
    assert result.score == pytest.approx(1) and a.length == pytest.approx(3) and b.length == pytest.approx(5)
    np.testing.assert_allclose(result.pairs, [[1]], rtol=1e-6)
    np.testing.assert_allclose([result.losses_a, result.losses_b], 0, atol=1e-6)


@pytest.mark.parametrize("size, stride", [((24, 24), 8), ((48, 24), 8), ((32, 64), 16), ((96, 64), 32)])
@pytest.mark.parametrize("tail", TAILS)
def test_the_shares_sum_to_the_cosine(tail, size, stride, rng):
    model = network(*TAILS[tail](), size=size, stride=stride)
    a, b = rng.integers(0, 256, (2, *size, 3)).astype(np.uint8)
    result = similarity.compare(model, a, b)
    assert result.is_exact and result.shares_a.shape == (size[0] // stride, size[1] // stride)
    check_sums(result, cosine(model, a, b))


@pytest.mark.parametrize("output_stride", (8, 16, 32))
def test_our_own_network(output_stride, rng):
    spec = networks.Spec("mobilenet_v2", image_size=64, alpha=0.35, output_stride=output_stride, embedding_size=8)
    model = networks.embedding_network(spec)
    a, b = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    result = similarity.compare(model, a, b)
    assert result.shares_a.shape == (64 // output_stride,) * 2
    check_sums(result, cosine(model, a, b))


def test_a_network_of_any_size(rng):
    model = network(pooling(), dense(), size=(None, None))
    a, b = (rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in ((24, 40), (56, 16)))
    result = similarity.compare(model, a, b)
    assert result.shares_a.shape == (3, 5) and result.shares_b.shape == (7, 2)
    check_sums(result, cosine(model, a, b))
    assert result.heatmap_a.shape == (24, 40) and result.difference_b.shape == (56, 16)


def test_layers_in_a_nested_model(images):
    inner = network(size=(24, 24))
    image = keras.Input((24, 24, 3))
    model = keras.Model(image, dense()(pooling()(inner(image))))
    check_sums(similarity.compare(model, *images[:2]), cosine(model, *images[:2]))


def test_it_is_symmetric(images):
    model = network(pooling(), dense(bias=True))
    one, other = (similarity.compare(model, *pair) for pair in (images[:2], images[1::-1]))
    np.testing.assert_allclose(one.pairs, other.pairs.T, rtol=0, atol=1e-6)
    for name in ("shares", "losses", "heatmap", "difference"):
        np.testing.assert_allclose(getattr(one, f"{name}_a"), getattr(other, f"{name}_b"), rtol=0, atol=1e-6)


def test_an_image_beside_itself(images):
    result = similarity.compare(network(pooling(), dense()), images[0], images[0])
    assert result.score == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(result.losses_a, 0, atol=1e-6)
    assert abs(result.difference_a).max() < 1e-4 and abs(result.heatmap_a).max() == pytest.approx(1, abs=0.5)


def test_maps_have_one_scale_and_keep_their_sign():
    a = Cells(np.float32([[[1], [-1], [4]]]), (1, 3))
    b = Cells(np.float32([[[2], [0], [0]]]), (1, 3))
    result = similarity.of_cells(a, b)
    np.testing.assert_allclose(result.heatmap_a, [[0.25, -0.25, 1]], atol=1e-6)
    np.testing.assert_allclose(result.heatmap_b, [[1, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(result.difference_a, 0, atol=1e-6)


def test_details_sharpen_with_the_map_as_gate():
    maps = np.float32([[[4], [0]], [[0], [-1]]])
    outline = np.float32([[1, 1], [1, 2]])
    plain, sharp = Cells(maps, (2, 2)), Cells(maps, (2, 2), outline=outline)
    raw = maps[..., 0]
    np.testing.assert_allclose(sharp.draw(raw, True), [[2, 0], [0, -2]])
    np.testing.assert_allclose(sharp.draw(raw, False), raw)
    np.testing.assert_allclose(plain.draw(raw, True), raw)


def test_maps_lie_where_a_cropping_network_looks(rng):
    image = keras.Input((32, 32, 3))
    x = layers.Cropping2D(((0, 0), (16, 0)))(image)
    x = layers.Conv2D(4, 8, strides=8, activation="relu")(x)
    model = keras.Model(image, pooling()(x))
    a, b = rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    result = similarity.compare(model, a, b)
    assert result.shares_a.shape == (4, 2)
    assert not result.heatmap_a[:, :15].any() and result.heatmap_a[:, 17:].any()
    assert result.match((31, 0))[0] >= 16


def test_a_point_finds_its_like(rng):
    """The one marked cell of a matches the one marked cell of b, elsewhere."""
    maps = np.zeros((2, 4, 4, 3), np.float32) + np.float32([1, 0, 0])
    maps[0, 1, 0] = maps[1, 2, 3] = 0, 9, 0
    a, b = (Cells(own, (40, 80)) for own in maps)
    assert similarity.of_cells(a, b).match((5, 15)) == (70, 25)
    assert similarity.of_cells(a, b).match((79, 39)) != (70, 25)


@pytest.mark.parametrize("point", [(-1, 0), (0, 40), (80, 0), (1, 2, 3), 7])
def test_a_point_outside(point):
    cells_ = Cells(np.ones((4, 4, 3), np.float32), (40, 80))
    with pytest.raises(ValueError, match=r"A point \(x, y\) must lie in the image"):
        similarity.of_cells(cells_, cells_).match(point)


def test_a_part_of_an_image_is_the_sum_of_its_cells(rng):
    maps = rng.random((2, 3, 4)).astype(np.float32)
    weights = np.float32([[1, 0, 0], [0.5, 0, 0]])
    part = Cells(maps, (2, 3), weights=weights)
    np.testing.assert_allclose(part.embedding, (maps[0, 0] + 0.5 * maps[1, 0]) / 6, rtol=1e-6)
    result = similarity.of_cells(part, Cells(maps, (2, 3)))
    check_sums(result, result.score)
    assert not result.shares_a[:, 1:].any()


def test_why_nearer(images):
    model = network(pooling(), dense())
    x, a, b = images
    result = similarity.contrast(model, x, a=a, b=b)
    margin = cosine(model, x, a) - cosine(model, x, b)
    np.testing.assert_allclose([result.margin, result.shares.sum()], margin, **CLOSE)
    assert result.heatmap.shape == (24, 24) and abs(result.heatmap).max() <= 1
    opposite = similarity.contrast(model, x, a=b, b=a)
    np.testing.assert_allclose(opposite.heatmap, -result.heatmap, atol=1e-5)


@pytest.mark.parametrize("tail", OTHER_TAILS)
def test_gradient_times_activation_where_there_is_no_sum(tail, images):
    model = network(*OTHER_TAILS[tail]())
    assert cells.linear_tail(model) is None
    result = similarity.compare(model, *images[:2])
    assert not result.is_exact and result.score == pytest.approx(cosine(model, *images[:2]), abs=1e-5)
    other = networks.forward(model, images[1:2])[0]

    def to_other(embeddings):
        return tf.linalg.matvec(tf.math.l2_normalize(embeddings, axis=1), other / np.linalg.norm(other))

    how = {"layer": "maps", "method": "hirescam", "normalise": False}
    expected = gradcam.explain(model, images[:1], targets=to_other, **how)[0]
    np.testing.assert_allclose(result.shares_a, expected, atol=1e-6)
    with pytest.raises(ValueError, match="Pairs of cells need a network whose embedding is a sum over cells"):
        result.match((0, 0))


def test_gradient_times_activation_is_the_exact_share_without_what_is_common(images):
    """z_p · (ê′ − cos · ê) / ‖e‖: it sums to 0, because a longer embedding has the same cosine."""
    model = network(pooling(), dense())
    result = similarity.compare(model, *images[:2])
    _, (shares, _) = cells.gradient_shares(model, tuple(images[:2]), None)
    expected = result.shares_a - result.score * (result.shares_a + result.losses_a)
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert abs(shares.sum()) < 1e-5


def test_the_network_is_compiled_once(images):
    model = network(pooling(), dense())
    assert cells.embedding_of(model) is cells.embedding_of(model)
    with_head = network(*TAILS["ArcFace"]())
    assert cells.embedding_of(with_head) is cells.embedding_of(with_head) is not with_head


@pytest.mark.parametrize("wrong", [
    np.zeros((24, 24), np.uint8), np.zeros((24, 24, 4), np.uint8), np.zeros((1, 24, 24, 3), np.uint8),
    np.zeros((24, 24, 3)), np.full((24, 24, 3), np.nan, np.float32), np.zeros((0, 24, 3), np.uint8),
])
def test_what_is_no_image(wrong, images):
    with pytest.raises(ValueError, match=r"Expected one image, uint8 \(H, W, 3\). Received: "):
        similarity.compare(network(pooling()), images[0], wrong)


@pytest.mark.parametrize("tail, sentence", [
    (lambda: [pooling(), layers.Dense(4), layers.Softmax()], "in a softmax or sigmoid; pass the model up to there"),
    (lambda: [], r"Expected a network that ends in an embedding \(N, D\)"),
])
def test_what_gives_no_embedding(tail, sentence, images):
    with pytest.raises(ValueError, match=sentence):
        similarity.compare(network(*tail()), *images[:2])


def test_a_network_without_maps(images):
    image = keras.Input((24, 24, 3))
    model = keras.Model(image, layers.Dense(3)(layers.Flatten()(image)))
    with pytest.raises(ValueError, match="has no layer that gives feature maps"):
        similarity.compare(model, *images[:2])
    with pytest.raises(ValueError, match="choose one of"):
        similarity.compare(network(*OTHER_TAILS["maximum"]()), *images[:2], layer="nothing")
