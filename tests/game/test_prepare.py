"""Data: sources, downloads, tokenizer, packing, cache. Real files, real HTTP on this machine; no torch."""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROOT

import prepare
from autoresearch.data import cache, download, packing, sources, tokenizer

WORDS = "we the people of this union have spent and saved in every year since the war began to end".split()  # noqa: SIM905


def text_of(number: int, words: int = 60) -> str:
    draw = random.Random(number)
    return f"Document {number}. " + " ".join(draw.choice(WORDS) for _ in range(words))


class User:
    """Who prepares data of the `test` profile, and looks into what is in their cache then."""

    def __init__(self, environment, cache) -> None:
        self.environment, self.cache = {**environment, "AUTORESEARCH_PROFILE": "test"}, cache

    def run(self, *words, **more) -> subprocess.CompletedProcess:
        environment = {**self.environment, **more}
        return subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )

    def prepare(self, expect=0, **more) -> str:
        answer = self.run("prepare.py", **more)
        assert answer.returncode == expect, answer.stdout + answer.stderr
        assert "Traceback" not in answer.stderr
        return answer.stdout + answer.stderr

    def described(self, **more) -> str | None:
        """The name that a run would give to the prepared data."""
        return json.loads(self.run("-m", "autoresearch.referee", "describe", **more).stdout)["game"]

    def manifest(self, name="sotu-test"):
        return json.loads((self.cache / name / "manifest.json").read_text())

    def rows(self, split, name="sotu-test"):
        return np.fromfile(self.cache / name / f"{split}.bin", dtype=np.uint16).reshape(-1, 65)

    def tokenizer(self, name="sotu-test"):
        return tokenizer.load_tokenizer(json.loads((self.cache / name / "tokenizer.json").read_text()))


@pytest.fixture
def user(environment, tmp_path) -> User:
    return User(environment, tmp_path / "cache")


@pytest.fixture
def prepared(environment, game) -> User:
    """With a prepared cache, which is everybody's: nothing in it may be changed."""
    return User({**environment, "AUTORESEARCH_CACHE": str(game.cache)}, game.cache)


# -- packing


def straight_packing(batches, row_length, refill_below=1000):
    """Best fit written out as one reads it: a list, searched from its start for every document."""
    batches, buffer, rows, exhausted = iter(batches), [], [], False
    while True:
        row = []
        while len(row) < row_length:
            while len(buffer) < refill_below and not exhausted:
                batch = next(batches, None)
                exhausted = batch is None
                buffer.extend(batch or [])
            if not buffer:
                return rows
            room = row_length - len(row)
            fitting = [document for document in buffer if len(document) <= room]
            chosen = max(fitting, key=len) if fitting else min(buffer, key=len)
            index = next(i for i, document in enumerate(buffer) if document is chosen)
            row.extend(buffer.pop(index)[:room])
        rows.append(row)


@pytest.mark.parametrize("seed", range(4))
def test_packing_is_that_of_the_public_evaluator(seed):
    draw = np.random.default_rng(seed)
    documents = [draw.integers(0, 60000, size=draw.integers(1, 90), dtype=np.uint16) for _ in range(2500)]
    batches = [documents[i : i + 128] for i in range(0, len(documents), 128)]
    expected = straight_packing(batches, 65)
    packed = list(packing.pack_rows(batches, 65))
    assert len(packed) > 1000
    np.testing.assert_array_equal(np.array(packed), np.array(expected))


def test_packing_of_nothing_and_of_less_than_a_row():
    assert list(packing.pack_rows([], 65)) == []
    assert list(packing.pack_rows([[np.arange(10, dtype=np.uint16)]], 65)) == []


# -- the embedded data set


def test_sotu_from_nothing_to_rows(user):
    output = user.prepare()
    assert "ready: profile test, data sotu" in output
    manifest, tokenizer = user.manifest(), user.tokenizer()
    assert tokenizer.n_vocab == 512 and manifest["splits"]["val"]["rows"] == 128
    bos = tokenizer.encode_single_token("<|reserved_0|>")
    for split in (*sources.SPLITS, "spare"):
        rows = user.rows(split)
        assert len(rows) == manifest["splits"][split]["rows"]
        assert (rows[:, 0] == bos).all() and rows.max() < 512
    seen = {split: {row.tobytes() for row in user.rows(split)} for split in ("val", "spare")}
    assert manifest["splits"]["spare"]["rows"] == len(seen["spare"] - seen["val"]) == 320
    counts = np.load(user.cache / "sotu-test/token_bytes.npy")
    sample = user.rows("val")[3]
    assert counts[sample].sum() == len(tokenizer.decode_bytes([token for token in sample if token < 508]))
    assert counts[508:].sum() == 0
    assert "union" in tokenizer.decode(user.rows("train")[:200].flatten().tolist()).lower()


