"""The digest: a run in ten lines, from its record alone. test_verify.py checks its numbers."""

from conftest import ROOT, solver
from test_verify import write_night

from autoresearch.record import events
from autoresearch.record.ledger import Ledger
from autoresearch.task import OWN_GAME
from autoresearch.views.digest import WIDEST, digest
from autoresearch.views.state import look


def test_a_night_in_ten_lines(toy):
    edits = [(solver(2), "set it to 2", 2.0), (solver(5), "set it to 5\nand more", 5.0), (solver(4), "four", 4.0)]
    edits += [("raise SystemExit(1)", "exit code 1", None)] * 2
    write_night(toy, [1.0], edits)
    champion, base = toy.tip()[:7], toy.journal("run")[0]["base"][:7]
    assert toy.run("digest").splitlines() == [
        "run night: 5 changes tried in 20 s: 2 kept, 1 discarded, 2 crashed",
        "ended: the run has its experiments",
        f"best: score 5, +4 on the baseline's 1; experiment 3, {champion}: set it to 5 and more",
        "verified: no: the best score is the one that was chosen for being good, so it flatters",
        "worked: set it to 5 and more (3, +3); set it to 2 (2, +1)",
        "near misses: four (4, -1)",
        "failures: 2 crashed: exit code 1 (2)",
        "cost: an unknown number of tokens and an unknown cost; 6 s of experiments",
        f"next: `uv run --project {ROOT} {ROOT}/loop.py verify --ablate --tag night` says which of this holds; "
        f"`git diff {base} autoresearch/night`; .autoresearch/night/attempts/3.md, the largest gain; "
        ".autoresearch/night/attempts/6.md, the last crash",
    ]


def test_a_night_that_found_nothing_and_failed(tmp_path):
    """Every line has its limit, and what is missing is left out."""
    ledger = Ledger(tmp_path)
    number, wide = 0, "wide " * 200

    def add(kind: type[events.Event], **fields) -> None:
        ledger._apply(kind(time=1000.0 + 10 * number, **fields))

    add(events.Run, tag="night", base="0" * 40, task=vars(OWN_GAME))
    assert [line.partition(":")[0] for line in digest(look(ledger))] == ["run night", "best", "cost"]
    add(events.Start)
    for number in range(1, 14):
        commit = f"{number}" * 40
        parent = commit if number == 1 else "1" * 40
        add(events.Attempt, number=number, commit=commit, parent=parent, description=wide, category="optimizer")
        add(events.Trial, number=number)
        score, status = (0.9, "keep") if number == 1 else (1.0, "discard") if number % 2 else (None, "crash")
        reason = f"{number} {wide}"
        add(events.Verdict, number=number, status=status, score=score, standing=0.9, reason=reason)
    add(events.Waited, agent="codex", reason="no network", seconds=120)
    number = 30
    add(events.Stop, reason=events.FAULT + "no agent is left")
    told = digest(look(ledger))
    assert len(told) <= 10 and all(len(line) <= WIDEST for line in told)
    text = "\n".join(told)
    assert "best: val_bpb 0.900000, the baseline" in text and "verified" not in text and "worked" not in text
    assert "no keep from: optimizer (12 tried)" in text
    assert "failures: no agent could be reached for 2 min; 6 crashed" in text
    assert "next: what ended it: `autoresearch logs --tag night`" in text
    assert "the last 12 verdicts brought no keep" in text
