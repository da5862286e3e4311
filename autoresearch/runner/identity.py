"""A name for a process that stays true when its process id is used again. Imports nothing that takes long."""


def identify(pid: int) -> str:
    """`pid start-time`: names a process for good, since a pid alone is used again."""
    import psutil

    try:
        start = psutil.Process(pid).create_time() - psutil.boot_time()  # which does not move when the clock is set
        return f"{pid} {round(100 * start)}"
    except psutil.NoSuchProcess:
        return f"{pid} gone"
