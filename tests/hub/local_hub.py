"""A small server that speaks the Hub's HTTP endpoints which the client uses, on loopback, with faults to order."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from xet_store import XetFile, XetStore

SLOW = 4.0  # seconds
TOKEN = "hf_" + "secret" * 5
XET_TOKEN = "xet_" + "secret" * 5
File = bytes | XetFile
WRITING = ("preupload", "commit", "branch", "discussions", "xet-write-token")


@dataclass
class Repository:
    """Commits by id, each a whole tree of files; branches name commits."""

    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def commit(self, branch: str, files: Mapping[str, File]) -> str:
        tree = {**self.commits[self.branches[branch]], **files}
        oid = hashlib.sha1(repr((sorted(tree.items()), len(self.commits))).encode()).hexdigest()
        self.commits[oid] = tree
        self.branches[branch] = oid
        return oid

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class LocalHub:
    """The server; `faults` maps a part of a path to what goes wrong there.

    A status; "gated"; "cut", a transfer that breaks off half-way; or "slow", an answer that comes too late.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.xet = XetStore()
        self.faults: dict[str, int | str] = {}
        self.requests: list[str] = []
        self.stopped = threading.Event()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub = self.server_hub
        hub.requests.append(f"{self.command} {path}")
        self.cut = False
        for part, fault in hub.faults.items():
            if part in path:
                if fault == "cut":
                    self.cut = True
                elif fault == "gated":
                    return self._json(403, {"error": "Access is restricted"}, {"X-Error-Code": "GatedRepo"})
                elif fault == "slow":
                    hub.stopped.wait(SLOW)  # no sleep: tests make that pass at once
                else:
                    return self._json(int(fault), {"error": f"status {fault} to order"})
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        if path.startswith("/large/"):
            hub.large[parts[-1]] = body
            return self._json(200, {})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if parts[0] in ("v1", "v2", "xorbs"):
            return self._xet(parts, body)
        if parts[:2] == ["api", "models"]:
            return self._model("/".join(parts[2:4]), parts[4:], query, body)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._json(404, {"error": "not found"})

    def _create(self, wanted: dict[str, Any]) -> None:
        if not self._may_write():
            return self._json(401, {"error": "Invalid username or password."})
        name = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if name in self.server_hub.repositories else 200
        self.server_hub.repositories.setdefault(name, Repository(wanted.get("visibility") == "private"))
        self._json(status, {"url": f"{self.server_hub.url}/{name}", "name": name})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server_hub.url}/large/{item['oid']}", "header": {}}}}
            for item in wanted["objects"]
        ]
        self._json(200, {"transfer": "basic", "objects": objects})

    def _model(self, name: str, rest: list[str], query: dict[str, list[str]], body: bytes) -> None:
        found = self.server_hub.repositories.get(name)
        if found is None or (found.private and not self._may_write()):
            return self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        action, revision = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else "main"
        if action in WRITING and not self._may_write():
            return self._json(403, {"error": "You don't have the rights to write"})
        if action in ("xet-write-token", "xet-read-token"):
            return self._xet_token()
        if action == "discussions":
            found.branches.setdefault("refs/pr/1", found.branches["main"])
            return self._json(200, _discussion(name))
        if action == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._json(200, {"files": files})
        if action == "branch":
            found.branches[revision] = found.branches["main"]
            return self._json(200, {})
        if action == "commit":
            return self._commit(name, found, revision, "create_pr" in query, body)
        oid = found.at(revision)
        if oid is None:
            return self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        if action == "tree":
            return self._json(200, [_entry(path, content) for path, content in found.commits[oid].items()])
        siblings = [{"rfilename": path} for path in found.commits[oid]]
        return self._json(200, {"id": name, "sha": oid, "private": found.private, "tags": [], "siblings": siblings})

    def _commit(self, name: str, found: Repository, branch: str, pull_request: bool, body: bytes) -> None:
        files: dict[str, File] = {}
        hub = self.server_hub
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                oid = item["value"]["oid"]
                files[item["value"]["path"]] = hub.large[oid] if oid in hub.large else hub.xet.files[oid]
        if pull_request:
            found.branches["refs/pr/1"] = found.branches[branch]
            branch = "refs/pr/1"
        oid = found.commit(branch, files)
        url = f"{self.server_hub.url}/{name}"
        self._json(
            200,
            {"commitUrl": f"{url}/commit/{oid}", "commitOid": oid, "pullRequestUrl": f"{url}/discussions/1"},
        )

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self.server_hub.repositories.get(name)
        if found is None or (found.private and not self._may_write()):
            return self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        oid = found.at(revision)
        if oid is None or path not in found.commits[oid]:
            return self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        content = found.commits[oid][path]
        size, etag = _size_and_digest(content)
        self.send_response(200)
        self.send_header("X-Repo-Commit", oid)
        self.send_header("ETag", f'"{etag}"')
        if isinstance(content, XetFile):
            self.send_header("X-Xet-Hash", content.xet_hash)
            self.send_header("X-Xet-Refresh-Route", f"{self.server_hub.url}/api/models/{name}/xet-read-token/{oid}")
            content = b"" if self.command == "HEAD" else b"this file is had by Xet alone"
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut else content)
        if self.cut:
            self.close_connection = True

    def _xet_token(self) -> None:
        """For downloads the client reads the head, for uploads the body."""
        url, expires = self.server_hub.url, int(time.time()) + 3600
        head = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": XET_TOKEN, "X-Xet-Token-Expiration": str(expires)}
        self._json(200, {"casUrl": url, "accessToken": XET_TOKEN, "exp": expires}, head)

    def _xet(self, parts: list[str], body: bytes) -> None:
        """The store of chunks: first versions alone, to which the client falls back."""
        store = self.server_hub.xet
        if parts[0] == "xorbs":
            return self._range(store.xorbs[parts[1]])
        if self.headers.get("Authorization") != f"Bearer {XET_TOKEN}":
            return self._json(401, {"error": "Unauthorized"})
        try:
            if parts[:3] == ["v1", "xorbs", "default"]:
                store.xorbs[parts[3]] = body
                return self._json(200, {"was_inserted": True})
            if parts == ["v1", "shards"]:
                store.add_shard(body)
                return self._json(200, {"result": 1})
            if parts[:2] == ["v1", "reconstructions"]:
                return self._json(200, store.reconstruction(parts[2], f"{self.server_hub.url}/xorbs"))
        except KeyError as missing:
            return self._json(404, {"error": f"no {missing}"})
        return self._json(404, {"error": "not found"})

    def _range(self, content: bytes) -> None:
        """Bytes of a xorb, as signed addresses of a storage give them."""
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if self.cut else part)
        if self.cut:
            self.close_connection = True

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _discussion(name: str) -> dict[str, Any]:
    """An open pull request."""
    return {
        "num": 1,
        "title": "Upload",
        "status": "open",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "isPullRequest": True,
        "repo": {"name": name, "type": "model"},
        "events": [],
        "changes": {"base": "refs/heads/main"},
        "filesWithConflicts": [],
    }


def _size_and_digest(content: File) -> tuple[int, str]:
    """Bytes, and SHA-256 in hexadecimal."""
    if isinstance(content, XetFile):
        return content.size, content.digest
    return len(content), hashlib.sha256(content).hexdigest()


def _entry(path: str, content: File) -> dict[str, Any]:
    """A file of a tree; large ones have their content's digest."""
    size, digest = _size_and_digest(content)
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": size,
        "oid": hashlib.sha1(digest.encode()).hexdigest(),
    }
    if path.endswith(".safetensors"):
        entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 130}
    if isinstance(content, XetFile):
        entry["xetHash"] = content.xet_hash
    return entry