def test_tokenizer_round_trip(prepared):
    text = "Fellow-Citizens: 1,234 souls, naïve café — 你好\n\n  end"
    tokenizer = prepared.tokenizer()
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
    assert all(len(tokenizer.decode([t]).strip()) <= 2 for t in tokenizer.encode_ordinary("1234567890"))


@pytest.mark.slow
def test_prepared_twice_is_prepared_once_and_the_same_everywhere(prepared, user):
    time = (prepared.cache / "sotu-test/train.bin").stat().st_mtime_ns
    assert "ready: profile test, data sotu" in prepared.prepare()
    assert (prepared.cache / "sotu-test/train.bin").stat().st_mtime_ns == time
    user.prepare()
    first = prepared.described()
    assert first and user.described() == first


@pytest.mark.parametrize("damage", ["shorter", "changed", "no manifest", "other profile", "other version"])
@pytest.mark.slow
def test_a_cache_that_is_damaged_is_built_again(prepared, user, damage):
    folder = user.cache / "sotu-test"
    shutil.copytree(prepared.cache / "sotu-test", folder)
    rows = (folder / "train.bin").read_bytes()
    manifest = user.manifest()
    if damage == "shorter":
        (folder / "train.bin").write_bytes(rows[: len(rows) // 2])
        assert user.described() is None
    elif damage == "changed":
        (folder / "train.bin").write_bytes(bytes(130) + rows[130:])
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        manifest["profile" if damage == "other profile" else "source"] = {"name": "another"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "it is built again" in user.prepare()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (prepared.cache / "sotu-test").iterdir()
    }


@pytest.mark.slow
def test_a_preparation_killed_in_its_middle(user):
    die = "from autoresearch.data import cache\ncache.pack_rows = lambda *_: os.kill(os.getpid(), 9)\n"
    assert user.run("-c", f"import os, prepare\n{die}prepare.main()").returncode == -signal.SIGKILL
    assert (user.cache / "sotu-test.part/tokenizer.json").exists() and user.described() is None
    user.prepare()
    assert user.described() and not (user.cache / "sotu-test.part").exists()


# -- a folder of the user's


def write_folder(folder, kind: str, texts: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / "data.parquet", row_group_size=50)
    elif kind == "jsonl":
        (folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        for number, text in enumerate(texts):
            (folder / f"{number:04d}.txt").write_text(text)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_a_folder_of_documents(user, tmp_path, kind):
    texts = [text_of(i) for i in range(300)]
    write_folder(tmp_path / "mine", kind, texts + texts[:40])  # some of them twice
    user.prepare(AUTORESEARCH_DATA=str(tmp_path / "mine"))
    [folder] = [path for path in user.cache.iterdir() if path.is_dir()]
    tokenizer, seen = user.tokenizer(folder.name), {}
    for split in sources.SPLITS:
        decoded = tokenizer.decode(user.rows(split, folder.name).flatten().tolist())
        seen[split] = {int(part.split(".")[0]) for part in decoded.split("Document ")[1:] if "." in part[:5]}
    assert len(seen["train"]) > 200 and len(seen["val"]) > 5 and len(seen["holdout"]) > 5
    assert not (seen["train"] & seen["val"] | seen["train"] & seen["holdout"] | seen["val"] & seen["holdout"])


def test_a_folder_that_changed_is_prepared_again(user, tmp_path):
    write_folder(tmp_path / "mine", "jsonl", [text_of(i) for i in range(300)])
    data = str(tmp_path / "mine")
    user.prepare(AUTORESEARCH_DATA=data)
    before = user.described(AUTORESEARCH_DATA=data)
    write_folder(tmp_path / "mine", "jsonl", [text_of(i) for i in range(350)])
    assert "it is built again" in user.prepare(AUTORESEARCH_DATA=data)
    assert user.described(AUTORESEARCH_DATA=data) != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a folder"),
        ({}, "holds no .parquet, .jsonl or .txt file"),
        ({"a.csv": b"x"}, "holds no .parquet, .jsonl or .txt file"),
        ({"a.jsonl": b"not json\n"}, "cannot be read as jsonl"),
        ({"a.jsonl": b'{"words": "x"}\n'}, "cannot be read as jsonl"),
        ({"a.parquet": b"PAR1"}, "cannot be read as parquet"),
        ({"a.txt": b"\xff\xfe\x00"}, "cannot be read as txt"),
        ({"a.txt": b"one", "b.txt": b"two"}, "holds 2 different documents; at least 3 are needed"),
        ({"a.txt": b"one", "b.txt": b"two", "c.txt": b"three"}, "has too little text"),
    ],
)
def test_a_folder_that_cannot_be_used(user, tmp_path, content, message):
    if content is not None:
        (tmp_path / "mine").mkdir()
        for name, data in content.items():
            (tmp_path / "mine" / name).write_bytes(data)
    assert message in user.prepare(expect=2, AUTORESEARCH_DATA=str(tmp_path / "mine"))
    assert not list(user.cache.glob("mine-*/manifest.json"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything; the next test runs this as another user")
def test_a_folder_without_permission(user, tmp_path):
    require_permission_message(user, tmp_path, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_without_permission_as_another_user(user, tmp_path):
    require_permission_message(
        user,
        tmp_path,
        ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-dac_override,-dac_read_search"],
    )


def require_permission_message(user, tmp_path, prefix):
    write_folder(tmp_path / "mine", "jsonl", [text_of(i) for i in range(300)])
    for path in (tmp_path / "mine/data.jsonl", tmp_path / "mine"):
        path.chmod(0)
        answer = subprocess.run(
            [*prefix, sys.executable, str(ROOT / "prepare.py")],
            capture_output=True,
            text=True,
            env={**user.environment, "AUTORESEARCH_DATA": str(tmp_path / "mine")},
        )
        path.chmod(0o755)
        assert answer.returncode == 2 and "cannot be read: Permission denied" in answer.stderr, answer.stderr
        assert "chmod" in answer.stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AUTORESEARCH_PROFILE", "huge", "there is no profile 'huge'; choose one of gpu, cpu, test"),
        ("AUTORESEARCH_SEED", "lucky", "AUTORESEARCH_SEED='lucky' is not a whole number"),
        ("AUTORESEARCH_SHARDS", "0", "AUTORESEARCH_SHARDS=0 is out of range"),
    ],
)
def test_wrong_settings(user, name, value, message):
    more = {name: value, "AUTORESEARCH_DATA": "climbmix"}
    assert message in user.prepare(expect=2, **more)


def test_a_full_disk_while_preparing(user):
    """The cache on a file system of two megabytes, in a mount namespace of its own."""
    user.cache.mkdir()
    flags = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=2m none {user.cache}"
    if subprocess.run(["unshare", *flags, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    script = f"{mount} && {sys.executable} {ROOT / 'prepare.py'}; code=$?; ls {user.cache}; exit $code"
    answer = subprocess.run(
        ["unshare", *flags, "sh", "-c", script], env=user.environment, capture_output=True, text=True
    )
    assert answer.returncode == 2, answer.stderr
    assert "the disk is full" in answer.stderr and "AUTORESEARCH_CACHE=FOLDER" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout.split() == ["sotu-test.lock"]  # nothing half made is left


# -- climbmix, from a server on this machine


class ShardServer:
    """Serves parquet shards under the public names, with a fault of its own for some of them."""

    def __init__(self, folder) -> None:
        self.shards, self.requests, self.faults = {}, [], {}
        common = text_of(999_999)
        for number in (0, 1, 2, 6541, 6542):
            texts = [text_of(1000 * number + i) for i in range(400)] + [common]
            path = folder / "shard.parquet"
            pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=150, compression="none")
            self.shards[f"shard_{number:05d}.parquet"] = path.read_bytes()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                name = self.path.lstrip("/")
                data = outer.shards.get(name)
                ranged = self.headers.get("Range")
                start = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged else 0
                outer.requests.append((name, start))
                fault = outer.faults.get(name, []).pop(0) if outer.faults.get(name) else None
                if data is None or isinstance(fault, int):
                    self.send_response(404 if data is None else fault)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = data[start:] if fault != "truncated" else data[: len(data) // 2]
                self.send_response(206 if ranged and fault != "truncated" else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if fault == "dropped":
                    self.wfile.write(body[: len(body) // 3])
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def settings(self) -> dict[str, str]:
        return {
            "AUTORESEARCH_CLIMBMIX_URL": f"http://127.0.0.1:{self.server.server_port}",
            "AUTORESEARCH_DATA": "climbmix",
            "AUTORESEARCH_SHARDS": "3",
        }


@pytest.fixture
def shards(tmp_path):
    server = ShardServer(tmp_path)
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_climbmix_through_a_bad_network(user, shards):
    """One shard comes truncated, one breaks off, one answers 503: each is had in the end, resumed where it can be."""
    shards.faults = {
        "shard_00000.parquet": ["truncated"],
        "shard_00001.parquet": ["dropped"],
        "shard_06542.parquet": [503],
    }
    user.prepare(**shards.settings)
    for name, data in shards.shards.items():
        assert (user.cache / "climbmix" / name).read_bytes() == data
    assert not list((user.cache / "climbmix").glob("*.part"))
    resumed = [start for name, start in shards.requests if name == "shard_00001.parquet"]
    assert resumed[0] == 0 and resumed[1] > 0
    manifest = user.manifest("climbmix-test")
    assert manifest["source"] == {"name": "climbmix", "shards": 3, "val": 6542, "holdout": 6541}
    requests = len(shards.requests)
    said = user.prepare(**shards.settings)
    tokens = 64 * manifest["splits"]["train"]["rows"]
    assert f"{tokens / 1e6:.1f} million tokens to train on" in said and f"{3 * 1.65e6 / tokens:.2f} epochs" in said
    assert f"AUTORESEARCH_SHARDS={int(3 * 3 * 1.65e6 / tokens) + 1} makes it less than one" in said
    assert len(shards.requests) == requests  # prepared once


def test_documents_of_val_are_dropped_from_train(user, shards):
    user.prepare(**shards.settings)
    splits = user.manifest("climbmix-test")["splits"]
    assert splits["train"]["documents"] == 3 * 400  # 401 a shard, one of them in val too


@pytest.mark.parametrize("name", ["shard_06542.parquet", "shard_06541.parquet", "shard_00001.parquet"])
def test_a_shard_that_is_not_there_stops_the_preparation(user, shards, name):
    missing = shards.shards.pop(name)
    output = user.prepare(expect=2, **shards.settings)
    assert f"could not download {name}: the server answered 404" in output and "again to go on" in output
    assert not (user.cache / "climbmix-test").exists()
    shards.shards[name] = missing
    before = len(shards.requests)
    user.prepare(**shards.settings)
    assert [request[0] for request in shards.requests[before:]] == [name]  # the others had arrived


def test_waits_grow_and_end(shards, tmp_path, monkeypatch):
    """A server that always answers 503 is given up after eight attempts, each wait twice the one before."""
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    shards.faults = {"shard_00000.parquet": [503] * 20}
    url = shards.settings["AUTORESEARCH_CLIMBMIX_URL"] + "/shard_00000.parquet"
    with download.progress_bars(transfer=True) as bars, pytest.raises(download.DownloadFailed, match="503, 8 times"):
        download.download(url, tmp_path / "x.parquet", bars)
    assert waits == [1, 2, 4, 8, 16, 32, 60]


def test_a_part_that_does_not_fit_the_file_is_thrown_away(user, shards):
    folder = user.cache / "climbmix"
    folder.mkdir(parents=True)
    (folder / "shard_00000.parquet.part").write_bytes(b"x" * 100)  # garbage: the resumed file will not be parquet
    user.prepare(**shards.settings)
    assert (folder / "shard_00000.parquet").read_bytes() == shards.shards["shard_00000.parquet"]


def test_the_public_set_is_where_it_is_said_to_be():
    assert sources.CLIMBMIX_URL.endswith("datasets/karpathy/climbmix-400b-shuffle/resolve/main")
    assert (sources.CLIMBMIX_VAL, sources.CLIMBMIX_HOLDOUT) == (6542, 6541)
    gpu = prepare.PROFILES["gpu"]
    assert (gpu.time_budget, gpu.max_seq_len, gpu.vocab_size, gpu.scored_tokens // gpu.max_seq_len) == (
        300,
        2048,
        8192,
        10240,
    )


def test_torch_is_compiled_once(tmp_path, monkeypatch, capsys):
    """Where the installer did not do it: a trial may not write beside the packages."""
    (tmp_path / "torch").mkdir()
    source = tmp_path / "torch/__init__.py"
    source.write_text("a = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    cache.compile_modules()
    assert Path(importlib.util.cache_from_source(str(source))).exists() and "once" in capsys.readouterr().err
    cache.compile_modules()
    assert not capsys.readouterr().err
