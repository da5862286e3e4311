"""What other programs, or heat, took of the GPU while a trial trained: neighbours.py does the same for the processors.

NVIDIA's driver tells which processes used the GPU in the last moment, how fast it runs, and why not faster. In a
container it may hide the processes, in WSL it tells less, and elsewhere there is none: what is not known is not held
against anybody.
"""

import contextlib
import dataclasses
import os
import re
import threading
import time
from collections.abc import Mapping

from autoresearch.runner.process import family

LOOK = 5.0  # seconds between two looks
# Heat, the card's or the host's brake on its power, and what the card does by itself when it gets too hot or too much
# power: clocksEventReason of nvml.h. Not the limit of its power, which a better use of it reaches sooner.
SLOWED = 0x08 | 0x20 | 0x40 | 0x80
MEMORY = re.compile("out ?of ?memory|memory of the GPU|more memory than there is|too little memory", re.IGNORECASE)
MOST_HELD = 0.2  # share of the GPU's memory that others may hold, where a trial ran out of it


@dataclasses.dataclass(frozen=True)
class Look:
    """Shares, 0 to 1."""

    own: float  # of the GPU's time that this program, and all that it started, used
    others: float  # and other programs
    idle: float
    slowed: float  # of its highest clock that heat or the power supply took
    held: float = 0.0  # of its memory that anybody holds


@dataclasses.dataclass(frozen=True)
class Taken:
    """What others took."""

    share: float
    words: str = ""  # empty: other programs, of the processors


class Watch:
    """Looks at a GPU from its making until `end`. environment: of a trial, whose variables choose the GPU.

    It does so in a thread, since a driver in trouble may never answer: whoever asks hears what is known so far.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.looks: list[Look] = []
        self._ended = threading.Event()
        self.thread = threading.Thread(target=self._look_on, args=[dict(environment)], daemon=True, name="gpu")
        self.thread.start()

    def end(self) -> None:
        self._ended.set()

    def taken(self) -> Taken | None:
        """What was taken of it so far, that the trial could have used; None where nobody knows.

        Where the driver shows none of this program's own processes, it says nothing of those of others either.
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
        """Whether, at the last look, others and heat took at most this share, and left memory. While no trial runs."""
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
    """What other programs hold of the GPU's memory, if it is for want of it that a trial has failed; None where that is
    too little to matter, or not known. To be asked when nothing of the trial is left.
    """
    if not MEMORY.search(reason):
        return None
    watch, until = Watch(environment), time.monotonic() + patience
    while not watch.looks and watch.thread.is_alive() and time.monotonic() < until:
        time.sleep(0.05)
    watch.end()
    held = watch.looks[0].held if watch.looks else 0.0
    return Taken(round(held, 3), f"other programs held {held:.0%} of the GPU's memory") if held > MOST_HELD else None


def chosen(environment: Mapping[str, str]):
    """The GPU that a trial uses, as the library knows it; None where that cannot be told."""
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
    """At a GPU now."""
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
