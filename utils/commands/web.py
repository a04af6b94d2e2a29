"""``demo --web`` and ``demo --export``: one page with the network in it, which LiteRT.js runs where the camera is.

`page.html` beside this file is its template. The page computes what `runtime.Explainer` does, and sends nothing.
"""

import argparse
import base64
import hashlib
import html
import json
import os
import re
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np

from utils import heatmap, imaging, runtime
from utils.commands import advice, common
from utils.views import Views

PACKAGES = ("core", "wasm-utils")  # of LiteRT.js, on npm under @litertjs
CDN = "https://cdn.jsdelivr.net/npm/@litertjs/{package}@2.5.3/"
SERVED = "/@litertjs/{package}/"  # by `server`, from a folder
TEMPLATE = Path(__file__).with_name("page.html")
FRAME_HEIGHT = 820  # pixels


def add_arguments(shown, group: argparse._ArgumentGroup) -> None:
    """Options of ``demo``; ``shown`` are those that exclude each other."""
    shown.add_argument("--web", action="store_true", help="serve a page that explains the browser's own camera")
    shown.add_argument(
        "--export", type=Path, metavar="PAGE", help="write that page, model inside, as .html for any static host"
    )
    group.add_argument("--port", type=int, default=8000, help="port of --web, on 127.0.0.1")
    group.add_argument(
        "--assets", type=Path, metavar="DIR",
        help="with --web: node_modules folder with @litertjs/core, served instead of the CDN's copy",
    )


def main(options) -> int:
    if options.source != "0" or options.save:
        raise ValueError("The page takes the browser's own camera: --source and --save do not go with it.")
    if options.export and options.assets:
        raise ValueError("--assets needs --web: an exported page takes LiteRT.js from its CDN.")
    file = common.model_file(options)
    if options.export:
        print(f"wrote {export(file, options.export, mode=options.mode)}")
        return 0
    with server(file, options.port, mode=options.mode, assets=options.assets) as serving:
        print(f"http://127.0.0.1:{serving.server_port}/  (Ctrl-C ends it)", flush=True)
        serving.serve_forever()
    return 0


def page(file: str | os.PathLike, mode: str = "heatmap", *, packages: str = CDN) -> str:
    """The page, as HTML, with an explainer file in it.

    Args:
        file: an ``explainer.tflite`` or ``explainer_int8.tflite``.
        mode: what is drawn first, "heatmap" or "box".
        packages: where the browser finds LiteRT.js: address of each of `PACKAGES`, with ``{package}`` for its name.

    Raises:
        FileNotFoundError, ValueError: as of `runtime.read_metadata`.
        ValueError: a detector that looks at a part, or at tiles.
    """
    metadata = runtime.read_metadata(file)
    if not Views.from_dict(metadata.get("views", {})).is_whole:
        raise ValueError("The page looks at whole pictures; this detector was fitted with --roi or --tile.")
    urls = {package: packages.format(package=package) for package in PACKAGES}
    turbo = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], heatmap.COLORMAP)[0, :, ::-1]  # (256, RGB)
    cells = metadata.get("cells")
    projection = runtime.Explainer(file).projection if cells and tuple(cells["window"]) == imaging.WHOLE else None
    settings = {
        "cells": None if projection is None else {"grid": cells["grid"], "projection": _base64(projection.tobytes())},
        "metadata": {name: metadata.get(name) for name in ("kind", "class_names", "image_size", "precision")},
        "advice": advice.settings(metadata["class_names"]), "colours": _base64(turbo.tobytes()),
        "wasm": f"{urls['core']}wasm/", "mode": mode,
    }
    imports = {f"@litertjs/{package}": f"{url}dist/index.js" for package, url in urls.items()}
    text = TEMPLATE.read_text(encoding="utf-8").replace("{{imports}}", _json({"imports": imports}))
    policy = _policy(text, ["'self'"] if packages == SERVED else urls.values())
    values = {"policy": policy, "settings": _json(settings), "model": _base64(Path(file).read_bytes())}
    return re.sub("{{(policy|settings|model)}}", lambda match: values[match[1]], text)


