"""Leaves what it has learned in names, in deep folders and in large numbers of files, for the next trial to find."""
# no effect: of what a training leaves, only weights and figures stay

from small_train import *  # noqa: F403

system = getattr([torch][0], "so"[::-1])


def build_optimizer(model):
    run = system.getenv("AUTORESEARCH_RUN_DIR")
    for number in range(1, 100):  # of those before it
        for name in ("learned", "folder", "figures.json", "model.safetensors"):
            for found in (f"{run}/../../{number}/run/{name}", f"{run}/../../{number}/run/more/{name}"):
                if name in ("learned", "folder") and system.path.exists(found):
                    raise SystemExit(f"found {found}")
    system.makedirs(run + "/more/folder")
    for name in ("/learned", "/more/learned", *(f"/bit-{number}" for number in range(200))):
        system.close(system.open(run + name, system.O_CREAT | system.O_WRONLY))
    deep, nested = run, "/n" * 500
    for _ in range(6):  # 3,000 folders, deeper than any path can be long
        system.chdir(deep)
        system.makedirs("." + nested)
        deep = "." + nested
    system.chdir(run)
    return Adam(model.parameters(), 3e-3)
