"""What the course uses of Colab's package, which exists only there. See tests/test_colab.py.

`google` has no `__init__.py` here, because protobuf's modules belong to the same name.
"""

import os
from pathlib import Path

FOLDER = Path(os.environ["FAKE_COLAB"])  # holds photo.jpg and drive/MyDrive/, made by the test

from google.colab import drive, files, output, userdata  # noqa: E402, F401 - they use FOLDER
