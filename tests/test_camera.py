"""The notebook's camera without a browser: every message gets the right answer."""

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from conftest import missing
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from emo import EmoError, synth
from emo import camera as module
from emo.camera import EmotionCamera
from emo.dataset import IMAGE_MEAN, IMAGE_STD
from emo.emotions import COLOURS, EMOTIONS, PROBABILITY_COLUMNS
from emo.live import LivePipeline, overlap
from emo.model import create_model, save_torch
from emo.recognize import create_recognizer


@pytest.fixture(scope="module")
def models(tmp_path_factory, face_model):
    """Folder of untrained models, one for each state of valence and arousal."""
    folder = tmp_path_factory.mktemp("models")
    for va in ("annotated", "derived", "none"):
        save_untrained(folder / f"{va}.pth", va)
    return folder


def save_untrained(path, va="annotated"):
    """Write a model file as training does, without the training."""
    model = create_model("resnet18", pretrained=False).eval()
    model.config |= {"image_size": 64, "mean": list(IMAGE_MEAN), "std": list(IMAGE_STD)}
    model.config |= {"colour": "rgb", "crop_margin": 0.2, "temperature": 1.0, "va": va}
    save_torch(model.state_dict(), path)


@pytest.fixture(scope="module")
def picture():
    """One frame of the synthetic face and its true box as shares of the frame."""
    frame, truth = next(synth.animate(seconds=1, fps=15, size=(240, 320)))
    return frame, [v / n for v, n in zip(truth["bbox"], (320, 240, 320, 240), strict=True)]


def jpeg(frame):
    return cv2.imencode(".jpg", frame)[1].tobytes()


def talk(camera):
    """Return a function that sends one message as the browser does and returns the answers."""

    def ask(kind, buffers=(), **content):
        answers = []
        camera.send = lambda message, buffers=None: answers.append((message, buffers))
        camera._handle_custom_msg({"kind": kind, "view": "a", "time": 1.0} | content, buffers)
        return answers

    return ask


