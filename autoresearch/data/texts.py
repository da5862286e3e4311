"""Text out of files, in batches, and a digest that tells one text from another.

pyarrow, like requests in download.py, is imported where it is used: `describe` needs neither, and must be quick.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

DOCUMENT_BATCH = 128  # documents that are read, tokenized and put into the packing buffer at a time; of the public game


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def in_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch = []
    for text in texts:
        batch.append(text)
        if len(batch) == DOCUMENT_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def parquet_batches(path: Path) -> Iterator[list[str]]:
    """Texts of a parquet file, DOCUMENT_BATCH at a time; a batch never spans two row groups.

    Raises ValueError when the file is not readable parquet or has no column `text`.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                texts = file.read_row_group(group, columns=["text"]).column("text").to_pylist()
                yield from in_batches(text for text in texts if text is not None)
    except KeyError:
        raise ValueError("it has no column `text`") from None
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # a fault of the disk or of permissions
            raise
        raise ValueError(str(error).splitlines()[0]) from None


def passages(text: str, limit: int) -> Iterator[str]:
    """Cut `text` into pieces of at most `limit` characters: at a blank line, else a space, else anywhere."""
    start = 0
    while len(text) - start > limit:
        for mark in ("\n\n", "\n", " "):
            cut = text.rfind(mark, start + limit // 2, start + limit)
            if cut > 0:
                break
        else:
            cut = start + limit
        yield text[start:cut].strip()
        start = cut
    yield text[start:].strip()
