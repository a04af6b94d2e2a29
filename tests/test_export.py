"""The exported graph against the Keras explainer, on a small random network; what is inside the file."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from ai_edge_litert import interpreter, schema_py_generated

from utils import data, export, networks, runtime, similarity
from utils.arcface import ArcFace
from utils.faster_gradcam import FasterGradCAM

SIZE = 16
CLASSES = ("red", "green", data.NONE)


def images(height, width, n=12):
    """Noise, reddish, greenish and bluish in turn."""
    noise = np.random.default_rng(height).integers(0, 100, (n, height, width, 3))
    noise[np.arange(n), ..., np.arange(n) % 3] += 150
    return noise.astype(np.uint8)


@pytest.fixture(scope="module")
def faster():
    """Of a random network that tells the three colours apart; blue is *none*."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1.0, name="preprocessing")(x)
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="early")(x)
    x = keras.layers.AveragePooling2D(2)(x)
    x = keras.layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", activation="relu")(x)
    x = keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="late")(x)
    x = keras.layers.Dense(8)(keras.layers.GlobalAveragePooling2D()(x))
    embedding, head, photos = keras.Model(inputs, x), ArcFace(3), images(SIZE, SIZE, 60)
    network = keras.Model(inputs, head(embedding.output))
    labels = np.arange(60) % 3
    head.set_weights([np.linalg.pinv(networks.forward(embedding, photos)) @ np.eye(3)[labels]])
    return FasterGradCAM.fit(network, photos, labels, CLASSES, layer="late", n_clusters=3, detail_layer="early")


@pytest.fixture(scope="module")
def float_file(faster, tmp_path_factory):
    return export.export_float(faster, tmp_path_factory.mktemp("float") / "explainer.tflite")


@pytest.fixture(scope="module")
def int8_file(float_file, tmp_path_factory):
    return export.export_int8(float_file, images(20, 30, 60), tmp_path_factory.mktemp("int8") / "explainer.tflite")


def operators(file):
    """Names of the operators in a LiteRT file, from its own table; a custom one has the name it brings."""
    model = schema_py_generated.ModelT.InitFromPackedBuf(file.read_bytes())
    names = {code: name for name, code in vars(schema_py_generated.BuiltinOperator).items() if isinstance(code, int)}
    return [
        (code.customCode or names[max(code.builtinCode, code.deprecatedBuiltinCode)])
        for subgraph in model.subgraphs
        for operator in subgraph.operators
        for code in [model.operatorCodes[operator.opcodeIndex]]
    ]


@pytest.mark.parametrize("size", [(SIZE, SIZE), (40, 24), (9, 50), (1, 1)])
def test_the_float_file_explains_as_keras_does(faster, float_file, size):
    keras_result = faster.explain(images(*size))
    result = runtime.Explainer(float_file).explain(images(*size))
    assert result.class_names == CLASSES and result.names == keras_result.names
    np.testing.assert_array_equal(result.labels, keras_result.labels)
    np.testing.assert_array_equal(result.clusters, keras_result.clusters)
    for name in ("scores", "embeddings", "heatmaps"):
        ours, theirs = getattr(result, name), getattr(keras_result, name)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("size", [(SIZE, SIZE), (40, 24)])
def test_the_float_file_compares_as_keras_does(faster, float_file, size):
    a, b = images(*size)[:2]
    ours, theirs = runtime.Explainer(float_file).compare(a, b), similarity.compare(faster, a, b)
    assert ours.a.outline is not None and ours.is_exact
    for name in ("pairs", "shares_a", "losses_b", "heatmap_a", "heatmap_b", "difference_a", "difference_b"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-4)
    unit = faster.explain(np.stack([a, b])).embeddings
    for total in (ours.score, ours.pairs.sum(), ours.shares_a.sum(), ours.shares_b.sum()):
        np.testing.assert_allclose(total, unit[0] @ unit[1], atol=1e-5)


def test_int8_compares_nearly_as_float_does(float_file, int8_file):
    ours, exact = (runtime.Explainer(file).compare(*images(SIZE, SIZE)[:2]) for file in (int8_file, float_file))
    assert ours.pairs.sum() == pytest.approx(ours.score, abs=1e-5)
    assert ours.score == pytest.approx(exact.score, abs=0.05)
    assert np.corrcoef(ours.shares_a.ravel(), exact.shares_a.ravel())[0, 1] > 0.98


def test_an_older_file_explains_but_does_not_compare(faster, tmp_path, monkeypatch):
    monkeypatch.setattr(export.cells, "linear_tail", lambda network: None)
    explainer = runtime.Explainer(export.export_float(faster, tmp_path / "old.tflite"))
    assert explainer.explain(images(SIZE, SIZE)).names == faster.explain(images(SIZE, SIZE)).names
    with pytest.raises(ValueError, match="This file cannot compare: .* `python -m utils export` writes it anew."):
        explainer.compare(*images(SIZE, SIZE)[:2])


def test_without_details(faster, tmp_path):
    plain = faster.reweighted()
    result = runtime.Explainer(export.export_float(plain, tmp_path / "plain.tflite")).explain(images(SIZE, SIZE))
    np.testing.assert_allclose(result.heatmaps, plain.explain(images(SIZE, SIZE)).heatmaps, atol=1e-5)


