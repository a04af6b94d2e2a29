"""Commands that are given the other kind of model, or none: a sentence, and nothing is made."""

import json
import shutil
import zipfile

import pytest

from utils import runtime
from utils.__main__ import main
from utils.commands.common import DEFAULT_MODEL

HANDS = DEFAULT_MODEL.parents[1] / "hands" / "gu"
FOR_LABELS = {
    "annotate": ["annotate", str(HANDS), "--out", "out", "--model"],
    "explain": ["explain", str(HANDS), "--out", "out", "--model"],
    "explain by gradients": ["explain", str(HANDS), "--out", "out", "--top-n", "2", "--model"],
    "evaluate": ["evaluate", "--json", "out/x.json", "--model"],
    "export": ["export"],
    "benchmark": ["benchmark", "--json", "out/x.json", "--plot", "out/x.png", "--model"],
}
FOR_ANOMALIES = {"anomaly explain": ["anomaly", "explain", str(HANDS), "--out", "out", "--model"]}
ALL = FOR_LABELS | FOR_ANOMALIES


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """As far as the commands look, a folder of `anomaly fit`."""
    folder = tmp_path_factory.mktemp("detector")
    meta = {"format": 1, "kind": "anomaly", "network": {}, "sha256": {"anomaly.npz": "0", "network.weights.h5": "0"}}
    (folder / "meta.json").write_text(json.dumps(meta))
    content = (DEFAULT_MODEL / runtime.FLOAT_FILE).read_bytes()
    metadata = runtime.read_metadata(DEFAULT_MODEL / runtime.FLOAT_FILE)
    (folder / runtime.FLOAT_FILE).write_bytes(content[: metadata["bytes"]])
    with zipfile.ZipFile(folder / runtime.FLOAT_FILE, "a") as archive:
        metadata |= {"kind": "anomaly", "class_names": runtime.VERDICTS}
        archive.writestr(runtime.METADATA_FILE, json.dumps(metadata))
    return folder


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """A function that runs a command, which must refuse with one sentence and make nothing; it returns that."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(arguments):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and len(captured.err.splitlines()) == 1 and not captured.out
        assert not list((tmp_path / "here").iterdir())
        return captured.err

    return run


@pytest.mark.parametrize("command", FOR_LABELS)
def test_a_model_that_finds_anomalies(command, detector, refused):
    sentence = refused([*FOR_LABELS[command], str(detector)])
    assert "finds anomalies" in sentence and "`anomaly explain` and `demo` take it" in sentence
    before = sorted(path.name for path in detector.iterdir())
    assert before == ["explainer.tflite", "meta.json"]


@pytest.mark.parametrize("command", FOR_LABELS)
def test_one_that_was_not_exported(command, detector, tmp_path, refused):
    (tmp_path / "bare").mkdir()
    shutil.copy(detector / "meta.json", tmp_path / "bare")
    assert "finds anomalies" in refused([*FOR_LABELS[command], str(tmp_path / "bare")])


@pytest.mark.parametrize("exported", [True, False])
def test_a_model_that_names_classes(exported, tmp_path, refused):
    ignored = shutil.ignore_patterns(*([] if exported else ["*.tflite"]))
    mine = shutil.copytree(DEFAULT_MODEL, tmp_path / "mine", ignore=ignored)
    sentence = refused([*FOR_ANOMALIES["anomaly explain"], str(mine)])
    assert "finds no anomalies" in sentence and "`explain`, `annotate`" in sentence and "`anomaly fit`" in sentence


@pytest.mark.parametrize("command", ALL)
def test_a_folder_that_holds_no_model(command, tmp_path, refused):
    (tmp_path / "no model").mkdir()
    sentence = refused([*ALL[command], str(tmp_path / "no model")])
    assert "no model" in sentence and "anomaly fit" in sentence and ("train" in sentence or "export" in sentence)


@pytest.mark.parametrize("command", ALL)
def test_a_file_in_place_of_its_folder(command, refused):
    sentence = refused([*ALL[command], str(DEFAULT_MODEL / runtime.FLOAT_FILE)])
    assert "name the folder" in sentence


@pytest.mark.parametrize("command", [name for name in FOR_LABELS if name != "annotate"])
def test_an_exported_file_without_its_model(command, tmp_path, refused):
    (tmp_path / "board").mkdir()
    shutil.copy(DEFAULT_MODEL / runtime.FLOAT_FILE, tmp_path / "board")
    assert "only an exported file, for demo, annotate" in refused([*FOR_LABELS[command], str(tmp_path / "board")])


def test_what_is_missing_is_named_with_what_writes_it(detector, tmp_path, refused):
    mine = shutil.copytree(DEFAULT_MODEL, tmp_path / "mine", ignore=shutil.ignore_patterns("*.tflite"))
    for command in (["annotate", str(HANDS), "--out", "out"], ["demo", "--headless", "--source", str(HANDS)]):
        assert f"`python -m utils export {mine}" in refused([*command, "--model", str(mine)])
    sentence = refused(["demo", "--headless", "--int8", "--source", str(HANDS), "--model", str(detector)])
    assert "`python -m utils anomaly fit --int8` writes it" in sentence


def test_after_the_wrong_model_the_right_one_is_welcome(detector, tmp_path):
    arguments = ["annotate", str(HANDS), "--out", str(tmp_path / "out"), "--model"]
    assert main([*arguments, str(detector)]) == 2
    assert main([*arguments, str(DEFAULT_MODEL)]) == 0


def test_damaged_meta_data_is_still_called_damaged(tmp_path, refused):
    mine = tmp_path / "mine"
    mine.mkdir()
    for text in ("not json", "[]", "{}", '{"kind": "label"}'):
        (mine / "meta.json").write_text(text)
        assert "is damaged" in refused([*FOR_LABELS["explain"], str(mine)])
