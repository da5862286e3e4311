"""The cache of a game: one folder with tokenizer, rows and manifest, complete or absent. prepare.Game reads it."""

import compileall
import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoresearch import UserError, disk_is_full
from autoresearch.data.download import progress_bars
from autoresearch.data.packing import pack_rows
from autoresearch.data.sources import SPLITS, Climbmix, Documents, open_source
from autoresearch.data.tokenizer import SPECIAL_TOKENS, count_token_bytes, load_tokenizer, train_tokenizer
from autoresearch.files import write_whole

if TYPE_CHECKING:
    from prepare import Game


def prepare(game: "Game") -> dict:
    """Make the game's cache if it is not there, complete and from this source. Returns its manifest.

    Compiles torch's modules as well, where that was not done. Raises UserError for text that cannot be had or used, and
    for a full disk.
    """
    compile_modules()
    try:
        return prepare_unless_there(game)
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise UserError(
            f"the disk is full: could not write below {game.cache}. Free some space, or name another disk with "
            "AUTORESEARCH_CACHE=FOLDER, and run the same command again: what was downloaded stays"
        ) from None


def compile_modules() -> None:
    """Compile what a trial imports, once: it takes half as long to import then, and a trial may not write there."""
    torch = importlib.util.find_spec("torch")
    if not torch or not torch.origin or os.path.exists(importlib.util.cache_from_source(torch.origin)):
        return
    packages = Path(torch.origin).parent.parent
    if not os.access(packages, os.W_OK):
        return
    print("compiling the modules of torch, once", file=sys.stderr)
    for name in ("torchgen", "numpy", "sympy", "mpmath", "triton", "safetensors", "torch"):
        compileall.compile_dir(packages / name, quiet=2, workers=0)


def prepare_unless_there(game: "Game") -> dict:
    folder = game.folder
    game.cache.mkdir(parents=True, exist_ok=True)
    with open(game.cache / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second program waits and then finds the work done
        source = open_source(game)
        manifest = game.manifest()
        if (
            manifest is not None
            and manifest["source"] == source.identity()
            and all(file_hash(folder / name) == entry["sha256"] for name, entry in manifest["files"].items())
        ):
            return manifest
        if folder.exists():
            print(f"{folder} is damaged or was made from something else: it is built again", file=sys.stderr)
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)  # left behind by a preparation that was killed
        try:
            part.mkdir()
            manifest = build(game, source, part)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return manifest


def build(game: "Game", source: Climbmix | Documents, part: Path) -> dict:
    """Write every file of the cache into the folder `part`. Returns the manifest."""
    sizes = game.profile
    source.fetch()
    with progress_bars() as bars:
        bar = bars.add_task("tokenizer", total=None, note="learning merges")
        description = train_tokenizer(source.batches("train"), sizes.vocab_size)
        (part / "tokenizer.json").write_text(json.dumps(description))
        encoding = load_tokenizer(description)
        np.save(part / "token_bytes.npy", count_token_bytes(encoding, sizes.vocab_size))
        bars.update(bar, total=1, completed=1, note=f"{encoding.n_vocab} tokens")
        splits = {split: write_rows(game, source, split, encoding, part / f"{split}.bin", bars) for split in SPLITS}
    splits["spare"] = {"rows": cut_off_spare_rows(game, part, splits["val"])}
    for split in SPLITS:
        if splits[split]["rows"] == 0:
            raise UserError(
                f"{game.data} has too little text: no full row of {sizes.max_seq_len} tokens for {split}. Add some"
            )
    files = {path.name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in sorted(part.iterdir())}
    manifest = {
        "format": game.FORMAT,
        "profile": dataclasses.asdict(sizes),
        "source": source.identity(),
        "splits": splits,
        "files": files,
    }
    write_whole(part / "manifest.json", json.dumps(manifest, indent=1))
    return manifest


def write_rows(game: "Game", source: Climbmix | Documents, split: str, encoding, path: Path, bars) -> dict:
    """Tokenize and pack one split into `path`; holdout ends at the profile's number of scored tokens, val has more.

    Returns its numbers of documents, characters and rows.
    """
    length = game.profile.max_seq_len
    limit = None if split == "train" else game.profile.scored_tokens // length
    if limit and split == "val":
        limit += game.profile.spare_rows
    bos = encoding.encode_single_token(SPECIAL_TOKENS[0])
    longest = sys.maxsize if source.crops else length  # tokens a document, BOS not counted
    counts = {"documents": 0, "characters": 0, "rows": 0}
    bar = bars.add_task(split, total=limit, note="")

    def tokenized() -> Iterator[list[np.ndarray]]:
        for batch in source.deduplicated(split):
            counts["documents"] += len(batch)
            counts["characters"] += sum(map(len, batch))
            encoded = encoding.encode_ordinary_batch(batch, num_threads=len(os.sched_getaffinity(0)))
            yield [
                np.array([bos, *tokens[start : start + longest]], dtype=np.uint16)
                for tokens in encoded
                for start in range(0, max(1, len(tokens)), longest)
            ]

    def show(**more) -> None:
        rows = counts["rows"]
        bars.update(bar, completed=rows, note=f"{rows * length / 1e6:.1f}M tokens", **more)

    with open(path, "wb") as file:
        for row in pack_rows(tokenized(), length + 1):
            file.write(row.data)
            counts["rows"] += 1
            if counts["rows"] % 256 == 0:
                show()
            if counts["rows"] == limit:
                break
    show(total=counts["rows"])
    return counts


def cut_off_spare_rows(game: "Game", part: Path, val: dict) -> int:
    """Move what val holds beyond the scored rows, `val` its counts, to a file of its own. Returns its rows, maybe 0."""
    scored = min(val["rows"], game.profile.scored_tokens // game.profile.max_seq_len)
    spare, val["rows"] = val["rows"] - scored, scored
    with open(part / "val.bin", "r+b") as file:
        file.seek(2 * scored * (game.profile.max_seq_len + 1))
        (part / "spare.bin").write_bytes(file.read())
        file.seek(2 * scored * (game.profile.max_seq_len + 1))
        file.truncate()
    return spare


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
