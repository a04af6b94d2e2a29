"""A stand-in for the Hugging Face hub on this machine: as much of its protocol as one push and one download take."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SECRET = "hf_secret"  # whoever shows it may write, and see what is private
LARGE = (".h5", ".npz", ".tflite")  # these go the way of large files: to an address of their own before the commit


class Hub(ThreadingHTTPServer):
    """The repositories: {"owner/name": {path: content}}; what was uploaded by checksum; the requests so far."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.private, self.large, self.log = {}, set(), {}, []

    def revision(self, repository):
        files = sorted((name, hashlib.sha1(content).hexdigest()) for name, content in self.repository(repository))
        return hashlib.sha1(repr(files).encode()).hexdigest()

    def repository(self, name):
        return self.repositories[name].items()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def respond(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self.chunks()
        path = urlsplit(self.path).path.strip("/")
        self.server.log.append(f"{self.command} {path}")
        parts = path.split("/")
        if parts[0] == "large":
            return self.answer(b"", put=(parts[1], body))
        if parts[:3] == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts[:2] == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        is_api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_api else parts
        repository = f"{owner}/{name.removesuffix('.git')}"
        if repository not in self.server.repositories or (repository in self.server.private and not self.may_write()):
            return self.answer({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        verb = rest[0] if rest else "revision"
        return getattr(self, f"on_{verb}")(repository, "/".join(rest[2:]), body)

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def chunks(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def may_write(self):
        return self.headers.get("Authorization") == f"Bearer {SECRET}"

    def answer(self, content, status=200, headers=None, put=None):
        if put:
            self.server.large[put[0]] = put[1]
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {})
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def create(self, wish):
        repository = f"{wish['organization']}/{wish['name']}"
        if not self.may_write():
            return self.answer({"error": "Invalid credentials"}, 401)
        exists = repository in self.server.repositories
        self.server.repositories.setdefault(repository, {".gitattributes": b""})
        if wish.get("private") or wish.get("visibility") == "private":
            self.server.private.add(repository)
        return self.answer({"url": f"{self.server.address}/{repository}"}, 409 if exists else 200)

    def on_revision(self, repository, _, body):
        self.answer({"id": repository, "modelId": repository, "sha": self.server.revision(repository), "siblings": [
            {"rfilename": name} for name, _ in self.server.repository(repository)
        ]})

    def on_tree(self, repository, _, body):
        self.answer([
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.server.repository(repository)
        ])

    def on_preupload(self, repository, _, body):
        files = [file["path"] for file in json.loads(body)["files"]]
        self.answer({"files": [
            {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
            for path in files
        ]})

    def on_info(self, repository, _, body):
        objects = json.loads(body)["objects"]
        actions = [{"upload": {"href": f"{self.server.address}/large/{thing['oid']}"}} for thing in objects]
        self.answer({"transfer": "basic", "objects": [
            thing | {"actions": action} for thing, action in zip(objects, actions, strict=True)
        ]})

    def on_commit(self, repository, _, body):
        if not self.may_write():
            return self.answer({"error": "Forbidden"}, 403)
        files = self.server.repositories[repository]
        for line in body.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = self.server.revision(repository)
        return self.answer({"commitUrl": f"{self.server.address}/{repository}/commit/{oid}", "commitOid": oid})

    def on_resolve(self, repository, path, body):
        content = self.server.repositories[repository].get(path)
        if content is None:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha1(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.server.revision(repository)}
        return self.answer(content, headers=headers)
