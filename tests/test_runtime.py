"""Running an exported file: no TensorFlow, any image size, and an answer to files that are none."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from utils import runtime
from utils.commands.common import DEFAULT_MODEL

FILE = DEFAULT_MODEL / runtime.FLOAT_FILE


@pytest.fixture(scope="module")
def photos():
    return np.random.default_rng(0).integers(0, 255, (5, 60, 80, 3)).astype(np.uint8)


def test_no_tensorflow_and_nothing_on_stderr():
    code = (
        "import sys, numpy as np\n"
        "from utils.runtime import Explainer\n"
        f"result = Explainer({str(FILE)!r}).explain(np.zeros((48, 64, 3), np.uint8))\n"
        "assert result.heatmaps.shape == (1, 48, 64)\n"
        "assert not {'tensorflow', 'keras', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == "", run.stderr


def test_a_batch_is_explained_as_its_images_are(photos):
    explainer = runtime.Explainer(FILE)
    batch = explainer.explain(photos)
    assert 0 < explainer.network_seconds < 5
    assert batch.heatmaps.shape == (5, 60, 80) and batch.scores.shape == (5, 4)
    assert batch.clusters.shape == batch.labels.shape == (5,) and len(batch.names) == 5
    np.testing.assert_allclose(np.linalg.norm(batch.embeddings, axis=1), 1, atol=1e-5)
    assert batch.heatmaps.min() >= 0 and batch.heatmaps.max() <= 1
    for i, photo in enumerate(photos):
        single = explainer.explain(photo)
        np.testing.assert_array_equal(single.heatmaps[0], batch.heatmaps[i])
        np.testing.assert_array_equal(single.scores[0], batch.scores[i])


def test_results_belong_to_the_caller(photos):
    explainer = runtime.Explainer(FILE)
    first = explainer.explain(photos[0])
    kept = first.scores.copy(), first.heatmaps.copy()
    explainer.explain(photos[1])
    np.testing.assert_array_equal(first.scores, kept[0])
    np.testing.assert_array_equal(first.heatmaps, kept[1])


def test_the_number_of_threads_changes_no_result(photos):
    one, two = (runtime.Explainer(FILE, num_threads=n).explain(photos) for n in (1, 2))
    np.testing.assert_allclose(one.heatmaps, two.heatmaps, atol=1e-5)


@pytest.mark.parametrize("num_threads", [0, -1, 1.5, None])
def test_a_wrong_number_of_threads(num_threads):
    with pytest.raises(ValueError, match="num_threads must be an integer of at least 1"):
        runtime.Explainer(FILE, num_threads)


def test_images_are_checked():
    explainer = runtime.Explainer(FILE)
    for wrong in (np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8 RGB"):
            explainer.explain(wrong)


def damaged(content):
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda content: b"", "not an explainer file, or it is truncated"),
        (lambda content: content[: len(content) // 2], "not an explainer file, or it is truncated"),
        (lambda content: content[:-10], "not an explainer file, or it is truncated"),
        (lambda content: b"a text", "not an explainer file, or it is truncated"),
        (damaged, "is damaged: its checksum differs"),
    ],
)
def test_a_file_that_is_no_explainer(tmp_path, change, sentence):
    (tmp_path / "broken.tflite").write_bytes(change(FILE.read_bytes()))
    with pytest.raises(ValueError, match=sentence) as error:
        runtime.Explainer(tmp_path / "broken.tflite")
    assert "broken.tflite" in str(error.value)


def test_other_archives_and_versions(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="not an explainer file"):
        runtime.Explainer(tmp_path / "other.zip")
    for content in ("[]", "not json", json.dumps({"bytes": "many"})):
        with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
            archive.writestr(runtime.METADATA_FILE, content)
        with pytest.raises(ValueError, match="not an explainer file"):
            runtime.Explainer(tmp_path / "odd.zip")
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr(runtime.METADATA_FILE, json.dumps({"bytes": 0, "format": 99}))
    with pytest.raises(ValueError, match="another version of Faster-Grad-CAM"):
        runtime.Explainer(tmp_path / "odd.zip")


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no explainer file"):
        runtime.Explainer(tmp_path / "nothing.tflite")
    with pytest.raises(FileNotFoundError, match="There is no explainer file"):
        runtime.Explainer(tmp_path)
