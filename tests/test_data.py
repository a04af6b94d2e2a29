"""utils.data: folders of classes, the janken download, hand masks, splits."""

import http.server
import io
import os
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import GREEN, RED, photo, sentence, write

from utils import data, imaging


@pytest.fixture
def folder(tmp_path):
    """Two classes of three photos."""
    for name, colour in {"cat": RED, "dog": GREEN}.items():
        for number in (1, 2, 10):
            write(tmp_path / "photos" / name / f"IMG_{number}.png", photo(colour=colour))
    return tmp_path / "photos"


# --- folds and splits --------------------------------------------------------------------------------------------


def test_folds_are_contiguous_blocks_of_each_class():
    labels = np.array([0] * 50 + [1] * 66 + [2] * 51)
    for label in range(3):
        fold = data.folds(labels)[labels == label]
        assert (np.diff(fold) >= 0).all() and set(fold) == set(range(5))
        assert np.ptp(np.bincount(fold)) <= 1
    mixed = data.folds(np.tile([0, 1], 10), n_folds=2)  # classes interleaved: still blocks of each class
    assert mixed.tolist() == [0] * 10 + [1] * 10
    assert len(set(data.folds([7, 7, 7]))) == 3
    with pytest.raises(ValueError, match="n_folds=1"):
        data.folds(labels, 1)


@pytest.mark.parametrize("seed", range(4))
def test_split_is_a_partition_into_blocks(seed):
    labels = np.array([0] * 50 + [1] * 66 + [2] * 51 + [3] + [4] * 2)
    train, test = data.split(labels, seed=seed)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    assert set(labels[train]) == set(range(5)) and 3 not in labels[test]
    for label in range(3):
        block = test[labels[test] == label]
        assert (np.diff(block) == 1).all() and abs(len(block) - 0.2 * (labels == label).sum()) < 1
    assert all(np.array_equal(a, b) for a, b in zip((train, test), data.split(labels, seed=seed), strict=True))


def test_split_takes_other_blocks_with_other_seeds_and_other_fractions():
    labels = np.zeros(40, int)
    assert len({tuple(data.split(labels, seed=seed)[1]) for seed in range(60)}) == 5
    assert [len(data.split(labels, test_fraction=fraction)[1]) for fraction in (0.125, 0.25, 0.5)] == [5, 10, 20]
    for fraction in (0, 0.9, -1):
        with pytest.raises(ValueError, match="test_fraction"):
            data.split(labels, test_fraction=fraction)


# --- a folder of classes -----------------------------------------------------------------------------------------


def test_load_folder(folder):
    (folder / ".hidden").mkdir()
    (folder / "cat" / "notes.txt").write_text("no picture, and no picture by its name")
    dataset = data.load_folder(folder, image_size=40)
    assert dataset.class_names == ("cat", "dog") and dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.names[:3] == ("cat/IMG_1.png", "cat/IMG_2.png", "cat/IMG_10.png")  # natural order
    assert dataset.images.shape == (6, 40, 40, 3) and dataset.images.dtype == np.uint8
    assert dataset.images[0, -1, -1].tolist() == list(RED) and dataset.images[5, -1, -1].tolist() == list(GREEN)
    assert dataset.masks is None and dataset.skipped == ()
    assert len(dataset.train) == 4 and len(dataset.test) == 2
    assert dataset.fingerprint == data.load_folder(str(folder), image_size=40).fingerprint
    assert dataset.fingerprint != replace(dataset, labels=1 - dataset.labels).fingerprint


