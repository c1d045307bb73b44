"""The pages that `make course` writes, in a real browser: navigation, phone, dark. Slow."""

import base64
import shutil

import cv2
import numpy as np
import pytest
import run_course
from conftest import missing
from nbformat import v4

pytestmark = pytest.mark.slow

VIDEO = '<video controls width="480"><source src="data:video/mp4;base64," type="video/mp4"></video>'
TABLE = "<table border='1' class='dataframe'><tr>" + "<td>unbreakable</td>" * 30 + "</tr></table>"
TOO_WIDE = "() => document.documentElement.scrollWidth > window.innerWidth"
DEAD = """() => [...document.querySelectorAll('.contents a')].filter((link) =>
    !document.getElementById(link.hash.slice(1)))"""


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        missing("no Chromium on this machine (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


def executed(row):
    """A notebook with everything that could burst a page, as if it had been run."""
    wide = "x = " + " + ".join(["a_long_name"] * 30)
    png = base64.b64encode(cv2.imencode(".png", np.zeros((40, 2000, 3), np.uint8))[1]).decode()
    html = [v4.new_output("display_data", {"text/html": text}) for text in (TABLE, VIDEO)]
    figure = v4.new_output("display_data", {"image/png": png})
    words = v4.new_output("stream", text="word " * 100)
    hidden = {"jupyter": {"source_hidden": True}}
    badge = (
        "[![Open in Colab](https://colab.example/badge.svg)](https://colab.example/) · [next](x)"
    )
    cells = [
        v4.new_markdown_cell(badge),
        v4.new_markdown_cell(f"# {row['number']} · A & B\n\n## One `idea`, two\n\nLook. A figure:"),
        v4.new_code_cell(wide, outputs=[figure, *html, words]),
        v4.new_markdown_cell(
            "| " + "wide | " * 40 + "\n" + "|---" * 40 + "|\n" + "| unbreakable" * 40
        ),
        v4.new_markdown_cell("See [the first](01_download.ipynb)."),
        v4.new_code_cell("secret = 1", metadata=hidden | {"tags": ["solution"]}, outputs=[words]),
        v4.new_code_cell("lengthy = 1", metadata=hidden, outputs=[words]),
    ]
    return v4.new_notebook(cells=cells)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the course's pages, made of hand-made notebooks."""
    folder, rows = tmp_path_factory.mktemp("site"), run_course.lessons()
    (folder / "work/run").mkdir(parents=True)
    (folder / "work/run/report.html").write_text("<!doctype html><title>report</title>")
    for row in rows:
        notebook = executed(row)
        run_course.write_page(notebook, folder / f"{row['stem']}.html")
        figure = run_course.first_figure(notebook)
        row.update(title=run_course.title_of(notebook), seconds=1.2, figure=figure)
    run_course.write_index(rows, "accuracy 0.685 < 1", folder)
    return folder


@pytest.fixture
def page(browser, site):
    """A page on a phone; it fails when anything is fetched from elsewhere or goes wrong."""
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or wrong.append(r.url))
    page.goto((site / "index.html").as_uri())
    yield page
    context.close()
    assert not wrong


def test_the_map_and_the_bars_lead_through_the_course(page, site):
    rows = run_course.lessons()
    text = page.inner_text("main")
    for row in rows:
        assert row["question"] in text and f"{row['number']} · A & B" in text
    assert "accuracy 0.685 < 1" in text
    page.click("text=The full report")
    page.go_back()
    for row in rows:
        page.click(".bar:first-child [rel=next]")
        assert page.url == (site / f"{row['stem']}.html").as_uri()
        assert page.title() == f"{row['number']} · A & B · emo"
        assert not page.evaluate(TOO_WIDE)
    assert not page.query_selector("[rel=next]")
    for row in rows[-2::-1]:
        page.click(".bar:last-child [rel=prev]")
        assert page.url.endswith(f"/{row['stem']}.html")
    page.click(".bar:last-child >> text=Course map")
    assert page.url == (site / "index.html").as_uri()


def test_every_link_to_a_file_works(page, site):
    for path in site.glob("*.html"):
        page.goto(path.as_uri())
        links = page.eval_on_selector_all("a", "all => all.map((a) => a.getAttribute('href'))")
        files = {link for link in links if not link.startswith(("https:", "#"))}
        assert files and all((site / file).is_file() for file in files)
        assert not page.evaluate(DEAD)


@pytest.mark.parametrize("width", [390, 1024])  # 1024: a screen of 1280 pixels at 125 %
def test_wide_things_scroll_in_their_boxes(page, site, width):
    page.set_viewport_size({"width": width, "height": 800})
    for name in ("index", "02_explore"):
        page.goto((site / f"{name}.html").as_uri())
        assert not page.evaluate(TOO_WIDE)
        right = "all => Math.max(...all.map((x) => x.getBoundingClientRect().right))"
        assert page.eval_on_selector_all("img, video, pre, .scroll, .output_html", right) <= width
    scrolls = "all => all.map((box) => box.scrollWidth > box.clientWidth)"
    for box in (".highlight pre >> nth=0", ".scroll", ".output_html >> nth=0"):
        assert page.eval_on_selector_all(box, scrolls) == [True], box


def test_what_is_shown_and_what_is_said(page, site):
    page.goto((site / "02_explore.html").as_uri())
    assert page.get_attribute(".output_png img", "alt") == "One idea, two: A figure"
    assert page.get_attribute("video", "aria-label") == "One idea, two: A figure"
    assert page.inner_text("main p >> nth=0") == "Open in Colab"
    solution = page.locator("details.solution")
    assert solution.get_attribute("open") is None
    assert not page.is_visible("text=secret")
    assert not page.is_visible("text=lengthy") and page.locator(".output_text:visible").count() == 2
    solution.locator("summary").click()
    assert page.is_visible("text=secret") and page.locator(".output_text:visible").count() == 3


def test_dark_follows_the_system(page, site):
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for name in ("index", "02_explore"):
            page.goto((site / f"{name}.html").as_uri())
            colours = page.evaluate(
                "() => { const style = getComputedStyle(document.body);"
                " return [style.backgroundColor, style.color].map((c) => c.match(/\\d+/g)); }"
            )
            background, text = (sum(map(int, colour)) for colour in colours)
            assert (background > 600 > 300 > text) == (scheme == "light")
            assert (background < 200 < 600 < text) == (scheme == "dark")
    assert (
        page.evaluate(
            "() => getComputedStyle(document.querySelector('.output_png img')).backgroundColor"
        )
        == "rgb(255, 255, 255)"
    )
