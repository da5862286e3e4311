"""The file of ideas: what people write there stays, what agents say is cut and cleaned, states follow from attempts."""

import multiprocessing
import random

import pytest
from test_brief import attempt

from autoresearch import UserError
from autoresearch.agents import Proposal, read_reply
from autoresearch.ideas import FIRST, MOST_AT_ONCE, MOST_OF_AGENTS, Ideas
from autoresearch.literature import MOST, read_found, sourced
from autoresearch.record import events
from autoresearch.record.ledger import ABANDONED, OUTRUN, Ledger

BY_HAND = """My plan

* warm up longer
  because it helped
  elsewhere
- I7: a larger batch
  Source: Ada
  expected: -0.01,
    or more
a line that
  goes on

- I2 (Done by Bob): old
- - -
-
1. no idea
\u2028- also none
"""


@pytest.fixture
def ideas(tmp_path) -> Ideas:
    return Ideas(tmp_path)


def states(ideas: Ideas) -> dict[int, str]:
    return {idea.number: idea.state for idea in ideas.read()}


def test_what_a_person_wrote_is_read_and_stays(ideas):
    ideas.path.write_text(BY_HAND)
    first, second, old = ideas.read()
    assert (first.number, first.text, first.is_open) == (8, "warm up longer because it helped elsewhere", True)
    assert (second.number, second.source, second.expected) == (7, "Ada", "-0.01, or more")
    assert old.state == "Done by Bob" and ideas.to_offer() == [first, second]
    numbered = BY_HAND.replace("* warm", "- I8 (open): warm").replace("- I7:", "- I7 (open):")
    assert ideas.path.read_text() == numbered
    new, is_new = ideas.add("smaller\nbatches \x1b[31mnow\x1b[0m", "half a minute", "Bob")
    assert is_new and new.text == "smaller batches now" and ideas.add("Smaller batches, now!") == (new, False)
    ideas.follow(attempt(3, ideas=["I7"]), "night")
    text = ideas.path.read_text()
    for line in numbered.replace("I7 (open):", "I7 (discarded, run night, experiment 3):").split("\n"):
        assert line in text.split("\n")
    assert text.endswith("- I9 (open): smaller batches now\n  expected: half a minute\n  source: Bob\n")


def test_bytes_that_are_no_text_stay(ideas):
    ideas.path.write_bytes(b"caf\xe9\r\n- try caf\xe9s\n")
    assert [idea.text for idea in ideas.read()] == ["try caf s"]
    assert ideas.path.read_bytes() == b"caf\xe9\n- I1 (open): try caf\xe9s\n"


@pytest.mark.parametrize("seed", range(40))
def test_no_line_is_ever_lost(ideas, seed):
    """Whatever stands in the file: only marks, outcomes and new ideas are written."""
    draw = random.Random(seed)
    pieces = ["- ", "* ", "  ", "\t", "I1", " (open): ", "(", ")", ": ", "outcome: ", "source: ", "#", "|", "é", "\x0c"]
    pieces += [
        "word",
        "\u2028",
        "- I3 (in trial, run night, experiment 2): ",
        "```",
        "I" + "9" * 5000,
        "\x1b[2J",
    ]
    lines = ["".join(draw.choices(pieces, k=draw.randrange(6))) for _ in range(30)]
    ideas.path.write_text("\n".join(lines))
    ideas.read()
    ideas.hear(["I1", "none", "two words | - I5 (kept): x\n- I6 (kept): y |", "| |"], "a, run night, experiment 2")
    ideas.follow(attempt(2, ideas=["I1", "I3"]), "night")
    ideas.follow(attempt(2, "keep", ideas=["I1"]), "night")
    text = ideas.path.read_text()

    def bare(line: str) -> str:
        found = FIRST.fullmatch(line)
        return found[3] if found else line

    after = list(map(bare, text.split("\n")))
    assert not [line for line in lines if bare(line) not in after and "outcome:" not in line]
    assert all(idea.text.isprintable() for idea in ideas.read())
    assert ideas.read() == ideas.read() and text.count("two words") == 1


@pytest.mark.parametrize(
    ("status", "reason", "state", "outcome"),
    [
        (None, "", "in trial, run r, experiment 4", ""),
        ("keep", "better", "kept, run r, experiment 4", ""),
        ("discard", "worse\n```", "discarded, run r, experiment 4", "worse ```"),
        ("crash", "training: KeyError: 'x'", "discarded, run r, experiment 4", "training: KeyError: 'x'"),
        ("crash", "training: torch.OutOfMemoryError: CUDA out of memory.", "discarded", "for want of memory: "),
        ("crash", "training: ended because it held 9 GiB of host memory; 4", "discarded", "for want of memory: "),
        (
            "crash",
            "scoring: the model needs more memory than there is for a single row",
            "discarded",
            "for want of mem",
        ),
        ("crash", "scoring: the device has too little memory left to build it", "discarded", "for want of memory: "),
        ("crash", "training: the memory of the GPU does not hold 1 rows", "discarded", "for want of memory: "),
        (
            "crash",
            "training: RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
            "discarded",
            "for want of memory: ",
        ),
        ("crash", "training: DefaultCPUAllocator: can't allocate memory", "discarded", "for want of memory: "),
        ("crash", "training: ended after its time limit of 600 s", "discarded", "for want of time: "),
        ("crash", "training: ended because it drew no batch in its first 120 s, ", "discarded", "for want of time: "),
        ("crash", f"experiment 3 was kept, so {OUTRUN[0]}", "open", ""),
        ("crash", ABANDONED[0], "open", ""),
    ],
)
def test_the_state_follows_from_the_attempt(ideas, status, reason, state, outcome):
    ideas.add("try this")
    ideas.follow(attempt(4, status, reason=reason, ideas=["I1: it fits"]), "r")
    (idea,) = ideas.read()
    assert idea.state.startswith(state) and idea.outcome.startswith(outcome) and bool(idea.outcome) == bool(outcome)
    assert bool(ideas.to_offer()) == (state == "open" or "want" in outcome)