def test_a_frame_is_answered_with_its_face(models, picture):
    frame, true_box = picture
    camera = EmotionCamera(models / "annotated.pth")
    assert camera.va == ""
    ask = talk(camera)
    ask("start")
    told, (answer, data) = ask("frame", [jpeg(frame)], seq=7)
    assert "loading" in told[0]["text"] and data is None
    assert (answer["kind"], answer["view"], answer["seq"]) == ("result", "a", 7)
    (face,) = answer["faces"]
    assert overlap(face["box"], true_box) > 0.7
    assert sum(face["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert -1 <= face["valence"] <= 1 and -1 <= face["arousal"] <= 1
    assert camera.va == "annotated"
    assert len(ask("frame", [jpeg(frame)], seq=8)) == 1, "the model is loaded once"
    table = camera.history
    assert len(table) == 2 and table["face"].tolist() == [0, 0]
    assert {"time", "emotion", *PROBABILITY_COLUMNS, "valence", "arousal"} <= set(table)
    assert "true_emotion" not in table


def test_bad_frames_are_answered_and_do_no_harm(models, picture):
    ask = talk(EmotionCamera(models / "annotated.pth"))
    for data in (b"", b"no picture", jpeg(picture[0])[:300]):
        ((answer, _),) = ask("frame", [data], seq=1)
        assert answer["kind"] == "error" and "no readable JPEG" in answer["text"]
        assert answer["seq"] == 1 and not answer["fatal"]
    ((answer, _),) = ask("frame", seq=2)
    assert answer["kind"] == "nobuffers" and answer["seq"] == 2
    ((answer, _),) = ask("nonsense", seq=3)
    assert answer["kind"] == "error"
    text = base64.b64encode(jpeg(picture[0])).decode()
    assert len(ask("frame", jpeg=text, seq=4)[-1][0]["faces"]) == 1
    grey = np.full((240, 320, 3), 127, np.uint8)
    ((answer, _),) = ask("frame", [jpeg(grey)], seq=5)
    assert answer["kind"] == "result" and answer["faces"] == []


def test_a_model_that_cannot_be_opened_stops_the_camera(tmp_path, picture, face_model):
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    ask = talk(EmotionCamera(tmp_path / "broken.pth"))
    answer = ask("frame", [jpeg(picture[0])])[-1][0]
    assert answer["fatal"] and "broken.pth is" in answer["text"]
    assert len(ask("frame", [jpeg(picture[0])])) == 1, "it is not opened for every frame"
    ask("start")
    assert len(ask("frame", [jpeg(picture[0])])) == 2, "a new start tries again"


@pytest.mark.parametrize("va", ["derived", "none"])
def test_valence_and_arousal_keep_their_state(models, picture, va):
    recognizer = create_recognizer(models / f"{va}.pth")
    camera = EmotionCamera(recognizer)
    assert camera.va == va
    (face,) = talk(camera)("frame", [jpeg(picture[0])])[-1][0]["faces"]
    assert (face["valence"] is None) == (va == "none")


def test_the_simulated_camera_knows_the_truth(models):
    camera = EmotionCamera(models / "annotated.pth", source="synthetic")
    ask = talk(camera)
    ((answer, (film,)),) = ask("film")
    assert answer["kind"] == "film" and len(answer["truth"]) == 180
    path = models / "film.webm"
    path.write_bytes(film)
    capture = cv2.VideoCapture(str(path))
    frames = [capture.read()[1] for _ in range(180)]
    for index in (0, 179):
        answered = ask("frame", [jpeg(cv2.resize(frames[index], (320, 240)))], index=index)[-1][0]
        truth = answer["truth"][index]
        true_box = [truth["x"] / 640, truth["y"] / 480, truth["width"] / 640, truth["height"] / 480]
        assert overlap(answered["faces"][0]["box"], true_box) > 0.7
        last = camera.history.iloc[-1]
        assert last["true_emotion"] == EMOTIONS[truth["emotion"]]
        assert last["true_valence"] == truth["valence"]


def test_the_newest_camera_retires_the_others(models, picture):
    old = EmotionCamera(models / "annotated.pth")
    ask = talk(old)
    ask("frame", [jpeg(picture[0])])
    new = EmotionCamera(models / "annotated.pth")
    assert old.retired and not new.retired
    ((answer, _),) = ask("frame", [jpeg(picture[0])])
    assert answer["fatal"] and "newer" in answer["text"]
    assert len(old.history) == 1, "its numbers stay"
    with pytest.raises(EmoError):
        EmotionCamera("missing.pth")
    assert not new.retired, "a camera that could not be made retires nothing"
    new.close()


def test_one_browser_tab_films_at_a_time(models):
    camera = EmotionCamera(models / "annotated.pth")
    ask = talk(camera)
    assert ask("ready", local=False)[0][0]["kind"] == "ready"
    assert ask("start")[0][0] == {"kind": "stop", "except": "a"}
    sent = []
    camera.send = lambda message: sent.append(message)
    camera.stop()
    assert sent == [{"kind": "stop"}]


def test_a_pipeline_can_be_given_and_is_left_open(models, picture):
    pipeline = LivePipeline(create_recognizer(models / "annotated.pth"), smoothing=0.7)
    camera = EmotionCamera(pipeline=pipeline)
    assert camera.smoothing == 0.7
    camera.smoothing = 0.1
    talk(camera)("frame", [jpeg(picture[0])])
    assert pipeline.smoothing == 0.1
    camera.close()
    assert len(pipeline.process(picture[0])) == 1


def test_the_page_may_choose_a_model_that_lies_beside(models, picture, tmp_path):
    for name, va in (("weights", "annotated"), ("b", "none"), ("broken", "none")):
        shutil.copy(models / f"{va}.pth", tmp_path / f"model_{name}.pth")
    (tmp_path / "model_broken.pth").write_bytes(b"nothing")
    (tmp_path / "last.pth").touch()
    (tmp_path / "model_config.json").write_text("{}")
    camera = EmotionCamera(tmp_path / "model_weights.pth")
    assert camera.model_files == [f"model_{name}.pth" for name in ("b", "broken", "weights")]
    ask = talk(camera)
    assert ask("frame", [jpeg(picture[0])])[-1][0]["faces"][0]["valence"] is not None
    camera.set_state({"model_file": "model_b.pth"})  # as the page does
    told, (answer, _) = ask("frame", [jpeg(picture[0])])
    assert "loading" in told[0]["text"] and answer["faces"][0]["valence"] is None
    assert camera.va == "none"
    camera.set_state({"model_file": "model_broken.pth"})
    assert ask("frame", [jpeg(picture[0])])[-1][0]["fatal"]
    camera.set_state({"model_file": "model_weights.pth"})
    assert ask("frame", [jpeg(picture[0])])[-1][0]["kind"] == "result"
    assert len(camera.history) == 3


def test_history_is_bounded(models, picture, monkeypatch):
    monkeypatch.setattr(module, "HISTORY", 3)
    camera = EmotionCamera(models / "annotated.pth")
    for i in range(5):
        talk(camera)("frame", [jpeg(picture[0])], time=float(i))
    assert camera.history["time"].tolist() == [2.0, 3.0, 4.0]


def test_what_it_refuses(models):
    model = models / "annotated.pth"
    for options, word in [
        ({"model_or_recognizer": model, "pipeline": 1}, "takes a model file"),
        ({"model_or_recognizer": models / "none.onnx"}, "does not exist"),
        ({"model_or_recognizer": model, "source": "film"}, "expected 'browser'"),
        ({"model_or_recognizer": model, "smoothing": -1}, "0 or more"),
        ({"model_or_recognizer": model, "max_in_flight": 5}, "1 to 4"),
    ]:
        with pytest.raises(EmoError, match=word):
            EmotionCamera(**options)


def test_what_the_page_is_given(models):
    camera = EmotionCamera(models / "annotated.pth")
    state = camera.get_state()
    assert list(state["colours"].items()) == list(COLOURS.items())
    assert state["max_in_flight"] == 2 and state["source"] == "browser"
    assert repr(camera) == "EmotionCamera(source='browser')"


@pytest.mark.slow
def test_importing_starts_nothing():
    code = "import sys, threading, emo.camera; print('mediapipe' in sys.modules, end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False", "")


CELL = "from emo.camera import EmotionCamera\ncamera = EmotionCamera({model!r})\ncamera"


@pytest.mark.slow
def test_a_notebook_without_a_browser_shows_nothing_broken(models):
    cells = [nbformat.v4.new_code_cell(CELL.format(model="annotated.pth"))]
    cells += [nbformat.v4.new_code_cell("camera.history")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, resources={"metadata": {"path": str(models)}}).execute()
    (shown,), (table,) = (cell.outputs for cell in notebook.cells)
    assert shown.data["text/plain"] == "EmotionCamera(source='browser')"
    assert "p_happy" in table.data["text/html"]
    assert len(nbformat.writes(notebook)) < 100_000, "no frames in saved notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.17.1", "7.0.1", ""], ids=["Colab's", "7.0.1", "newest"])
