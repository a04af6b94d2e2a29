"""The demo in a browser: the page and its server, then the real thing in a headless Chromium with a fake camera."""

import base64
import contextlib
import functools
import hashlib
import html
import http.client
import http.server
import json
import re
import signal
import subprocess
import sys
import threading
import zipfile
from types import SimpleNamespace

import browser
import numpy as np
import pytest
from PIL import Image
from samples import write_detector

from utils import heatmap, imaging, runtime
from utils.__main__ import main
from utils.commands import advice, web
from utils.commands.common import DEFAULT_MODEL
from utils.render import hands
from utils.views import Views

FLOAT, INT8 = DEFAULT_MODEL / runtime.FLOAT_FILE, DEFAULT_MODEL / runtime.INT8_FILE
CDN_FILES = {web.CDN.format(package=name): browser.NODE_MODULES / "@litertjs" / name for name in web.PACKAGES}
N_FRAMES, HEIGHT, WIDTH = 100, 180, 240
RESULT = """(({image, result, words}) => ({width: image.width, height: image.height, name: result.name, words,
  score: result.score, scores: [...result.scores], probabilities: result.probabilities,
  milliseconds: result.milliseconds, image: toText(image.data), heatmap: toText(result.heatmap)}))"""


# The page


def test_the_page_is_whole():
    page = web.page(INT8)
    assert not re.search(r"\{\{\w+\}\}", page)
    model = re.search(r'<script id="model" type="text/plain">(.*?)</script>', page)[1]
    assert base64.b64decode(model) == INT8.read_bytes()
    assert len(page) <= 6e6
    addresses = set(re.findall(r"https?://[^\s\"'<>;]+", page))
    assert all(address.startswith("https://cdn.jsdelivr.net/npm/@litertjs/") for address in addresses)


def test_the_policy_allows_the_page_and_liter_js_alone():
    page = web.page(INT8)
    policy = dict(part.split(" ", 1) for part in re.search(r'Policy" content="(.*?)"', page)[1].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    cdn = {web.CDN.format(package=name) for name in web.PACKAGES}
    assert set(policy["connect-src"].split()) == cdn
    scripts = set(policy["script-src"].split())
    executed = re.findall(r'<script(?: type="(?:module|importmap)")?>(.*?)</script>', page, re.S)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in executed}
    assert len(hashes) == 2 and scripts == hashes | cdn | {"'wasm-unsafe-eval'"}
    local = web.page(INT8, packages=web.SERVED)
    assert "connect-src 'self';" in local and "https://" not in local


def with_metadata(folder, **changes):
    """The int8 file with other metadata behind it."""
    metadata = runtime.read_metadata(INT8) | changes
    path = folder / "other.tflite"
    path.write_bytes(INT8.read_bytes()[: metadata["bytes"]])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(runtime.METADATA_FILE, json.dumps(metadata))
    return path


ODD_NAMES = ["</script><b>", "{{model}}", "Schere ✂", "none"]


def test_class_names_are_no_markup(tmp_path):
    page = web.page(with_metadata(tmp_path, class_names=ODD_NAMES))
    settings = re.search(r'<script id="settings" type="application/json">(.*?)</script>', page, re.S)[1]
    assert json.loads(settings)["metadata"]["class_names"] == ODD_NAMES


def test_a_detector_that_looks_at_tiles_gets_no_page(monkeypatch):
    monkeypatch.setattr(runtime, "read_metadata", lambda file: {"views": Views(tile=32).asdict()})
    with pytest.raises(ValueError, match="whole pictures; this detector was fitted with --roi or --tile"):
        web.page("tiles.tflite")


def test_export_writes_one_page_or_nothing(tmp_path, capsys):
    path = tmp_path / "new" / "page.html"
    assert main(["demo", "--export", str(path), "--int8", "--mode", "box"]) == 0
    assert path.read_text() == web.page(INT8, mode="box")
    with pytest.raises(ValueError, match="must end in .html. Received: page.txt"):
        web.export(INT8, "page.txt")
    with pytest.raises(FileNotFoundError, match="no explainer file"):
        web.export(tmp_path / "nothing.tflite", tmp_path / "page.html")
    assert [file.name for file in tmp_path.rglob("*")] == ["new", "page.html"]


