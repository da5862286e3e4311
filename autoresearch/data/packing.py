"""Packing: documents of any length into rows of one length, as github.com/karpathy/autoresearch does."""

import bisect
import collections
from collections.abc import Iterable, Iterator

import numpy as np

PACKING_BUFFER = 1_000  # documents to choose from, at least; a fact of the public game


def pack_rows(batches: Iterable[list[np.ndarray]], row_length: int) -> Iterator[np.ndarray]:
    """Best-fit packing as in the public evaluator. Yields full rows, (row_length,) uint16.

    A row takes the longest document that still fits, the first of equals; when none fits, the
    shortest is cropped to fill the row and its rest is dropped. The buffer of documents to choose
    from is kept at 1,000 or more while the source lasts. Documents begin with BOS, so rows do too.
    """
    batches = iter(batches)
    waiting: dict[int, collections.deque] = {}  # length -> documents of that length, in order of arrival
    lengths: list[int] = []  # the keys of `waiting`, sorted
    count, exhausted = 0, False
    while True:
        row, position = np.empty(row_length, dtype=np.uint16), 0
        while position < row_length:
            while count < PACKING_BUFFER and not exhausted:
                batch = next(batches, None)
                exhausted = batch is None
                for document in batch or ():
                    length = len(document)
                    if length not in waiting:
                        waiting[length] = collections.deque()
                        bisect.insort(lengths, length)
                    waiting[length].append(document)
                    count += 1
            if count == 0:
                return  # the row begun last is not full: dropped
            fitting = bisect.bisect_right(lengths, row_length - position)
            index = max(fitting - 1, 0)  # the longest that fits, else the shortest of all
            length = lengths[index]
            document = waiting[length].popleft()
            count -= 1
            if not waiting[length]:
                del waiting[length], lengths[index]
            end = min(position + length, row_length)
            row[position:end] = document[: end - position]
            position = end
        yield row
