"""The notebook's camera in a real browser: JupyterLab, and the page alone. Slow."""

import contextlib
import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
import run_course
from conftest import missing
from test_camera import save_untrained

import emo
from emo import MediaPipeFaceDetector, synth
from emo.dataset import decode
from emo.emotions import COLOURS, EMOTIONS
from emo.live import overlap
from emo.metrics import ccc

pytestmark = pytest.mark.slow

COLD = 90_000  # ms; a cold start on a busy machine
FLAGS = [
    *("--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run").split(),
    *("--disable-background-networking --disable-component-update --disable-sync").split(),
]
FAKE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SETTINGS = {
    "notification": {"fetchNews": "false", "checkForUpdates": False},
    "themes": {"theme": "JupyterLab Light"},
}
SAYS = ".jp-OutputArea-output:has-text('{}')"
COUNT = """() => { window.results = []; const root = document.querySelector('.emo-camera');
    root.addEventListener('emo-result', (event) => window.results.push(event.detail)); }"""
TRACKS = """() => { window.tracks = []; const media = navigator.mediaDevices;
    const open = media.getUserMedia.bind(media);
    media.getUserMedia = async (wish) => { const stream = await open(wish);
        window.tracks.push(...stream.getTracks()); return stream; }; }"""


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Return a function that starts Chromium with more flags; all are closed at the end."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        missing("no Chromium on this machine (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browsers = []

        def start(*flags):
            options = {"executable_path": chromium, "args": [*FLAGS, *flags]}
            browsers.append(playwright.chromium.launch(**options))
            return browsers[-1]

        yield start
        for browser in browsers:
            browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, taught):
    """A folder with two models, a film of a synthetic face for the fake camera, two notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(taught / "model_weights.pth", folder / "model.pth")
    save_untrained(folder / "model_none.pth", "none")
    with open(folder / "clip.mjpeg", "wb") as clip:
        for frame, _ in synth.animate(seconds=12, fps=8, size=(480, 640)):
            clip.write(cv2.imencode(".jpg", frame)[1].tobytes())
    for source in ("browser", "synthetic"):
        cells = [
            "from emo.camera import EmotionCamera\n"
            f"camera = EmotionCamera('model.pth', source='{source}')\ncamera"
        ]
        cells += ["import os\nprint('process', os.getpid())"]
        cells += ["camera.history.to_csv('history.csv')\ncamera.close()\nprint('closed')"]
        write_notebook(folder / f"{source}.ipynb", cells)
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    """Address of a JupyterLab server with settings of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = "JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR IPYTHONDIR".split()
    names += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    env = os.environ | {name: str(folder / f".{name.lower()}") for name in names}
    for name, settings in SETTINGS.items():
        path = folder / ".jupyterlab_settings_dir/@jupyterlab/apputils-extension"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{name}.jupyterlab-settings").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += ["--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    command += [f"--ServerApp.root_dir={folder}"]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url + "/api/status", folder / "lab.log")
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def fake_camera(launch, folder):
    """A browser whose camera shows the synthetic face."""
    return launch(*FAKE, f"--use-file-for-fake-video-capture={folder / 'clip.mjpeg'}")


def write_notebook(path, cells):
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [cell | {"id": f"cell{i}", "source": source} for i, source in enumerate(cells)]
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}}
    path.write_text(json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 5}))


