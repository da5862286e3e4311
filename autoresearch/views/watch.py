"""Watch: a live page of one run, served to a browser on this machine. It reads, and changes nothing.

    GET /TOKEN/             the page, watch.html
    GET /TOKEN/plotly.js    the library that draws the curve, out of the installed package
    GET /TOKEN/state        the run as it stands; with the ETag of the last answer in If-None-Match, 304 until something changes
    GET /TOKEN/log          the end of what the running trial prints, likewise
    GET /TOKEN/attempt/17   all about one attempt: its diff, the end of its log

TOKEN is random and new each time, so no other user of the machine and no page of another site can ask. What agents and
trials wrote is answered as JSON, cleaned of keys and control characters, and the page makes text nodes of it.
"""

import hashlib
import hmac
import http.server
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
from pathlib import Path

import git

from autoresearch import UserError, keys
from autoresearch.background import ESCAPES
from autoresearch.console import PHASES, clock_time
from autoresearch.ledger import Attempt, Ledger, one_line
from autoresearch.repo import RunRepo, short
from autoresearch.report import Run
from autoresearch.status import Now, holder, read_now, state_of
from autoresearch.task import Task
from autoresearch.trial import read_tail
from autoresearch.verify import findings

PAGE = Path(__file__).with_name("watch.html")
LOG = 32 << 10  # characters of the running log that are shown
PART = 8 << 10  # and of the log of an attempt that is looked at
DIFF = 64 << 10  # and of its diff
LOGS = ("preflight", "train", "score", "guard", "holdout")  # in the order in which they are written


