"""What is wrong with a data set before anyone trains on it. Explained in notebooks/02."""

import hashlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from emo import dataset, emotions, files, sources

TINY = 32  # pixels; below this a face has lost the detail that emotions show in
ALIKE_BITS, ALIKE_CORRELATION = 8, 0.97  # of FER+, every such pair looked at was one photo


def audit(manifest, root):
    """Return one row an image, with what is wrong with it.

    `fault` is "" or says why it can't be used, `mode` is Pillow's (RGB, L …). `duplicate_of` names
    the first image with the same pixels, `near_duplicate_of` an earlier look-alike; `leaks`: that
    one is in another split; `relabelled`: has another emotion; `folder_disagrees`: the folder has.
    """
    paths = [Path(root) / path for path in manifest["image_path"]]
    looks = thread_map(_look, paths, desc="Checking images", unit="image")
    facts = pd.DataFrame(looks, manifest.index, ["fault", "mode", "digest", "code", "thumbnail"])
    row = pd.Series(np.arange(len(facts)), facts.index)
    first = row.groupby(facts["digest"]).transform("first").fillna(row).astype(int).to_numpy()
    seen = _look_alikes(np.stack(facts.pop("code")), np.stack(facts.pop("thumbnail")))
    names = manifest["image_path"].to_numpy(object)
    copy, alike = first != row, (first == row) & (seen != row)
    facts["duplicate_of"] = pd.Series(names[first], facts.index).where(copy)
    facts["near_duplicate_of"] = pd.Series(names[seen], facts.index).where(alike)
    twin, emotion = np.where(copy, first, seen), manifest["emotion"].to_numpy()
    split = manifest.get("split", pd.Series("", manifest.index)).to_numpy(object)
    facts["leaks"], facts["relabelled"] = split[twin] != split, emotion[twin] != emotion
    facts["folder_disagrees"] = manifest.get("folder_emotion", emotion) != emotion
    return facts.drop(columns="digest").assign(image_path=names)


def summarise(manifest, facts):
    """Return a one-column table of counts, with what each finding means."""
    rows = {
        "images": len(manifest),
        "usable": int((facts["fault"] == "").sum()),
        **facts.query("fault != ''")["fault"].value_counts().add_prefix("skipped everywhere: "),
        "not RGB (converted)": int((~facts["mode"].isin(["RGB", ""])).sum()),
        "exact duplicates": int(facts["duplicate_of"].notna().sum()),
        "near duplicates": int(facts["near_duplicate_of"].notna().sum()),
        "duplicates across splits (they leak)": int(facts["leaks"].sum()),
        "duplicates with another label": int(facts["relabelled"].sum()),
        "label and folder disagree": int(facts["folder_disagrees"].sum()),
        "without emotion": int((manifest["emotion"] < 0).sum()),
        f"valence/arousal: {sources.va_state(manifest)}": int(manifest["valence"].notna().sum()),
    }
    return pd.DataFrame({"count": pd.Series(rows)})


def write_quarantine(manifest, facts, root, *, duplicates=False):
    """Write and return what is skipped, not deleted: faulty images; `duplicates`: copies, too."""
    reason = facts.query("fault != ''").set_index("image_path")["fault"].to_dict()
    if duplicates:
        worth = manifest.set_index("image_path")["split"].map({"test": 2, "val": 1}).fillna(0)
        twins = facts["duplicate_of"].combine_first(facts["near_duplicate_of"])
        first, best = {}, {}  # of all copies of a picture; the best one, of most worth, stays
        for image, twin in zip(facts["image_path"], twins, strict=True):
            first[image] = first.get(twin, image)
        for image in sorted(first, key=worth.to_dict().get, reverse=True):  # a tie keeps the order
            if image not in reason and best.setdefault(first[image], image) != image:
                reason[image] = f"duplicate of {best[first[image]]}"
    sizes = [(Path(root) / path).stat().st_size for path in reason]
    table = pd.DataFrame({"image_path": reason.keys(), "reason": reason.values(), "bytes": sizes})
    with files.atomic_path(files.work_folder(root) / sources.QUARANTINE) as temporary:
        table.to_csv(temporary, index=False)
    return table


def class_table(manifest):
    """Return the images of each emotion in each split."""
    names = manifest["emotion"].map(lambda i: emotions.EMOTIONS[i] if i >= 0 else "unknown")
    table = pd.crosstab(names, manifest["split"], margins=True, margins_name="all")
    table = table.filter([*emotions.EMOTIONS, "unknown", "all"], axis=0)  # in this order
    return table.filter(["train", "val", "test", "all"]).rename_axis(index=None, columns=None)


def _look(path):
    """Return fault, mode, digest of the pixels, perceptual hash (8 bytes) and thumbnail (256)."""
    image, mode = dataset.decode(path), ""
    with suppress(Exception), Image.open(path) as file:  # raised by whatever damage it meets
        mode = file.mode
    if image is None:
        fault = "cut off or damaged" if mode else "not an image"
        return fault, mode, None, np.zeros(8, np.uint8), np.zeros(256, np.uint8)
    fault = f"smaller than {TINY} pixels" if min(image.shape[:2]) < TINY else ""
    digest = hashlib.sha256(image.tobytes() + str(image.shape).encode()).hexdigest()
    grey = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).mean(axis=2, dtype=np.float32)
    waves = cv2.dct(grey)[:8, :8].ravel()  # a perceptual hash (Zauner 2010): the coarse pattern
    thumbnail = grey.reshape(16, 2, 16, 2).mean(axis=(1, 3)).ravel().astype(np.uint8)
    return fault, mode, digest, np.packbits(waves > np.median(waves)), thumbnail


def _look_alikes(codes, thumbnails):
    """Return, for each image, an earlier one that looks the same, or itself (N,)."""
    seen = np.arange(len(codes))
    # Only those that share one of four parts of the hash: all with all would take hours.
    for part in codes.view(np.uint16).T:
        order = np.argsort(part, kind="stable")
        for step in range(1, min(256, len(order))):  # the next ones with the same part
            same = part[order[:-step]] == part[order[step:]]
            if not same.any():
                break
            a, b = order[:-step][same], order[step:][same]
            near = np.unpackbits(codes[a] ^ codes[b], axis=1).sum(axis=1) <= ALIKE_BITS
            a, b = a[near], b[near]
            x, y = (t - t.mean(axis=1, keepdims=True, dtype=np.float32) for t in thumbnails[[a, b]])
            norm = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            alike = (x * y).sum(axis=1) > ALIKE_CORRELATION * norm  # nothing is like a plain area
            np.minimum.at(seen, b[alike], a[alike])
    return seen
