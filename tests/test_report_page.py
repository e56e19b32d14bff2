"""The report's page in a real browser, headless: it needs no network, raises no error, and shows all texts as text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose
from helpers import unreadable
from made_runs import Make

from tmbench.report.__main__ import main

EVIL = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def html(composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on runs of which some have nasty names, settings, commands and errors."""
    folder, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("report")
    make = Make(composed, folder)
    make.seeds("sgd", (0.80, 0.9, 0.1), "epochs=4")
    make.seeds("tmsgd", (0.83, 0.86, 0.82), "epochs=4", "switch_epoch=2")
    make("adam", 1, 0.75, "epochs=4")  # ranks need two seeds that all have
    make("adam", 0, 0.7, "epochs=4", name="<script>alert(1)<", run_id=EVIL, command=EVIL, hardware=EVIL)
    evil = make("adam", 2, None, "epochs=4", name="<img src=x onerror=window.hacked=1>", status="failed", error=EVIL)
    text = (evil / "config.yaml").read_text()
    (evil / "config.yaml").write_text(text.replace("name: adam", f"name: '{EVIL}$x$'"))
    assert main([str(folder), f"out={out}"]) == 0
    return out / "report.html"


@pytest.fixture(scope="module")
def window(browser: Any) -> Iterator[tuple[Any, list[str]]]:
    """A window, and what may go wrong in it: errors, dialogs, and requests, of which only the page's own is right."""
    opened, troubles = browser.new_page(viewport={"width": 1200, "height": 900}), []
    opened.on("console", lambda message: troubles.append(message.text))
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: troubles.append(request.url))
    yield opened, troubles
    opened.close()


@pytest.fixture
def page(window: tuple[Any, list[str]], html: Path) -> Iterator[Any]:
    """The page, opened from disk."""
    opened, troubles = window
    opened.goto("about:blank")  # else a second visit of the same page might keep its state
    opened.goto(html.as_uri())
    yield opened
    assert opened.evaluate("window.hacked") is None
    assert [trouble for trouble in troubles if not trouble.startswith(html.as_uri())] == []


def column(page: Any, number: int) -> list[str]:
    cells = page.locator(f"#all-runs tbody tr:visible td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_page_shows_summary_tables_and_figures(page: Any) -> None:
    assert "tmsgd is" in page.locator(".verdicts").inner_text()
    assert page.locator("figure svg").count() >= 2
    assert page.locator("#all-runs tbody tr").count() == 9


def test_heading_sorts_numbers_as_numbers_both_ways(page: Any) -> None:
    button = page.get_by_role("region", name="all runs").get_by_role("button", name="last", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    values = [text for text in column(page, 9) if text != "-"]
    assert values == ["10.00", "70.00", "75.00", "80.00", "82.00", "83.00", "86.00", "90.00"]
    assert column(page, 9)[-1] == "-"
    button.click()
    assert [text for text in column(page, 9) if text != "-"] == values[::-1]
    assert page.locator("#all-runs th[aria-sort=descending]").count() == 1


def test_filter_keeps_rows_with_all_words_and_says_how_many(page: Any) -> None:
    page.get_by_label("Filter").fill("tmsgd completed")
    assert column(page, 4) == ["tmsgd"] * 3
    assert page.get_by_role("status").inner_text() == "3 of 9 runs"
    page.get_by_label("Filter").fill("")
    assert page.locator("#all-runs tbody tr:visible").count() == 9


def test_number_leads_to_its_runs_and_a_run_to_its_command_and_configuration(page: Any) -> None:
    page.locator("#tables ~ .wide a").filter(has_text="tmsgd").first.click()
    assert column(page, 4) == ["tmsgd"] * 3
    page.locator("#all-runs tbody tr:visible a").first.click()
    dialog = page.locator("dialog[open]")
    assert "python -m tmbench task=tc optimizer=tmsgd seed=0" in dialog.inner_text()
    assert "switch_epoch: 2" in dialog.inner_text()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_nasty_names_are_text_everywhere(page: Any) -> None:
    page.get_by_role("link", name="<script>alert(1)<", exact=True).click()
    page.locator("dialog[open]", has_text=EVIL).wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="<img src=x onerror=window.hacked=1>", exact=True).click()
    page.locator("#run-config", has_text=EVIL).wait_for()  # the page hears of the click a moment later


def test_figures_zoom_by_key_button_and_mouse(page: Any) -> None:
    figure = page.locator("figure").first
    svg, chart = figure.locator("svg"), figure.locator(".chart")
    whole = svg.get_attribute("viewBox")
    chart.focus()
    page.keyboard.press("+")
    assert svg.get_attribute("viewBox") != whole
    page.keyboard.press("0")
    assert [float(v) for v in svg.get_attribute("viewBox").split()] == [float(v) for v in whole.split()]
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    page.mouse.up()
    assert float(svg.get_attribute("viewBox").split()[2]) < float(whole.split()[2]) / 2
    figure.get_by_role("button", name="all").click()
    assert float(svg.get_attribute("viewBox").split()[2]) == float(whole.split()[2])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_is_readable_by_day_and_night(scheme: str, browser: Any, html: Path) -> None:
    phone = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    phone.goto(html.as_uri())
    assert phone.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    luminance = """(which) => {
      const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
      canvas.fillStyle = getComputedStyle(document.body)[which];
      canvas.fillRect(0, 0, 1, 1);
      const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
        .map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    }"""
    ink, paper = (phone.evaluate(luminance, which) for which in ("color", "backgroundColor"))
    assert (ink < paper) == (scheme == "light")
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7  # WCAG's AAA
    phone.close()


def test_every_picture_control_and_table_has_a_name(page: Any) -> None:
    nameless = page.evaluate("""[...document.querySelectorAll('button, input, [role=img], [role=region], a')]
      .filter((e) => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))
      .map((e) => e.outerHTML)""")
    assert nameless == []
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("[...document.querySelectorAll('[id]')].length === new Set("
                         "[...document.querySelectorAll('[id]')].map((e) => e.id)).size")  # fmt: skip


def test_tables_fit_a_wide_window_figures_a_phone_and_a_footnote_is_read_once(browser: Any, html: Path) -> None:
    hidden = "[...document.querySelectorAll('%s')].map((e) => e.scrollWidth - e.clientWidth)"
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    opened.goto(html.as_uri())
    assert max(opened.evaluate(hidden % ".wide:not(.tall)")) == 0
    notes = opened.locator(".notes").all_inner_texts()
    assert len(notes) == len(set(notes))
    opened.set_viewport_size({"width": 400, "height": 900})
    assert max(opened.evaluate(hidden % ".chart")) == 0
    assert max(opened.evaluate(hidden % ".wide")) > 0  # where a shadow says so
    assert "radial-gradient" in opened.evaluate("getComputedStyle(document.querySelector('.wide')).backgroundImage")
    opened.close()


@pytest.mark.parametrize("width", [400, 1400])
def test_each_text_can_be_read_on_a_phone_and_on_a_screen(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert unreadable(page) == []