class Watch:
    """What the page asks for, of one run. Threads may call it."""

    def __init__(self, repo: RunRepo, task: Task, ledger: Ledger) -> None:
        self.repo, self.task, self.ledger = repo, task, ledger
        self.folder = ledger.path.parent
        self.inode = ledger.path.stat().st_ino
        self.rows: dict[int, dict] = {}  # of attempts that have their verdict: they stay as they are
        self.state_of: tuple[object, bytes] = (None, b"")
        self.lock = threading.Lock()

    def state(self) -> bytes:
        """The run as JSON."""
        with self.lock:
            self._catch_up()
            now = self._now()
            if self.state_of[0] != (self.ledger.size, now):
                rows = [
                    self.rows.get(attempt.number) or self._row(attempt, now["trials"])
                    for attempt in self.ledger.attempts
                ]
                self.state_of = (self.ledger.size, now), as_json({"facts": self._facts(), "now": now, "attempts": rows})
            return self.state_of[1]

    def log(self) -> bytes:
        """The end of what the running trial has printed, the first of several; else the last one. As JSON."""
        with self.lock:
            self._catch_up()
            now = self._present()[1]
            number, trials = len(self.ledger.attempts), self.folder / "trials"
        last = [*trials.glob(f"{number}/"), *trials.glob(f"{number}-*/")]
        latest = max(last, key=lambda path: path.stat().st_mtime, default=None)
        folder = Path(now.trials[0].folder) if now and now.trials else latest
        return as_json(
            {
                "name": str(folder.relative_to(self.folder)) if folder else "",
                "text": log_of(folder, LOG) if folder else "",
            }
        )

    def attempt(self, number: int) -> bytes | None:
        """What the table has no room for, as JSON; None if there is no such attempt."""
        with self.lock:
            self._catch_up()
            if number > len(self.ledger.attempts):
                return None
            attempt = self.ledger.attempts[number - 1]
        try:
            diff = self.repo.diff(attempt.parent, attempt.commit, self.task.editable)
        except git.GitError:
            diff = "git does not have this commit any more"
        if len(diff) > DIFF:
            diff = diff[:DIFF].rpartition("\n")[0] + "\n... the rest is not shown"
        return as_json(
            {
                "number": number,
                "hypothesis": clean(attempt.hypothesis),
                "predicted": attempt.predicted,
                "reason": clean(attempt.reason),
                "figures": attempt.figures or {},
                "diff": clean(diff),
                "log": log_of(self.folder / "trials" / str(number), PART),
            }
        )

    def _catch_up(self) -> None:
        found = self.ledger.path.stat()
        if found.st_size < self.ledger.size or found.st_ino != self.inode:  # another run under the same name
            self.ledger, self.inode = Ledger(self.folder, repair=False), found.st_ino
            self.rows.clear()
        elif found.st_size > self.ledger.size:
            self.ledger.catch_up()
        if self.ledger.run is None:
            raise UserError(f"{self.ledger.path} holds no run any more")

    def _row(self, attempt: Attempt, running: list[int]) -> dict:
        compared = attempt.score is not None and attempt.commit != attempt.parent
        status = attempt.status or ("running" if attempt.number in running else "waiting")
        row = {
            "number": attempt.number,
            "status": status,
            "score": attempt.score,
            "gain": self._run.gain(attempt) if compared else None,
            "description": clean(one_line(attempt.description)),
            "reason": clean(one_line(attempt.reason or "")),
            "agent": clean(attempt.agent),
            "category": clean(attempt.category),
            "commit": short(attempt.commit),
            "time": attempt.time,
            "seconds": (attempt.seconds or {}).get("wall"),
            "lines": attempt.lines,
            "tokens": attempt.tokens,
            "dollars": attempt.dollars,
            "holdout": attempt.holdout,
            "repairs": attempt.repairs,
        }
        if attempt.status:
            self.rows[attempt.number] = row
        return row

    @property
    def _run(self) -> Run:
        return Run(self.repo.tag, self.task, self.ledger, {})

    def _facts(self) -> dict:
        ledger, game, spent = self.ledger, self.ledger.game or {}, self.ledger.spent
        kept, tried, champion = ledger.kept, ledger.tried, ledger.champion
        found = findings(ledger, self.task.lower_is_better, self.task.line_price) if ledger.verified else None
        return {
            "tag": self.repo.tag,
            "metric": clean(self.task.metric),
            "lower": self.task.lower_is_better,
            "began": ledger.run["time"],
            "game": clean(", ".join(str(game[name]) for name in ("device", "profile", "data") if game.get(name))),
            "budget": game.get("time_budget"),
            "noise": ledger.noise(),
            "champion": champion
            and {"number": champion.number, "score": champion.score, "commit": short(champion.commit)},
            "gain": self._run.sign * (kept[0].score - champion.score) if champion else None,
            "verified": str(found.gain) if found and found.gain else None,
            "tried": len(tried),
            "kept": max(0, len(kept) - 1),
            "crashed": sum(attempt.status == "crash" for attempt in tried),
            "seconds": sum((attempt.seconds or {}).get("wall") or 0.0 for attempt in ledger.finished),
            "tokens": spent.tokens if spent.tokens or not spent.unknown_tokens else None,
            "dollars": spent.dollars if spent.dollars or not spent.unknown_dollars else None,
        }

    def _present(self) -> tuple[int | None, Now | None]:
        """(The process that works on the run, what it says that it does.)"""
        process = holder(self.folder)
        return process, read_now(self.folder, process) if process else None

    def _now(self) -> dict:
        """Whether a loop runs, what it does, each since when and, where it is known, of how many seconds; which trials run."""
        process, now = self._present()
        account, at = self.ledger.account, time.time()
        if process is None:
            reason = state_of(self.ledger, None, None, at).reason
            what = f"not running{reason and ': '}{clean(reason)}"
            return {"running": False, "doing": [{"what": what, "since": account.last_time, "of": None}], "trials": []}
        doing = []
        for trial in now.trials if now else ():
            training = trial.progress
            phase = "training" if training else PHASES.get(trial.phase, trial.phase)
            since = max(training.clock, trial.since) if training else trial.since
            doing.append({"what": clean(f"{trial.label}: {phase}"), "since": since, "of": training and training.budget})
        if now and (thinking := now.thinking):
            what = clean(f"experiment {thinking.number}: {thinking.agent} is thinking")
            doing.append({"what": what, "since": thinking.since, "of": None})
        elif account.waits_until > at:
            doing.append(
                {
                    "what": f"{clean(account.waits_for)} cannot be reached; next call at {clock_time(account.waits_until, at)}",
                    "since": account.last_time,
                    "of": None,
                }
            )
        stopping = [{"what": "stopping after that", "since": None, "of": None}] if now and now.stopping else []
        return {
            "running": True,
            "doing": (doing or [{"what": "between two steps", "since": None, "of": None}]) + stopping,
            "trials": [trial.number for trial in now.trials] if now else [],
        }


