"""Standard streams that are closed, full, or that nobody reads; and those of a network, which break."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from samples import photo

from utils import runtime
from utils.__main__ import main
from utils.commands import exits, sources, train, web
from utils.commands.common import DEFAULT_MODEL

ROOT = DEFAULT_MODEL.parents[2]
HANDS = ROOT / "data" / "hands" / "gu"
CLOSED = ["2>&-", ">&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"]


def shell(words, streams="", **settings):
    """A command with redirected streams, in a process of its own: exit code and what came out."""
    line = f'"$0" -m utils {" ".join(words)} {streams}'
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | settings
    done = subprocess.run(["bash", "-c", line, sys.executable], capture_output=True, cwd=ROOT, env=environment)
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """What `annotate` writes where all streams are open."""
    folder = tmp_path_factory.mktemp("annotated") / "plain"
    shell(["annotate", str(HANDS), "--out", str(folder)])
    return folder


@pytest.mark.parametrize("streams", CLOSED)
def test_closed_streams_change_nothing_but_what_is_seen(streams, annotated, tmp_path):
    done = shell(["annotate", str(HANDS), "--out", str(tmp_path / "out")], streams)
    assert done.returncode == 0
    assert (b"kept" in done.stdout) == (">&-" not in streams.replace("2>&-", ""))
    for file in ("journal.jsonl", "coco.json", "rejected.csv"):  # no stream has written into a file
        assert (tmp_path / "out" / file).read_bytes() == (annotated / file).read_bytes()
    assert shell(["demo", "--headless", "--source", "nowhere.mp4"], streams).returncode == 2


@pytest.mark.parametrize("command", [[], ["train"], ["anomaly", "fit"]])
def test_help_without_streams(command):
    for streams, code in (("2>&-", 0), (">&-", 0), (">/dev/full", 2), ("| true; exit ${PIPESTATUS[0]}", 141)):
        assert shell([*command, "-h"], streams).returncode == code, streams


@pytest.mark.parametrize(
    "words",
    [["demo", "--headless", "--source", str(HANDS)], ["annotate", str(HANDS), "--out", "OUT"]],
    ids=lambda words: words[0],
)
def test_a_pipe_that_ends_and_a_disk_that_is_full(words, tmp_path):
    words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    for unbuffered in ("", "1"):
        done = shell(words, "| true; exit ${PIPESTATUS[0]}", PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 141 and not done.stderr
        done = shell(words, ">/dev/full", PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 2 and done.stderr.startswith(b"error: [Errno 28] No space left")
    assert shell(words, "2>/dev/full").returncode == 0


@pytest.mark.parametrize("streams", [">&- 2>&-"])
def test_tensorflow_without_streams(streams, tmp_path):
    words = ["explain", str(HANDS / "00.jpg"), "--out", str(tmp_path / "out")]
    assert shell(words, streams).returncode == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["00_heatmap.png", "00_overlay.png"]


def test_a_sentence_that_nobody_hears_leaves_the_exit_code():
    for streams in ("2>&-", "2>/dev/full", "2>&1 | true; exit ${PIPESTATUS[0]}"):
        assert shell(["demo", "--headless", "--source", "nowhere.mp4"], streams).returncode == 2


def test_an_error_is_one_line_whatever_it_holds(capsys, monkeypatch):
    def fail():
        raise ValueError("a\nb \udce9\x1b[31m")

    assert exits.code_of(fail) == 2
    assert capsys.readouterr().err == "error: a b %DCE9%1B[31m\n"


@pytest.mark.parametrize("closed", [[2], [1, 2], [0, 2], [0, 1, 2]])
def test_silence_where_stderr_is_closed(closed, tmp_path):
    code = f"""
import os, sys
from utils import runtime
answer = open({str(tmp_path / "answer")!r}, "w")
sys.stderr = None if {len(closed)} > 1 else sys.stderr
for number in {closed}:
    os.close(number)
with runtime.silent_stderr():
    os.write(2, b"unheard")
