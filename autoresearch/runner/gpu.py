"""How much of the GPU other programs used while a trial trained, or heat cost; neighbours.py does the same for the CPU.

NVIDIA's driver reports which processes used the GPU in the last seconds, how fast it runs, and why not faster. In a
container it may hide the processes, in WSL it reports less, and elsewhere there is no driver: what is unknown counts as
no disturbance.
"""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Mapping

from autoresearch.runner.process import family
from autoresearch.shortage import GPU_MEMORY

LOOK = 5.0  # seconds between two looks
# Reasons for a lower clock (clocksEventReason of nvml.h): heat, a power brake of the host or the card. Not the limit of
# its power, which code that uses the GPU better reaches sooner.
SLOWED = 0x08 | 0x20 | 0x40 | 0x80
MOST_HELD = 0.2  # share of the GPU's memory that others may hold, where a trial ran out of it


@dataclasses.dataclass(frozen=True)
class Look:
    """Shares, 0 to 1."""

    own: float  # of the GPU's time that this program and its descendants used
    others: float  # that other programs used
    idle: float
    slowed: float  # of its highest clock that was lost to heat or the power supply
    held: float = 0.0  # of its memory that is in use, by anybody


@dataclasses.dataclass(frozen=True)
class Taken:
    """What a trial could not use: see `taken` and `taken_by` of Measurement."""

    share: float
    words: str = ""  # empty: other programs used it, of the CPU


class Watch:
    """Looks at a GPU again and again, until `end` is called. environment: of a trial; its variables select the GPU.

    It does so in a thread, since a driver in trouble may never answer: what is known so far can be asked at any time.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.looks: list[Look] = []
        self._ended = threading.Event()
        self.thread = threading.Thread(target=self._look_on, args=[dict(environment)], daemon=True, name="gpu")
        self.thread.start()

    def end(self) -> None:
        self._ended.set()

    def taken(self) -> Taken | None:
        """How much of it was taken so far that the trial could have used; None if unknown.

        A driver that shows none of this program's own processes does not show those of others either.
        """
        if not (looks := list(self.looks)):
            return None
        shown = any(look.own for look in looks)
        others = sum(max(0.0, look.others - look.idle) for look in looks if shown) / len(looks)
        slowed = sum(look.slowed for look in looks) / len(looks)
        share = round(min(1.0, others + slowed), 3)
        if not share:
            return Taken(share)
        if others >= slowed:
            return Taken(share, f"other programs used {share:.0%} of the GPU while it trained")
        return Taken(share, f"heat or its power supply took {share:.0%} of the GPU's clock while it trained")

    def is_free(self, most: float) -> bool:
        """Whether, at the last look, others and heat took at most this share, and memory was free. For use while no
        trial runs.
        """
        if not self.looks:
            return True
        last = self.looks[-1]
        return last.others + last.slowed <= most and last.held <= MOST_HELD

    def _look_on(self, environment: dict[str, str]) -> None:
        with contextlib.suppress(Exception):  # no package, no driver, no such GPU, whatever a driver says
            import pynvml

            pynvml.nvmlInit()
            try:
                device = chosen(environment)
                while device is not None:
                    self.looks.append(look(device))
                    if self._ended.wait(LOOK):
                        break
            finally:
                pynvml.nvmlShutdown()


def memory_held(reason: str, environment: Mapping[str, str], patience: float = 10.0) -> Taken | None:
    """The share of the GPU's memory that other programs hold, if a trial failed because memory ran out; None if it is
    too small to matter, or unknown. To be called after all processes of the trial have ended.
    """
    if not GPU_MEMORY.search(reason):
        return None
    watch, until = Watch(environment), time.monotonic() + patience
    while not watch.looks and watch.thread.is_alive() and time.monotonic() < until:
        time.sleep(0.05)
    watch.end()
    held = watch.looks[0].held if watch.looks else 0.0
    return Taken(round(held, 3), f"other programs held {held:.0%} of the GPU's memory") if held > MOST_HELD else None


def chosen(environment: Mapping[str, str]):
    """NVML's handle of the GPU that a trial uses; None if it cannot be determined."""
    import pynvml

    name = environment.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    if not name.isdigit():
        return pynvml.nvmlDeviceGetHandleByUUID(name)
    devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    in_order = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"  # else CUDA counts the fastest kind first
    if not in_order and len({pynvml.nvmlDeviceGetName(device) for device in devices}) > 1:
        return None
    return devices[int(name)]


def look(device) -> Look:
    """Look at a GPU, by its handle."""
    import pynvml

    own, others, idle, slowed, held = 0.0, 0.0, 0.0, 0.0, 0.0
    with contextlib.suppress(pynvml.NVMLError):  # this one does not tell, or nobody has used it
        since = int(1e6 * (time.time() - LOOK))
        samples = pynvml.nvmlDeviceGetProcessUtilization(device, since)
        newest = {sample.pid: sample for sample in sorted(samples, key=lambda sample: sample.timeStamp)}
        ours = {process.pid for process in family(os.getpid())}
        for pid, sample in newest.items():
            if sample.timeStamp >= since and 0 <= sample.smUtil <= 100:
                share = sample.smUtil / 100
                own, others = (own + share, others) if pid in ours else (own, others + share)
        idle = 1 - int(pynvml.nvmlDeviceGetUtilizationRates(device).gpu) / 100
    with contextlib.suppress(pynvml.NVMLError):
        if pynvml.nvmlDeviceGetCurrentClocksEventReasons(device) & SLOWED:
            clock = pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM)
            highest = pynvml.nvmlDeviceGetMaxClockInfo(device, pynvml.NVML_CLOCK_SM)
            slowed = max(0.0, 1 - clock / highest) if highest else 0.0
    with contextlib.suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(device)
        held = int(memory.used) / int(memory.total)
    return Look(own, others, idle, slowed, held)
