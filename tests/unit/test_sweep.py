"""The control agent: steps that fit a constant's kind, never the same edit twice, the same night for the same seed."""

import ast

import pytest
from calls import BASELINE, Call, discarded
from conftest import ROOT, git

from autoresearch.agents import NothingLeft, sweep
from autoresearch.constants import constants, literal
from autoresearch.record.events import Refused
from autoresearch.record.ledger import OUTRUN, Attempt
from autoresearch.task import edit_hash

SOURCE = '''"""A file."""
BEFORE = 3
# Hyperparameters
DEPTH = 9 if GPU else 4          # blocks
RATE = 0.02
SHARE = 0.95
BATCH = 2**11
WIDTH = 192
PATTERN = "SSL"
FLAG = True
OFFSET = -3
NAMES = ["a", "b"]
lower = 5
# End of hyperparameters
AFTER = 4
'''


def found(gpu: bool) -> dict:
    return {constant.name: constant.value for constant in constants("x.py", SOURCE.encode(), gpu)}


def test_the_constants_of_the_section():
    assert found(gpu=False) == {
        "DEPTH": 4,
        "RATE": 0.02,
        "SHARE": 0.95,
        "BATCH": 2048,
        "WIDTH": 192,
        "PATTERN": "SSL",
        "FLAG": True,
        "OFFSET": -3,
    }
    assert found(gpu=True)["DEPTH"] == 9


def test_without_a_section_all_constants_count():
    assert [c.name for c in constants("x.py", b"A = 1\nB = A + 1\nC = 2.5\n", False)] == ["A", "C"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, [False]),
        (4, [3, 5]),
        (1, [2]),
        (2048, [1024, 4096]),
        (192, [128, 256]),
        (200_000, [100_000, 400_000]),
        (-3, [-2, -4]),
        (0.02, [0.01, 0.014, 0.028, 0.04]),
        (0.95, [0.975, 0.965, 0.93, 0.9]),
        (0.0, [0.01, 0.1]),
        ("SL", ["L", "LL", "LSL", "SS", "SSL"]),
        ("hello world", []),
    ],
)
def test_steps_fit_the_kind(value, expected):
    assert sweep.steps(value) == expected


def test_a_power_of_two_stays_one_and_text_keeps_its_quotes():
    assert literal(4096, "2**11") == "2**12"
    assert literal(4096, "2048") == "4096"
    assert literal("SS", '"SSL"') == '"SS"'


@pytest.mark.slow
def test_every_step_of_train_py_leaves_a_file_that_parses_and_differs_in_one_line():
    source = (ROOT / "train.py").read_bytes()
    lines = {  # by constant, those of its assignment
        ast.unparse(node.targets[0]): range(node.lineno - 1, node.end_lineno)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
    }
    for gpu in (False, True):
        all_of_them = constants("train.py", source, gpu)
        assert len(all_of_them) >= 25
        for constant in all_of_them:
            for new in sweep.steps(constant.value):
                edited = source[: constant.start] + literal(new, constant.text).encode() + source[constant.end :]
                ast.parse(edited)
                pairs = zip(source.split(b"\n"), edited.split(b"\n"), strict=True)
                changed = [number for number, (before, after) in enumerate(pairs) if before != after]
                assert len(changed) == 1 and changed[0] in lines[constant.name]


@pytest.mark.slow
def test_a_night_of_sweep_never_repeats_itself_and_climbs(toy):
    toy.write("solver.py", "STEPS = 4\nRATE = 0.5\nprint('score:', 1 - abs(STEPS - 7) / 10 - abs(RATE - 0.3))\n")
    toy.write("check.py", "pass\n")
    toy.commit()
    output = toy.run("--experiments", "40")
    assert (
        "sweep (no model: seeded local search over the constants; --agent auto: no ANTHROPIC_API_KEY is set" in output
    )
    assert "every step from here has been tried" in output
    trees = [git(toy.folder, "rev-parse", f"{commit}^{{tree}}") for commit in toy.references()]
    assert len(trees) == len(set(trees)) > 8
    descriptions = [row[4] for row in toy.rows()]
    assert len(descriptions) == len(set(descriptions))
    kept = [float(row[1]) for row in toy.rows() if row[3] == "keep"]
    assert kept == sorted(kept) and kept[-1] >= 0.9
    toy.require_whole()


