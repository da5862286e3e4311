"""What a run on this machine would use: for the loop's first screen, its journal and its sandbox. Imports no torch."""

import contextlib
import importlib.metadata
import json
import os
import platform

from autoresearch import cuda
from autoresearch.data.sources import source_folder
from autoresearch.data.texts import digest
from autoresearch.machine_facts import driver_version
from prepare import Game, stop

# The standard deviation of the scores of identical code, as far as it is known before a run has measured its own: on an
# H100 another seed moves a score by 0.0007; a CPU shared with others trains more steps in one minute than in the next.
NOISE = {"gpu": 0.0007, "cpu": 0.003, "test": 0.02}


def machine() -> dict[str, str]:
    """What a reader of the results needs to know of the machine, besides the device."""
    facts = {
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        facts["processor"] = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    if driver := driver_version():
        facts["driver"] = driver
    return facts


# The share of the processors that others may take of a trial more than of its champion. A twentieth less training costs
# about what noise does; a quiet machine's own services take less (bench/RESULTS.md).
MOST_TAKEN = 0.05


def game_name(files: dict) -> str:
    """A name for the text that is trained and scored on; the rows that only probes read do not belong to it."""
    named = {name: entry for name, entry in files.items() if name != "spare.bin"}
    return digest(json.dumps(named, sort_keys=True)).hex()[:12]


def describe(game: Game) -> dict:
    """The facts, ready for JSON. `game` names the prepared data; None when they are not there yet.

    Ends the program where the game needs a GPU that cannot be used.
    """
    manifest, name = game.manifest(), game.profile.name
    chosen = bool(os.environ.get("AUTORESEARCH_PROFILE"))
    driver = cuda.driver() if name == "gpu" or not chosen else None
    if name == "gpu" and (why := cuda.why_not(driver)):
        stop(why)
    return {
        "profile": name,
        "device": driver.name if driver and name == "gpu" else f"CPU, {os.cpu_count()} cores",
        "note": cuda.note(name, chosen, driver),
        "machine": machine(),
        "data": game.data,
        "time_budget": game.profile.time_budget,
        "seed": game.seed,
        "cache": str(game.folder),
        "game": manifest and game_name(manifest["files"]),
        "noise": NOISE[name],  # what the score's standard deviation usually is
        "implausible_gain": 0.05 if name == "gpu" else None,  # bits a byte over the champion
        "most_taken": None if name == "test" else MOST_TAKEN,
        "hidden": [str(game.folder), str(source_folder(game))],  # no trial sees text but through the referee
    }
