"""Hours in which the model's service fails in every way that we know, in random order: is the record whole?

    uv run bench/storm.py --hours 3

A scripted model behind a real server answers the loop's own agent. Half of its answers are faults: streams that break
off, fall silent or only ping, refused and overloaded requests, limits with and without an end, errors of every kind,
words without an edit, and a server that is gone for some seconds. The run goes on in many sessions, each with a limit
of its own (tokens, hours, experiments), ended by Ctrl-C, or killed. After each of them what must be true of a run is
checked: nothing lost, nothing twice, no limit passed by more than a turn, no wait longer than the longest that is
allowed. The loop's patience is cut: requests of 12 s, waits of 1 to 8 s.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import games  # noqa: E402
from conftest import Toy, solver  # noqa: E402
from models import CUT, KEY, PINGS, SILENT, Asked, Fault, Models, Say, create, submit  # noqa: E402

PATIENCE, SILENCE, REQUEST = (1.0, 8.0), 6.0, 12.0  # seconds
LOOP = f"""import sys
sys.path.insert(0, {str(ROOT)!r})
import loop
from autoresearch import roster
from autoresearch.agents import claude_api, conversation
roster.PATIENCE, claude_api.SILENCE, conversation.REQUEST = {PATIENCE}, {SILENCE}, {REQUEST}
loop.main()
"""
TURN = 1110  # tokens that the scripted model's answers say they took
SLACK = 20.0  # seconds that a busy machine may add
FAULTS = {
    "a stream that breaks off": CUT,
    "a stream that falls silent": SILENT,
    "a stream that only pings": PINGS,
    "overloaded": Fault(529, "overloaded_error", "Overloaded"),
    "a limit that is over at once": Fault(429, "rate_limit_error", "limit reached; resets in 1s", wait=1),
    "a usage limit": Fault(429, "rate_limit_error", "You've hit your usage limit", wait=20),
    "500": Fault(500),
    "502": Fault(502),
    "408": Fault(408),
    "an odd 400": Fault(400, "invalid_request_error", "odd"),
    "words without an edit": [Say("I would raise it.")],
}


class Storm:
    """The model's side, and what it has sent."""

    def __init__(self, seed: int) -> None:
        self.draw, self.sent = random.Random(seed), collections.Counter()
        self.paid = 0  # tokens

    def __call__(self, asked: Asked):
        time.sleep(self.draw.expovariate(1))
        if self.draw.random() < 0.5:
            name = self.draw.choice(list(FAULTS))
            self.sent[name] += 1
            self.paid += TURN * (not isinstance(FAULTS[name], Fault))
            return FAULTS[name]
        self.sent["a whole answer"] += 1
        self.paid += TURN
        made = asked.results and "not submitted" not in asked.results[-1]
        return [submit()] if made else [create("solver.py", solver(asked.experiment * self.draw.random()))]


def tokens(toy: Toy) -> int:
    return sum(entry["tokens"] or 0 for kind in ("refused", "waited", "attempt") for entry in toy.journal(kind))


def session(toy: Toy, models: Models, draw: random.Random, log) -> str:
    """One call of the loop, and how it was ended. Raises AssertionError."""
    kind = draw.choice(["tokens", "hours", "experiments", "Ctrl-C", "killed", "server gone"])
    used, done = tokens(toy), len(toy.journal("verdict"))
    most, hours = used + draw.randrange(3000, 15000), draw.uniform(0.005, 0.03)
    limit = {
        "tokens": ["--max-tokens", str(most)],
        "hours": ["--hours", f"{hours:.4f}"],
        "experiments": ["--experiments", str(done + draw.randrange(1, 6))],
    }.get(kind, ["--hours", "0.05"])
    usual = ["--tag", "night", "--agent", "claude-api", "--baseline-runs", "1", "--base-url", models.url]
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, *usual, *limit, "--lookahead", str(draw.randrange(2))],
        cwd=toy.folder, env={**toy.environment, "ANTHROPIC_API_KEY": KEY}, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        if kind in ("Ctrl-C", "killed", "server gone"):
            time.sleep(draw.uniform(2, 60))
        if kind == "server gone":
            models.shutdown()
            models.server_close()
            time.sleep(draw.uniform(5, 30))
            models = None
        elif kind != "hours":
            process.send_signal({"Ctrl-C": signal.SIGINT, "killed": signal.SIGKILL}.get(kind, 0))
        allowed = 3600 * hours if kind == "hours" else 1800.0
        if models is None:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=allowed + REQUEST + 60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
            raise AssertionError(f"a session that {kind} should have ended hangs")
    assert kind == "killed" or process.returncode == 0, f"{kind}: exit code {process.returncode}"
    took = time.monotonic() - began
    if kind == "hours":
        assert took < 3600 * hours + REQUEST + SLACK, f"{took:.0f} s for {3600 * hours:.0f} s"
    if kind == "tokens":
        assert most <= tokens(toy) < most + TURN, f"{tokens(toy)} tokens of {most}"
    if kind != "killed":
        toy.require_whole()
    return kind


def longest_silence(toy: Toy) -> float:
    """The longest time between two events of a session, without what it said it would wait."""
    longest, last, waits = 0.0, None, 0.0
    for entry in toy.journal():
        if last is not None and entry["event"] != "start":
            longest = max(longest, entry["time"] - last - waits)
        last = entry["time"]
        waits = entry.get("seconds", 0.0) if entry["event"] == "waited" else 0.0
    return longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    storm, draw, ended = Storm(options.seed), random.Random(options.seed), collections.Counter()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "w") as log:
        home = Path(folder, "home")
        home.mkdir()
        (home / ".gitconfig").write_text("[user]\n\tname = Ada\n\temail = ada@example.org\n")
        toy = Toy(Path(folder, "repository"), games.clean_environment(HOME=str(home), NO_COLOR="1"))
        until = time.monotonic() + 3600 * options.hours
        try:
            models = Models(storm)
            while time.monotonic() < until:
                kind = session(toy, models, draw, log)
                ended[kind] += 1
                if kind == "server gone":
                    models = Models(storm)
                print(f"{kind}: {len(toy.journal('verdict'))} verdicts, {tokens(toy)} tokens", flush=True)
            last = [
                "--experiments",
                str(len(toy.journal("verdict"))),
                "--agent",
                "claude-api",
                "--base-url",
                models.url,
            ]
            toy.run(*last, "--baseline-runs", "1", ANTHROPIC_API_KEY=KEY)
            toy.require_whole()
        except BaseException:
            log.flush()
            os.write(2, b"".join(Path(folder, "log").read_bytes().splitlines(keepends=True)[-40:]))
            raise
        verdicts = collections.Counter(toy.statuses())
        lost = storm.paid - tokens(toy)
        waited = toy.journal("waited")
        print(f"\n{options.hours:g} hours, {sum(ended.values())} sessions: {dict(ended)}")
        print(f"answers: {dict(storm.sent)}")
        print(
            f"the record is whole: {dict(verdicts)}, {len(waited)} waits of {sum(w['seconds'] for w in waited):.0f} s"
        )
        print(f"tokens: {tokens(toy)} recorded, {lost} sent besides (to sessions that were killed or cut off)")
        silent, allowed = longest_silence(toy), REQUEST + SLACK
        print(f"longest time without an event: {silent:.0f} s; {allowed:.0f} are allowed")
        assert silent < allowed and not verdicts["crash"]


if __name__ == "__main__":
    main()