def test_the_frame_of_a_notebook_holds_the_page():
    frame = web.frame(INT8)
    assert frame.startswith("<div><iframe") and 'allow="camera"' in frame and 'sandbox="allow-scripts' in frame
    assert html.unescape(re.search(r'srcdoc="(.*?)"', frame, re.S)[1]) == web.page(INT8)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--web", "--port", "70000"], "port must be in 0..65535. Received: 70000"),
        (["--web", "--assets", "."], "no @litertjs/core in ."),
        (["--web", "--source", "clip.mp4"], "--source and --save do not go with it"),
        (["--export", "page.html", "--save", "out.mp4"], "--source and --save do not go with it"),
        (["--export", "page.html", "--assets", "."], "--assets needs --web"),
        (["--web", "--model", "nowhere"], "no explainer file"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and sentence in captured.err and captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def packages(tmp_path):
    """A node_modules folder that looks like one with LiteRT.js."""
    for name in web.PACKAGES:
        file = tmp_path / "node_modules" / "@litertjs" / name / "dist" / "index.js"
        file.parent.mkdir(parents=True)
        file.write_text("export {};")
    (tmp_path / "node_modules" / "secret.js").touch()
    return tmp_path / "node_modules"


def test_the_server_gives_the_page_and_the_packages_alone(packages):
    with web.server(INT8, 0, assets=packages) as server:
        assert server.server_address[0] == "127.0.0.1"
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(path, method="GET"):
            connection = http.client.HTTPConnection(*server.server_address)
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.getheader("Content-Type"), response.read()

        assert ask("/") == (200, "text/html; charset=utf-8", web.page(INT8, packages=web.SERVED).encode())
        assert ask("/@litertjs/core/dist/index.js") == (200, "text/javascript", b"export {};")
        forbidden = "/secret.js", "/@litertjs/", "/@litertjs/../secret.js", "/@litertjs/%2e%2e/secret.js", "/page.html"
        assert [ask(path)[0] for path in forbidden] == [404] * len(forbidden)
        assert ask("/", "POST")[0] == 501
        server.shutdown()


def test_a_port_that_is_taken():
    with web.server(INT8, 0) as server, pytest.raises(OSError, match="Cannot serve on port .* choose another"):
        web.server(INT8, server.server_port)


def test_the_command_serves_until_ctrl_c():
    command = [sys.executable, "-m", "utils", "demo", "--web", "--int8", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs of a shell's background ignore it
    with subprocess.Popen(command, **pipes, preexec_fn=listen) as process:
        try:
            address = process.stdout.readline().split()[0]
            connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=30)
            connection.request("GET", "/")
            assert connection.getresponse().read() == web.page(INT8).encode()
            process.send_signal(signal.SIGINT)
            assert (process.wait(30), process.stderr.read()) == (130, "interrupted\n")
        finally:
            process.kill()


# In Chromium


@pytest.fixture(scope="module")
def needed():
    """Skip where there is no browser, or nothing for it to run."""
    if not browser.COMMAND:
        pytest.skip("Chromium is not installed")
    if not all(folder.is_dir() for folder in CDN_FILES.values()):
        pytest.skip("LiteRT.js is not here: npm install --prefix out/litertjs @litertjs/core@2.5.3")


@pytest.fixture(scope="module")
def chromium(needed, tmp_path_factory):
    """With a camera that shows rendered hands, 30 a second."""
    gestures = [*hands.GESTURES, hands.NONE] * (N_FRAMES // 4)
    images = imaging.resize(hands.render_hands(gestures, image_size=WIDTH, seed=8)[0], HEIGHT, WIDTH)
    path = tmp_path_factory.mktemp("camera") / "hands.y4m"
    browser.write_film(path, images)
    chromium = browser.Browser(path)
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def serve():
    """A function that serves a file and returns the address of its page."""
    with contextlib.ExitStack() as stack:
        yield lambda file: stack.enter_context(browser.serve(file))


@pytest.fixture(scope="module")
def tab(chromium, serve):
    """A page of the float file."""
    tab = chromium.tab(camera=True, before=browser.RECORD)
    tab.open(serve(FLOAT))
    tab.wait("document.getElementById('state').textContent.startsWith('Knows')")
    yield tab
    assert not tab.errors
    tab.close()


@pytest.fixture
def camera(tab):
    """The same with the camera on, in a known state."""
    tab.run("results.length = 0")
    tab.click("#start")
    tab.wait("results.length > 1")
    yield tab
    tab.press("q")
    tab.run("document.querySelector('[value=heatmap]').click()")


def text(tab, name):
    return tab.run(f"document.getElementById({name!r}).textContent")


def array(packed, dtype, *shape):
    return np.frombuffer(base64.b64decode(packed), dtype).reshape(shape)


def result(tab, number):
    """One of the page's results: {name, score, ...}, image uint8 RGB (H, W, 3), heat map float32 (H, W)."""
    answer = tab.run(f"{RESULT}(results.at({number}))")
    size = answer["height"], answer["width"]
    return answer, array(answer["image"], np.uint8, *size, 4)[..., :3], array(answer["heatmap"], np.float32, *size)


def picture(tab):
    """What the stage shows: uint8 RGB (H, W, 3)."""
    width, height = tab.run("[document.querySelector('canvas').width, document.querySelector('canvas').height]")
    pixels = f"document.querySelector('canvas').getContext('2d').getImageData(0, 0, {width}, {height}).data"
    return array(tab.run(f"toText({pixels})"), np.uint8, height, width, 4)[..., :3]


def box(tab):
    """The box on the stage, x0, y0, x1, y1 as shares of its sides, or None."""
    return tab.run("""(() => {
      const [a, b] = ["stage", "box"].map((id) => document.getElementById(id).getBoundingClientRect());
      return b.width ? [b.left - a.left, b.top - a.top, b.right - a.left, b.bottom - a.top].map(
        (edge, i) => edge / (i % 2 ? a.height : a.width)) : null;
    })()""")


@pytest.mark.parametrize("file, number", [(FLOAT, N_FRAMES), (INT8, N_FRAMES // 4)], ids=["float32", "int8"])
def test_it_says_what_the_explainer_says(file, number, chromium, serve):
    tab, address, explainer = chromium.tab(camera=True, before=browser.RECORD), serve(file), runtime.Explainer(file)
    tab.open(address)
    tab.click("#start")
    tab.wait(f"results.length >= {number}", 60)
    tab.press("q")
    same, difference, seen = [], [], set()
    for i in range(number):
        answer, image, heat = result(tab, i)
        expected = explainer.explain(image)
        same.append(answer["name"] == expected.names[0])
        difference.append(np.abs(heat - expected.heatmaps[0]).max())
        seen.add(answer["name"])
    assert np.mean(same) >= 0.99 and seen == set(explainer.class_names)
    assert max(difference) <= 2 / 255
    assert not tab.errors
    assert len(tab.requests) == 5 and all(request.startswith(address) for request in tab.requests)
    tab.close()


@pytest.mark.parametrize("file", [FLOAT, INT8], ids=["float32", "int8"])
def test_it_compares_as_the_explainer_does(file, chromium, serve):
    """A picture is kept, the next is compared with it; c forgets it."""
    tab, explainer = chromium.tab(before=browser.RECORD), runtime.Explainer(file)
    tab.open(serve(file))
    files = [DEFAULT_MODEL.parents[1] / "hands" / "pa" / f"0{i}.jpg" for i in (0, 1)]
    assert tab.run("document.getElementById('compare').disabled")
    for i, path in enumerate(files):
        tab.choose("#file", path)
        tab.wait(f"results.length >= {i + 1}", 60)
        if not i:
            tab.click("#compare")
    images = [result(tab, i)[1] for i in (0, 1)]
    expected = explainer.compare(images[1], images[0])
    assert tab.run("answer.textContent") == f"alike {expected.score:.2f}"
    likeness = tab.run("toText(results[1].likeness.heatmap)")
    heat = np.frombuffer(base64.b64decode(likeness), np.float32).reshape(images[1].shape[:2])
    ours = np.maximum(expected.heatmap_a, 0)
    np.testing.assert_allclose(heat, ours / ours.max() * heat.max(), atol=0.02)
    tab.press("c")
    assert tab.run("answer.textContent").startswith("pa ") and tab.run("kept.hidden")
    assert not tab.errors
    tab.close()


def pause(tab):
    """Press p at a picture with a hand; returns its result."""
    for _ in range(50):
        tab.press("p")
        tab.run("new Promise((done) => setTimeout(done, 200))")  # no frame is on its way any more
        shown = result(tab, -1)
        if shown[2].max() > 0.6:
            return shown
        tab.press("p")
    raise AssertionError("no hand")


def test_heat_map_and_box_are_those_of_the_desktop(camera):
    answer, image, heat = pause(camera)
    assert text(camera, "answer") == answer["words"]
    expected = runtime.Explainer(FLOAT).explain(image).probabilities()[0]
    np.testing.assert_allclose(answer["probabilities"], expected, atol=0.006)
    assert re.fullmatch(r"[-\d]+ FPS, network \d+\.\d ms", text(camera, "rates"))
    close = {"atol": 1.01, "rtol": 0}
    np.testing.assert_allclose(picture(camera), heatmap.overlay(image, heat), **close)
    for opacity in (0.8, 0):
        camera.run(f"opacity.value = {opacity}; opacity.dispatchEvent(new Event('input'))")
        np.testing.assert_allclose(picture(camera), heatmap.overlay(image, heat, opacity=opacity), **close)
    camera.run("opacity.value = 0.5; opacity.dispatchEvent(new Event('input'))")
    assert box(camera) is None
    rates = text(camera, "rates")
    camera.press("s")
    np.testing.assert_array_equal(picture(camera), image)
    assert text(camera, "rates") == rates
    x0, y0, x1, y1 = np.array(heatmap.box(heat)) / (WIDTH, HEIGHT, WIDTH, HEIGHT)
    np.testing.assert_allclose(box(camera), (1 - x1, y0, 1 - x0, y1), atol=0.01)
    assert camera.run("getComputedStyle(document.querySelector('canvas')).transform").startswith("matrix(-1")
    camera.click("#mirror")
    np.testing.assert_allclose(box(camera), (x0, y0, x1, y1), atol=0.01)
    assert camera.run("getComputedStyle(document.querySelector('canvas')).transform") == "none"
    camera.click("#mirror")


def test_the_last_half_second_votes_as_in_the_window(chromium, serve):
    """Frames 200 ms apart by the page's clock: three of them vote."""
    clock = "performance.now = () => 200 * results.length;"
    tab, votes = chromium.tab(camera=True, before=browser.RECORD + clock), advice.Votes()
    tab.open(serve(FLOAT))
    tab.click("#start")
    tab.wait(f"results.length >= {N_FRAMES // 2}", 60)
    tab.press("q")
    names, said = runtime.Explainer(FLOAT).class_names, set()
    for i in range(N_FRAMES // 2):
        answer, image, _ = result(tab, i)
        own = np.array([answer["probabilities"]])
        frame = SimpleNamespace(class_names=names, probabilities=lambda own=own: own)
        assert answer["words"] == advice.answer(frame, image, votes, 0.2 * i)
        said.add(re.match(r"[a-z ]+(?= )", answer["words"])[0])
    assert said == {"choki", "gu", "pa", "no hand"} and not tab.errors
    tab.close()


@pytest.mark.parametrize("change", [lambda x: x // 8, lambda x: x // 16 + 240, lambda x: x // 64 + 90, lambda x: x])
def test_the_page_knows_bad_light(change, chromium, serve, rng, tmp_path):
    """A camera that shows one thing that is no hand."""
    frame = change(imaging.resize(rng.integers(0, 256, (1, 12, 12, 3)).astype(np.uint8), HEIGHT, WIDTH)[0])
    shown = f"""
    navigator.mediaDevices.getUserMedia = async () => {{
      const canvas = Object.assign(document.createElement("canvas"), {{width: {WIDTH}, height: {HEIGHT}}});
      const pixels = Uint8ClampedArray.from(atob("{base64.b64encode(opaque(frame)).decode()}"), (c) => c.charCodeAt(0));
      setInterval(() => canvas.getContext("2d").putImageData(new ImageData(pixels, {WIDTH}), 0, 0), 30);
      return canvas.captureStream(30);
    }};"""
    tab = chromium.tab(camera=True, before=browser.RECORD + shown)
    tab.open(serve(FLOAT))
    tab.click("#start")
    tab.wait("results.length >= 2", 60)
    tab.press("q")
    answer, image, _ = result(tab, 1)
    assert answer["name"] == "none" and answer["words"].startswith("no hand ")
    assert answer["words"].partition("(")[2].rstrip(")") == advice.hint(image)
    tab.close()


def opaque(image):
    return np.concatenate([image, np.full_like(image[..., :1], 255)], axis=-1).tobytes()


def test_keys_and_buttons(camera):
    mode = "document.querySelector('[name=mode]:checked').value"
    camera.press("s")
    assert camera.run(mode) == "box"
    camera.press("S")
    assert camera.run(mode) == "heatmap"
    for paused in (True, False):
        camera.press("p") if paused else camera.click("#pause")
        camera.run("new Promise((done) => setTimeout(done, 200))")
        before = camera.run("results.length")
        camera.run("new Promise((done) => setTimeout(done, 500))")
        assert (camera.run("results.length") == before) is paused
        assert text(camera, "pause") == ("Go on" if paused else "Pause")
    camera.press("q")
    assert text(camera, "start") == "Start the camera" and camera.run("stage.className").endswith("empty")
    assert camera.run("video.srcObject") is None and camera.run("document.getElementById('pause').disabled")
    camera.run("camera.value = 'environment'; camera.dispatchEvent(new Event('change'))")
    assert not camera.run("mirror.checked")
    camera.run("camera.value = 'user'; camera.dispatchEvent(new Event('change'))")
    camera.click("#start")
    camera.run("results.length = 0")
    camera.wait("results.length")
    camera.click("#start")
    assert camera.run("video.srcObject") is None


def test_a_lost_camera_is_one_sentence(camera):
    camera.run("{const track = video.srcObject.getTracks()[0]; track.stop(); track.dispatchEvent(new Event('ended'))}")
    camera.wait("problem.textContent.startsWith('The camera gives no more pictures')")
    assert text(camera, "start") == "Start the camera"


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    imaging.write_image(path, hands.render_hands(["pa"], seed=3)[0][0])
    return path


def still(tab, path):
    """Drop a file; the page's result of it."""
    tab.run("results.length = 0")
    tab.drop(path)
    tab.wait("results.length || document.getElementById('problem').textContent")
    return result(tab, -1)


@pytest.mark.parametrize("height, width", [(160, 160), (192, 192), (288, 384), (700, 333), (300, 80), (60, 80), (3, 5)])
def test_a_dropped_picture_of_any_size(height, width, tab, rng, tmp_path):
    coarse = rng.integers(0, 256, (1, 12, 12, 3)).astype(np.uint8)
    image = imaging.resize(coarse, height, width)[0] // 4 * 3 + rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    imaging.write_image(tmp_path / "photo.png", image)
    answer, seen, heat = still(tab, tmp_path / "photo.png")
    np.testing.assert_array_equal(seen, image)
    expected = runtime.Explainer(FLOAT).explain(image)
    grows = min(height, width) < 96  # in integers in OpenCV, and one step off
    np.testing.assert_allclose(answer["scores"], expected.scores[0], atol=0.03 if grows else 1e-5)
    if not grows:
        assert answer["name"] == expected.names[0]
        np.testing.assert_allclose(heat, expected.heatmaps[0], atol=2 / 255)
    assert text(tab, "rates").startswith("network ") and not tab.run("stage.classList.contains('mirrored')")


def test_a_detector_of_anomalies_shows_score_and_threshold(chromium, serve, rng, tmp_path):
    from utils.commands import demo

    file = write_detector(tmp_path, scale=1.5) / runtime.FLOAT_FILE
    explainer, tab = runtime.Explainer(file), chromium.tab(camera=True, before=browser.RECORD)
    tab.open(serve(file))
    tab.wait("document.getElementById('state').textContent.startsWith('Knows')")
    tab.press("s")
    noise = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for verdict, image in (("normal", noise // 2), ("anomaly", noise)):
        imaging.write_image(tmp_path / "photo.png", image)
        answer, _, heat = still(tab, tmp_path / "photo.png")
        expected = explainer.explain(image)
        assert answer["name"] == expected.names[0] == verdict
        assert answer["score"] == pytest.approx(float(expected.scores[0]), abs=1e-3)
        np.testing.assert_allclose(heat, expected.heatmaps[0], atol=2 / 255)
        assert text(tab, "answer") == f"{verdict} {answer['score']:.2f}, threshold 1"
        corners = demo.find_box(expected)
        assert (box(tab) is None) == (corners is None)
        if corners:
            np.testing.assert_allclose(box(tab), np.array(corners) / 64, atol=0.01)
    assert not tab.errors
    tab.close()


def test_pictures_are_read_as_by_the_other_commands(tab, rng, tmp_path):
    pixels = rng.integers(0, 256, (40, 60, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "transparent.png")
    turned = Image.fromarray(pixels[..., :3])
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    for name in ("transparent.png", "turned.png"):
        _, seen, _ = still(tab, tmp_path / name)
        np.testing.assert_allclose(seen, imaging.read_image(tmp_path / name).astype(int), atol=2)
    (tmp_path / "notes.png").write_text("no picture")
    tab.choose("#file", tmp_path / "notes.png")
    tab.wait("problem.textContent === 'notes.png is no picture that this browser can read.'")
    tab.run("results.length = 0")
    tab.choose("#file", tmp_path / "turned.png")
    tab.wait("results.length")
    assert text(tab, "problem") == ""


def test_every_control_has_a_name_and_its_turn(tab):
    names = {
        node["name"]["value"] for node in tab.call("Accessibility.getFullAXTree")["nodes"]
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
        and node["role"]["value"] != "RootWebArea"
    }
    names -= {"Front camera", "Back camera", "Compare with this"}  # the last waits for a picture
    assert names == {"Start the camera", "Choose a picture", "Camera", "Heat map", "Opacity", "Mirror", "Box"}
    tab.run("document.getElementById('start').focus()")
    order = []
    for _ in range(5):
        tab.press("Tab")
        order.append(tab.run("document.activeElement.id || document.activeElement.value"))
    assert order == ["file", "camera", "heatmap", "opacity", "mirror"]
    assert tab.run("[spoken.role, problem.role, document.documentElement.lang].join()") == "status,alert,en"


@pytest.mark.parametrize("width", [320, 390, 1100])
def test_it_fits_any_screen_and_finger(width, tab, photo, tmp_path):
    still(tab, photo)
    for dark in (False, True):
        tab.screenshot(tmp_path / f"{dark}.png", width, 800, dark)
        assert tab.run("document.documentElement.scrollWidth") <= width
    low = "[...controls.children].filter((element) => element.getBoundingClientRect().height < 44).map((e) => e.id)"
    assert tab.run(low) == []
    dark, light = (imaging.read_image(tmp_path / f"{name}.png")[-1, 0].mean() for name in (True, False))
    assert dark < 60 and light > 200


def test_a_screen_reader_hears_changes_and_no_flood(camera):
    camera.run("""globalThis.words = []; new MutationObserver(() => words.push(performance.now())).observe(
      document.getElementById("spoken"), {childList: true})""")
    camera.wait("words.length >= 3")
    assert np.diff(camera.run("words")).min() > 1400
    assert text(camera, "spoken") in runtime.Explainer(FLOAT).class_names


# What may go wrong


@pytest.mark.parametrize("reason", ["refused", "missing", "insecure"])
def test_without_a_camera_pictures_can_be_explained(reason, needed, request, serve, photo):
    chromium = browser.Browser() if reason == "missing" else request.getfixturevalue("chromium")
    insecure = "Object.defineProperty(navigator, 'mediaDevices', {value: undefined});" if reason == "insecure" else ""
    sentence = {"refused": "The camera was refused", "missing": "There is no camera", "insecure": "only to pages from"}
    try:
        tab = chromium.tab(camera=reason != "refused", before=browser.RECORD + insecure)
        tab.open(serve(INT8))
        tab.click("#start")
        tab.wait("document.getElementById('problem').textContent")
        assert sentence[reason] in text(tab, "problem") and "picture" in text(tab, "problem")
        assert text(tab, "start") == "Start the camera"
        still(tab, photo)
        assert text(tab, "problem") == "" and text(tab, "answer").split()[0] in runtime.Explainer(INT8).class_names
        assert not tab.errors
        tab.close()
    finally:
        if reason == "missing":
            chromium.close()


@pytest.mark.parametrize("reason", ["CDN", "SIMD", "WebAssembly", "model"])
def test_what_cannot_be_loaded_is_one_sentence(reason, chromium, serve, photo, tmp_path):
    lacks = {"SIMD": "WebAssembly.validate = () => false", "WebAssembly": "delete globalThis.WebAssembly"}
    sentence = {"CDN": "LiteRT.js cannot be loaded from cdn.jsdelivr.net", "model": "The network cannot be loaded"}
    page = web.page(INT8)
    if reason == "model":  # cut off
        start = page.index('type="text/plain">') + 18
        page = page[: start + 200_000] + page[page.index("</script>", start) :]
    (tmp_path / "page.html").write_text(page)
    files = dict.fromkeys(CDN_FILES, tmp_path) if reason == "CDN" else CDN_FILES
    tab = chromium.tab(camera=True, files=files, before=browser.RECORD + lacks.get(reason, ""))
    tab.open((tmp_path / "page.html").as_uri())
    tab.wait("document.getElementById('problem').textContent")
    expected = sentence.get(reason, "This browser has no WebAssembly SIMD")
    assert text(tab, "problem").startswith(expected)
    for act in (lambda: tab.click("#start"), lambda: tab.drop(photo)):
        tab.run("document.getElementById('problem').textContent = ''")
        act()
        tab.wait("document.getElementById('problem').textContent")
        assert text(tab, "problem").startswith(expected)
    assert text(tab, "start") == "Start the camera"
    tab.close()


# As it is published


@pytest.fixture
def host(tmp_path):
    """A static host of files; its address."""
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.parametrize("kind", ["page", "frame"])
def test_on_a_host_it_asks_for_itself_and_liter_js_alone(kind, chromium, host, tmp_path):
    file = with_metadata(tmp_path, class_names=ODD_NAMES)
    if kind == "page":
        web.export(file, tmp_path / "page.html")
    else:  # the output of a notebook's cell, in a page that does not even say how it is written
        body = f'<!doctype html><link rel="icon" href="data:,">{web.frame(file)}'
        (tmp_path / "page.html").write_text(body, encoding="utf-8")
    tab = chromium.tab(camera=True, files=CDN_FILES)
    tab.open(f"{host}page.html")
    page = "document" if kind == "page" else "document.querySelector('iframe').contentDocument"
    tab.wait(f"!!{page}?.getElementById('start')?.onclick")
    tab.run(f"{page}.addEventListener('explained', () => globalThis.done = true)")
    tab.run(f"{page}.getElementById('start').click()")
    tab.wait("globalThis.done")
    said = tab.run(f"{page}.getElementById('answer').textContent")
    assert said.startswith(tuple(f"{name} " for name in ODD_NAMES))
    assert {"jsdelivr" in request for request in tab.requests} == {True, False}
    own, cdn = tab.requests[0], tab.requests[1:]
    assert own == f"{host}page.html"
    assert len(cdn) == 4 and all(request.startswith(tuple(CDN_FILES)) for request in cdn)
    blocked = tab.run("fetch('page.html?leak').then(() => false, () => true)") if kind == "page" else True
    assert blocked and not [error for error in tab.errors if "Content Security Policy" not in error]
    tab.close()
