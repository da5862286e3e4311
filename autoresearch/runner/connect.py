"""Reaching a Ray cluster, or saying what to type where there is none."""

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
from pathlib import Path

from autoresearch import UserError
from autoresearch.text import one_line

# Environment variables of Ray's: it looks for the cluster once; nodes have their own environment, not one that they
# build from the words after `uv run`; what it has to say of nodes is not printed between the lines of a night: the loop
# says it.
OF_RAY = {
    "RAY_NUM_REDIS_GET_RETRIES": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
}
COMMAND = "uv run --group cluster loop.py --cluster"
SETTINGS = 4  # kind of the frame with which both sides of HTTP/2 begin (RFC 9113)
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, SETTINGS, 0, 0, 0, 0, 0))
REACHED = 5.0  # seconds for the cluster to answer


async def connect(asked: str) -> None:
    """Make this process a driver of a cluster. asked: auto, or host:port. Raises UserError."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"--cluster needs Ray, which is not installed here. Type: {COMMAND} {asked}")
    address = address_of(asked)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--cluster takes auto or HOST:PORT, such as 10.0.0.1:6379, not {asked!r}")
    if not await answers(host, int(port)):
        raise UserError(
            f"no cluster answers at {address}. See what runs there: `uv run --group cluster ray status --address="
            f"{address}`; start one: `uv run --group cluster ray start --head` (docs/cluster.md)"
        )
    for name, value in OF_RAY.items():
        os.environ.setdefault(name, value)
    if host == "127.0.0.1" and not await answers(own_address(), int(port)):
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else Ray would ask at this machine's other address
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address, namespace="autoresearch", log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise UserError(
            f"the cluster at {address} cannot be used from here: {one_line(str(error), 300)}. This machine has to be "
            f"one of its nodes: `uv run --group cluster ray start --address={address} --num-cpus=0 --num-gpus=0` "
            "makes it one without seats"
        ) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray's would end the loop in the midst of a step


def address_of(asked: str) -> str:
    """Where a cluster is to be asked for: RAY_ADDRESS, or what Ray noted of the one on this machine. Raises
    UserError."""
    if asked != "auto":
        return asked
    if address := os.environ.get("RAY_ADDRESS"):
        return address
    noted = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray/ray_current_cluster"
    with contextlib.suppress(OSError):
        return noted.read_text().strip()
    raise UserError(
        "no cluster runs on this machine, and RAY_ADDRESS names none. Start one: `uv run --group cluster ray start "
        f"--head`, or name one: {COMMAND} HOST:6379 (docs/cluster.md)"
    )


def own_address() -> str:
    """This machine's address, as others see it. Nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(("192.0.2.1", 1))
        return asking.getsockname()[0]
    return "127.0.0.1"


async def answers(host: str, port: int) -> bool:
    """Whether a server that speaks HTTP/2, as all of Ray's do to one another, is there: Ray would wait for minutes."""
    try:
        async with asyncio.timeout(REACHED):
            reader, writer = await asyncio.open_connection(host, port)
            with contextlib.closing(writer):
                writer.write(GREETING)
                return (await reader.readexactly(9))[3] == SETTINGS
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
