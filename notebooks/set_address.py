"""Write the repository's public address everywhere it stands: `make badges REPO=owner/name`.

pyproject.toml's `project.urls` holds it; badges and Colab cells follow.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def address(root=ROOT):
    """Return owner/name from pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return "/".join(project["urls"]["Repository"].split("/")[-2:])


def set_address(new, root=ROOT):
    """Replace the old owner/name by `new`; return the files that changed."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        sys.exit(f"got {new!r}; expected owner/name: make badges REPO=owner/name")
    old, changed = address(root), []
    named = [root / "pyproject.toml", root / "CITATION.cff"]
    for path in [*named, *root.glob("*.md"), *root.glob("notebooks/*.*")]:
        text = path.read_text("utf-8")
        replaced = text.replace(f"github.com/{old}", f"github.com/{new}")
        replaced = replaced.replace(f"/github/{old}/", f"/github/{new}/")
        if replaced != text:
            path.write_text(replaced, "utf-8")
            changed.append(path.name)
    return changed


if __name__ == "__main__":
    print("changed:", ", ".join(set_address(sys.argv[1] if len(sys.argv) > 1 else "")) or "nothing")
