import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emo import EmoError
from emo.audit import audit, class_table, summarise, write_quarantine
from emo.dataset import decode, pack_images, split_manifest
from emo.files import work_folder
from emo.sources import QUARANTINE, read_dataset


def noise(path, generator, size=40):
    cv2.imwrite(str(path), generator.integers(0, 255, (size, size, 3), np.uint8))


@pytest.fixture
def small(tmp_path):
    """A folder with every fault, and its manifest."""
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        noise(tmp_path / f"{name}.png", generator)
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(generator.integers(0, 255, (40, 40), np.uint8)).save(tmp_path / "grey.png")
    names = [f"{name}.png" for name in "a b c copy tiny cut text grey".split()]
    manifest = pd.DataFrame({"image_path": names, "emotion": [0, 1, 2, 3, 4, -1, 5, 6]})
    manifest["split"] = ["train", "train", "val", "test", "train", "train", "val", "test"]
    manifest["folder_emotion"] = [0, 1, 5, 3, 4, -1, 5, 6]
    manifest[["valence", "arousal"]] = np.nan
    columns = ["image_path", "emotion", "split"]
    manifest[columns].replace({"emotion": {-1: None}}).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path, manifest


def test_findings_on_a_small_set(small):
    root, manifest = small
    facts = audit(manifest, root).set_index("image_path")
    faults = facts["fault"][facts["fault"] != ""].to_dict()
    assert faults == {
        "tiny.png": "smaller than 32 pixels",
        "cut.png": "cut off or damaged",
        "text.png": "not an image",
    }
    assert facts.loc["grey.png", "mode"] == "L"
    assert facts.loc["copy.png", "duplicate_of"] == "a.png"
    assert facts["duplicate_of"].notna().sum() == 1
    assert facts["near_duplicate_of"].isna().all()
    assert facts.index[facts["leaks"]].tolist() == ["copy.png"]
    assert facts.index[facts["relabelled"]].tolist() == ["copy.png"]
    assert facts.index[facts["folder_disagrees"]].tolist() == ["c.png"]
    counts = summarise(manifest, audit(manifest, root))["count"].to_dict()
    assert counts["images"] == 8
    assert counts["usable"] + sum(n for k, n in counts.items() if k.startswith("skipped")) == 8
    assert counts["not RGB (converted)"] == 1
    assert counts["without emotion"] == 1
    assert class_table(manifest).loc["all", "all"] == 8


def test_copies_in_disguise_are_found_and_other_faces_are_not(faces, tmp_path):
    manifest = read_dataset(faces).head(40)
    for path in manifest["image_path"]:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(faces / path, tmp_path / path)
    first = cv2.imread(str(faces / manifest["image_path"][0]))
    disguises = {
        "smaller.png": cv2.resize(first, (40, 40), interpolation=cv2.INTER_AREA),
        "coarse.jpg": first,
        "brighter.png": cv2.convertScaleAbs(first, alpha=1.1, beta=10),
    }
    for name, face in disguises.items():
        cv2.imwrite(str(tmp_path / name), face, [cv2.IMWRITE_JPEG_QUALITY, 40])
    more = pd.DataFrame({"image_path": list(disguises), "emotion": manifest["emotion"][0]})
    manifest = pd.concat([manifest, more], ignore_index=True)
    facts = audit(manifest, tmp_path)
    found = facts.set_index("image_path")["near_duplicate_of"].dropna().to_dict()
    assert found == dict.fromkeys(disguises, manifest["image_path"][0])
    assert facts["duplicate_of"].isna().all()


