"""What the doctor finds out about a machine. Anything that may take long, hang or crash runs in a separate process:

    python -m autoresearch.machine_facts torch          # or driver, game, network URL, confined SETTINGS

prints one JSON object.
"""

import contextlib
import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoresearch import keys
from autoresearch.text import one_line


def torch_facts() -> dict:
    """Of torch, and of the first GPU. `error`: what is wrong with it; empty where nothing is."""
    import torch

    from autoresearch import cuda

    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "error": ""}
    try:
        torch.cuda.init()
        device, (free, total) = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info(0)
    except Exception as error:  # whatever it says where there is none
        return facts | {"error": one_line(str(error).partition(". ")[0], 200)}
    facts |= {"gpu": device.name, "gpus": torch.cuda.device_count(), "free": free, "total": total}
    facts |= {"driver": driver_version(), "share": None}
    try:
        ones = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16)
        if (ones @ ones).float().mean().item() != 256:
            facts["error"] = "a product of matrices in bf16 comes out wrong"
        if (found := cuda.driver()) and found.mode:
            facts["error"] = cuda.SHARE
        os.environ["AUTORESEARCH_PROFILE"] = "gpu"
        import train  # which knows the rates of GPUs, and which it can do nothing with

        peak = train.peak_flops()
        facts["share"] = peak and peak / train.PEAK_FLOPS["H100"]
    except (Exception, SystemExit) as error:
        facts["error"] = one_line(str(error).removeprefix("error: "), 200)
    return facts


def confined_facts(given: str) -> dict:
    """What a trial can do: what it should not, as true or false; what it should, as what went wrong."""
    settings = json.loads(given)
    caches = Path(settings["caches"])

    def works(action: Callable[[], Any]) -> bool:
        return not trouble(action)

    def connect() -> None:
        socket.create_connection(("127.0.0.1", settings["port"]), 2).close()

    def rename() -> None:
        (caches / "a/file").write_text("x")
        (caches / "a/file").rename(caches / "b/file")

    def compile_c() -> None:
        source, library = caches / "a/probe.c", caches / "a/probe.so"
        source.write_text("#include <Python.h>\nint answer(void) { return 42; }\n")
        words = [c_compiler() or "gcc", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"]
        ended = subprocess.run([*words, str(source), "-o", str(library)], capture_output=True, text=True)
        if ended.returncode or ctypes.CDLL(str(library)).answer() != 42:
            raise OSError(ended.stderr.strip().partition("\n")[0] or f"exit code {ended.returncode}")

    return {
        "reads your files": any(works(Path(secret).read_bytes) for secret in settings["secrets"]),
        "sees your keys": any(map(keys.NAMES.search, os.environ)),
        "reaches the network": works(connect),
        "a rename": trouble(rename),
        "a C compile": trouble(compile_c),
    }


def trouble(action: Callable[[], Any]) -> str:
    """What went wrong in an action; empty where nothing did."""
    try:
        action()
    except OSError as error:
        return one_line(error.strerror or str(error), 120)
    return ""


def c_compiler() -> str | None:
    chosen = os.environ.get("CC")
    return next(filter(None, map(shutil.which, [chosen] if chosen else ["gcc", "clang"])), None)


def has_python_header() -> bool:
    return (Path(sysconfig.get_path("include")) / "Python.h").exists()


def driver_version() -> str | None:
    """Of NVIDIA's driver, where there is one."""
    with contextlib.suppress(OSError, IndexError):
        version = Path("/proc/driver/nvidia/version").read_text()
        return re.findall(r"Kernel Module.*?  (\d[\d.]*)", version)[0]
    return None


def has_nvidia_card() -> bool:
    """Whether a card of NVIDIA's is built in, or passed in from outside, whatever the driver says."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            kind = (device / "class").read_text()
            if (device / "vendor").read_text().strip() == "0x10de" and kind.startswith(("0x0300", "0x0302")):
                return True
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/usr/lib/wsl/lib/libcuda.so.1").exists()


def driver_facts() -> dict:
    """Why the game of the GPU cannot be played, and what to do; empty where NVIDIA's driver says nothing against it."""
    from autoresearch import cuda

    return {"why": cuda.why_not(cuda.driver()) or cuda.why_no_start()}


def models_at(port: int) -> list[str]:
    """The models of a server on this machine that lists them as OpenAI's does; empty where there is none."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/v1/models")
        listed = json.loads(connection.getresponse().read(1 << 20))["data"]
        return [one_line(str(model["id"]), 60) for model in listed]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return []
    finally:
        connection.close()


def game_facts() -> dict:
    """Of the game that the environment's settings mean, without torch."""
    from autoresearch.data.sources import Climbmix
    from prepare import GAME

    facts = {"profile": GAME.profile.name, "data": GAME.data, "cache": str(GAME.cache), "ready": bool(GAME.manifest())}
    if GAME.data == "climbmix":
        source = Climbmix(GAME)
        facts["url"] = f"{source.url}/{source.files('val')[0].name}"
    return facts


def network_facts(url: str) -> dict:
    """Why a file cannot be had; empty where it can."""
    import requests

    try:
        answer = requests.head(url, timeout=8, allow_redirects=True)
        return {"error": "" if answer.ok else f"the server answers {answer.status_code}"}
    except requests.RequestException as error:
        return {"error": f"{type(error).__name__} at {url.split('/')[2]}"}


FUNCTIONS = {
    "torch": torch_facts,
    "driver": driver_facts,
    "game": game_facts,
    "network": network_facts,
    "confined": confined_facts,
}

if __name__ == "__main__":
    print(json.dumps(FUNCTIONS[sys.argv[1]](*sys.argv[2:])))
