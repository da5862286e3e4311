"""What NVIDIA's driver says decides before anything takes long. The driver is a made-up one, in C."""

import shutil
import subprocess

import pytest
from conftest import ROOT
from test_end_to_end import Game

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="no C compiler")
# As driver 580: its start opens the names of its threads for writing, which a sandbox may deny.
DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int said(int place) {
    int numbers[6] = {0};
    sscanf(getenv("FAKE_CUDA"), "%d %d %d %d %d %d", numbers, numbers + 1, numbers + 2, numbers + 3, numbers + 4,
           numbers + 5);
    return numbers[place];
}
int cuInit(unsigned flags) {
    char path[99];
    sprintf(path, "/proc/self/task/%d/comm", getpid());
    FILE *name = fopen(path, "w");
    if (!name) return 304;
    fclose(name);
    return said(0);
}
int cuDriverGetVersion(int *version) { *version = said(1); return 0; }
int cuDeviceGetCount(int *count) { *count = said(2); return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "A Made-Up GPU", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? said(3) : attribute == 20 ? said(4) : 0; return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return said(5); }
"""

SAY_DEVICES = """
import os
print("devices", repr(os.environ.get("CUDA_VISIBLE_DEVICES")), flush=True)
"""


@pytest.fixture
def game(tmp_path, environment) -> Game:
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "driver/libcuda.so.1"
    library.parent.mkdir()
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    game = Game(
        tmp_path / "clone", {**environment, "LD_LIBRARY_PATH": str(library.parent), "AUTORESEARCH_DATA": "sotu"}
    )
    game.environment.pop("AUTORESEARCH_PROFILE")  # the machine decides
    game.environment.pop("CUDA_VISIBLE_DEVICES", None)
    return game


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            "0 12040 1 8",
            "NVIDIA's driver here is for CUDA 12.4, and PyTorch for CUDA 13: install driver 580 or later, or a PyTorch",
        ),
        ("0 13020 1 7", "A Made-Up GPU has no bf16, which came with the Ampere generation"),
        ("0 13020 1 9 3", "A Made-Up GPU: it lets only one program use it at a time, and a trial is several"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_refused_before_the_data(game, answers, said):
    output = game.run("--experiments", "1", expect=2, FAKE_CUDA=answers)
    assert said in output and "--profile cpu" in output and "Traceback" not in output, output
    assert "ready:" not in output and [entry["event"] for entry in game.journal()] == ["run"]  # nothing was tried


def test_a_driver_that_does_not_start_is_named(game):
    output = game.run("--experiments", "1", "--profile", "gpu", expect=2, FAKE_CUDA="804 13020 1 8")
    assert "CUDA does not start here (error 804)" in output


@pytest.mark.slow
def test_a_confined_trial_plays_the_game_that_was_begun(game):
    """It would find no GPU if it looked for one, and train the small model of the CPU."""
    output = game.run("--experiments", "1", "--agent", "sweep", expect=2, FAKE_CUDA="0 13020 2 9")
    assert "device    A Made-Up GPU" in output and "profile   gpu" in output
    assert "this machine has 2 GPUs, and the run uses the first" in output
    assert "PyTorch finds no GPU here, which the `gpu` profile needs" in output, output  # the made-up one ends there
    assert "the baseline crashed" in output and game.statuses() == ["crash"]


@pytest.mark.slow
def test_a_gpu_that_fails_in_the_night_is_no_fault_of_an_edit(game):
    """Its driver still answers, but no program can start on it any more (46: busy or unavailable)."""
    output = game.run("--experiments", "1", "--agent", "sweep", expect=2, FAKE_CUDA="0 13020 1 9 0 46")
    assert "its edit is not to blame: no program can start on the GPU (error 46)" in output, output
    assert not game.journal("verdict"), "the experiment runs again"


@pytest.mark.slow
def test_the_small_games_use_no_gpu_where_there_is_one(game):
    """The first screen says CPU, and torch would find the GPU all the same."""
    train = game.folder / "train.py"
    train.write_bytes(SAY_DEVICES.encode() + (ROOT / "tests/small_train.py").read_bytes())
    game.commit()
    output = game.run("--profile", "test", "--experiments", "1", "--baseline-runs", "1", FAKE_CUDA="0 13020 1 9")
    assert "device    CPU" in output and "devices ''" in (game.runs / "trials/1/train.log").read_text()
