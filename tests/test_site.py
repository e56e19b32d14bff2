"""The manual as a site: it is built without a warning, loads nothing from elsewhere, and can be read on a phone."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import unreadable

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of the manual, and where it was built."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder], cwd=ROOT, check=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "true"},
    )  # fmt: skip
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def test_each_page_is_whole_and_can_be_read(site: tuple[str, Path], browser: Any) -> None:
    """In both colours, on a screen and on a phone."""
    address, folder = site
    pages = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("index.html"))
    assert len(pages) > 35
    troubles = list[str]()

    def listen(opened: Any) -> None:
        opened.on("console", lambda message: troubles.append(message.text))
        opened.on("pageerror", lambda error: troubles.append(str(error)))
        # What a page was still loading when the next one was opened has not failed.
        opened.on("requestfailed", lambda r: r.failure == "net::ERR_ABORTED" or troubles.append(f"failed: {r.url}"))
        opened.on("request", lambda request: request.url.startswith((address, "data:")) or troubles.append(request.url))

    for scheme, width in itertools.product(("light", "dark"), (400, 1200)):
        opened = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        listen(opened)
        for page in pages:
            opened.goto(f"{address}/{page}/")
            troubles += [f"{page}, {scheme}, at {width} px: {fault}" for fault in unreadable(opened)]
        opened.close()
    assert not troubles, "\n".join(troubles)
