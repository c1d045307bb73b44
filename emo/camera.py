"""The notebook's camera: the browser films, the kernel answers. Used from notebooks/06."""

import base64
import threading
import time
from collections import deque
from functools import cache
from pathlib import Path

import anywidget
import cv2
import numpy as np
import pandas as pd
import torch
import traitlets

from emo import EmoError, emotions, live, recognize, sources, window

HISTORY = 20_000  # rows kept: twenty minutes of one face at 15 results a second


class EmotionCamera(anywidget.AnyWidget):
    """Show the live camera with faces, probabilities, valence and arousal under a notebook cell.

    Takes a model file (the page offers others beside it), a recogniser, or nothing: the starter.
    `source` is "browser" or "synthetic", a drawn face with its truth. `smoothing` is in seconds;
    4 `max_in_flight` frames hide a slow network. `history` keeps numbers; frames are never kept.
    """

    _esm = Path(__file__).with_name("camera.js")
    _css = Path(__file__).with_name("camera.css")
    source = traitlets.Enum(["browser", "synthetic"], "browser").tag(sync=True)
    smoothing = traitlets.Float(0.3, min=0).tag(sync=True)
    max_in_flight = traitlets.Int(2, min=1, max=4).tag(sync=True)
    bars = traitlets.Bool(True).tag(sync=True)
    plane = traitlets.Bool(True).tag(sync=True)
    va = traitlets.Unicode("").tag(sync=True)  # annotated, derived, none; "" = not loaded yet
    model_file = traitlets.Unicode("").tag(sync=True)  # the one that runs, of `model_files`
    model_files = traitlets.List(traitlets.Unicode()).tag(sync=True)
    colours = traitlets.Dict(emotions.COLOURS).tag(sync=True)
    retired = traitlets.Unicode("").tag(sync=True)

    _newest = None  # the one camera that may run

    def __init__(self, model_or_recognizer=None, *, pipeline=None, **traits):
        model = model_or_recognizer or (recognize.STARTER if pipeline is None else None)
        if model is not None and pipeline is not None:
            raise EmoError("EmotionCamera takes a model file, a recogniser or pipeline=…, not both")
        if isinstance(model, str | Path) and not Path(model).is_file():
            raise EmoError(f"{model} does not exist; train and export a model first (README)")
        self._model, self._pipeline, self._failure = model, pipeline, None
        self._busy, self._rows = threading.Lock(), deque(maxlen=HISTORY)  # (Face, film's frame)
        self._born, self._offset, self._local = time.monotonic(), 0.0, True  # `history`'s time 0
        traits["va"] = getattr(model if pipeline is None else pipeline.recognizer, "va", "")
        traits |= {} if pipeline is None else {"smoothing": pipeline.smoothing}
        if isinstance(model, str | Path):
            beside = [p for p in Path(model).parent.glob("model*") if p.suffix in recognize.LOADERS]
            traits["model_file"] = Path(model).name
            traits["model_files"] = sorted({p.name for p in [*beside, Path(model)]})
        if unknown := set(traits) - set(self.trait_names()):  # ipywidgets would ignore it
            raise EmoError(f"EmotionCamera has no option {unknown.pop()!r}; see its docstring")
        try:
            super().__init__(**traits)
        except traitlets.TraitError as error:
            ranges = "smoothing 0 or more seconds, max_in_flight 1 to 4"
            raise EmoError(f"{error}; expected 'browser' or 'synthetic', {ranges}") from error
        self.on_msg(self._receive)
        previous, EmotionCamera._newest = EmotionCamera._newest, self
        if previous is not None:
            previous.retire()

    @property
    def history(self):
        """The last 20,000 results as `faces_table`; boxes in pixels of frames as sent, 320 wide."""
        with self._busy:
            rows = list(self._rows)
        table = live.faces_table([face for face, _ in rows])
        truth = _truths().reindex([index for _, index in rows], columns=["emotion", *sources.VA])
        truth["emotion"] = truth["emotion"].map(dict(enumerate(emotions.EMOTIONS)))
        simulated = truth["emotion"].notna().any()
        return table.join(truth.add_prefix("true_").set_index(table.index)) if simulated else table

    def stop(self):
        """Stop filming in every browser tab that shows this camera."""
        self.send({"kind": "stop"})

    def retire(self):
        """Stop for good and release the detector; `history` stays."""
        self.retired = "A newer EmotionCamera is running; run this cell again to use this one."
        self._release()

    def _release(self):
        with self._busy:
            if self._model is not None and self._pipeline is not None:  # it is our own
                self._pipeline.detector.close()
                self._pipeline = None

    def close(self):
        """Remove the widget from the page."""
        if hasattr(self, "_busy") and not self.retired:
            self.retire()
        super().close()

    def __repr__(self):
        return f"EmotionCamera(source={self.source!r})"

    @traitlets.observe("model_file")
    def _change_model(self, change):
        if change["old"]:  # the page chose another one; the next frame loads it
            self._model, self._failure = Path(self._model).with_name(change["new"]), None
            self._release()

    def _receive(self, _, content, buffers):
        """Answer every message, because ipywidgets swallows what a handler raises."""
        reply, data = {"view": content.get("view"), "seq": content.get("seq")}, None
        try:
            with self._busy:
                answer, data = getattr(self, f"_on_{content['kind']}")(content, buffers)
        except Exception as error:
            name = "" if isinstance(error, EmoError) else f"{type(error).__name__}: "
            fatal = bool(self.retired or self._failure)
            answer = {"kind": "error", "text": f"{name}{error}", "fatal": fatal}
        self.send(reply | answer, buffers=data)

    def _on_ready(self, content, _):
        self._local = bool(content.get("local", True))
        return {"kind": "ready"}, None

    def _on_start(self, content, _):
        """Begin a run: the tab that asks now is the only one that films."""
        self.send({"kind": "stop", "except": content["view"]})
        self._failure, self._offset = None, time.monotonic() - self._born - content["time"]
        if self._pipeline is not None:
            self._pipeline.reset()
        return {"kind": "started"}, None

    def _on_frame(self, content, buffers):
        """Find and read the faces of a JPEG; boxes are shares of it. `index`: of a film's frame."""
        if self.retired or self._failure:
            raise EmoError(self.retired or self._failure)
        if not buffers and "jpeg" not in content:
            return {"kind": "nobuffers"}, None
        data = np.frombuffer(buffers[0] if buffers else base64.b64decode(content["jpeg"]), np.uint8)
        frame = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if frame is None:
            raise EmoError(f"a frame of {data.size} bytes is no readable JPEG")
        if self._pipeline is None:
            self._load(content["view"])
        self._pipeline.smoothing, seconds = self.smoothing, content["time"] + self._offset
        faces = self._pipeline.process(frame, seconds)
        self._rows.extend((face, content.get("index")) for face in faces)
        found = [_message(face, frame.shape) for face in faces]
        return {"kind": "result", "time": seconds, "faces": found}, None

    def _load(self, view):
        """Open detector and model; a failure is kept, so that frames don't repeat it."""
        self.send({"kind": "status", "view": view, "text": "loading the detector and the model"})
        try:
            recognizer = self._model
            if isinstance(recognizer, str | Path):  # a browser on this machine keeps a core
                threads = max(1, torch.get_num_threads() - 1) if self._local else None
                recognizer = recognize.create_recognizer(recognizer, threads=threads)
            self._pipeline = live.LivePipeline(recognizer, smoothing=self.smoothing)
        except Exception as error:
            self._failure = str(error)
            raise
        self.va = recognizer.va

    def _on_film(self, content, _):
        answer = {"kind": "film", "fps": 15, "truth": _truths().to_dict("records")}
        return answer, [window.DRAWN.read_bytes()]


def _message(face, shape):
    """Turn a `Face` into plain JSON with its box as shares of the frame."""
    message = {name: getattr(face, name) for name in ("state", "emotion", "valence", "arousal")}
    message["probabilities"] = None if face.probabilities is None else face.probabilities.tolist()
    return message | {"face": face.track, "box": np.divide(face.bbox, shape[1::-1] * 2).tolist()}


@cache
def _truths():
    """Return the truth of each frame of the simulated camera, boxes in its 640×480 pixels."""
    return pd.read_csv(window.DRAWN.with_suffix(".csv"))
