"""A web server for the tests' own files, that can be told to misbehave."""

import hashlib
import io
import multiprocessing
import os
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pytest
from omegaconf import OmegaConf

from tmbench.data import Dataset, fetch, open_dataset
from tmbench.data.catalogue import Entry, File, catalogue
from tmbench.folders import MANIFEST
from tmbench.tasks.seg.masks import VOCSegmentation
from tmbench.tasks.tc.r8 import R8

T = TypeVar("T", bound=Dataset)


class Web(ThreadingHTTPServer):
    """Serves `files` by path; each request takes the first of `faults`, if there is one, and is noted in `asked`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[tuple[Any, ...]] = []
        self.asked: list[tuple[str, str | None]] = []
        self.ranges, self.etags, self.lengths = True, True, True

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, request: Any, client_address: Any) -> None: ...  # the client hung up, as it may


class Handler(BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        web, name = self.server, self.path.lstrip("/")
        web.asked.append((name, self.headers.get("Range")))
        fault, *details = web.faults.pop(0) if web.faults else ("none",)
        if fault == "status":
            return self.answer(details[0], b"no")
        if fault == "redirect":
            return self.answer(302, b"", {"Location": web.url(details[0])})
        if name not in web.files:
            return self.answer(404, b"no such file")
        content = web.files[name]
        etag = '"' + hashlib.md5(content).hexdigest() + '"'
        headers = {"ETag": etag} if web.etags else {}
        start, code = 0, 200
        wanted, only_if = self.headers.get("Range"), self.headers.get("If-Range")
        if wanted and web.ranges and only_if in (None, etag):
            start, code = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(content):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            first = details[0] if fault == "other part" else start
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if fault == "more":
            body += b"more than there should be"
        if fault == "hang":
            self.answer(code, body[: details[0]], headers, len(body))
            threading.Event().wait(3)
        elif fault == "cut":
            self.answer(code, body[: details[0]], headers, len(body))
        else:
            self.answer(code, body, headers, None if not web.lengths else len(body))

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = -1) -> None:
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.close_connection = True


@contextmanager
def serving() -> Iterator[Web]:
    web = Web()
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        with mock.patch.dict(os.environ, no_proxy="*"):
            yield web
    finally:
        web.shutdown()
        web.server_close()


def get_quickly(entry: Entry, root: Path) -> None:
    """In a process of its own."""
    fetch.PAUSE, fetch.TIMEOUT, os.environ["no_proxy"] = 0.01, 0.5, "*"
    fetch.get(entry, root)


def processes(count: int) -> ProcessPoolExecutor:
    """So many processes, without torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tmbench.tasks.seg.masks", "tmbench.tasks.tc.r8", "tmbench.data.fetch"])
    return ProcessPoolExecutor(count, context)


# The tiny sets, as if they were the published ones.


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def tree(root: Path) -> dict[str, bytes]:
    """Every file under a folder with its content, but for the lock of a download and the seal of what is derived."""
    files = [f for f in sorted(root.rglob("*")) if f.is_file() and f.name not in (".lock", MANIFEST)]
    return {f.relative_to(root).as_posix(): f.read_bytes() for f in files}


@cache
def tiny_files(cls: type[Dataset]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        cls.write_tiny(Path(folder), np.random.default_rng(0))
        return tree(Path(folder))


def write(files: dict[str, bytes], root: Path) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tiny(cls: type[T], root: Path) -> T:
    """The tiny set, written under root."""
    return cls(write(tiny_files(cls), root))


def opening(profile: str, cls: type[Dataset], root: Path) -> tuple[str, str]:
    """The label and the digest of a data set under root/data, as a run in root/runs opens it."""
    own = {"data_dir": f"{root}/data", "runs_dir": f"{root}/runs", "task": {"name": "mine"}}
    return open_dataset(OmegaConf.create(own | {"data": {"profile": profile, "download": False}}), cls)[1:]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def publish(monkeypatch: pytest.MonkeyPatch, cls: type[Dataset], **changes: Any) -> Entry:
    """Changes what the catalogue says of a data set."""
    assert cls.entry is not None
    changed = replace(cls.entry, **changes)
    monkeypatch.setattr(cls, "entry", changed)
    monkeypatch.setitem(catalogue(), changed.name, replace(changed, part=None))
    return changed


def publish_r8(monkeypatch: pytest.MonkeyPatch, web: Web) -> Entry:
    content = tiny_files(R8)
    web.files.update(content)
    files = [
        File(path=name, urls=(web.url(name),), sha256=sha256(c), size=None, lines=c.count(b"\n") + 1, at_most=10**6)
        for name, c in sorted(content.items(), reverse=True)
    ]
    return publish(monkeypatch, R8, files=tuple(files), counts={"train": 320, "test": 160})


def publish_voc(monkeypatch: pytest.MonkeyPatch, web: Web) -> Entry:
    entry = VOCSegmentation.entry
    assert entry is not None
    content = tar_of(tiny_files(VOCSegmentation))
    name = entry.archives[0].path
    web.files[name] = content
    known: Any = {"urls": (web.url(name),), "size": len(content), "md5": None, "sha256": sha256(content)}
    lines = {"train.txt": 32, "val.txt": 12}
    files = [replace(f, lines=lines.get(f.path.rpartition("/")[2])) for f in entry.files]
    archive = replace(entry.archives[0], **known)
    counts = {"train": 32, "val": 12}
    return publish(monkeypatch, VOCSegmentation, archives=(archive,), files=tuple(files), counts=counts)
