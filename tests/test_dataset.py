import json
import shutil
import tracemalloc
from collections import deque

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from emo import EmoError, bench, dataset
from emo.dataset import (
    FaceDataset,
    augment,
    decode,
    make_loader,
    normalise,
    pack_images,
    resize_face,
    split_manifest,
)
from emo.sources import read_dataset


def table(rows=1000, groups=None):
    generator = np.random.default_rng(0)
    manifest = pd.DataFrame({"image_path": [f"{i}.png" for i in range(rows)]})
    manifest["emotion"] = generator.integers(0, 8, rows)
    if groups:
        manifest["group"] = generator.integers(0, groups, rows)
    return manifest


def test_splits_are_stratified_and_stable_under_reordering():
    manifest = table()
    split = split_manifest(manifest)["split"]
    assert split.value_counts(normalize=True).round(2).to_dict() == {
        "train": 0.70,
        "val": 0.15,
        "test": 0.15,
    }
    shares = pd.crosstab(manifest["emotion"], split, normalize="index")
    assert (shares["test"].between(0.12, 0.18)).all()
    shuffled = split_manifest(manifest.sample(frac=1, random_state=1))["split"]
    assert shuffled.sort_index().equals(split)
    assert not split_manifest(manifest, seed=1)["split"].equals(split)


def test_a_group_never_straddles():
    manifest = split_manifest(table(groups=100))
    assert manifest.groupby("group")["split"].nunique().max() == 1
    assert manifest["split"].value_counts(normalize=True)["train"] == pytest.approx(0.7, abs=0.05)


def test_official_parts_are_kept_and_val_comes_out_of_train():
    manifest = table().assign(split=["test"] * 100 + [""] * 900)
    split = split_manifest(manifest)["split"]
    assert (split[:100] == "test").all()
    assert set(split[100:]) == {"train", "val"}
    manifest["split"] = ["test"] * 100 + ["train"] * 900
    assert set(split_manifest(manifest)["split"][100:]) == {"train", "val"}
    manifest["split"] = ["test"] * 100 + ["val"] * 100 + ["train"] * 800
    assert split_manifest(manifest)["split"].equals(manifest["split"])
    with pytest.raises(EmoError, match="dev"):
        split_manifest(manifest.assign(split="dev"))


def test_an_open_row_follows_the_official_part_of_its_group():
    manifest = table(groups=100)
    manifest["split"] = ""
    manifest.loc[:99, "split"] = "test"
    split = split_manifest(manifest)
    assert (split["split"][:100] == "test").all()
    assert split.groupby("group")["split"].nunique().max() == 1


def test_an_official_validation_part_alone_becomes_the_test_part():
    manifest = table().assign(split=["val"] * 100 + ["train"] * 900)
    split = split_manifest(manifest)["split"]
    assert (split[:100] == "test").all()
    assert set(split[100:]) == {"train", "val"}


def test_pack_is_made_once_and_again_when_a_file_changes(faces, tmp_path):
    root = shutil.copytree(faces, tmp_path / "faces", ignore=shutil.ignore_patterns(".emo"))
    manifest = read_dataset(root)
    images, kept, colour = pack_images(manifest, root, 32)
    assert images.shape == (len(manifest), 32, 32, 3)
    assert colour == "rgb"
    face = cv2.cvtColor(decode(root / kept["image_path"][5]), cv2.COLOR_BGR2RGB)
    assert np.array_equal(images[5], resize_face(face, 32))
    (pack,) = (root / ".emo").glob("*.npy")
    written = pack.stat().st_mtime_ns
    pack_images(manifest, root, 32)
    assert pack.stat().st_mtime_ns == written
    (root / kept["image_path"][5]).write_bytes(b"no image any more")
    images, kept, _ = pack_images(manifest, root, 32)
    assert len(images) == len(kept) == len(manifest) - 1
    assert kept.attrs["unreadable"] == [manifest["image_path"][5]]