def wait_for(url, log):
    end = time.monotonic() + COLD / 1000
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url).close()
            return
        time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def watched_page(browser):
    """A page; afterwards it must have asked nobody else and reported no error."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page, asked, errors = context.new_page(), [], []
    page.set_default_timeout(COLD)
    context.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    try:
        yield page
    finally:
        context.close()
    own = ("http://127.0.0.1", "ws://127.0.0.1", "blob:", "data:", "http://camera.test")
    assert [url for url in asked if not url.startswith(own)] == []
    assert errors == []


def open_notebook(page, url):
    page.goto(url)
    page.wait_for_function(
        "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status=='idle'"
    )
    run(page, 0)
    page.evaluate(COUNT)


def run(page, cell, shows=".emo-camera"):
    """Run one cell and wait for what it shows; its error output fails the test at once."""
    page.evaluate(f"jupyterapp.shell.currentWidget.content.activeCellIndex = {cell}")
    page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")
    wrong = "[data-mime-type='application/vnd.jupyter.stderr'], [data-mime-type*='error']"
    page.wait_for_selector(f"{shows}, {wrong}", state="attached")
    assert page.locator(wrong).all_text_contents() == []


def results(page, count):
    """Wait for so many results more and return all."""
    before = page.evaluate("window.results.length")
    page.wait_for_function(f"window.results.length >= {before + count}", timeout=30_000)
    return page.evaluate("window.results")


def visible(page, name):
    return page.locator(f".emo-camera canvas[data-is={name}]").is_visible()


def test_the_browsers_camera_in_jupyterlab(lab, fake_camera, folder):
    with watched_page(fake_camera) as page:
        page.add_init_script(f"({TRACKS})()")
        open_notebook(page, f"{lab}/lab/tree/browser.ipynb?reset")
        card = page.text_content(".emo-card")
        assert "on this machine" in card and "never saved" in card and "EU law" in card
        assert page.evaluate("window.tracks.length") == 0, "no camera before a click"
        page.click(".emo-card [data-do=live]")
        page.wait_for_function("window.results.length >= 1")  # detector and model are loaded
        seen = results(page, 15)
        found = [result["faces"][0]["box"] for result in seen if result["faces"]]
        assert len(found) >= 0.9 * len(seen)
        for x, y, width, height in found:
            assert 0.3 < x + width / 2 < 0.7 and 0.35 < y + height / 2 < 0.75
            assert 0.2 < width < 0.6
        assert "results/s" in page.text_content(".emo-rate")

        page.click(".emo-stage")
        for key, name in (("p", "bars"), ("v", "plane")):
            assert visible(page, name)
            page.keyboard.press(key)
            page.wait_for_function(f"!document.querySelector('[data-is={name}]').offsetWidth")
            page.keyboard.press(key)
            page.wait_for_function(f"document.querySelector('[data-is={name}]').offsetWidth > 0")
        assert page.evaluate("jupyterapp.shell.currentWidget.content.widgets.length") == 3

        with page.expect_download() as download:
            page.keyboard.press("s")
        picture = cv2.imread(str(download.value.path()))
        assert picture.shape[1] > 1000 and picture.std() > 20
        page.click("[data-do=record]")
        results(page, 5)
        with page.expect_download() as download:
            page.click("[data-do=record]")
        table = pd.read_csv(download.value.path())
        assert len(table) >= 4 and list(table)[:4] == ["time", "face", "emotion", "p_neutral"]
        assert table.filter(like="p_").sum(axis=1).between(0.999, 1.001).all()

        page.click("[data-do=toggle]")
        states = page.evaluate("window.tracks.map((track) => track.readyState)")
        assert states == ["ended"], "stop releases the camera"
        assert page.locator(".emo-card").is_visible()


def kernel_of(page):
    """The process behind a notebook, found through its second cell."""
    run(page, 1, SAYS.format("process"))
    kernel = psutil.Process(int(page.text_content(SAYS.format("process")).split()[-1]))
    page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 0")
    return kernel


def test_a_cell_that_runs_ten_times_leaves_one_camera(lab, fake_camera):
    with watched_page(fake_camera) as page:
        page.add_init_script(f"({TRACKS})()")
        open_notebook(page, f"{lab}/lab/tree/browser.ipynb?reset")
        kernel, used = kernel_of(page), []
        for _ in range(10):
            page.click(".emo-card [data-do=live]")
            results(page, 3)
            used.append((kernel.num_threads(), kernel.num_fds(), kernel.memory_info().rss))
            page.evaluate("document.querySelector('.emo-camera').dataset.old = 'yes'")
            page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")
            page.wait_for_selector(".emo-camera:not([data-old])")
            page.wait_for_function("!document.querySelector('.emo-camera[data-old]')")
            page.wait_for_function("window.tracks.every((track) => track.readyState == 'ended')")
            assert page.locator(".emo-camera").count() == 1
            page.evaluate(COUNT)
        page.click(".emo-card [data-do=live]")
        results(page, 3)
        assert page.evaluate("window.tracks.length") == 11
        grown = np.subtract(used[-1], used[2])
        assert grown[0] <= 0 and grown[1] <= 3 and grown[2] < 50e6, used


def test_a_closed_tab_and_a_restarted_kernel_let_go_of_the_camera(lab, fake_camera, folder):
    with watched_page(fake_camera) as page:
        page.add_init_script(f"({TRACKS})()")
        open_notebook(page, f"{lab}/lab/tree/browser.ipynb?reset")
        kernel = kernel_of(page)
        page.click(".emo-card [data-do=live]")
        results(page, 5)
        page.evaluate("jupyterapp.commands.execute('docmanager:save')")
        page.wait_for_function("!jupyterapp.shell.currentWidget.context.model.dirty")
        saved = (folder / "browser.ipynb").read_text("utf-8")
        assert '"process' in saved, "it was saved with its outputs"
        assert not [word for word in ("image/", "jpeg", "base64", "blob:") if word in saved]
        assert len(saved) < 20_000, "no picture hides in it"

        page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        page.wait_for_function("!document.querySelector('.emo-camera[data-state=running]')")
        page.wait_for_function("window.tracks.every((track) => track.readyState == 'ended')")
        run(page, 0)
        page.evaluate(COUNT)
        page.click(".emo-card [data-do=live]")
        results(page, 3)
        assert not kernel.is_running()
        kernel = kernel_of(page)
        page.evaluate("document.querySelector('.emo-camera').scrollIntoView()")
        seen = page.evaluate("window.results.length")
    # The tab is closed: frames no longer come, and the kernel rests.
    kernel.cpu_percent()
    assert seen and kernel.is_running() and kernel.cpu_percent(3) < 20


def test_a_minute_of_the_simulated_camera(lab, fake_camera, folder):
    """Five rounds of the film: the estimates follow the truth, and nothing grows."""
    with watched_page(fake_camera) as page:
        page.add_init_script(f"({TRACKS})()")
        open_notebook(page, f"{lab}/lab/tree/synthetic.ipynb?reset")
        run(page, 1, SAYS.format("process"))
        kernel = psutil.Process(int(page.text_content(SAYS.format("process")).split()[-1]))
        page.click(".emo-card .emo-primary")
        page.wait_for_function("window.results.length >= 1")
        page.wait_for_timeout(15_000)
        before = kernel.memory_info().rss, kernel.num_threads(), kernel.num_fds()
        page.wait_for_timeout(45_000)
        grown = np.subtract((kernel.memory_info().rss, kernel.num_threads()), before[:2])
        assert grown[0] < 20e6 and grown[1] <= 0, grown
        assert kernel.num_fds() <= before[2] + 3, "a kernel opens and closes some"
        seen = page.evaluate("window.results")
        assert page.evaluate("window.tracks.length") == 0, "no camera is opened"
        overlaps = [
            overlap(result["faces"][0]["box"], result["truth"]["box"]) if result["faces"] else 0
            for result in seen
        ]
        assert len(seen) >= 60 and sum(v > 0.6 for v in overlaps) >= 0.9 * len(seen)
        page.click("[data-do=toggle]")
        run(page, 2, SAYS.format("closed"))
        page.wait_for_function("!document.querySelector('.emo-camera')")
        assert kernel.num_threads() < before[1], "the detector's threads are gone"
        table = pd.read_csv(folder / "history.csv")
        assert len(table) >= 60 and table["true_emotion"].isin(EMOTIONS).all()
        assert table["time"].is_monotonic_increasing
        for name in ("valence", "arousal"):
            assert ccc(table[f"true_{name}"], table[name]) >= 0.5, name
        right = (table["emotion"] == table["true_emotion"]).mean()
        assert right > 0.3, "chance is an eighth"


def test_another_model_is_chosen_on_the_page(lab, fake_camera):
    with watched_page(fake_camera) as page:
        open_notebook(page, f"{lab}/lab/tree/synthetic.ipynb?reset")
        page.click(".emo-card .emo-primary")
        assert results(page, 3)[-1]["faces"][0]["valence"] is not None
        assert visible(page, "plane")
        page.select_option("[data-is=model]", "model_none.pth")
        page.wait_for_function("window.results.at(-1).faces[0]?.valence === null")
        page.wait_for_function("!document.querySelector('[data-is=plane]').offsetWidth")
        page.select_option("[data-is=model]", "model.pth")
        page.wait_for_function("window.results.at(-1).faces[0]?.valence > -1")


# ---------------------------------------------------------------- the page without a kernel

MOCK = """<!doctype html><link rel=stylesheet href=camera.css><div id=here></div>
<script type=module>
import camera from './camera.js';
const traits = %s, heard = {};
window.sent = [];
window.model = {
  get: (name) => traits[name],
  set: (name, value) => { traits[name] = value; },
  save_changes: () => {},
  on: (name, answer) => { (heard[name] ??= []).push(answer); },
  off: (name, answer) => { heard[name] = (heard[name] ?? []).filter((one) => one != answer); },
  send: (content, _, buffers) => { window.sent.push({ ...content, buffers: buffers.length });
                                   window.reply?.(content); },
};
window.say = (message) => heard['msg:custom'].forEach((answer) => answer(message, []));
window.change = (name, value) => { traits[name] = value; heard[`change:${name}`][0](); };
window.gone = camera.render({ model, el: document.getElementById('here') });
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Address of a page with the widget's front end and a model that only listens."""
    folder = tmp_path_factory.mktemp("site")
    for suffix in (".js", ".css"):
        shutil.copy(Path(emo.__file__).with_name(f"camera{suffix}"), folder)
    traits = {"source": "browser", "smoothing": 0.3, "max_in_flight": 2, "bars": True}
    traits |= {"plane": True, "va": "annotated", "colours": COLOURS, "retired": ""}
    traits |= {"model_file": "model.onnx", "model_files": ["model.onnx", "model_int8.onnx"]}
    (folder / "index.html").write_text(MOCK % json.dumps(traits))
    (folder / "favicon.ico").touch()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


