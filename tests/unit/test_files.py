"""Files that are written whole, and are on the disk before anything is built on them; and who may write them."""

import contextlib
import dataclasses
import fcntl
import json
import os
from pathlib import Path

import pytest

from autoresearch import UserError, inbox
from autoresearch.gate import require_held
from autoresearch.ideas import Ideas
from autoresearch.record import events, journal
from autoresearch.record.ledger import Ledger
from autoresearch.record.results import Results
from autoresearch.runner.identity import identify
from autoresearch.views.now import Now, Running, read_now


@pytest.fixture
def flushed(monkeypatch) -> list[tuple[str, int]]:
    """(Path, size) of what the disk was asked to write, as it was then."""
    found, real = [], os.fsync

    def fsync(handle: int) -> None:
        found.append((os.readlink(f"/proc/self/fd/{handle}"), os.fstat(handle).st_size))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def send_note(folder: Path) -> None:
    with open(folder / "lock", "w") as lock:  # a loop works, and will take it in
        fcntl.flock(lock, fcntl.LOCK_EX)
        inbox.leave(folder, events.Note(text="try smaller batches"))


WRITERS = {
    "inbox/*.json": send_note,
    "ideas.md": lambda folder: Ideas(folder).add("dare more"),
    "results.tsv": lambda folder: Results(folder / "results.tsv", Ledger(folder)).rebuild(),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_nothing_else_knows_is_on_the_disk(name, tmp_path, flushed):
    """First the contents, under another name, then the name: a power failure leaves the old file or the new one."""
    WRITERS[name](tmp_path)
    (path,) = tmp_path.glob(name)
    part, folder = flushed[:2]
    assert part == (str(path.with_name(f".{path.name}.part")), path.stat().st_size) and folder[0] == str(path.parent)


def test_what_is_written_twice_a_second_is_not_waited_for(tmp_path, flushed):
    Now("12 34", 0.0, {}).write(tmp_path)
    assert (tmp_path / "now.json").exists() and not flushed


def test_a_new_journal_has_its_name_on_the_disk(tmp_path, flushed):
    """Else a power failure could leave the run's branch without a run, and the next start would refuse it."""
    folder = tmp_path / ".autoresearch/night"
    ledger = Ledger(folder)
    ledger.append(events.Pause())
    assert [path for path, _ in flushed] == [str(ledger.path), *map(str, (folder, folder.parent, tmp_path))]
    ledger.append(events.Resume())
    assert len(flushed) == 5


def test_results_that_a_power_failure_left_half_written(tmp_path):
    """Some file systems leave zeros where the last rows should be. Only the loop's own rows are replaced."""
    ledger = Ledger(tmp_path)
    results = Results(tmp_path / "results.tsv", ledger)
    results.rebuild()
    whole = results.path.read_bytes()
    results.path.write_bytes(whole[:20] + bytes(40))
    results.require_ours(tmp_path)
    results.rebuild()
    assert results.path.read_bytes() == whole


def test_a_message_that_cannot_be_read_or_removed_ends_no_night(tmp_path):
    """Such as one that root has sent. What comes after it is read."""
    (tmp_path / "inbox/1.json").mkdir(parents=True)
    inbox.leave(tmp_path, events.Note(text="try smaller batches"))
    assert [text for _, text in Ledger(tmp_path).notes] == ["try smaller batches"]
    assert inbox.take_in(tmp_path, Ledger(tmp_path)) == []


def test_a_loop_that_starts_while_a_note_is_written_waits_for_it(tmp_path, monkeypatch):
    """It must not say that another loop is running. A note that comes then is left to it."""
    turn = tmp_path / "turn"
    with contextlib.ExitStack() as writing:
        assert writing.enter_context(journal.sharing(tmp_path, turn)) and journal.holder(tmp_path) is None
        waits = []
        monkeypatch.setattr(journal.time, "sleep", lambda seconds: waits.append(seconds) or writing.close())
        lock = journal.Lock(tmp_path, "night")
    with journal.sharing(tmp_path, turn) as alone:
        assert not alone and len(waits) == 1
    lock.release()


def test_a_message_of_a_newer_version_waits_for_a_loop_that_can_read_it(tmp_path):
    """As where the checkout was updated while a loop runs: it goes on with the old code."""
    send_note(tmp_path)
    (path,) = tmp_path.glob("inbox/*.json")
    line = json.loads(path.read_text())
    path.write_text(json.dumps({**line, "form": 99}))
    assert inbox.take_in(tmp_path, Ledger(tmp_path)) == [] and path.exists()
    path.write_text(json.dumps(line))
    (note,) = inbox.take_in(tmp_path, Ledger(tmp_path))
    assert note.text == "try smaller batches" and not path.exists()


def test_a_second_decision_is_refused_before_the_loop_has_read_the_first(tmp_path):
    """It would be ignored, after the person was told that it counts."""
    ledger = Ledger(tmp_path)
    ledger.append(events.Held(number=2, what="edit"))
    onlooker = Ledger(tmp_path)
    require_held(onlooker, 2)
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        inbox.leave(tmp_path, events.Approved(number=2))
    with pytest.raises(UserError, match="has your decision already"):
        require_held(onlooker, 2)
    assert len(inbox.take_in(tmp_path, ledger)) == 1 and ledger.approved == {2}
    with pytest.raises(UserError, match="does not wait for your approval: nothing does"):
        require_held(onlooker, 2)


def test_what_a_loop_does_on_a_thousand_seats_can_be_read(tmp_path):
    folder = str(tmp_path / "trials/1")
    trials = [Running(number, number, f"experiment {number}", 1.0, "train", 2.0, folder) for number in range(1000)]
    now = Now(identify(os.getpid()), 0.0, {}, trials)
    now.write(tmp_path)
    assert dataclasses.asdict(read_now(tmp_path, os.getpid())) == dataclasses.asdict(now)