def test_quarantine_is_skipped_everywhere_and_counts_add_up(small):
    root, manifest = small
    assert len(read_dataset(root)) == 8
    listed = write_quarantine(manifest, audit(manifest, root), root)
    assert set(listed["image_path"]) == {"tiny.png", "cut.png", "text.png"}
    kept = read_dataset(root)
    assert len(kept) == 5
    report = kept.attrs["report"]["rows"]
    assert report["dropped: in quarantine: not an image"] == 1
    assert report["in all"] == 8
    assert len(read_dataset(root, quarantined=True)) == 8
    assert (root / "tiny.png").is_file()  # nothing was deleted
    noise(root / "text.png", np.random.default_rng(5))  # replaced by a good one
    assert len(read_dataset(root)) == 6
    images, kept, _ = pack_images(read_dataset(root), root, 32)
    assert len(images) == len(kept) == 6


def test_of_duplicates_the_one_in_the_test_part_is_kept(small):
    root, manifest = small
    listed = write_quarantine(manifest, audit(manifest, root), root, duplicates=True)
    reasons = dict(zip(listed["image_path"], listed["reason"], strict=True))
    assert reasons["a.png"] == "duplicate of copy.png"
    assert "copy.png" not in reasons
    again = audit(kept := read_dataset(root), root)
    assert again["duplicate_of"].isna().all() and not again["leaks"].any()
    assert len(kept) == 4
    write_quarantine(kept, again, root)  # a later check that finds nothing empties the list
    assert pd.read_csv(work_folder(root) / QUARANTINE).empty
    assert len(read_dataset(root)) == 8


def test_of_many_copies_exactly_one_stays(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        noise(tmp_path / f"{name}1.png", generator)
        for i in (2, 3):
            shutil.copy(tmp_path / f"{name}1.png", tmp_path / f"{name}{i}.png")
    names = [f"{name}{i}.png" for name in "ab" for i in (1, 2, 3)]
    manifest = pd.DataFrame({"image_path": names, "emotion": 1, "valence": np.nan})
    manifest["split"] = ["train", "val", "test", "train", "test", "test"]
    manifest["arousal"] = np.nan
    listed = write_quarantine(manifest, audit(manifest, tmp_path), tmp_path, duplicates=True)
    assert set(names) - set(listed["image_path"]) == {"a3.png", "b2.png"}


def test_an_edited_quarantine_list_gets_one_sentence(small):
    root, manifest = small
    write_quarantine(manifest, audit(manifest, root), root)
    path = work_folder(root) / QUARANTINE
    path.write_text(path.read_text().replace(",", ";"))
    with pytest.raises(EmoError, match="quarantine.csv lacks the columns"):
        read_dataset(root)


def test_250_mutated_images_are_found_or_readable(faces, tmp_path):
    generator = np.random.default_rng(0)
    source = read_dataset(faces)["image_path"].head(10)
    originals = [(faces / path).read_bytes() for path in source]
    for path in source[:5]:  # JPEGs, and as many PNGs
        originals.append(cv2.imencode(".png", cv2.imread(str(faces / path)))[1].tobytes())
    rows = []
    for number in range(250):
        data = bytearray(originals[number % len(originals)])
        for _ in range(generator.integers(1, 5)):
            data[generator.integers(len(data))] = generator.integers(256)
        if number % 3 == 0:
            data = data[: generator.integers(len(data))]
        (tmp_path / f"{number}.jpg").write_bytes(data)
        rows.append((f"{number}.jpg", number % 8))
    pd.DataFrame(rows, columns=["image_path", "emotion"]).to_csv(tmp_path / "labels.csv")
    manifest = split_manifest(read_dataset(tmp_path))
    facts = audit(manifest, tmp_path)
    unreadable = [decode(tmp_path / path) is None for path in manifest["image_path"]]
    damaged = facts["fault"].isin(["cut off or damaged", "not an image"])
    assert damaged.tolist() == unreadable
    assert 60 < damaged.sum() < 200
    images, kept, _ = pack_images(manifest, tmp_path, 32)
    assert len(kept) == len(images) == 250 - damaged.sum()
    assert len(kept) + len(kept.attrs["unreadable"]) == 250
    listed = write_quarantine(manifest, facts, tmp_path)
    assert len(read_dataset(tmp_path)) == 250 - len(listed)
