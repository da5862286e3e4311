"""What is said of a GPU that others use, that heat slows down, or of which the driver tells nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from conftest import ROOT, wait_for

from autoresearch.runner import gpu
from autoresearch.runner.gpu import Look, Watch

ASK = """
import os, sys
from autoresearch.runner import gpu
gpu.LOOK = 0.05
watch = gpu.Watch({"CUDA_VISIBLE_DEVICES": sys.argv[1]})
while len(watch.looks) < 3 and any(thread.name == "gpu" for thread in gpu.threading.enumerate()):
    pass
watch.end()
print(watch.taken(), watch.is_free(0.05))
"""


@pytest.fixture
def asked(nvml):
    """What a watch says where the library tells these numbers (tests/nvml.c); None: where there is no driver."""

    def ask(told: str | None, device: str = "0") -> str:
        if told is not None:
            Path(nvml["FAKE_NVML"]).write_text(told)
        environment = {**os.environ, **nvml, "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-c", ASK, device]
        return subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout

    return ask


@pytest.mark.parametrize(
    ("told", "share", "by"),
    [
        ("100 0 100 1400 1980 4", 0.0, ""),  # its limit of power is no disturbance
        ("60 40 100 1980 1980 0", 0.4, "other programs used 40% of the GPU"),
        ("60 20 80 1980 1980 0", 0.0, ""),  # of which as much was idle anyway
        ("100 0 100 990 1980 64", 0.5, "heat or its power supply took 50% of the GPU's clock"),
        ("80 20 100 990 1980 128", 0.7, "heat or its power supply took 70%"),
        ("0 90 100 1980 1980 0", 0.0, ""),  # a container: no process of ours is shown
        ("60 40 100 0 0 0", 0.4, "other programs used 40%"),  # it does not tell why it is slow
    ],
)
def test_what_was_taken_of_a_gpu(asked, told, share, by):
    said = asked(told)
    assert f"Taken(share={share}, words='{by}" in said.replace('"', "'"), said


def test_nothing_is_known_where_there_is_nothing_to_ask(asked):
    assert asked(None) == "None True\n"  # no driver
    assert asked("60 40 100 1980 1980 0", "3") == asked("60 40 100 1980 1980 0", "MIG-7") == "None True\n"
    assert "40%" in asked("60 40 100 1980 1980 0", "GPU-7,GPU-8")


def test_a_driver_that_never_answers_holds_nothing_up(monkeypatch):
    asked, never = [], gpu.threading.Event()
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: asked.append(True) or never.wait())
    watch = Watch({})
    wait_for(lambda: asked, 5)
    watch.end()
    assert watch.taken() is None and watch.is_free(0.0)
    never.set()


def test_a_gpu_is_free_by_its_last_look():
    watch = Watch({"CUDA_VISIBLE_DEVICES": "none"})
    watch.looks += [Look(0.0, 0.5, 0.5, 0.0), Look(0.0, 0.02, 0.9, 0.0)]
    assert watch.is_free(0.05)
    for last in (Look(0.0, 0.0, 0.9, 0.2), Look(0.0, 0.0, 1.0, 0.0, held=0.5)):
        watch.looks.append(last)
        assert not watch.is_free(0.05)