explainer = runtime.Explainer({str(DEFAULT_MODEL / runtime.FLOAT_FILE)!r})
answer.write(str(explainer.input_size))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert (tmp_path / "answer").read_text() == "(96, 96)"


def test_silence_ends_with_the_block(capfd):
    with pytest.raises(RuntimeError), runtime.silent_stderr():
        os.write(2, b"unheard")
        raise RuntimeError
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


class Camera(BaseHTTPRequestHandler):
    """A stream of JPEGs that ends after ``server.lengths[0]`` pictures, the next time after the next of these."""

    def do_GET(self):
        self.server.visits += 1
        n_pictures = self.server.lengths.pop(0) if self.server.lengths else 0
        if not n_pictures:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        content = cv2.imencode(".jpg", photo(48, 64)[..., ::-1])[1].tobytes()
        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        for _ in range(n_pictures):
            self.wfile.write(head + content + b"\r\n")
            time.sleep(0.005)
        return None

    def log_message(self, *_):
        pass


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """A function that starts a server of a handler's; it returns the server and its address."""
    servers = []

    def start(handler, lengths=()):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.lengths, server.visits = list(lengths), 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server, f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(sources, "STREAM_RETRY_SECONDS", 0.01)


def test_a_network_stream_that_breaks_is_taken_up_again(serve, impatient, capfd):
    server, address = serve(Camera, [30, 20, 40])
    assert main(["demo", "--headless", "--source", f"{address}/live"]) == 2
    captured = capfd.readouterr()
    last = json.loads(captured.out.splitlines()[-1])
    assert last["frames"] > 3 and server.visits >= 3 + 3  # three that have pictures, and the rest of the attempts
    error = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert error == [f"error: {address}/live broke off, and 5 attempts to take it up again failed."]


def test_every_picture_of_a_stream_comes_and_attempts_are_counted_anew(serve, impatient, monkeypatch, capfd):
    server, address = serve(Camera, [12] * 9)
    monkeypatch.setattr(sources, "STEADY_SECONDS", 0.0)  # each of them lasted long enough
    stream = sources.read_stream(cv2.VideoCapture(address), lambda: cv2.VideoCapture(address), address)
    frames = [next(stream) for _ in range(9 * 12)]
    assert all(frame.shape == (48, 64, 3) for frame in frames) and server.visits == 9
    assert abs(frames[-1][-1, -1].astype(int) - photo()[-1, -1]).max() < 8  # RGB
    stream.close()


def test_a_film_and_a_picture_on_a_server_end(serve, tmp_path, monkeypatch, capsys):
    clip = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(7):
        clip.write(np.full((48, 64, 3), 30 * i, np.uint8))
    clip.release()
    cv2.imwrite(str(tmp_path / "p.jpg"), photo(48, 64))
    monkeypatch.chdir(tmp_path)
    _, address = serve(Files)
    for path, n_frames in (("clip.avi", 7), ("p.jpg", 1), ("p.jpg?size=9", 1)):
        assert main(["demo", "--headless", "--source", f"{address}/{path}"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["frames"] == n_frames
    assert main(["demo", "--headless", "--source", f"{address}/nothing.mp4"]) == 2
    assert "there is no such stream" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x", "rtsp://127.0.0.1:9/live", "RTSP://127.0.0.1:9", "nix://a"])
def test_a_stream_that_is_not_there(address, capsys):
    assert main(["demo", "--headless", "--source", address]) == 2
    assert f"Cannot open {address}: there is no such stream, or its server does not answer." in capsys.readouterr().err


def test_a_browser_that_leaves_is_no_error(capsys):
    with web.server(DEFAULT_MODEL / runtime.FLOAT_FILE, 0) as server:
        for error in (BrokenPipeError, ConnectionResetError, ValueError):
            try:
                raise error
            except error:
                server.handle_error(None, ("127.0.0.1", 1))
            assert ("Traceback" in capsys.readouterr().err) == (error is ValueError)


def test_a_training_goes_on_when_nobody_reads_its_progress(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        for done in (1, 2):
            train._print_progress({"done": done, "loss": 1.0, "validation_accuracy": 0.5, "seconds_left": 9})
