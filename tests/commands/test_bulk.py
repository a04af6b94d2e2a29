"""``bulk``: what is read, what is written, that each image is there once whatever is killed, and what is made of it."""

import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from samples import photo, write, write_detector

from utils import heatmap, imaging, runtime
from utils.__main__ import main
from utils.commands import annotate, image_index
from utils.commands.common import DEFAULT_MODEL
from utils.views import Views

pa = pytest.importorskip("pyarrow", reason='pyarrow is not installed: pip install "ray[data]"')
pq = pytest.importorskip("pyarrow.parquet")
from utils.commands import bulk, bulk_parts, bulk_source, bulk_work  # noqa: E402  they need pyarrow

HANDS = DEFAULT_MODEL.parents[1] / "hands"
FILE = DEFAULT_MODEL / runtime.FLOAT_FILE
NAMES = sorted(f"{name}/{i:02d}.jpg" for name in ("choki", "gu", "none", "pa") for i in range(10))
RAY = os.path.join(os.path.dirname(sys.executable), "ray")
needs_ray = pytest.mark.skipif(not os.path.exists(RAY), reason='Ray is not installed: pip install "ray[data]"')


def run(*words):
    return main([str(word) for word in words])


def names_of(source):
    return [item.name for piece in source.pieces for item in bulk_source.items(source, piece)]


def work(source, out, *, model=FILE, **settings):
    """The whole job by one worker in this process, as `bulk.run` would have it done."""
    found, options = bulk_source.find(str(source)), annotate.Settings(**settings)
    about = bulk._about(str(source), found, model) | {"settings": vars(options), "embeddings": True, "heatmaps": True}
    about["embeddings"] = about["kind"] == "label"
    bulk_parts.begin(str(out), about)
    job = bulk_work.Job(found, str(out), options, embeddings=about["embeddings"], heatmaps=True)
    worker = bulk_work.Worker(job, model.read_bytes())
    pieces = {"number": np.arange(len(found.pieces)), "piece": np.array([piece.pack() for piece in found.pieces])}
    done = worker(pieces)
    assert done["number"].tolist() == list(range(len(found.pieces)))
    return done