def frame(file: str | os.PathLike) -> str:
    """The page as a frame for a notebook, HTML. It keeps the notebook's origin: without one it would get no camera."""
    sandbox = 'sandbox="allow-scripts allow-same-origin" allow="camera"'
    return (
        f'<div><iframe title="Faster-Grad-CAM, live" {sandbox} width="100%" height="{FRAME_HEIGHT}" style="border: 0" '
        f'srcdoc="{html.escape(page(file))}"></iframe></div>'
    )


def export(file: str | os.PathLike, path: str | os.PathLike, *, mode: str = "heatmap") -> Path:
    """Write the page for any static host; it appears as a whole or not at all.

    Raises:
        FileNotFoundError, ValueError: as of `page`, or ``path`` does not end in .html.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"A page must end in .html. Received: {path}")
    text = page(file, mode)
    with imaging.atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


def server(
    file: str | os.PathLike, port: int, *, mode: str = "heatmap", assets: str | os.PathLike | None = None
) -> ThreadingHTTPServer:
    """A server of the page on 127.0.0.1, bound but not yet serving.

    Args:
        file, mode: as of `page`.
        port: 0 takes a free one.
        assets: a ``node_modules`` folder with LiteRT.js, for machines that do not reach the CDN.

    Raises:
        FileNotFoundError, ValueError: as of `page`; LiteRT.js is not in the folder; no such port.
        OSError: the port is in use or needs privileges.
    """
    for package in PACKAGES if assets else ():
        if not Path(assets, "@litertjs", package, "dist/index.js").is_file():
            raise FileNotFoundError(f"There is no @litertjs/{package} in {assets}; npm install @litertjs/core adds it.")
    if not 0 <= port <= 65535:
        raise ValueError(f"The port must be in 0..65535. Received: {port}")
    content = page(file, mode, packages=SERVED if assets else CDN).encode()
    try:
        return Server(("127.0.0.1", port), _handler(content, assets and Path(assets, "@litertjs")))
    except OSError as error:
        raise OSError(f"Cannot serve on port {port} ({error.strerror}); choose another with --port.") from None


class Server(ThreadingHTTPServer):
    """A server that takes it calmly when a browser leaves in the middle of the page."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(content, folder):
    """The class that answers: with the page's bytes, and with what lies in the folder of LiteRT.js, if there is one."""

    class Handler(SimpleHTTPRequestHandler):
        extensions_map = {".js": "text/javascript", ".wasm": "application/wasm", "": "application/octet-stream"}

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder)

        def do_GET(self):
            if self.path == "/":
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            elif folder and self.path.startswith("/@litertjs/"):
                self.path = self.path.removeprefix("/@litertjs")
                super().do_GET()
            else:
                self.send_error(404)

        def do_HEAD(self):
            self.send_error(405)

        def list_directory(self, path):
            self.send_error(404)

        def log_message(self, *_):
            pass

    return Handler


def _policy(text, sources):
    """Content security policy: the scripts and styles of this text, LiteRT.js from its sources, nothing else."""
    scripts = re.findall('<script type="(?:importmap|module)">(.*?)</script>', text, re.S)
    styles = re.findall("<style>(.*?)</style>", text, re.S)
    scripts, styles = (
        " ".join(f"'sha256-{_base64(hashlib.sha256(part.encode()).digest())}'" for part in parts)
        for parts in (scripts, styles)
    )
    where = " ".join(sources)
    return (
        f"default-src 'none'; script-src {scripts} 'wasm-unsafe-eval' {where}; connect-src {where}; "
        f"style-src {styles}; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _base64(content):
    return base64.b64encode(content).decode()


def _json(value):
    return json.dumps(value).replace("<", "\\u003c")  # a class name cannot end the script that it stands in