def test_object_layers(faster, tmp_path):
    photos = images(SIZE, SIZE, 60)
    labels = faster.explain(photos).labels
    how = {"layer": "late", "n_clusters": 3, "weighting": "contrast", "object_layers": ["early"]}
    with_objects = FasterGradCAM.fit(faster.classifier(), photos, labels, CLASSES, **how)
    file = export.export_float(with_objects, tmp_path / "objects.tflite")
    assert not any(name.startswith("Flex") for name in operators(file))
    result, expected = runtime.Explainer(file).explain(photos), with_objects.explain(photos)
    np.testing.assert_allclose(result.heatmaps, expected.heatmaps, atol=1e-4)


def test_none_has_no_cluster_and_a_map_of_zeros(float_file):
    result = runtime.Explainer(float_file).explain(images(SIZE, SIZE))
    is_none = np.array(result.names) == data.NONE
    assert is_none.any() and not is_none.all()
    assert (result.clusters[is_none] == -1).all() and (result.clusters[~is_none] >= 0).all()
    assert not result.heatmaps[is_none].any()
    np.testing.assert_allclose(result.heatmaps[~is_none].max(axis=(1, 2)), 1, atol=0.2)  # cells lie between pixels


def test_no_positive_evidence_is_a_map_of_zeros(faster, tmp_path):
    negative = FasterGradCAM(
        faster.network, CLASSES, prototypes=faster.prototypes,
        clusters=replace(faster.clusters, mean_weights=-np.abs(faster.clusters.mean_weights)), contrast=None,
        detail_weights=faster.detail_weights, meta=faster.meta,
    )
    result = runtime.Explainer(export.export_float(negative, tmp_path / "negative.tflite")).explain(images(30, 30))
    assert not result.heatmaps.any()


def test_the_file_needs_no_tensorflow_operators(float_file, int8_file):
    for file in (float_file, int8_file):
        names = operators(file)
        assert all(isinstance(name, str) and not name.startswith("Flex") for name in names), names
        assert "CUSTOM" not in names
        # Dilated convolutions stay one operator.
        assert "DEPTHWISE_CONV_2D" in names and "SPACE_TO_BATCH_ND" not in names


def test_the_int8_file_is_int8_inside_and_float_at_its_ends(faster, float_file, int8_file):
    plain = interpreter.Interpreter(
        str(int8_file), experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    plain.allocate_tensors()
    types = {tensor["index"]: np.dtype(tensor["dtype"]).name for tensor in plain.get_tensor_details()}
    computing = [
        [types[index] for index in (*operator["inputs"][:2], *operator["outputs"])]
        for operator in plain._get_ops_details()
        if operator["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "MEAN")
    ]
    assert len(computing) == 4 and all(kinds[0] == kinds[-1] == "int8" for kinds in computing)
    assert all(kinds[1] == "int8" for kinds in computing[:3])
    names = plain.get_signature_runner().get_output_details()
    ends = [*plain.get_input_details(), *(part for name, part in names.items() if name != "projection")]
    assert {np.dtype(tensor["dtype"]).name for tensor in ends} == {"float32", "int32"}
    assert runtime.Explainer(int8_file).precision == "int8"

    ours, exact = (runtime.Explainer(file).explain(images(SIZE, SIZE, 60)) for file in (int8_file, float_file))
    cosine = (ours.embeddings * exact.embeddings).sum(axis=1)
    assert cosine.min() > 0.98


def test_metadata_tells_what_a_user_needs(float_file, int8_file):
    for file, precision in ((float_file, "float32"), (int8_file, "int8")):
        metadata = runtime.read_metadata(file)
        assert metadata["class_names"] == list(CLASSES) and metadata["image_size"] == [SIZE, SIZE]
        assert metadata["precision"] == precision and metadata["layer"] == "late"
        assert metadata["versions"]["ai-edge-litert"]
        assert str(file.parent) not in file.read_bytes().decode("latin-1")


def test_nothing_is_half_written(faster, float_file, tmp_path, monkeypatch):
    target = tmp_path / "explainer.tflite"
    target.write_text("the old one")
    monkeypatch.setattr(export.zipfile.ZipFile, "writestr", lambda *arguments: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        export.export_int8(float_file, images(SIZE, SIZE), target)
    assert target.read_text() == "the old one" and [path.name for path in tmp_path.iterdir()] == [target.name]


def test_calibration_images_are_checked(float_file, tmp_path):
    with pytest.raises(ValueError, match="floats are not accepted"):
        export.export_int8(float_file, images(SIZE, SIZE) / 255, tmp_path / "explainer.tflite")
    with pytest.raises(FileNotFoundError, match="no explainer file"):
        export.export_int8(tmp_path / "nothing.tflite", images(SIZE, SIZE), tmp_path / "explainer.tflite")


def test_an_old_keras_is_named(faster, tmp_path, monkeypatch):
    monkeypatch.setattr(keras, "__version__", "3.12.1")
    with pytest.raises(ValueError, match="needs Keras 3.13 or newer. Received: Keras 3.12.1"):
        export.export_float(faster, tmp_path / "explainer.tflite")
