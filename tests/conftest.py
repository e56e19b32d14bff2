"""Fixtures that compose the real conf/ and do real runs on tiny data."""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from web import Web, publish_r8, publish_voc, serving

from tmbench.config import table
from tmbench.data import fetch
from tmbench.data.catalogue import Entry
from tmbench.result import Result
from tmbench.run import run
from tmbench.sweeps.plan import JobComposer

os.environ.pop("COLUMNS", None)  # of pytest-xdist's workers; tables would be as narrow as that
REAL_DATA = Path(os.environ.get("TMBENCH_DATA", "data"))

Compose = Callable[..., DictConfig]
Run = Callable[..., tuple[Result, Path]]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def choices(group: str) -> list[str]:
    """The YAML files of a group: a new one is tested on arrival."""
    return table.choices(group)


def each_task(*fast: str) -> list[Any]:
    """Every task as a parameter; all but the `fast` ones are slow tests."""
    return [pytest.param(task, marks=[] if task in fast else pytest.mark.slow) for task in choices("task")]


def real_data(folder: str) -> Path:
    """A real data set's folder under TMBENCH_DATA; skips the test where it is not."""
    if not (REAL_DATA / folder).is_dir():
        pytest.skip(f"no real data: set TMBENCH_DATA to a folder with {folder}/")
    return REAL_DATA / folder


def saved_and_loaded(state: dict[str, Any], weights_only: bool = True) -> dict[str, Any]:
    """An optimizer's state after a round trip through torch.save."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@pytest.fixture(scope="session")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Compose:
    """compose("task=tc", ...) -> the configuration, with a runs_dir of the session's own."""
    runs = tmp_path_factory.mktemp("runs")
    compose = JobComposer([], [*table.GROUPS, "launcher"])  # Hydra takes a tenth of a second for each
    return lambda *words: OmegaConf.create(compose([f"runs_dir={runs}", *words]))


@pytest.fixture
def do(composed: Compose, tmp_path: Path) -> Run:
    """do("task=tc", ...) -> (result, folder) of a run in the test's own folder."""

    def do(*overrides: str) -> tuple[Result, Path]:
        result, folder, _ = run(composed(*overrides, f"runs_dir={tmp_path}"))
        return result, folder

    return do


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """More threads gain nothing on tensors this small, and wait for each other for long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def figures_stay_empty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave figures of one pixel, unless the test is marked `draws`: drawing is half of so small a run's time."""
    draw = Figure.savefig

    def savefig(figure: Figure, file: Any, **settings: Any) -> None:
        if isinstance(file, Path) and file.parent.name == "figures":
            Image.new("L", (1, 1)).save(file)
        else:
            draw(figure, file, **settings)

    if "draws" not in request.keywords:
        monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A web server of the test's own, which is soon asked again."""
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    monkeypatch.setattr(fetch, "TIMEOUT", 0.5)
    with serving() as web:
        yield web


@pytest.fixture
def r8_online(monkeypatch: pytest.MonkeyPatch, web: Web) -> Entry:
    """The tiny R8 is the published one, and the web server has it."""
    return publish_r8(monkeypatch, web)


@pytest.fixture
def voc_online(monkeypatch: pytest.MonkeyPatch, web: Web) -> Entry:
    return publish_voc(monkeypatch, web)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    with playwright.sync_playwright() as started:
        # A root user's container has no sandbox to offer.
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()
