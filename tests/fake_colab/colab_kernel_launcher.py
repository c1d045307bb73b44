"""Start a kernel as Colab does: its package is imported before the first cell runs."""

import google.colab
from ipykernel import kernelapp

assert google.colab.output
kernelapp.launch_new_instance()
