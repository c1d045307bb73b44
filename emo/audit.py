"""What is wrong with a data set before anyone trains on it. Explained in notebooks/02."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from emo.dataset import decode
from emo.emotions import EMOTIONS
from emo.sources import va_state

TINY = 32  # pixels; below this a face has lost the detail that emotions show in


def audit(manifest, root):
    """Return one row an image: `readable`, `tiny`, `duplicate_of`, `leaks`, `folder_disagrees`.

    `duplicate_of` names the first image with the same pixels, `leaks` is true where that image
    is in another split, `folder_disagrees` where a folder says another emotion than the label.
    """
    paths = [Path(root) / path for path in manifest["image_path"]]
    with ThreadPoolExecutor() as pool:
        looks = list(tqdm(pool.map(_look, paths), "Checking images", len(paths), unit="image"))
    facts = pd.DataFrame(looks, columns=["readable", "tiny", "digest"], index=manifest.index)
    table = manifest if "split" in manifest else manifest.assign(split="")
    first = table[["image_path", "split"]].groupby(facts["digest"]).transform("first")
    same = facts["readable"] & (first["image_path"] != table["image_path"])
    facts["duplicate_of"] = first["image_path"].where(same)
    facts["leaks"] = same & (first["split"] != table["split"])
    emotion = manifest["emotion"]
    facts["folder_disagrees"] = manifest.get("folder_emotion", emotion) != emotion
    return facts.drop(columns="digest").assign(image_path=manifest["image_path"])


def summarise(manifest, facts):
    """Return a one-column table of counts, with what each finding means."""
    rows = {
        "images": len(manifest),
        "unreadable (skipped everywhere)": int((~facts["readable"]).sum()),
        f"smaller than {TINY} pixels": int(facts["tiny"].sum()),
        "exact duplicates": int(facts["duplicate_of"].notna().sum()),
        "duplicates across splits (they leak)": int(facts["leaks"].sum()),
        "label and folder disagree": int(facts["folder_disagrees"].sum()),
        "without emotion": int((manifest["emotion"] < 0).sum()),
        f"valence/arousal: {va_state(manifest)}": int(manifest["valence"].notna().sum()),
    }
    return pd.DataFrame({"count": pd.Series(rows)})


def class_table(manifest):
    """Return the images of each emotion in each split."""
    names = manifest["emotion"].map(lambda i: EMOTIONS[i] if i >= 0 else "unknown")
    table = pd.crosstab(names, manifest["split"], margins=True, margins_name="all")
    order = [n for n in (*EMOTIONS, "unknown", "all") if n in table.index]
    parts = [n for n in ("train", "val", "test", "all") if n in table.columns]
    return table.loc[order, parts].rename_axis(index=None, columns=None)


def _look(path):
    image = decode(path)
    if image is None:
        return False, False, None
    digest = hashlib.sha256(image.tobytes() + str(image.shape).encode()).hexdigest()
    return True, min(image.shape[:2]) < TINY, digest