def start_camera(page, url):
    page.set_default_timeout(30_000)
    page.goto(url)
    page.click(".emo-card [data-do=live]")


@pytest.mark.parametrize(
    ("flags", "text"),
    [(FAKE[:1], "not allowed"), ([], "No camera was found|not allowed")],
    ids=["denied", "none"],
)
def test_without_a_camera_the_simulated_one_is_offered(launch, site, flags, text):
    with watched_page(launch(*flags)) as page:
        start_camera(page, site)
        problem = page.wait_for_selector(".emo-problem").text_content()
        assert any(word in problem for word in text.split("|")), problem
        page.click(".emo-card [data-do=synthetic]")
        page.wait_for_function("window.sent.some((message) => message.kind == 'film')")


def test_an_insecure_address_is_explained(launch, site):
    browser = launch("--host-resolver-rules=MAP camera.test 127.0.0.1")
    with watched_page(browser) as page:
        start_camera(page, site.replace("127.0.0.1", "camera.test"))
        assert "https" in page.wait_for_selector(".emo-problem").text_content()
        assert "camera.test" in page.text_content(".emo-card"), "it says where frames would go"


def test_a_silent_kernel_gets_two_frames_and_no_more(fake_camera, site):
    frames = "window.sent.filter((message) => message.kind == 'frame')"
    with watched_page(fake_camera) as page:
        start_camera(page, site)
        page.wait_for_function(f"{frames}.length == 2")
        page.wait_for_selector(".emo-status:has-text('waiting for the kernel')")
        sent = page.evaluate(frames)
        assert [message["buffers"] for message in sent] == [1, 1]
        missing_buffers = {"kind": "nobuffers", "view": sent[1]["view"], "seq": sent[1]["seq"]}
        page.evaluate("(message) => window.say(message)", missing_buffers)
        page.wait_for_function(f"{frames}.length == 4")  # one answer cleared both
        assert all(len(m["jpeg"]) > 1000 and not m["buffers"] for m in page.evaluate(frames)[2:])
        error = {"kind": "error", "view": sent[0]["view"], "seq": 4, "text": "broken"}
        page.evaluate("(message) => window.say(message)", error | {"fatal": True})
        assert page.wait_for_selector(".emo-problem").text_content() == "broken"
        assert page.get_attribute(".emo-camera", "data-state") == "idle"