def test_load_folder_with_masks(folder):
    for path in sorted(folder.glob("*/*.png")):
        mask = np.zeros((24, 32), np.uint8)
        mask[:, 16:] = 255
        write(folder / "masks" / path.parent.name / path.name, mask)
    dataset = data.load_folder(folder, image_size=8)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.masks.dtype == bool and (dataset.masks == (np.arange(8) >= 4)).all()
    write(folder / "masks/dog/IMG_2.png", np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError) as error:
        data.load_folder(folder)
    assert "IMG_2.png has shape (5, 5)" in sentence(error)
    (folder / "masks/dog/IMG_2.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.load_folder(folder)
    assert "There is no mask" in sentence(error)


def test_load_folder_skips_and_names_what_it_cannot_read(folder):
    (folder / "cat" / "zero.jpg").touch()
    (folder / "dog" / "text.jpg").write_text("no picture")
    for number in range(5):
        (folder / "dog" / f"half{number}.png").write_bytes((folder / "dog" / "IMG_1.png").read_bytes()[:60])
    with pytest.warns(UserWarning, match="Skipped 7 unreadable images: cat/zero.jpg: .*; and 2 more") as caught:
        dataset = data.load_folder(folder)
    assert caught[0].filename == __file__
    assert len(dataset.images) == len(dataset.labels) == len(dataset.names) == 6
    assert len(dataset.skipped) == 7 and dataset.skipped[0] == "cat/zero.jpg: the file is empty (0 bytes)"
    assert "dog/text.jpg: it is not an image in a known format" in dataset.skipped


def test_load_folder_shows_no_warning_of_pillow(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(folder / "cat" / "IMG_1.png").close()
    data.load_folder(folder)  # pytest would turn that warning into an error
    imaging.read_image(folder / "cat" / "IMG_1.png")


def test_load_folder_says_what_is_wrong(folder, tmp_path):
    def complaint(path, error_type=ValueError):
        with pytest.raises(error_type) as error:
            data.load_folder(path)
        return sentence(error)

    assert "There is no folder" in complaint(tmp_path / "nowhere", FileNotFoundError)
    assert "at least two classes" in complaint(folder / "cat")
    for path in (folder / "dog").iterdir():
        path.write_bytes(b"")
    assert "no readable image" in complaint(folder)
    for path in (folder / "dog").iterdir():
        path.unlink()
    assert "no readable image" in complaint(folder)
    (folder / "dog").rmdir()
    assert "one class, cat" in complaint(folder)


def test_load_folder_with_a_class_of_one_image(folder):
    write(folder / "bird" / "only.png", photo())
    dataset = data.load_folder(folder)
    assert dataset.names[0] == "bird/only.png" and 0 in dataset.train and 0 not in dataset.test


# --- janken ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_photos(monkeypatch, tmp_path):
    """A machine without the photos; returns its cache."""
    monkeypatch.delenv("JANKEN_DATASET", raising=False)
    monkeypatch.delenv("FASTER_GRAD_CAM_OFFLINE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "faster-grad-cam"


@pytest.mark.real
def test_load_janken_photos(janken_dataset, monkeypatch):
    monkeypatch.setenv("JANKEN_DATASET", str(janken_dataset))
    dataset = data.load_janken()
    assert dataset.class_names == ("choki", "gu", "pa") and np.bincount(dataset.labels).tolist() == [66, 50, 51]
    assert dataset.images.shape == (167, 96, 96, 3) and dataset.masks.shape == (167, 96, 96)
    assert 0.1 < dataset.masks.mean() < 0.5 and len(dataset.test) == 33


def test_load_janken_synthetic_needs_no_network(no_photos, monkeypatch):
    monkeypatch.setenv("FASTER_GRAD_CAM_OFFLINE", "1")
    dataset = data.load_janken("synthetic", image_size=64, n_images=20, seed=3)
    assert dataset.images.shape == (20, 64, 64, 3) and dataset.masks.shape == (20, 64, 64)
    assert np.bincount(dataset.labels).tolist() == [7, 7, 6] and dataset.names[-1] == "pa_0019"
    assert dataset.masks.any(axis=(1, 2)).all() and len(set(dataset.names)) == 20
    again = data.load_janken("synthetic", image_size=64, n_images=20, seed=3)
    assert dataset.fingerprint == again.fingerprint


def test_load_janken_says_what_is_wrong(no_photos, monkeypatch, folder):
    with pytest.raises(ValueError, match='"janken" or "synthetic"'):
        data.load_janken("webcam")
    with pytest.raises(ValueError, match="n_images=2"):
        data.load_janken("synthetic", n_images=2)
    monkeypatch.setenv("JANKEN_DATASET", str(folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match="JANKEN_DATASET is .*nowhere, expected a folder"):
        data.load_janken()
    monkeypatch.setenv("JANKEN_DATASET", str(folder))
    with pytest.raises(ValueError, match="cat, dog, expected choki, gu, pa"):
        data.load_janken()


def test_offline_says_what_to_set(no_photos, monkeypatch):
    monkeypatch.setenv("FASTER_GRAD_CAM_OFFLINE", "1")
    with pytest.raises(FileNotFoundError) as error:
        data.load_janken()
    assert "$JANKEN_DATASET" in sentence(error) and 'source="synthetic"' in str(error.value)
    assert not no_photos.exists()


# --- the download, from a server of our own ----------------------------------------------------------------------


def archive(members):
    """A zip archive in memory, of {name: bytes}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def fake_members():
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "JPEG")
    photos = {f"repo-0017/{name}/IMG_{i}.JPG": buffer.getvalue() for name in ("choki", "gu", "pa") for i in range(3)}
    return photos | {"repo-0017/README.md": b"read me", "repo-0017/other/IMG_1.JPG": b"", "repo-0017/gu/run.sh": b"rm"}


@pytest.fixture
def serve():
    """``serve(body, sent=None, length=True)`` → URL that answers with the first ``sent`` bytes of the body."""
    answer = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/missing":
                return self.send_error(404)
            self.send_response(200)
            if answer["length"]:
                self.send_header("Content-Length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"][: answer["sent"]])

        def log_message(self, *_):
            pass

    def start(body, sent=None, length=True):
        answer.update(body=body, sent=sent, length=length)
        return f"http://127.0.0.1:{server.server_port}/archive.zip"

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield start
        server.shutdown()


@pytest.fixture
def fake_hash(monkeypatch, tmp_path):
    """Let the verification expect the photos of ``fake_members``."""
    for name, content in fake_members().items():
        if name.endswith(".JPG") and "other" not in name:
            path = tmp_path / "expected" / name.removeprefix("repo-0017/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    monkeypatch.setattr(data, "JANKEN_SHA256", data._digest(tmp_path / "expected"))


def test_download_and_load(serve, no_photos, fake_hash):
    target = data.download_janken(serve(archive(fake_members()), length=False))
    assert target == no_photos / "janken-0017a6838d24" and list(no_photos.iterdir()) == [target]
    found = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert found == [f"{name}/IMG_{i}.JPG" for name in ("choki", "gu", "pa") for i in range(3)]
    assert data.download_janken("http://127.0.0.1:9/never-asked") == target
    (target / "etc").mkdir()
    dataset = data.load_janken(image_size=32)  # from the cache
    assert dataset.images.shape == (9, 32, 32, 3) and dataset.class_names == ("choki", "gu", "pa")
    (target / "gu" / "IMG_0.JPG").unlink()
    with pytest.raises(ValueError, match="has been changed"):
        data.load_janken()


@pytest.mark.real
def test_download_of_the_real_photos_is_verified(serve, no_photos, janken_dataset):
    paths = [path for path in janken_dataset.glob("*/*") if path.suffix.lower() == ".jpg"]
    photos = {f"janken_dataset-0017/{path.relative_to(janken_dataset)}": path.read_bytes() for path in paths}
    target = data.download_janken(serve(archive(photos)))
    assert len(list(target.glob("*/*"))) == 167


def test_downloads_at_once_do_not_disturb_each_other(serve, no_photos, fake_hash):
    url = serve(archive(fake_members()))
    with ThreadPoolExecutor(6) as pool:
        targets = set(pool.map(lambda _: data.download_janken(url), range(6)))
    assert len(targets) == 1 and list(no_photos.iterdir()) == list(targets)
    assert len(list(targets.pop().glob("*/*"))) == 9


def link_members():
    link = zipfile.ZipInfo("repo-0017/gu/link.jpg")
    link.external_attr = 0o120777 << 16
    return fake_members() | {link: b"/etc/passwd"}


def test_download_does_not_extract_links(serve, no_photos, fake_hash):
    target = data.download_janken(serve(archive(link_members())))
    assert not (target / "gu" / "link.jpg").exists()


@pytest.mark.parametrize(
    "evil", ["../evil.jpg", "repo-0017/gu/../../../evil.jpg", "/tmp/evil.jpg", "repo\\..\\evil.jpg"]
)
def test_download_refuses_members_that_leave_the_folder(serve, no_photos, fake_hash, evil):
    url = serve(archive(fake_members() | {evil: b"evil"}))
    with pytest.raises(ValueError) as error:
        data.download_janken(url)
    assert "evil.jpg" in sentence(error)
    assert not list(no_photos.parent.rglob("*evil*")) and not list(no_photos.iterdir())


def test_download_refuses_wrong_and_broken_content(serve, no_photos, fake_hash, monkeypatch):
    members = fake_members()
    body = archive(members)

    def complaint(url, error_type=ValueError):
        with pytest.raises(error_type) as error:
            data.download_janken(url)
        assert not list(no_photos.iterdir())  # nothing half-made, nothing temporary
        return sentence(error)

    assert "SHA-256" in complaint(serve(archive(members | {"repo-0017/gu/IMG_1.JPG": b"other"})))
    assert "SHA-256" in complaint(serve(archive({"repo-0017/README.md": b""})))
    assert "not an intact zip archive" in complaint(serve(b"<html>log in</html>"))
    damaged = bytearray(body)
    damaged[60:120] = bytes(60)
    assert "not an intact zip archive" in complaint(serve(bytes(damaged)))
    assert "not an intact zip archive" in complaint(serve(body, sent=len(body) // 2, length=False))
    assert f"{len(body) // 2} of {len(body)} bytes" in complaint(serve(body, sent=len(body) // 2), ConnectionError)
    assert "404" in complaint(serve(body).replace("archive.zip", "missing"), ConnectionError)
    monkeypatch.setattr(data, "JANKEN_MAX_BYTES", 5000)
    bomb = archive({"repo-0017/gu/IMG_1.JPG": bytes(100_000)})
    assert len(bomb) < 5000 and "more than 5000 bytes" in complaint(serve(bomb))


def test_download_without_a_server(no_photos):
    with pytest.raises(ConnectionError) as error:
        data.download_janken("http://127.0.0.1:9/archive.zip")
    assert "Could not download http://127.0.0.1:9/archive.zip" in sentence(error)
    assert not list(no_photos.iterdir())


# --- putting data sets together ----------------------------------------------------------------------------------


def test_add_none(folder):
    plain = data.load_folder(folder, image_size=64)
    dataset = data.add_none(plain, seed=1)
    assert dataset.class_names == ("cat", "dog", "none") and dataset.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert dataset.masks is None and dataset.names[-1] == "none_0002" and dataset.images.dtype == np.uint8
    assert np.array_equal(np.sort(np.concatenate([dataset.train, dataset.test])), np.arange(9))
    assert set(dataset.labels[dataset.test]) == {0, 1, 2}
    assert np.array_equal(dataset.images, data.add_none(plain, seed=1).images)
    assert dataset.sources.tolist() == [0] * 6 + [1] * 3
    again = data.add_none(dataset, n_images=2)  # more of the class that is there
    assert again.class_names == dataset.class_names and again.labels.tolist() == [0, 0, 0, 1, 1, 1] + [2] * 5
    masked = data.add_none(replace(plain, masks=np.ones((6, 64, 64), bool)), n_images=5)
    assert masked.masks[:6].all() and not masked.masks[6:].any() and len(masked.images) == 11
    with pytest.raises(ValueError, match="n_images=0"):
        data.add_none(plain, n_images=0)


def test_join(folder):
    one = data.load_folder(folder, image_size=16)
    two = replace(one, masks=np.ones((6, 16, 16), bool), skipped=("x.jpg: it is empty",))
    both = data.join(one, two)
    assert len(both.images) == 12 and both.masks is None and both.names == one.names * 2
    assert np.array_equal(both.train, np.concatenate([one.train, one.train + 6]))
    assert np.array_equal(both.test, np.concatenate([one.test, one.test + 6]))
    assert both.skipped == two.skipped and data.join(two, two, two).masks.shape == (18, 16, 16)
    assert data.join(both, one).sources.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    with pytest.raises(ValueError, match="datasets of image sizes"):
        data.join(one, data.load_folder(folder, image_size=17))


def test_join_has_the_classes_of_all_and_none_comes_last(folder):
    one = data.load_folder(folder, image_size=16)  # cat, dog
    other = replace(one, class_names=("none", "cat"))
    both = data.join(other, one)
    assert both.class_names == ("cat", "dog", "none")
    assert both.labels.tolist() == [2, 2, 2, 0, 0, 0] + [0, 0, 0, 1, 1, 1]


def test_import_needs_neither_tensorflow_nor_scikit_learn():
    code = "import sys; from utils import data; print({'tensorflow', 'keras', 'sklearn', 'scipy'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "set()", done.stderr


def test_guess_masks(folder):
    dataset = data.load_folder(folder, image_size=48)
    images = np.full_like(dataset.images, 90)
    images[1:, 14:34, 14:34] = (200, 120, 90)
    guessed = data.guess_masks(replace(dataset, images=images))
    assert guessed.masks[0].all()  # nothing stands out: it stays as it is
    truth = np.zeros((48, 48), bool)
    truth[14:34, 14:34] = True
    for mask in guessed.masks[1:]:
        assert (mask & truth).sum() / (mask | truth).sum() > 0.85
    assert data.guess_masks(guessed) is guessed
