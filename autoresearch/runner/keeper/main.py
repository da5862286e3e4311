"""Run a command below a keeper.

sandbox.py makes the words by which it is started, the rules among them as JSON, for example
`{"by": "Landlock", "read": ["/data"], "write": ["/out"], "hidden": ["/data/secret"]}`. A name like $TMPDIR in a path is
looked up in the environment that the command gets.

Every process of a trial waits for this program: what few of them need is imported where it is needed.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from . import GROUP, PARENT
from .kernel import CHILD_SUBREAPER, PARENT_DEATH_SIGNAL, libc
from .landlock import restrict, set_apart
from .paths import has_cuda, paths_of
from .privileges import (
    TERMINALS,
    drop_privileges,
    enter_namespaces,
    enter_own_rooms,
    needs_override,
    wants_shared_memory,
)
from .system_calls import cut_off

if TYPE_CHECKING:
    import socket

GRACE_SECONDS = 4.0  # between SIGTERM and SIGKILL


def run(rules: dict | None, command: Callable[[], None], parent: int | None = None) -> NoReturn:
    """Call `command`, which does not return, in a confined child; then kill all that it left, and end as it did.

    parent: the process that started this one. When it has ended, so does this one, and nothing is started.
    """
    libc().prctl(CHILD_SUBREAPER, 1, 0, 0, 0)  # what loses its parent becomes ours
    libc().prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if parent and os.getppid() != parent:  # it was killed before it could be watched
        os._exit(1)
    by_landlock = bool(rules) and rules["by"] == "Landlock"
    builds = bool(rules) and bool(rules.get("builds"))
    shared_memory, own = bool(rules) and (wants_shared_memory(rules) or builds), []
    if by_landlock:  # which forbids it later
        own = enter_own_rooms() if builds else ["/dev/shm"] if enter_namespaces(shared_memory) else []
        shared_memory = bool(own)
    if by_landlock and rules and rules.get("network") and not own:
        sys.exit(
            "`network: loopback` needs a network of its own, which this machine gives only to root, to user namespaces "
            "or to bubblewrap: install bubblewrap and allow it, or --sandbox off if you trust the agent's code"
        )
    apart = by_landlock and set_apart()
    awaited = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    ours, theirs = None, None
    if by_landlock and builds:
        import socket

        ours, theirs = socket.socketpair()
    if (child := os.fork()) == 0:
        try:
            libc().prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
            resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # which also a program that collects them respects
            if rules:
                with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
                    score.write("1000")  # when memory runs out, this goes first
                # The semaphores of Inductor's workers are files in shared memory. And cuInit fails in workers: see
                # `restrict`. One that finds a GPU all the same, by NVML, ends, and no kernel is compiled any more.
                if not shared_memory or (by_landlock and has_cuda(rules["gpu"])):
                    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
            if rules and by_landlock:
                paths = paths_of(rules)
                paths[1].extend(path for path in own if path not in TERMINALS)
                terminals = [path for path in own if path in TERMINALS]
                restrict(*paths, terminals, loopback=bool(rules.get("network")), gpu=rules["gpu"])
                drop_privileges(needs_override((*paths[0], *paths[1])))
                if theirs:
                    listener = cut_off(rules, asks=theirs.recv(1) == b"y")
                    theirs.send(b"%d" % listener)
                    theirs.recv(1)
                else:
                    cut_off(rules)
            command()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    if rules and ours and theirs:
        theirs.close()
        answer_changes(child, ours, rules)
    status = keep(child, awaited, apart)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def answer_changes(child: int, channel: "socket.socket", rules: dict) -> None:
    """Start to answer what a build's processes ask, where this process may take their handles."""
    import threading

    from .changes import Changes, handle_of

    with channel, contextlib.suppress(OSError, ValueError):
        try:
            os.close(handle_of(child, 1))
            channel.send(b"y")
        except OSError:
            channel.send(b"n")
        listener = int(channel.recv(20))
        if listener >= 0:
            _, write, hidden, _ = paths_of(rules)
            changes = Changes(handle_of(child, listener), write, hidden)
            threading.Thread(target=changes.answer_all, daemon=True).start()
        channel.send(b"y")


def keep(command: int, awaited: set[signal.Signals], apart: bool) -> int:
    """Wait for a child or for SIGTERM, then kill all descendants. Returns the child's wait status.

    apart: nothing else can be signalled, so one signal to everybody ends them all, however fast they fork.
    """
    status, deadline = None, None
    while status is None and (deadline is None or time.monotonic() < deadline):
        received = signal.sigtimedwait(awaited, 0.1 if deadline else 3600.0)
        if received and received.si_signo == signal.SIGTERM and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
            os.kill(command, signal.SIGTERM)
            os.kill(command, signal.SIGCONT)  # it may have stopped itself
        while (ended := next_ended()) is not None:
            if ended[0] == command:
                status = ended[1]
    while True:
        for pid in [-1] if apart else children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            pid, ended = os.waitpid(-1, 0)
            while pid:
                if pid == command:
                    status = ended
                pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return signal.SIGKILL if status is None else status


def next_ended() -> tuple[int, int] | None:
    """(pid, status) of a child that has ended, if there is one."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def children() -> list[int]:
    """The children of this process, those that have ended included."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:  # a name in it may be no text
                parent = int(stat.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid():
            found.append(int(name))
    return found


def main() -> None:
    rules, words = json.loads(sys.argv[1]), sys.argv[2:]
    parent, group = os.environ.pop(PARENT, None), os.environ.pop(GROUP, None)
    if group:
        with contextlib.suppress(OSError), open(f"{group}/cgroup.procs", "w") as processes:
            processes.write("0")  # this process, and so all that it starts
    if rules and rules["by"] == "bubblewrap":
        from .bubblewrap import wrapped

        words = [*wrapped(rules, os.getcwd()), *words]

    def command() -> None:
        try:
            os.execvp(words[0], words)
        except OSError as error:
            os.write(2, f"{words[0]}: {error.strerror}\n".encode())
            os._exit(127)

    run(rules, command, int(parent) if parent else None)