def test_the_page_lets_go_of_the_camera(fake_camera, site):
    ended = "window.tracks.length && window.tracks.every((track) => track.readyState == 'ended')"
    for end in ("window.gone()", "window.change('retired', 'newer')", "window.say({kind: 'stop'})"):
        with watched_page(fake_camera) as page:
            page.add_init_script(f"({TRACKS})()")
            start_camera(page, site)
            page.wait_for_function("document.querySelector('[data-state=running]')")
            page.evaluate(end)
            page.wait_for_function(ended)


def test_a_model_without_valence_and_arousal_has_no_plane(launch, site):
    with watched_page(launch()) as page:
        page.goto(site)
        page.wait_for_selector("figure canvas")
        page.evaluate("window.change('va', 'derived')")
        assert page.text_content("figcaption") == "derived from the class"
        page.evaluate("window.change('va', 'none')")
        assert not visible(page, "plane") and not page.is_visible("[data-do=plane]")


def test_one_photo_as_on_colab(fake_camera, site, monkeypatch, tmp_path, face_model):
    """The cells of lesson 06 with the browser behind `eval_js`, as Colab has it."""
    notebook = json.loads((Path(run_course.HERE) / "06_live_demo.ipynb").read_text("utf-8"))
    names = {"np": np, "cv2": cv2, "decode": decode}
    with watched_page(fake_camera) as page:
        page.goto(site)
        page.evaluate(f"({TRACKS})()")
        upload = {"mine.jpg": cv2.imencode(".jpg", np.zeros((60, 80, 3), np.uint8))[1].tobytes()}
        (tmp_path / "mine.jpg").write_bytes(upload["mine.jpg"])  # Colab puts it there, too
        monkeypatch.chdir(tmp_path)
        colab = types.ModuleType("google.colab")
        colab.files = types.SimpleNamespace(upload=lambda: upload)
        monkeypatch.setitem(sys.modules, "google.colab", colab)
        output = types.SimpleNamespace(eval_js=page.evaluate)
        monkeypatch.setitem(sys.modules, "google.colab.output", output)
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if "TAKE = " in source or "def get_photo" in source:
                exec(source, names)  # noqa: S102 (our own notebook)
        picture = names["get_photo"]("camera")
        states = page.evaluate("window.tracks.map((track) => track.readyState)")
        assert states == ["ended"], "the camera is released"
    with MediaPipeFaceDetector() as detector:
        assert len(detector.detect(picture)) == 1
    assert names["get_photo"]("upload").shape == (60, 80, 3)
