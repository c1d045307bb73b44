"""Photos, folders and films → one row a face, many faces in one forward pass."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from glob import escape, glob
from itertools import islice
from os.path import commonpath
from pathlib import Path

import cv2
import pandas as pd
import torch
from accelerate import PartialState, utils
from tqdm.auto import tqdm

from emo import EmoError, dataset, download, window
from emo.emotions import PROBABILITY_COLUMNS
from emo.files import atomic_path
from emo.live import Face, draw_overlay, fill

FILM_SUFFIXES = {".mp4", ".webm", ".avi", ".mov", ".mkv", ".m4v"}
TOGETHER = 16  # images whose faces are read in one forward pass
BOX, ANSWER = ["x", "y", "width", "height"], ["emotion", "confidence", *PROBABILITY_COLUMNS]
COLUMNS = ["image_path", "time", "face", *BOX, "score", *ANSWER, "valence", "arousal", "note"]


def find_files(names):
    """Return the images and films that files, folders (with all below) and patterns name."""
    found = []
    for path in (Path(name).expanduser() for name in names):
        pattern = f"{escape(str(path))}/**" if path.is_dir() else str(path)
        inside = map(Path, sorted(glob(pattern, recursive=True)))
        inside = [p for p in inside if p.suffix.lower() in FILM_SUFFIXES | download.IMAGE_SUFFIXES]
        found += (files := [path] if path.is_file() else inside)
        if not files:
            raise EmoError(f"{path} is no file, and no folder or pattern with images or films")
    return list(dict.fromkeys(found))


def predict_files(recognizer, files, detector=None, annotate=None):
    """Return a dict for each face in photos and films: what `recognize` gives, and its place.

    `image_path`, `time` (seconds into a film), `face` (0 = the largest). Without a detector each
    image is one face crop. An image without a face has one dict, with the `note` "no face found"
    or "unreadable". `annotate`: folder for copies of the photos with boxes and labels. Processes
    that `accelerate launch` made share the files. Ctrl-C returns the rows so far.
    """
    state, rows, files = PartialState(), [], [Path(file) for file in files]
    whole = [path.absolute() for path in files if annotate]
    base = commonpath([path.parent for path in whole]) if whole else ""  # it refuses no path
    copies = {p: Path(annotate, w.relative_to(base)) for p, w in zip(files, whole, strict=False)}
    if same := [path for path, copy in copies.items() if copy.resolve() == path.resolve()]:
        raise EmoError(f"the annotated copy would replace {same[0]}; name another folder")
    with state.split_between_processes(files) as mine:
        total = None if FILM_SUFFIXES & {p.suffix.lower() for p in mine} else len(mine)
        bar = tqdm(total=total, desc="Predicting", unit="image", disable=not state.is_main_process)
        try:
            for found in _read(recognizer, detector, _images(mine)):
                rows += found
                bar.update()
                if annotate and "time" not in found[0]:
                    _annotate(found, copies[Path(found[0]["image_path"])], recognizer.va)
        except KeyboardInterrupt:
            print(f"stopped after {bar.n} images", file=sys.stderr)
    return utils.gather_object(rows)


def table_of(rows):
    """Return the rows of `predict_files` as a table with a column for each number."""
    flat = []
    for row in rows:
        shares = zip(PROBABILITY_COLUMNS, row.get("probabilities", {}).values(), strict=False)
        flat.append(row | dict(zip(BOX, row.get("bbox", ()), strict=False)) | dict(shares))
    whole = dict.fromkeys(["face", *BOX], "Int64")  # integers that may be missing
    return pd.DataFrame(flat, columns=COLUMNS).astype(whole)


def _images(paths):
    """Yield (facts, image): each frame of the films, and None for what is read from its file."""
    for path in paths:
        facts, frame = {"image_path": str(path)}, None
        if path.suffix.lower() in FILM_SUFFIXES:
            with suppress(EmoError), window.Camera(path) as film:  # raised when it can't be opened
                for frame, seconds in film:
                    yield facts | {"time": seconds}, frame
        if frame is None:
            yield facts, None


def _read(recognizer, detector, images):
    """Yield the rows of each image."""

    def look(item):
        facts, image = item
        image = dataset.decode(facts["image_path"]) if image is None else image
        if image is None:
            return facts | {"note": "unreadable"}, [], torch.empty(0)
        if detector is None:
            return facts, [{}], recognizer.preprocessor.preprocess_cv2(image)
        return facts | {"note": "no face found"}, *recognizer.find(image, detector)

    with ThreadPoolExecutor() as pool:
        # In turns with the model: beside its threads, these would keep it from the cores.
        while part := list(pool.map(look, islice(images, TOGETHER))):
            results = iter(recognizer.predict_batch(torch.cat([tensor for *_, tensor in part])))
            for facts, places, _ in part:
                faces = [{"face": i} | place | next(results) for i, place in enumerate(places)]
                note = facts.pop("note", "")
                yield [facts | face for face in faces] or [facts | {"note": note}]


def _annotate(rows, copy, va):
    if (image := dataset.decode(rows[0]["image_path"])) is not None:
        faces = [fill(Face(f["face"], f["bbox"], f["score"], 0.0), f) for f in rows if "bbox" in f]
        with atomic_path(copy) as temporary:
            cv2.imwrite(str(temporary), draw_overlay(image, faces, va=va))
