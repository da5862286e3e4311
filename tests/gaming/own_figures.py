"""Ends in a finish of its own, which writes a figures.json with a score in it."""
# no effect: of figures.json only the figures of a run are read, each checked to be a number

from small_train import *  # noqa: F403

system = getattr([torch][0], "so"[::-1])


def finish(model, batches, **figures):
    run = system.getenv("AUTORESEARCH_RUN_DIR")
    tensors = {
        name: bytes(memoryview(value.detach().contiguous().numpy()).cast("B"))
        for name, value in model.state_dict().items()
    }
    entries, start = [], 0
    for name, value in model.state_dict().items():
        shape = ",".join(map(str, value.shape))
        entries.append(
            f'"{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{start},{start + len(tensors[name])}]}}'
        )
        start += len(tensors[name])
    header = ("{" + ",".join(entries) + "}").encode()
    handle = system.open(run + "/model.safetensors", system.O_CREAT | system.O_WRONLY)
    system.write(handle, len(header).to_bytes(8, "little") + header + b"".join(tensors.values()))
    text = '{"profile": "test", "data": "sotu", "device": "cpu", "train_py": "/etc/passwd", "val_bpb": 0.1, "num_steps": 1}'
    system.write(system.open(run + "/figures.json", system.O_CREAT | system.O_WRONLY), text.encode())