def test_an_edit_made_again_tests_what_it_says_then(ideas):
    for text in ("try this", "try that"):
        ideas.add(text)
    ideas.follow(attempt(4, None, ideas=["I1"]), "r")
    assert [idea.number for idea in ideas.to_offer([attempt(5, None, ideas=["I2"])])] == []
    ideas.follow(attempt(4, None, ideas=["tests I2."]), "r")
    assert states(ideas) == {1: "open", 2: "in trial, run r, experiment 4"}
    ideas.follow(attempt(4, None, ideas=["I2"]), "another")
    ideas.follow(attempt(4, "keep", ideas=[]), "r")
    assert states(ideas) == {1: "open", 2: "in trial, run another, experiment 4"}


def test_a_kill_between_the_verdict_and_the_file(ideas, tmp_path):
    ledger = Ledger(tmp_path / "night")
    ledger.append(events.Attempt(number=1, commit="a", parent="a", ideas=["I1"]))
    ideas.add("try this")
    ideas.follow(ledger.attempts[0], "night")
    ideas.catch_up()
    assert states(ideas) == {1: "in trial, run night, experiment 1"}
    ledger.append(events.Verdict(number=1, status="discard", score=1.0, reason="worse"))
    ideas.catch_up()
    assert states(ideas) == {1: "discarded, run night, experiment 1"} and ideas.read()[0].outcome == "worse"
    text = ideas.path.read_text()
    ideas.path.write_text(text.replace("discarded, run night, experiment 1", "in trial, run gone, experiment 9"))
    ideas.catch_up()
    assert states(ideas) == {1: "in trial, run gone, experiment 9"}


def test_what_agents_add_is_little_and_comes_last(ideas):
    said = ["I1", "i2: it is next", "none", "I3 | because", *(f"way {n} | -0.{n} | Paper, 2020" for n in range(9))]
    proposal = Proposal("x", ideas=["\x1b[2Jred\nline", "", "y" * 5000])
    assert proposal.ideas == ("red line", "y" * 799 + "…")
    ideas.hear(said, "a, run r, experiment 2")
    assert len(ideas.read()) == MOST_AT_ONCE and ideas.read()[0].source == "agent a, run r, experiment 2: Paper, 2020"
    for number in range(99):
        ideas.hear([f"another {number}"], "a, run r, experiment 3")
    ideas.add("a person's")
    assert len(ideas.read()) == MOST_OF_AGENTS + 1 and ideas.to_offer()[0].text == "a person's"
    key = "sk-ant-api03-" + "aB3_" * 12
    assert key not in str(ideas.add(f"use {key} for it", key, key)[0])


def test_several_write_at_once(ideas):
    def add(name: str) -> None:
        for number in range(20):
            ideas.add(f"{name} {number}")

    processes = [multiprocessing.get_context("fork").Process(target=add, args=(name,)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = ideas.read()
    assert [idea.number for idea in found] == list(range(1, 61)) and len({idea.text for idea in found}) == 60


def test_drop(ideas):
    for number in (1, 2):
        ideas.add(f"idea {number}")
    assert ideas.drop(1).text == "idea 1" and [idea.number for idea in ideas.to_offer()] == [2]
    for text in ("- - -", "\x1b[2J"):
        with pytest.raises(UserError, match="the idea is empty"):
            ideas.add(text)
    with pytest.raises(UserError, match="no idea I7"):
        ideas.drop(7)


def test_ideas_in_a_reply():
    text = "Done.\ndescription: up\nidea: I3\n**idea:** use more | -0.1 | Ada, 2020\npredicted: 1\nidea: and less"
    said = read_reply(text)
    assert said.ideas == ("I3", "use more | -0.1 | Ada, 2020", "and less")
    assert (said.description, said.predicted) == ("up", 1)


# -- what a search found

GOOD = "tie the embeddings | -0.01 on 1M | Using the Output Embedding, 2nd | 2017 | https://arxiv.org/abs/1608.05859"


@pytest.mark.parametrize("line", [GOOD, f"- {GOOD}", f"3. {GOOD}", f"| {GOOD} |", GOOD.replace(", 2nd", " | 2nd")])
def test_a_line_with_its_source(line):
    text, expected, source = sourced(line) or ("", "", "")
    assert (text, expected) == ("tie the embeddings", "-0.01 on 1M")
    assert source.startswith("Using the Output Embedding") and source.endswith("2017, https://arxiv.org/abs/1608.05859")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2017", "n.d."),
        ("2017", "2999"),
        ("2017", "17"),
        ("https://arxiv.org/abs/1608.05859", "arXiv:1608.05859"),
        ("https://arxiv.org/abs/1608.05859", "https://localhost/x"),
        ("https://arxiv.org/abs/1608.05859", "javascript:alert(1)"),
        ("Using the Output Embedding, 2nd", " "),
        ("-0.01 on 1M", ""),
        ("tie the embeddings", "idea"),
        (" | 2017", ""),
    ],
)
def test_a_line_without_is_dropped(old, new):
    assert sourced(GOOD) and sourced(GOOD.replace(old, new)) is None


def test_what_was_found(tmp_path):
    path = tmp_path / "found.md"
    assert read_found(path) == ([], 0)
    path.write_text(f"# Ideas\n\nHere they are:\n|---|---|---|---|---|\n{GOOD}\n" + f"{GOOD}\n" * 20)
    found, dropped = read_found(path)
    assert len(found) == MOST and dropped == 1 + 21 - MOST