def test_a_kernel_answers_over_the_wire(models, picture, version, tmp_path):
    """The comm protocol as a browser speaks it, to a real kernel of three versions."""
    path = os.pathsep.join([*older("ipykernel", version, tmp_path), *sys.path])
    kernel = {"cwd": str(models), "env": os.environ | {"PYTHONPATH": path}}
    manager, client = start_new_kernel(startup_timeout=120, **kernel)
    try:
        outputs = []
        code = "import ipykernel\nprint(ipykernel.__version__)\n"
        code += CELL.format(model="annotated.pth") + ".model_id"
        client.execute_interactive(code, output_hook=outputs.append, timeout=120)
        printed = [m["content"]["text"] for m in outputs if m["msg_type"] == "stream"]
        assert printed[0].startswith(version)
        results = [m["content"] for m in outputs if m["msg_type"] == "execute_result"]
        for seq in range(10):
            data = {"kind": "frame", "view": "a", "seq": seq, "time": seq / 10}
            content = {"comm_id": results[0]["data"]["text/plain"].strip("'")}
            content["data"] = {"method": "custom", "content": data}
            message = client.session.msg("comm_msg", content)
            socket = client.shell_channel.socket
            client.session.send(socket, message, buffers=[jpeg(picture[0])])
        seen = []
        while len(seen) < 10:
            message = client.get_iopub_msg(timeout=60)
            answer = message["content"].get("data", {}).get("content", {})
            if message["msg_type"] == "comm_msg" and answer.get("seq") is not None:
                seen.append((answer["kind"], answer["seq"], len(answer.get("faces", []))))
        assert seen == [("result", seq, 1) for seq in range(10)]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_the_live_rooms_with_another_opencv(tmp_path, face_model):
    """Colab has both 4.14 and 5.0, and which one `import cv2` finds is a matter of chance."""
    path = os.pathsep.join([*older("opencv-contrib-python", "4.14.0.94", tmp_path), *sys.path])
    tests = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("live", "faces")]
    code = f"import cv2, pytest; assert cv2.__version__ == '4.14.0'; exit(pytest.main({tests}))"
    command, env = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def older(package, version, folder):
    """Return a path where this version lies, to be put before the others; none if no version."""
    if not version:
        return []
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True)
    if done.returncode:
        missing(f"{package} {version} could not be fetched: {done.stderr[-300:]}")
    return [str(folder)]
