"""The model's side of the score: what a confined process runs. It reads token ids, writes logits, knows no target."""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import NoReturn

from autoresearch.referee import shared
from prepare import Game, NoScore, PlainModel, is_out_of_memory


def answer(channel: socket.socket, game: Game) -> NoReturn:
    """Build the model that the referee asks for, then give it logits, a batch at a time, until the channel closes.

    Says `imported` when it has torch, and what torch would import later. A packet `start` has it start the GPU, before
    any code of train.py runs anywhere, and is answered by `started`. The request is JSON with the host memory for
    ids and logits attached, or that for ids alone and memory of the device for the logits. It is answered by `ready`,
    by `closed` where that memory cannot be opened, or by `memory` where the device's does not suffice; then there may
    be another request. After `ready` each packet is a number of rows, answered by `done` or `memory` (which ran out).
    Everything that goes wrong ends the process, with `shape` or `failed TYPE LINE` as its last words: the type of the
    exception and the line of train.py, 0 where it came from elsewhere.
    """
    train_py = ""
    try:
        import safetensors.torch  # noqa: F401
        import torch

        if game.profile.name == "gpu":  # its first attention with a window would import it, which takes seconds
            import torch._dynamo

        channel.send(b"imported")
        while True:
            request, memories, _, _ = socket.recv_fds(channel, 4096, 2)
            if not request:
                os._exit(0)
            if request == b"start":
                shared.start_device()
                channel.send(b"started")
                continue
            request = json.loads(request)
            train_py, device, sizes = request["train_py"], request["device"], game.profile
            memory, *on_device = memories
            ids, logits = shared.ids_and_logits(memory, request["batch_size"], sizes, only_ids=bool(on_device))
            os.close(memory)
            if on_device:
                try:
                    logits = shared.open_device_memory(on_device[0], 4 * ids.numel() * sizes.vocab_size)
                except (OSError, MemoryError, RuntimeError):
                    channel.send(b"closed")
                    continue
                finally:
                    os.close(on_device[0])
                logits = logits.view(-1, sizes.max_seq_len, sizes.vocab_size)
            try:
                model = PlainModel(Path(train_py), Path(request["weights"]), device, game)
                if device.startswith("cuda") and not on_device:
                    shared.pin(ids, ids.nbytes + logits.nbytes)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if on_device:
                shared.close_device_memory(logits)
            torch.cuda.empty_cache()
            channel.send(b"memory")
        channel.send(b"ready")
        most = len(ids)
        with torch.inference_mode():
            while packet := channel.recv(64):
                rows = int(packet)
                if rows < most:  # memory has run out, here or there
                    most = rows
                    torch.cuda.empty_cache()
                try:
                    given = model.logits(ids[:rows])
                    logits[:rows].copy_(given)
                    if logits.device.type != given.device.type or given.is_cuda:
                        torch.cuda.synchronize()
                    answer = b"done"
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    answer = b"memory"
                given = None
                channel.send(answer)
    except BaseException as error:
        said = b"failed %s %d" % (type(error).__name__.encode(), line_of(error, train_py))
        with contextlib.suppress(OSError):  # nobody listens any more
            channel.send(b"shape" if isinstance(error, NoScore) else said)
    os._exit(0)


def line_of(error: BaseException, train_py: str) -> int:
    """The line of train.py in which an exception arose or through which it passed last; 0 where there is none."""
    line, trace = 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == train_py:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
