"""The way to the browser."""

from base64 import b64encode

from google.colab import FOLDER


def enable_custom_widget_manager():
    """Allow widgets that Colab does not know; anywidget calls this when one is made."""
    (FOLDER / "custom widgets").touch()


def eval_js(script):
    """Return what the browser's camera would: a JPEG as a data URL."""
    assert "getUserMedia" in script
    return "data:image/jpeg;base64," + b64encode((FOLDER / "photo.jpg").read_bytes()).decode()