def test_an_interrupted_pack_goes_on_where_it_stopped(faces, monkeypatch, tmp_path):
    root = shutil.copytree(faces, tmp_path / "faces", ignore=shutil.ignore_patterns(".emo"))
    manifest = read_dataset(root)
    monkeypatch.setattr(dataset, "BLOCK", 16)
    monkeypatch.setattr(dataset, "CHUNK", 8)
    (root / manifest["image_path"][3]).write_bytes(b"no image")
    true_decode, seen = dataset.decode, []

    def decode_some(path, flags):
        seen.append(path)
        if len(seen) > 40:
            raise KeyboardInterrupt
        return true_decode(path, flags)

    monkeypatch.setattr(dataset, "decode", decode_some)
    with pytest.raises(KeyboardInterrupt):
        pack_images(manifest, root, 32)
    assert not list((root / ".emo").glob("*.npy"))
    (note,) = (root / ".emo").glob("*.json")
    done = json.loads(note.read_text())["done"]
    assert done in (16, 32)
    seen.clear()
    monkeypatch.setattr(dataset, "decode", lambda p, f: seen.append(p) or true_decode(p, f))
    images, kept, _ = pack_images(manifest, root, 32)
    assert len(seen) == len(manifest) - done
    assert kept.attrs["unreadable"] == [manifest["image_path"][3]]
    whole, _, _ = pack_images(manifest.iloc[::-1], root, 32)  # another order: packed in one go
    assert np.array_equal(images[np.arange(len(kept))], whole[np.arange(len(kept))[::-1]])


def test_a_deleted_pack_leaves_nothing_that_misleads_the_next(faces, monkeypatch, tmp_path):
    root = shutil.copytree(faces, tmp_path / "faces", ignore=shutil.ignore_patterns(".emo"))
    manifest = read_dataset(root)
    whole = np.array(pack_images(manifest, root, 32)[0])
    next((root / ".emo").glob("*.npy")).unlink()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dataset, "decode", interrupt)
        pack_images(manifest, root, 32)
    assert np.array_equal(pack_images(manifest, root, 32)[0], whole)


def test_without_a_pack_the_same_faces_come(faces, tmp_path):
    root = shutil.copytree(faces, tmp_path / "faces", ignore=shutil.ignore_patterns(".emo"))
    manifest = split_manifest(read_dataset(root))
    packed, _, _ = pack_images(manifest, root, 32)
    images, kept, colour = pack_images(manifest, root, 48, pack=False)
    assert not list((root / ".emo").glob("faces48*"))
    assert (len(images), colour) == (len(kept), "rgb")
    images, kept, _ = pack_images(manifest, root, 32, pack=False)
    rows = np.array([5, 0, 9])
    assert np.array_equal(images[rows], packed[rows])
    part = FaceDataset(images, kept).part("val")
    batch = next(iter(make_loader(part, 4)))
    assert batch["image"].shape == (4, 3, 32, 32)
    (root / part.manifest["image_path"].iloc[0]).write_bytes(b"no image")
    with pytest.raises(EmoError, match="emo check"):
        next(iter(make_loader(part, 4)))


def test_a_folder_that_cannot_be_written_is_packed_in_the_cache(faces, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    manifest = read_dataset(faces).head(20)
    images, _, _ = pack_images(manifest, faces, 33)
    assert images.shape == (20, 33, 33, 3)
    assert len(list((tmp_path / "cache" / "emo").glob("*/faces33-*.npy"))) == 1


def test_grey_images_are_noticed(tmp_path):
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((40, 40), 20 * i, np.uint8))
    manifest = pd.DataFrame({"image_path": [f"{i}.png" for i in range(8)]})
    assert pack_images(manifest, tmp_path, 32)[2] == "grey"


def test_a_full_disk_is_refused_before_anything_is_written(faces, monkeypatch, tmp_path):
    root = shutil.copytree(faces, tmp_path / "faces", ignore=shutil.ignore_patterns(".emo"))
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(EmoError, match="not enough space .*--no-pack"):
        pack_images(read_dataset(root), root, 32)
    assert not [p for p in (root / ".emo").iterdir() if p.suffix != ".lock"]


def test_batches(faces):
    manifest = split_manifest(read_dataset(faces))
    images, manifest, _ = pack_images(manifest, faces, 32)
    part = FaceDataset(images, manifest).part("train")
    batches = list(make_loader(part, 16, shuffle=True, seed=3))
    assert sum(len(batch["image"]) for batch in batches) == len(part)
    first = batches[0]
    assert first["image"].shape == (16, 3, 32, 32)
    assert first["image"].dtype == torch.uint8
    assert first["emotion"].dtype == torch.int64
    assert first["va"].shape == (16, 2)
    again = next(iter(make_loader(part, 16, shuffle=True, seed=3)))
    assert torch.equal(first["image"], again["image"])
    other = next(iter(make_loader(part, 16, shuffle=True, seed=4)))
    assert not torch.equal(first["image"], other["image"])
    row = part[7]
    assert row["emotion"] == part.manifest["emotion"][7]
    assert np.array_equal(row["image"].permute(1, 2, 0), part.images[np.array([7])][0])
    with pytest.raises(EmoError, match="no dev part"):
        FaceDataset(images, manifest).part("dev")


