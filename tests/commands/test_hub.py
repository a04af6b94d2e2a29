"""Models at the Hugging Face hub, with its own package and a stand-in on this machine for the hub."""

import json
import shutil
import sys
from pathlib import Path
from threading import Thread

import pytest
import yaml
from hub_stand_in import SECRET, Hub

from utils import runtime
from utils.__main__ import main
from utils.anomaly import AnomalyDetector
from utils.commands import push
from utils.commands.common import DEFAULT_MODEL
from utils.faster_gradcam import FasterGradCAM
from utils.storage import hub

HAND = "data/hands/pa/00.jpg"


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """The hub, reached with a login; downloads go into a folder of this test."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.delenv("FASTER_GRAD_CAM_OFFLINE", raising=False)
    with Hub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        url = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in takes large files the older way
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder, and beside the model's files something private."""
    folder = tmp_path_factory.mktemp("pushed") / "model"
    shutil.copytree(DEFAULT_MODEL, folder)
    (folder / "private.txt").write_text("mine")
    return folder


def error_of(capsys):
    """What stands on stderr, which must be one sentence."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_push_and_back(stand_in, model, tmp_path, capsys):
    assert main(["push", str(model), "me/hands", "--license", "mit"]) == 0
    assert "6 files" in capsys.readouterr().out
    pushed = stand_in.repositories["me/hands"]
    ours = {path.name for path in DEFAULT_MODEL.iterdir()} - {"MODEL_CARD.md"} | {"README.md"}
    assert set(pushed) == ours | {".gitattributes"} and set(hub.FILES) >= ours
    for name in ours - {"README.md"}:
        assert pushed[name] == (model / name).read_bytes()
    assert main(["demo", "--headless", "--source", HAND, "--model", "hf://me/hands"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["label"] == "pa"
    assert runtime.Explainer("hf://me/hands/explainer_int8.tflite").precision == "int8"
    for kind in (FasterGradCAM, AnomalyDetector):
        with pytest.raises(FileNotFoundError, match="There is no model me/nowhere at the hub"):
            kind.load("hf://me/nowhere")


def test_the_copy_serves_without_the_hub(stand_in, model, monkeypatch):
    push.send({"meta.json": model / "meta.json", "other.txt": b"not ours"}, "me/some")
    folder = hub.local("hf://me/some")
    assert [path.name for path in folder.iterdir()] == ["meta.json"]
    asked = len(stand_in.log)
    monkeypatch.setenv("FASTER_GRAD_CAM_OFFLINE", "1")
    assert hub.local("hf://me/some/meta.json") == folder / "meta.json" and len(stand_in.log) == asked
    with pytest.raises(OSError, match="no whole copy of me/other here"):
        hub.local("hf://me/other")


def test_a_push_leaves_nothing_of_the_earlier_model(stand_in):
    push.send({"meta.json": b"1", "explainer.tflite": b"old"}, "me/again", private=True)
    stand_in.repositories["me/again"]["notes.md"] = b"of the owner"
    push.send({"meta.json": b"2"}, "me/again")
    assert stand_in.repositories["me/again"] == {".gitattributes": b"", "meta.json": b"2", "notes.md": b"of the owner"}
    assert stand_in.private == {"me/again"}


def test_missing_private_and_forbidden(stand_in, model, monkeypatch, capsys):
    push.send({"meta.json": b"{}"}, "me/hidden", private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    for name in ("me/hidden", "me/nowhere"):
        assert main(["explain", HAND, "--model", f"hf://{name}", "--out", "out"]) == 2
        assert f"no model {name} at the hub, or it is private" in error_of(capsys)
    assert main(["push", str(model), "me/hands"]) == 2
    assert "The hub forbids this for me/hands" in error_of(capsys)


def test_no_network(stand_in, model, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert main(["evaluate", "--model", "hf://me/hands", "--data", "synthetic"]) == 2
    assert "cannot be reached, and there is no whole copy of me/hands here" in error_of(capsys)
    assert main(["push", str(model), "me/hands"]) == 2
    assert "Cannot reach the hub for me/hands" in error_of(capsys)


@pytest.mark.parametrize("name", ["hands", "me/hands/more", "me/", "/hands", "me/ha nds", "../up"])
def test_a_name_must_be_owner_and_name(name, model, capsys):
    assert main(["push", str(model), name]) == 2
    assert f"Expected OWNER/NAME of a model at the hub. Received: {name}" in error_of(capsys)


def test_a_folder_must_be_a_whole_model(tmp_path, model, capsys):
    assert main(["push", str(tmp_path), "me/hands"]) == 2
    assert "is not a model folder" in error_of(capsys)
    shutil.copytree(model, tmp_path / "damaged")
    (tmp_path / "damaged" / "faster_gradcam.npz").write_bytes(b"")
    assert main(["push", str(tmp_path / "damaged"), "me/hands"]) == 2
    assert "is damaged or belongs to another model" in error_of(capsys)
    assert main(["push", str(model), "me/hands", "--license", "mit\ntags: x"]) == 2
    assert "Expected one word as licence" in error_of(capsys)


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["demo", "--headless", "--model", "hf://me/hands"]) == 2
    assert "pip install huggingface_hub" in error_of(capsys)


def header_of(card):
    start, header, text = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(header), text


def test_the_header_of_a_card_holds_what_is_known(model, tmp_path):
    meta = json.loads((model / "meta.json").read_text())
    header, text = header_of(push.card(model, meta, license="apache-2.0"))
    assert header.pop("tags")[-2:] == ["keras", "litert"]
    assert header == {
        "license": "apache-2.0", "library_name": "faster-grad-cam", "pipeline_tag": "image-classification"
    }
    assert text.strip() == (model / "MODEL_CARD.md").read_text().strip()
    header, text = header_of(push.card(tmp_path, {"kind": "anomaly"}))
    assert set(header) == {"library_name", "tags"} and "anomaly-detection" in header["tags"]
    assert "normal, anomaly" in text
    (tmp_path / "README.md").write_text("---\nlicense: cc0-1.0\n---\nMine.\n")
    assert push.card(tmp_path, {}) == "---\nlicense: cc0-1.0\n---\nMine.\n"


def test_any_other_path_stays_as_it_is():
    assert hub.local("data/models") == hub.local(Path("data/models")) == Path("data/models")
