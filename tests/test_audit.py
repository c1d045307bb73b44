import cv2
import numpy as np
import pandas as pd

from emo.audit import audit, class_table, summarise


def test_findings_on_a_small_set(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        noise = generator.integers(0, 255, (40, 40, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.png"), noise)
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "broken.png").write_bytes((tmp_path / "b.png").read_bytes()[:20])
    names = ["a.png", "b.png", "c.png", "copy.png", "tiny.png", "broken.png"]
    manifest = pd.DataFrame({"image_path": names, "emotion": [0, 1, 2, 3, 4, -1]})
    manifest["split"] = ["train", "train", "val", "test", "train", "train"]
    manifest["folder_emotion"] = [0, 1, 5, 3, 4, -1]
    manifest[["valence", "arousal"]] = np.nan
    facts = audit(manifest, tmp_path).set_index("image_path")
    assert not facts.loc["broken.png", "readable"]
    assert facts["readable"].sum() == 5
    assert facts.loc["copy.png", "duplicate_of"] == "a.png"
    assert facts["duplicate_of"].notna().sum() == 1
    assert facts.index[facts["leaks"]].tolist() == ["copy.png"]
    assert facts.index[facts["tiny"]].tolist() == ["tiny.png"]
    assert facts.index[facts["folder_disagrees"]].tolist() == ["c.png"]
    counts = summarise(manifest, audit(manifest, tmp_path))["count"].to_dict()
    assert counts["images"] == 6
    assert counts["without emotion"] == 1
    assert class_table(manifest).loc["all", "all"] == 6