def table(out):
    return [row for n in range(bulk_parts.about(str(out))["parts"]) for row in bulk_parts.rows(str(out), n)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the shipped model sees in the shipped images."""
    out = tmp_path_factory.mktemp("bulk") / "out"
    work(HANDS, out)
    return out


@pytest.fixture
def photos(tmp_path):
    """Two images, in two folders, and what is no image."""
    write(tmp_path / "photos" / "a.png", photo())
    write(tmp_path / "photos" / "sub" / "b.jpg", photo())
    (tmp_path / "photos" / "text.jpg").write_text("not an image")
    (tmp_path / "photos" / "empty.png").touch()
    (tmp_path / "photos" / "notes.txt").touch()
    write(tmp_path / "photos" / ".hidden" / "c.png", photo())
    write(tmp_path / "photos" / "masks" / "a.png", photo())
    write(tmp_path / "photos" / "a_mask.png", photo())
    return tmp_path / "photos"


def png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


# --- what is read ------------------------------------------------------------------------------------------------


def test_a_folder_a_pattern_and_an_address_of_images(photos):
    all_of_it = ["a.png", "empty.png", "sub/b.jpg", "text.jpg"]
    for source, expected in (
        (photos, all_of_it), (f"file://{photos}", all_of_it), (photos / "*.png", ["a.png", "empty.png"]),
        (photos / "s?b" / "*", ["sub/b.jpg"]), (photos / "**" / "*.jpg", ["sub/b.jpg", "text.jpg"]),
        (photos / "sub" / "b.jpg", ["b.jpg"]),
    ):
        found = bulk_source.find(str(source))
        assert found.kind == "images" and names_of(found) == expected, source


def test_pieces_are_few_and_even_and_travel_as_text(tmp_path):
    (tmp_path / "many").mkdir()
    for i in range(70):
        (tmp_path / "many" / f"{i:03d}.jpg").touch()
    pieces = bulk_source.find(str(tmp_path / "many")).pieces
    assert [piece.n_images for piece in pieces] == [16, 16, 16, 16, 6]
    assert [bulk_source.Piece.unpack(piece.pack()) for piece in pieces] == list(pieces)
    files = [file.name for piece in pieces for file in piece.files]
    assert files == sorted(files) and len(set(files)) == 70


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_tar_shards_are_pieces_and_a_cut_one_says_so(suffix, tmp_path):
    mode = "w:gz" if suffix.endswith("gz") else "w"
    for shard in range(2):
        with tarfile.open(tmp_path / f"s{shard}{suffix}", mode) as archive:
            for name in ("0.png", "0.json", "../1.png"):
                content = png(np.random.default_rng(shard).integers(0, 256, (60, 60, 3), np.uint8))
                about = tarfile.TarInfo(name)
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
    source = bulk_source.find(str(tmp_path))
    assert source.kind == "tar" and names_of(source) == [
        f"s{i}{suffix}/{name}" for i in range(2) for name in ("0.png", "../1.png")
    ]
    cut = tmp_path / f"s1{suffix}"
    os.truncate(cut, cut.stat().st_size * 2 // 5)
    *_, last = bulk_source.items(source, source.pieces[1])
    assert last.problem.startswith(f"Cannot read all of s1{suffix}: ")
    with pytest.raises(ValueError, match="Cannot read all of"):
        bulk_source.read(last)


def test_parquet_row_groups_are_pieces(tmp_path):
    images = [png(photo(colour=(i, 0, 0))) for i in range(5)]
    pictures = [{"bytes": content, "path": "x"} for content in images]
    pq.write_table(pa.table({"id": range(5), "raw": images, "picture": pictures}), tmp_path / "t.parquet",
                   row_group_size=2)
    for column in (None, "raw", "picture"):
        source = bulk_source.find(str(tmp_path), column)
        assert source.column == (column or "raw") and [piece.n_images for piece in source.pieces] == [2, 2, 1]
        read = [item for piece in source.pieces for item in bulk_source.items(source, piece)]
        assert [item.name for item in read] == [f"t.parquet/{i:08d}" for i in range(5)]
        assert [int(bulk_source.read(item)[-1, -1, 0]) for item in read] == list(range(5))


def test_one_sentence_where_there_is_nothing_to_read(tmp_path):
    pq.write_table(pa.table({"id": range(5)}), tmp_path / "t.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-50])
    (tmp_path / "empty").mkdir()
    for source, column, problem in (
        (tmp_path / "empty", None, "There is no image, tar shard or Parquet file in"),
        (tmp_path / "nowhere", None, "There is no image, tar shard or Parquet file in"),
        (tmp_path / "*.gif", None, "There is no image, tar shard or Parquet file in"),
        ("ftp://server/photos", None, "Cannot use the address ftp://server/photos: "),
        (tmp_path / "t.parquet", None, "name it with --column. Received: None"),
        (tmp_path / "t.parquet", "photo", "one of id; name it with --column. Received: photo"),
        (tmp_path / "half.parquet", None, "Cannot read half.parquet: "),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            bulk_source.find(str(source), column)
        assert problem in str(error.value) and "\n" not in str(error.value)


# --- what is written ---------------------------------------------------------------------------------------------


def test_each_row_is_what_the_explainer_and_annotate_say(results):
    rows, explainer = table(results), runtime.Explainer(FILE, num_threads=1)
    assert [row["name"] for row in rows] == NAMES
    for row in rows:
        image = imaging.read_image(HANDS / row["name"])
        found = annotate.find(image, explainer, annotate.Settings())
        assert row["label"] == found["label"] and row["confidence"] == found["confidence"]
        assert row["rejected"] == found.get("reason") and row["boxes"] == found.get("boxes", [])
        assert row["polygons"] == found.get("polygons", []) and row["unreadable"] is None
        assert (row["height"], row["width"]) == image.shape[:2]
        result = explainer.explain(imaging.resize(image[None], *explainer.input_size))
        np.testing.assert_array_equal(np.float32(row["embedding"]), result.embeddings[0])
        small = cv2.imdecode(np.frombuffer(row["heatmap"], np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(small, heatmap.grey(result.heatmaps[0]))
        whole = imaging.resize(np.float32(small)[None] / 255, *image.shape[:2])[0]  # of the image's size
        np.testing.assert_allclose(whole, explainer.explain(image).heatmaps[0], atol=0.5 / 255 + 1e-6)
        assert row["bytes"] == (HANDS / row["name"]).stat().st_size


def test_what_cannot_be_read_has_a_row_with_the_reason(photos, tmp_path):
    done = work(photos, tmp_path / "out")
    assert (done["images"].sum(), done["unreadable"].sum()) == (4, 2)
    reasons = {row["name"]: row["unreadable"] for row in table(tmp_path / "out")}
    assert reasons["a.png"] is None and reasons["sub/b.jpg"] is None
    assert reasons["empty.png"] == "Cannot read empty.png: the file is empty (0 bytes)."
    assert reasons["text.jpg"] == "Cannot read text.jpg: it is not an image in a known format."
    assert all(row["label"] is None for row in table(tmp_path / "out") if row["unreadable"])


def test_columns_are_those_asked_for():
    names = bulk_parts.schema("label", embeddings=False, heatmaps=False).names
    assert not {"embedding", "heatmap", "anomaly_score"} & set(names) and "confidence" in names
    assert {"embedding", "heatmap"} <= set(bulk_parts.schema("label", embeddings=True, heatmaps=True).names)


def test_a_detector_gives_scores_and_boxes_of_what_is_hot(photos, tmp_path):
    model = write_detector(tmp_path) / runtime.FLOAT_FILE  # it sees red / 255
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:32, 32:48, 0] = 255
    write(photos / "a.png", image)
    work(photos / "a.png", tmp_path / "out", model=model)
    (row,) = table(tmp_path / "out")
    assert row["label"] in runtime.VERDICTS and "confidence" not in row and 0.99 < row["anomaly_score"] <= 1
    assert row["boxes"] == []  # 1 is the threshold, which it does not exceed
    heat = np.zeros((1, 32, 32), np.float32)
    heat[0, 8:16, 16:24] = 0.8
    verdict = bulk_work._anomaly(
        runtime.AnomalyResult(np.float32([1.5]), heat), (64, 64), annotate.Settings()
    )
    assert verdict["label"] == "anomaly" and verdict["boxes"] == [[32, 16, 48, 32]]


def test_a_detector_that_looks_at_tiles_sees_the_photos_own_pixels(photos, tmp_path, monkeypatch):
    model = write_detector(tmp_path) / runtime.FLOAT_FILE
    tiled = property(lambda self: Views(tile=32), lambda self, value: None)
    monkeypatch.setattr(runtime.Explainer, "views", tiled, raising=False)
    image = np.zeros((64, 64, 3), np.uint8)
    image[40, 40, 0] = 255  # a pixel that a resize would dilute
    write(photos / "a.png", image)
    work(photos / "a.png", tmp_path / "out", model=model)
    (row,) = table(tmp_path / "out")
    assert row["anomaly_score"] == 1
    assert cv2.imdecode(np.frombuffer(row["heatmap"], np.uint8), cv2.IMREAD_UNCHANGED).shape == (32, 32)
    write(photos / "a.png", image[:20])
    work(photos / "a.png", tmp_path / "small", model=model)
    assert "must fit into what is looked at" in table(tmp_path / "small")[0]["unreadable"]


def test_a_part_that_is_there_is_not_made_again_and_drafts_are_swept(results, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(results, out)
    part = out / "part-00000001.parquet"
    before = part.stat().st_mtime_ns
    (out / f"{bulk_parts.DRAFT}x").touch()
    (out / "part-00000000.parquet").unlink()
    with pytest.raises(ValueError, match="1 of 3 parts are missing in .*; run the same `bulk` again"):
        bulk_parts.about(str(out))
    assert work(HANDS, out)["images"].tolist()[1:] == [0, 0]
    assert part.stat().st_mtime_ns == before and not list(out.glob(f"{bulk_parts.DRAFT}*"))
    assert [row["name"] for row in table(out)] == NAMES


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def rows():
        yield {"name": "a"}
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        bulk_parts.write(str(tmp_path), 0, schema=pa.schema([("name", pa.string())]), rows=rows())
    assert not list(tmp_path.iterdir())


def test_another_job_does_not_touch_the_results(results, photos, tmp_path):
    about = json.loads((results / bulk_parts.ABOUT).read_text())
    for change, reason in (
        ({"model": "0"}, "another model"), ({"fingerprint": "0"}, "the images have changed since"),
        ({"settings": {}}, "another settings"),
    ):
        with pytest.raises(FileExistsError, match=reason):
            bulk_parts.begin(str(results), about | change)
    with pytest.raises(FileExistsError, match="holds other files; choose a new folder"):
        bulk_parts.begin(str(photos), about)


# --- what is made of it ------------------------------------------------------------------------------------------


def test_annotations_are_those_of_annotate(results, tmp_path, capsys):
    for name in ("choki", "gu", "none", "pa"):
        shutil.copytree(HANDS / name, tmp_path / "flat", dirs_exist_ok=True,
                        copy_function=lambda a, b, name=name: shutil.copy(a, f"{b[:-6]}{name}{b[-6:]}"))
    work(tmp_path / "flat", tmp_path / "flat_results")
    assert run("annotate", "--from", tmp_path / "flat_results", "--out", tmp_path / "one") == 0
    assert run("annotate", tmp_path / "flat", "--threads", 1, "--out", tmp_path / "other") == 0
    one, other = (
        {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for place in (tmp_path / "one", tmp_path / "other")
    )
    for files in (one, other):
        del files[annotate.JOURNAL], files[annotate.REJECTED]  # one has paths in it, the other names
    assert one == other and "coco.json" in one
    assert run("annotate", "--from", tmp_path / "flat_results", "--out", tmp_path / "one") == 0  # again
    (tmp_path / "flat" / "gu00.jpg").unlink()
    assert run("annotate", "--from", tmp_path / "flat_results", "--out", tmp_path / "new") == 2
    assert "have changed since `bulk` saw them; run it anew" in capsys.readouterr().err


def test_the_index_is_that_of_index(results, tmp_path, capsys):
    assert run("index", "--from", results, "--out", tmp_path / "index") == 0
    assert run("index", HANDS, "--threads", 1, "--out", tmp_path / "other") == 0
    one, other = image_index.read(tmp_path / "index"), image_index.read(tmp_path / "other")
    key = lambda record: record["name"]  # noqa: E731
    assert sorted(one.records, key=key) == sorted(other.records, key=key) and one.model == other.model
    places = {record["name"]: i for i, record in enumerate(other.records)}
    same = other.embeddings[[places[record["name"]] for record in one.records]]
    np.testing.assert_array_equal(one.embeddings, same)
    capsys.readouterr()
    assert run("index", HANDS, "--out", tmp_path / "index") == 0
    assert capsys.readouterr().out.startswith("0 new images, 40 from before, 0 dropped")


def test_one_sentence_for_each_problem(results, photos, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(results, bare)
    about = json.loads((bare / bulk_parts.ABOUT).read_text())
    (bare / bulk_parts.ABOUT).write_text(json.dumps(about | {"embeddings": False}))
    broken = tmp_path / "broken"
    shutil.copytree(results, broken)
    os.truncate(broken / "part-00000001.parquet", 100)
    for words, problem in (
        (("annotate", "--out", tmp_path / "x"), "Name images, or --from and what `bulk` wrote, but not both."),
        (("annotate", photos, "--from", results, "--out", tmp_path / "x"), "but not both."),
        (("index", "--out", tmp_path / "x"), "Name images, or --from"),
        (("annotate", "--from", results, "--boxes", 2, "--out", tmp_path / "x"), "With --from the boxes are those"),
        (("annotate", "--from", photos, "--out", tmp_path / "x"), "There are no results of `bulk` in"),
        (("annotate", "--from", broken, "--out", tmp_path / "x"), "part-00000001.parquet in"),
        (("annotate", "--from", results, "--out", photos), "holds other files"),
        (("index", "--from", bare, "--out", tmp_path / "x"), "run `bulk` with --embeddings"),
        (("index", "--from", broken, "--out", tmp_path / "x"), "delete it, and run the same `bulk` again"),
        (("index", "--from", results, "--out", photos), "holds other files; choose a new folder for the index"),
        (("bulk", photos, "--actors", 0, "--out", tmp_path / "x"), "--actors must be at least 1. Received: 0"),
        (("bulk", photos, "--model", photos, "--out", tmp_path / "x"), "There is no explainer file"),
    ):
        assert run(*words) == 2, words
        error = capsys.readouterr().err
        assert problem in error and error.count("\n") == 1, error
    assert not (tmp_path / "x").exists()


def test_without_ray_one_sentence_says_what_to_install(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ray.data", raising=False)
    assert run("bulk", photos, "--out", tmp_path / "x") == 2
    assert capsys.readouterr().err == 'error: bulk needs Ray Data: pip install "ray[data]"\n'


# --- on Ray ------------------------------------------------------------------------------------------------------

SETUP = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
MEMORY = 300_000_000  # bytes, of the object store


@pytest.fixture
def cluster():
    """The address of a cluster of two nodes of one core each, and what its users have to set."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # short: sockets are in there
        token, port = Path(folder, "token"), 6380 + os.getpid() % 1000
        token.write_text(secrets.token_hex(32))
        environment = os.environ | SETUP | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        head = ["--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", folder]
        try:
            for words in (head, ["--address", f"127.0.0.1:{port}"]):
                command = [RAY, "start", *words, "--num-cpus", "1", "--object-store-memory", str(MEMORY)]
                subprocess.run(command, check=True, env=environment, capture_output=True, timeout=180)
            yield f"127.0.0.1:{port}", environment
        finally:
            own = processes_of(folder)
            own += [number for number in processes_of("ray") if any(is_below(number, one) for one in own)]
            for number in set(own) - {os.getpid()}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def processes_of(text):
    """The ids of this machine's processes whose command or environment holds a text."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            told = b"".join(Path("/proc", name, part).read_bytes() for part in ("cmdline", "environ"))
            found += [int(name)] if text.encode() in told else []
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A thousand images, of which some are none."""
    folder = tmp_path_factory.mktemp("many")
    contents = [(HANDS / name).read_bytes() for name in NAMES]
    for i in range(1000):
        content = b"no image" if i % 100 == 7 else contents[i % len(contents)]
        (folder / f"{i:05d}.jpg").write_bytes(content)
    return folder


def bulk_command(source, out, *words):
    return [sys.executable, "-m", "utils", "bulk", str(source), "--out", str(out), *map(str, words)]


def check(out, many):
    rows = table(out)
    assert Counter(row["name"] for row in rows) == Counter(path.name for path in many.iterdir())
    assert sum(row["unreadable"] is not None for row in rows) == 10
    assert all((row["label"] is None) == (row["unreadable"] is not None) for row in rows)


def wait_for_parts(out, n, process):
    end = time.time() + 240
    while len(list(out.glob("part-*"))) < n:
        assert process.poll() is None and time.time() < end, process.communicate()
        time.sleep(0.05)


@needs_ray
@pytest.mark.slow
def test_the_driver_is_killed_and_an_actor_is_killed_and_each_image_is_there_once(many, tmp_path):
    out = tmp_path / "out"
    command, how = bulk_command(many, out, "--actors", 2), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    how |= {"env": os.environ | SETUP, "text": True}
    first = subprocess.Popen(command, **how)
    wait_for_parts(out, 5, first)
    first.kill()
    first.communicate()
    n_before = len(list(out.glob("part-*")))
    assert 5 <= n_before < 63
    second = subprocess.Popen(command, **how)
    wait_for_parts(out, n_before + 5, second)
    victim = min(number for number in processes_of("ray::MapWorker") if is_below(number, second.pid))
    os.kill(victim, signal.SIGKILL)
    printed, error = second.communicate(timeout=240)
    assert second.returncode == 0, error
    assert "parts are from before" in printed and "Traceback" not in error
    check(out, many)


def is_below(number, ancestor):
    """Whether a process is a descendant of another one."""
    while number > 1:
        if number == ancestor:
            return True
        try:
            with open(f"/proc/{number}/stat") as file:
                number = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


@needs_ray
@pytest.mark.slow
def test_two_nodes_share_the_work_and_give_the_same_table(many, cluster, tmp_path):
    address, environment = cluster
    command = bulk_command(many, tmp_path / "two", "--address", address)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("nodes: 2") and not done.stderr
    check(tmp_path / "two", many)
    work(many, tmp_path / "one")
    columns = bulk_parts.schema("label", embeddings=False, heatmaps=False).names
    one, two = ([{name: row[name] for name in columns} for row in table(tmp_path / n)] for n in ("one", "two"))
    assert one == two


@needs_ray
def test_a_cluster_that_is_not_there(photos, tmp_path, capsys):
    done = subprocess.run(
        bulk_command(photos, tmp_path / "out", "--address", "127.0.0.1:1"), env=os.environ | SETUP,
        capture_output=True, text=True, timeout=240,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: Cannot join the Ray cluster 127.0.0.1:1: ") and done.stderr.count("\n") == 1