def night(call: Call, seed: int) -> list[str]:
    """What a seed proposes for a file with eight constants until nothing is left, where nothing is kept."""
    call.original = "".join(f"C{i} = {i}.5\n" for i in range(8)).encode()
    agent, attempts = sweep.Sweep(seed), [BASELINE]
    while len(attempts) < 100:
        (call.folder / "solver.py").write_bytes(call.original)
        try:
            said = call.propose(agent, attempts=attempts)
        except NothingLeft:
            break
        attempt = discarded(len(attempts) + 1)
        attempt.description, attempt.edit = said.description, edit_hash({"solver.py": call.text().encode()})
        attempts.append(attempt)
    return [attempt.description for attempt in attempts[1:]]


def test_the_same_seed_is_the_same_night_and_another_is_not(tmp_path, monkeypatch):
    call = Call(tmp_path, monkeypatch)
    first, again, other = night(call, 1), night(call, 1), night(call, 2)
    assert first == again != other and len(first) == len(set(first)) == 4 * 8 == len(other)
    assert set(first) == set(other)


@pytest.mark.slow
def test_the_seed_of_the_command_line(toy):
    toy.write("solver.py", "".join(f"C{i} = {i}.5\n" for i in range(8)) + "print('score: 0')\n")
    toy.write("check.py", "pass\n")
    toy.commit()
    nights = []
    for seed in ("1", "2"):
        toy.run("--experiments", "3", "--baseline-runs", "1", "--seed", seed, "--tag", seed)
        nights.append([row[4] for row in toy.rows()])
    assert nights[0] != nights[1]


def test_what_was_tried_in_any_way_is_not_tried_again(tmp_path, monkeypatch):
    """With a verdict, on its way to one, or refused; but again what never ran, since its champion was replaced."""
    call = Call(tmp_path, monkeypatch)  # VALUE = 1: there is one step
    agent, only = sweep.Sweep(1), "VALUE: 1 -> 2"

    def tried(**more) -> Attempt:
        attempt = discarded(2)
        attempt.description, attempt.reason = only, more.get("reason", "")
        return attempt

    assert call.propose(agent).description == only and call.text().startswith("VALUE = 2\n")
    for more in (
        {"attempts": [BASELINE, tried()]},
        {"in_flight": [tried()]},
        {"refused": [Refused(number=2, reason="no", description=only)]},
    ):
        (call.folder / "solver.py").write_bytes(call.original)
        with pytest.raises(NothingLeft):
            call.propose(agent, **more)
    assert call.propose(agent, attempts=[BASELINE, tried(reason=OUTRUN[0])]).description == only


def test_constants_of_other_languages():
    """Upper-case names that are given a number; and what is none is left alone."""
    source = b"""#define BLOCK 64
  #  define RATE 0.5f // a comment
static const unsigned int COUNT = 12u;
pub const LIMIT: usize = 1000;
export const DEPTH = -3, other = 4;
LEVEL := 7
#define NAMED OTHER
#define HEX 0x10
if (BLOCK == 3) return;
lower = 3;
"""
    found = constants("lib/x.h", source, gpu=False)
    assert [(constant.name, constant.value) for constant in found] == [
        ("BLOCK", 64), ("RATE", 0.5), ("COUNT", 12), ("LIMIT", 1000), ("DEPTH", -3), ("LEVEL", 7),
    ]  # fmt: skip
    for constant in found:
        assert source[constant.start : constant.end].decode() == constant.text
