"""Run a function in a process of its own and kill it (SIGKILL) at a moment that a seed chooses."""

import multiprocessing
import os
import time

import numpy as np

# Forked from a server that has imported PyTorch and the rest once: a start takes milliseconds.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["emo.cli", "emo.train", "emo.export", "emo.evaluation"])


def start(function, *args):
    process = context.Process(target=function, args=args)
    process.start()
    return process


def seconds(function, *args):
    """Run to the end and say how long it took."""
    start(os.getpid).join(300)  # the server has imported everything
    began, process = time.monotonic(), start(function, *args)
    process.join(300)
    assert process.exitcode == 0, f"exit code {process.exitcode}"
    return time.monotonic() - began


def kill_at_random(function, *args, longest, moments=20, seed=0):
    """Start and kill at `moments` moments of up to `longest` seconds; return how many were hit.

    The others had ended before their moment came.
    """
    hits = 0
    for wait in np.random.default_rng(seed).uniform(0, longest, moments):
        process = start(function, *args)
        process.join(wait)
        process.kill()
        process.join()
        assert process.exitcode in (0, -9), f"exit code {process.exitcode}"
        hits += process.exitcode == -9
    return hits
