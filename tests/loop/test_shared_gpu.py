"""A GPU that others use as well, or that heat slows down, is no bad idea. The GPU is a made-up one (nvml.c)."""

from pathlib import Path

import pytest
from conftest import Toy

LOOP = Path(__file__).with_name("quota_loop.py")  # what others take of the processors would count, too
SOLVER = """# {edit}
import json, os, pathlib, time

progress = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"], "progress.json")
progress.write_text(json.dumps({{"clock": time.time(), "budget": 3.0}}))
time.sleep(3)
print("score: 1")
VALUE = {edit}
"""
FACTS = """print('{"profile": "gpu", "most_taken": 0.05, "time_budget": 3, "noise": 0.4}')"""
ALONE, BESIDE, HOT = "100 0 100 1980 1980 4", "60 40 100 1980 1980 0", "100 0 100 1500 1980 64"


@pytest.fixture
def with_gpu(toy, nvml) -> Toy:
    toy.against_the_clock(FACTS, SOLVER, range(2, 5))
    toy.environment |= {**nvml, "CUDA_VISIBLE_DEVICES": "0"}
    return toy


def test_what_others_take_of_the_gpu_is_not_held_against_an_edit(with_gpu, nvml):
    def night(experiments: int, gpu: str) -> str:
        Path(nvml["FAKE_NVML"]).write_text(gpu)
        return with_gpu.run_agent(experiments, loop=LOOP)

    night(1, ALONE)
    output = night(2, BESIDE)
    assert "other programs used 40% of the GPU while it trained, so it made less progress: it runs again" in output
    assert "waiting until the machine is free" in output
    assert [entry["taken"] for entry in with_gpu.journal("rerun")] == [0.4, 0.4], "at most twice"
    [beside] = with_gpu.journal("in turn")
    assert beside["number"] == 1 and beside["taken"] == 0.4, "after that the champion runs beside it, too"
    night(3, BESIDE)
    assert len(with_gpu.journal("rerun")) == 2 and len(with_gpu.journal("in turn")) == 1, "with which others compare"
    night(4, HOT)
    said = [verdict["reason"] for verdict in with_gpu.journal("verdict")]
    assert "took" not in said[0] and said[3].endswith(
        "heat or its power supply took 24% of the GPU's clock while it trained"
    )
    assert said[1].endswith("other programs used 40% of the GPU while it trained")
    with_gpu.require_whole()


def test_a_gpu_of_which_the_driver_tells_nothing_is_taken_for_left_alone(with_gpu):
    with_gpu.run_agent(2, loop=LOOP)  # there is no driver
    assert not with_gpu.journal("rerun") and {entry["taken"] for entry in with_gpu.journal("measured")} == {None}


def test_memory_that_others_hold_is_not_held_against_an_edit(with_gpu, nvml):
    """One that runs out of it by itself crashes at once; beside others it runs again, when they are gone."""
    sources = (
        SOLVER.format(edit=n).replace("time.sleep(3)", "raise MemoryError('CUDA out of memory')") for n in (2, 3)
    )
    edits = ([{"files": {"solver.py": source}, "say": "large"}] for source in sources)
    with_gpu.plan_steps(e2=next(edits), e3=next(edits))
    Path(nvml["FAKE_NVML"]).write_text(f"{ALONE} 5")
    with_gpu.run_agent(2, loop=LOOP)
    assert with_gpu.statuses() == ["keep", "crash"] and not with_gpu.journal("rerun")
    Path(nvml["FAKE_NVML"]).write_text(f"{ALONE} 75")
    output = with_gpu.run_agent(3, loop=LOOP)
    assert "other programs held 75% of the GPU's memory, so it made less progress: it runs again" in output
    assert [entry["taken"] for entry in with_gpu.journal("rerun")] == [0.75, 0.75]
    assert with_gpu.statuses() == ["keep", "crash", "crash"]