def test_normalise_by_hand():
    image = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    image[:, 1:] = 0  # pure red
    rgb = normalise(image)
    assert rgb[0, :, 0, 0].tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    )
    grey = normalise(image, mean=(0, 0, 0), std=(1, 1, 1), colour="grey")
    assert grey[0, :, 0, 0].tolist() == pytest.approx([0.299] * 3)


def test_augment_moves_each_image_differently_and_keeps_what_it_shows():
    torch.manual_seed(0)
    image = torch.zeros(64, 3, 33, 33)
    image[:, :, 14:19, 24:29] = 1  # a patch to the right of the middle
    moved = augment(image)
    assert moved.shape == image.shape
    assert moved.sum(dim=(1, 2, 3)).sub(75).abs().max() < 5
    columns = moved.mean(dim=(1, 2)).argmax(dim=1)
    left = (columns < 16).float().mean()
    assert 0.3 < left < 0.7  # half of them are mirrored
    still = augment(image, degrees=0)
    same = [torch.allclose(a, image[0], atol=1e-5) for a in still]
    mirrored = [torch.allclose(a, image[0].flip(-1), atol=1e-5) for a in still]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert any(same) and any(mirrored)


def test_crops_stay_inside_and_shifts_move():
    ramp = torch.linspace(0, 1, 64).expand(256, 1, 64, 64)  # grows to the right
    torch.manual_seed(0)
    cropped = augment(ramp, degrees=0, zoom=0.4)
    width = (cropped[..., -1] - cropped[..., 0]).abs().mean(dim=(1, 2))
    assert 0.7 < width.min() < 0.75 and width.max() > 0.95  # sqrt(1 − 0.4), a little stretched
    shifted = augment(ramp, degrees=0, shift=0.1)
    middle = shifted[..., 31:33].mean(dim=(1, 2, 3))
    assert 0.39 < middle.min() < 0.42 and 0.58 < middle.max() < 0.61


@pytest.mark.parametrize("face", [None, np.zeros((0, 0, 3), np.uint8), np.zeros((5, 5), np.uint8)])
def test_resize_refuses_what_is_no_face(face):
    with pytest.raises(EmoError, match="BGR"):
        resize_face(face, 32)


def test_decode_of_what_is_no_image(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    assert decode(tmp_path / "empty.png") is None
    assert decode(tmp_path / "text.png") is None
    assert decode(tmp_path / "none.png") is None


def test_a_jpeg_that_was_cut_off_is_no_image(faces, tmp_path):
    path = faces / read_dataset(faces)["image_path"][0]
    data = path.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[:-2])
    (tmp_path / "longer.jpg").write_bytes(data + b"what some cameras append")
    assert decode(tmp_path / "cut.jpg") is None
    assert np.array_equal(decode(tmp_path / "longer.jpg"), decode(path))


def peak_megabytes(function):
    """Most memory that Python and NumPy hold during a call; mapped files do not count."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


@pytest.mark.slow
def test_400_000_images_need_little_memory(tmp_path):
    rows = 400_000
    root = bench.write_large(tmp_path / "large", rows)
    assert peak_megabytes(lambda: split_manifest(read_dataset(root))) < 1000
    shape = (rows, 64, 64, 3)  # of a pack that is a hole in the disk, and takes no room there
    images = np.lib.format.open_memmap(tmp_path / "p.npy", "w+", np.uint8, shape)

    def epoch():
        labels = {"image_path": [f"images/{i:06d}.jpg" for i in range(rows)], "emotion": 0}
        labels = pd.DataFrame(labels).assign(valence=0.1, arousal=0.1, split="train")
        faces = FaceDataset(images, labels)
        deque(make_loader(faces, 64, shuffle=True), maxlen=0)

    assert peak_megabytes(epoch) < 1000
