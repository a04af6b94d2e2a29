"""Drive a headless Chromium through its DevTools protocol: pages, keys, files, and what they asked of the network."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import websocket

from utils.commands import web

COMMAND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 60  # for anything to happen
NODE_MODULES = Path(__file__).resolve().parents[1] / "out" / "litertjs" / "node_modules"
TYPES = {".js": "text/javascript", ".wasm": "application/wasm"}

# Gathers what the page says, and hands out arrays as text.
RECORD = """
globalThis.results = [];
document.addEventListener("explained", (event) => results.push(event.detail));
globalThis.toText = ({buffer, byteOffset, byteLength}) => {
  const bytes = new Uint8Array(buffer, byteOffset, byteLength);
  return btoa(Array.from({length: Math.ceil(bytes.length / 4096)},
    (_, i) => String.fromCharCode(...bytes.subarray(4096 * i, 4096 * (i + 1)))).join(""));
};
"""


def write_film(path: Path, images: np.ndarray) -> None:
    """Images uint8 (N, H, W, 3) as a .y4m file, 30 a second; even sides."""
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W%d H%d F30:1 Ip A1:1 C420jpeg\n" % images.shape[2:0:-1])
        file.writelines(b"FRAME\n" + cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420).tobytes() for image in images)


@contextlib.contextmanager
def serve(file: Path):
    """Serve the page of an explainer file, LiteRT.js too; gives its address."""
    with web.server(file, 0, assets=NODE_MODULES) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Browser:
    """A Chromium of its own, whose camera plays a .y4m or .mjpeg file; without one there is no camera."""

    def __init__(self, camera: Path | None = None):
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        cameras = [f"--use-file-for-fake-video-capture={camera}"] if camera else []
        cameras += [f"--use-fake-device-for-media-stream{'' if camera else '=device-count=0'}"]
        without = ("background-networking", "component-update", "sync", "gpu", "quic", "dev-shm-usage", "extensions")
        self._process = subprocess.Popen(
            [COMMAND, "--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-port=0", *cameras,
             f"--user-data-dir={self._profile.name}", *(f"--disable-{name}" for name in without), "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )
        try:
            file = Path(self._profile.name, "DevToolsActivePort")
            wait(lambda: file.is_file() and len(file.read_text().split()) == 2)
            port, path = file.read_text().split()
            options = {"timeout": SECONDS, "suppress_origin": True, "skip_utf8_validation": True}  # which is slow
            self._socket = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", **options)
        except BaseException:
            self.close()
            raise
        self._last, self._answers, self._tabs = 0, {}, {}

    def close(self):
        """End all of its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._profile.cleanup()

    def call(self, method: str, session: str | None = None, **parameters) -> dict:
        """One command of the protocol; events that come before its answer go to their tabs."""
        self._last += 1
        number = self._last
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        self._socket.send(json.dumps(message))
        while number not in self._answers:  # an event may have its own commands, which read on
            message = json.loads(self._socket.recv())
            if "id" in message:
                self._answers[message["id"]] = message
            elif tab := self._tabs.get(message.get("sessionId")):
                tab.receive(message["method"], message["params"])
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def tab(self, camera: bool | None = None, files: dict[str, Path] | None = None, before: str = "") -> "Tab":
        """A new tab with storage and permissions of its own.

        Args:
            camera: whether a person has allowed it to every page, or refused it; None: nobody was asked.
            files: folders to answer requests from, by the start of their addresses; everything else is let through.
            before: script that runs before those of each page.
        """
        context = self.call("Target.createBrowserContext")["browserContextId"]
        if camera is not None:
            setting = "granted" if camera else "denied"
            self.call("Browser.setPermission", permission={"name": "camera"}, setting=setting, browserContextId=context)
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(self, session, files or {})
        tab.prepare(before)
        return tab


class Tab:
    """One page.

    Attributes:
        errors: what the console showed as an error, and exceptions nobody caught.
        requests: addresses asked for, in order.
    """

    def __init__(self, browser: Browser, session: str, files: dict[str, Path]):
        self._browser, self._session, self.files = browser, session, files
        self.errors, self.requests = [], []

    def close(self):
        """Close the page; its camera goes off."""
        self.call("Page.close")

    def prepare(self, before=""):
        for domain in ("Runtime", "Log", "Network", "Page", "DOM"):
            self.call(f"{domain}.enable")
        if before:
            self.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        if self.files:
            self.call("Fetch.enable", patterns=[{"urlPattern": f"{start}*"} for start in self.files])

    def call(self, method, **parameters):
        return self._browser.call(method, self._session, **parameters)

    def receive(self, method, parameters):
        """An event of the protocol."""
        if method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in parameters["args"]))
        elif method == "Runtime.exceptionThrown":
            self.errors.append(parameters["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Fetch.requestPaused":
            self._answer(parameters["requestId"], parameters["request"]["url"])

    def _answer(self, request, url):
        start = next(start for start in self.files if url.startswith(start))
        file = self.files[start] / url.removeprefix(start)
        if not file.is_file():
            return self.call("Fetch.failRequest", requestId=request, errorReason="ConnectionFailed")
        headers = {"Content-Type": TYPES[file.suffix], "Access-Control-Allow-Origin": "*"}
        headers = [{"name": name, "value": value} for name, value in headers.items()]
        body = base64.b64encode(file.read_bytes()).decode()
        answer = {"responseCode": 200, "responseHeaders": headers, "body": body}
        return self.call("Fetch.fulfillRequest", requestId=request, **answer)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str):
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", script))
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = SECONDS):
        """Until the expression is true; returns its value."""
        return wait(lambda: self.run(script), seconds, script)

    def click(self, selector: str):
        """Press the mouse in the middle of an element."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = f"const r = document.querySelector({selector!r}).getBoundingClientRect();"
        x, y = self.run(f"{{{box} [r.x + r.width / 2, r.y + r.height / 2]}}")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str):
        """Press a key: a letter, or a name such as Tab."""
        code = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39, "ArrowLeft": 37}.get(key, ord(key[0].upper()))
        text = {"text": {"Enter": "\r"}.get(key, key)} if len(key) == 1 or key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def drop(self, file: Path):
        """Drop a file in the middle of the page's upper part."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)

    def choose(self, selector: str, file: Path):
        """Choose a file in a file chooser."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def screenshot(self, path: Path, width: int, height: int, dark: bool = False):
        """A picture of the whole page at a width."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        time.sleep(0.3)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def wait(condition, seconds: float = SECONDS, what: str = "Chromium"):
    """Until the condition gives something true, which is returned."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not in {seconds} s")
        time.sleep(0.02)
    return value
