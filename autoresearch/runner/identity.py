"""An identifier of a process that stays unique when its process id is reused. Imports nothing slow."""


def identify(pid: int) -> str:
    """`pid start-time`: identifies a process uniquely, since a pid may be reused."""
    import psutil

    try:
        start = psutil.Process(pid).create_time() - psutil.boot_time()  # which does not move when the clock is set
        return f"{pid} {round(100 * start)}"
    except psutil.NoSuchProcess:
        return f"{pid} gone"
