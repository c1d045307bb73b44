"""Photos, folders and films → one row a face, many faces in one forward pass."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from glob import glob
from itertools import chain, islice
from os.path import commonpath
from pathlib import Path

import cv2
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from emo.dataset import decode
from emo.download import IMAGE_SUFFIXES
from emo.emotions import EMOTIONS, PROBABILITY_COLUMNS
from emo.errors import EmoError
from emo.files import atomic_path
from emo.live import Face, draw_overlay, fill
from emo.window import Camera, film_writer

FILM_SUFFIXES = {".mp4", ".webm", ".avi", ".mov", ".mkv", ".m4v"}
AHEAD = 16  # images in which faces are found while the model reads those of the 16 before
BOX, PLACE = ("x", "y", "width", "height"), ("image_path", "time", "face")
ANSWER = ("score", "emotion", "confidence", *PROBABILITY_COLUMNS, "valence", "arousal", "note")


def find_files(names):
    """Return the images and films that files, folders (with all below) and patterns name."""
    found, kinds = [], IMAGE_SUFFIXES | FILM_SUFFIXES
    for name in names:
        path = Path(name).expanduser()
        files = [path] if path.exists() else sorted(map(Path, glob(str(path), recursive=True)))
        if path.is_dir():
            files = [p for p in sorted(path.rglob("[!.]*")) if p.suffix.lower() in kinds]
        if not (files := [file for file in files if file.is_file()]):
            raise EmoError(f"{name} is no file, and no folder or pattern with images or films")
        found += files
    return list(dict.fromkeys(found))


def predict_files(recognizer, files, detector=None, annotate=None):
    """Return a dict for each face in photos and films: what `recognize` gives, and its place.

    `image_path`, `time` (seconds into a film), `face` (0 = the largest). Without a detector each
    image is one face crop. An image without a face has one dict, with the `note` "no face found"
    or "unreadable". `annotate`: folder for copies of all with boxes and labels. Processes that
    `accelerate launch` made share the files. Ctrl-C returns the rows so far.
    """
    state, rows, files = PartialState(), [], [Path(file) for file in files]
    base = commonpath([path.absolute().parent for path in files])
    copies = {p: Path(annotate, p.absolute().relative_to(base)) for p in files if annotate}
    if same := [path for path, copy in copies.items() if copy.resolve() == path.resolve()]:
        raise EmoError(f"the annotated copy would replace {same[0]}; name another folder")
    with state.split_between_processes(files) as mine:
        films = [path for path in mine if path.suffix.lower() in FILM_SUFFIXES]
        photos = [path for path in mine if path not in films]
        images = [({"image_path": str(path)}, None) for path in photos]
        hidden = {"disable": not state.is_main_process}
        try:
            read = _read(recognizer, detector, images)
            for found, _, faces in tqdm(read, "Predicting", len(photos), unit="image", **hidden):
                rows += found
                path = Path(found[0]["image_path"])
                if annotate and (image := decode(path)) is not None:
                    with atomic_path(copies[path]) as temporary:
                        cv2.imwrite(str(temporary), _draw(image, faces, recognizer.va))
            for path in films:
                rows += _predict_film(recognizer, detector, path, copies.get(path), hidden)
        except KeyboardInterrupt:
            done = len({row["image_path"] for row in rows})
            print(f"stopped after {done} of {len(mine)} files", file=sys.stderr)
    return gather_object(rows)


def table_of(rows):
    """Return the rows of `predict_files` as a table with a column for each number."""
    table = pd.DataFrame(rows, columns=[*PLACE, "bbox", "probabilities", *ANSWER])
    table[list(BOX)] = [box if isinstance(box, tuple) else (None,) * 4 for box in table["bbox"]]
    shares = [p if isinstance(p, dict) else {} for p in table["probabilities"]]
    table[list(PROBABILITY_COLUMNS)] = pd.DataFrame(shares, table.index, EMOTIONS)
    whole = dict.fromkeys(("face", *BOX), "Int64")  # integers that may be missing
    return table[[*PLACE, *BOX, *ANSWER]].astype(whole)


def _predict_film(recognizer, detector, path, copy, hidden):
    rows, facts = [], {"image_path": str(path)}
    with suppress(EmoError), Camera(path) as camera:  # it can't be opened, or holds no frame
        frames = ((facts | {"time": seconds}, frame) for frame, seconds in camera)
        read = _read(recognizer, detector, frames)
        bar = tqdm(read, path.name, camera.frames, unit="frame", **hidden)
        recording = film_writer(copy.with_suffix(".mp4"), camera.fps) if copy else nullcontext()
        with recording as write:
            for found, frame, faces in bar:
                rows += found
                if write:
                    write(_draw(frame, faces, recognizer.va))
    return rows or [facts | {"note": "unreadable"}]


def _read(recognizer, detector, items):
    """Yield (rows, image, faces) for items (facts, BGR image); None = that of the file."""

    def look(item):  # in a thread, because decoding and the detector leave a core free
        facts, image = item
        pixels = decode(facts["image_path"]) if image is None else image
        if pixels is None:
            return facts | {"note": "unreadable"}, image, [], torch.empty(0)
        if detector is None:
            return facts, image, [{}], recognizer.preprocessor.preprocess_cv2(pixels)
        return facts, image, *recognizer.find(pixels, detector)

    items, ahead = iter(items), []
    with ThreadPoolExecutor() as pool:
        # The last, empty part is there for the answers to the one before it.
        for part in chain(iter(lambda: list(islice(items, AHEAD)), []), [[]]):
            found, ahead = ahead, [pool.submit(look, item) for item in part]
            found = [task.result() for task in found]
            tensors = [tensor for *_, tensor in found]
            results = iter(recognizer.predict_batch(torch.cat(tensors)) if found else ())
            for facts, image, places, _ in found:
                faces = [{"face": i} | place | next(results) for i, place in enumerate(places)]
                rows = [facts | face for face in faces] or [{"note": "no face found"} | facts]
                yield rows, image, faces


def _draw(image_bgr, faces, va):
    shown = [fill(Face(f["face"], f["bbox"], f["score"], 0.0), f) for f in faces]
    return draw_overlay(image_bgr, shown, va=va)