def clean(text: str) -> str:
    """Text that somebody else wrote, without keys, colours and control characters; of a line that was written over, its last state."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in ESCAPES.sub("", text).split("\n"))
    return keys.scrub("\n".join("".join(c for c in line if c.isprintable() or c == "\t") for line in lines))


def log_of(folder: Path, size: int) -> str:
    """The end of what a trial's commands have printed."""
    parts = []
    for name in LOGS:
        text = read_tail(folder / f"{name}.log", 2 * size)
        if len(text.encode()) >= 2 * size:  # cut: perhaps in a key, which would not be known by its end
            text = text.partition("\n")[2] or text[size:]
        parts += [f"== {name} ==\n{clean(text)}"] if text else []
    text = "\n".join(parts)
    return text if len(text) <= size else text[-size:].partition("\n")[2] or text[-size:]


def as_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


# ----------------------------------------------------------------------------------------------
# The server


class Server(http.server.ThreadingHTTPServer):
    """Answers for one run on 127.0.0.1, to who knows the token."""

    def __init__(self, watch: Watch, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.watch, self.token, nonce = watch, secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self.page = PAGE.read_bytes().replace(b"NONCE", nonce.encode())
        self.policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
        )
        self.hosts = [f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")]

    @property
    def address(self) -> str:
        return f"http://{self.hosts[0]}/{self.token}/"

    def find(self, name: str) -> tuple[str, bytes] | None:
        """(Content type, body) of what lies below the token."""
        if name == "":
            return "text/html", self.page
        if name == "plotly.js":
            from plotly.offline import get_plotlyjs

            return "text/javascript", get_plotlyjs().encode()
        if name in ("state", "log"):
            return "application/json", self.watch.state() if name == "state" else self.watch.log()
        if (wanted := re.fullmatch(r"attempt/([1-9][0-9]{0,8})", name)) and (
            body := self.watch.attempt(int(wanted[1]))
        ):
            return "application/json", body
        return None

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), OSError):  # a browser that went away is none
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    server_version, sys_version, timeout = "autoresearch", "", 30

    def do_GET(self) -> None:
        _, token, name = (*self.path.split("/", 2), None, None)[:3]
        known = name is not None and hmac.compare_digest(token.encode(), self.server.token.encode())
        if not known or self.headers.get("Host") not in self.server.hosts:
            return self.send_error(404)
        try:
            found = self.server.find(name)
        except (UserError, OSError) as fault:
            found = "application/json", as_json({"fault": clean(str(fault))})
        return self.answer(200, *found) if found else self.send_error(404)

    do_HEAD = do_GET

    def answer(self, status: int, kind: str, body: bytes) -> None:
        tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        if status == 200 and self.headers.get("If-None-Match") == tag:
            status, body = 304, b""
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "ETag": tag,
            "Cache-Control": "no-store",
            "Content-Security-Policy": self.server.policy if kind == "text/html" else "default-src 'none'",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.answer(code, "text/plain", http.HTTPStatus(code).phrase.encode() + b"\n")

    def log_message(self, *arguments) -> None:
        pass


def serve(watch: Watch, port: int) -> None:
    """Serve until Ctrl-C."""
    try:
        server = Server(watch, port)
    except OSError as fault:
        raise UserError(
            f"port {port} of 127.0.0.1 cannot be had: {os.strerror(fault.errno)}. Choose another with --port, or leave that out "
            "for one that is free"
        ) from None
    with server:
        print(f"run {watch.repo.tag}: {server.address}\nCtrl-C ends this page; the run does not notice", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # uv passes it on a second time
            print("\nthe page is closed; the run goes on as it was")
