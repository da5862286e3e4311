"""Watch: a live page of one run, served to a browser on this machine. Read-only, except with --writable.

    GET /TOKEN/             the page, watch.html
    GET /TOKEN/plotly.js    the library that draws the curve, out of the installed package
    GET /TOKEN/state        the run at this moment
    GET /TOKEN/log          the end of what the running trial prints
    GET /TOKEN/attempt/17   all about one attempt: its diff, the end of its log
    POST /TOKEN/note        with --writable: {"text": "try smaller batches"}; also pause, resume and stop with {}, and
                            approve and reject with {"number": 17, "text": "why"}

An answer has an ETag; asked again with it in If-None-Match, the server answers 304 until something has changed. TOKEN
is random and new each time, so no other user of the machine and no page of another site can ask. What agents and
trials wrote is answered as JSON, cleaned of keys and control characters, and the page makes text nodes of it. A POST
must come from the page itself, by its Origin, and as JSON, which a form of another site cannot send.

A process of its own, with a thread for each connection: browsers open some in advance and leave them idle.
"""

import dataclasses
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
from collections.abc import Callable
from pathlib import Path

import git

from autoresearch import UserError, inbox
from autoresearch.background import ask_to_stop
from autoresearch.gate import require_held
from autoresearch.record import events
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.repo import RunRepo
from autoresearch.runner import GUARD, HOLDOUT, PREFLIGHT, SCORE, TRAIN
from autoresearch.runner.logs import read_tail
from autoresearch.text import clean, short
from autoresearch.views.panel import clock_time, seats_in_words
from autoresearch.views.state import SeatState, State, look
from autoresearch.views.verdicts import Record

PAGE = Path(__file__).with_name("watch.html")
LOG = 32 << 10  # characters of the running log that are shown
PART = 8 << 10  # and of the log of an attempt that is looked at
DIFF = 64 << 10  # and of its diff
LARGEST = 1 << 16  # bytes of what a person says
WORDS = ("note", "pause", "resume", "stop", "approve", "reject")
LOGS = (PREFLIGHT, TRAIN, SCORE, GUARD, HOLDOUT)  # in the order in which they are written


@dataclasses.dataclass
class Doing:
    """Something in progress: what it is, since when, and of how many seconds, if that is known."""

    what: str
    since: float | None = None
    of: float | None = None


class Watch:
    """Answers what the page asks for, about one run. Threads may call it: a lock serialises them."""

    def __init__(self, repo: RunRepo, ledger: Ledger, writable: bool = False) -> None:
        self.repo, self.record, self.writable = repo, Record(ledger), writable
        self.folder = ledger.path.parent
        self.inode = ledger.path.stat().st_ino
        self.rows: dict[int, dict] = {}  # of attempts that have their verdict, which a person may still change
        self.answered: tuple[object, bytes] = (None, b"")  # the last state: what it depends on, and as JSON
        self.lock = threading.Lock()

    def state(self) -> bytes:
        """The run as JSON."""
        with self.lock:
            state = self._look()
            record = self.record
            running = [trial.number for trial in state.trials]
            now = {"running": state.running, "doing": list(map(dataclasses.asdict, doing(state))), "trials": running}
            if self.answered[0] != (record.size, now):
                attempts = record.ledger.attempts
                rows = [self._row(attempt, running) for attempt in attempts]
                now["held"] = [{"number": number, "what": words} for number, words in state.held.items()]
                now["seats"] = list(map(seat_of, state.seats)) if state.has_seats else []
                now |= {"writable": self.writable, "paused": state.paused, "notes": list(map(clean, state.notes))}
                answer = {"facts": facts_of(state), "now": now, "attempts": rows}
                self.answered = (record.size, now), as_json(answer)
            return self.answered[1]

    def log(self) -> bytes:
        """The end of what the running trial has printed, the first of several; else the last one. As JSON."""
        with self.lock:
            state = self._look()
            number, trials = len(self.record.ledger.attempts), self.folder / "trials"
        last = [*trials.glob(f"{number}/"), *trials.glob(f"{number}-*/")]
        latest = max(last, key=lambda path: path.stat().st_mtime, default=None)
        folder = Path(state.trials[0].log).parent if state.trials else latest
        name, text = (str(folder.relative_to(self.folder)), log_of(folder, LOG)) if folder else ("", "")
        return as_json({"name": name, "text": text})

    def attempt(self, number: int) -> bytes | None:
        """What the table has no room for, as JSON; None if there is no such attempt."""
        with self.lock:
            self._look()
            if number > len(self.record.ledger.attempts):
                return None
            attempt = self.record.ledger.attempts[number - 1]
        try:
            diff = self.repo.diff(attempt.parent, attempt.commit, self.record.task.editable)
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

    def tell(self, what: str, text: str, number: int) -> str:
        """Send the run a message from the page. Returns what will happen. Raises UserError."""
        if what == "stop":
            return ask_to_stop(self.folder, self.repo.tag, now=False) or "no loop is running"
        if what in ("approve", "reject"):
            with self.lock:
                self._look()
                require_held(self.record.ledger, number)
        messages: dict[str, Callable[[], events.Message]] = {
            "note": lambda: events.Note(text=inbox.text_of(text)),
            "pause": events.Pause,
            "resume": events.Resume,
            "approve": lambda: events.Approved(number=number),
            "reject": lambda: events.Rejected(number=number, reason=inbox.text_of(text)),
        }
        inbox.leave(self.folder, messages[what]())
        return ""

    def _look(self) -> State:
        """The run at this moment, with what the loop has written since the last look."""
        ledger = self.record.ledger
        found = ledger.path.stat()
        if found.st_size < ledger.size or found.st_ino != self.inode:  # another run under the same name
            ledger, self.inode, self.answered = Ledger(self.folder, repair=False), found.st_ino, (None, b"")
            self.rows.clear()
        elif found.st_size > ledger.size:
            ledger.catch_up()
        if ledger.run is None:
            raise UserError(f"{ledger.path} holds no run any more")
        self.record = self.record.latest() if ledger is self.record.ledger else Record(ledger)
        return look(ledger, self.record)

    def _row(self, attempt: Attempt, running: list[int]) -> dict:
        if (known := self.rows.get(attempt.number)) and known["status"] == attempt.status:
            return known
        row: dict = dataclasses.asdict(self.record.row(attempt))
        row |= {name: clean(row[name]) for name in ("description", "reason", "agent", "category")}
        row["commit"] = short(attempt.commit)
        if attempt.status:
            self.rows[attempt.number] = row
        elif attempt.number in running:
            row["status"] = "running"
        return row


def facts_of(state: State) -> dict:
    """What the head of the page says of a run."""
    record, champion, spent = state.record, state.champion, state.spent
    found = record.findings
    return {
        "tag": state.tag,
        "metric": clean(state.metric),
        "lower": record.task.lower_is_better,
        "began": record.run.time,
        "game": clean(", ".join(str(fact) for fact in (state.device, state.profile, state.data) if fact)),
        "budget": record.facts.time_budget,
        "noise": record.noise,
        "champion": champion and {"number": champion.number, "score": champion.score, "commit": short(champion.commit)},
        "champions": record.champions,
        "gain": state.gain,
        "verified": str(found.gain) if found and found.gain else None,
        "tried": sum(record.tried_counts.values()),
        "kept": record.tried_counts["keep"],
        "crashed": record.tried_counts["crash"],
        "seconds": record.seconds,
        "seats": clean(seats_in_words(state)) if state.has_seats else None,
        "per_hour": state.per_hour,
        "seat_dollars": state.seat_dollars,
        "tokens": spent.tokens if spent.tokens or not spent.unknown_tokens else None,
        "dollars": spent.dollars if spent.dollars or not spent.unknown_dollars else None,
    }


def seat_of(seat: SeatState) -> dict:
    """What the page says of a seat. Its busy share is as it was when something happened last."""
    return {"name": clean(seat.name), "kind": clean(seat.kind), "experiment": seat.experiment, "busy": seat.busy}


def doing(state: State) -> list[Doing]:
    """What the page says is going on. It changes only on events: the page itself counts the seconds."""
    last = state.record.ledger.account.last_time
    if not state.running:
        paused = ", paused" if state.paused else ""
        return [Doing(f"not running{paused}{state.reason and ': '}{clean(state.reason)}", last)]
    found = []
    for trial in state.trials:
        since = trial.since if trial.clock is None else trial.clock
        found.append(Doing(clean(f"{trial.label}: {trial.doing}"), since, trial.budget))
    for thinking in state.in_the_making:
        found.append(Doing(clean(f"experiment {thinking.number}: {thinking.agent} is thinking"), thinking.since))
    if waiting := state.waiting:
        at = clock_time(waiting.until, state.time)
        found.append(Doing(clean(f"{waiting.agent} cannot be reached; next call at {at}"), last))
    paused = [Doing("paused: nothing new starts")] if state.paused else []
    stopping = [Doing("stopping after that")] if state.stopping else []
    return ((found + paused) or [Doing("between two steps")]) + stopping


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
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            "require-trusted-types-for 'script'"
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

    @property
    def served(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def asked(self) -> str | None:
        """What lies below the token in the path; None from somebody who does not know it, or another host's name."""
        _, token, name = (*self.path.split("/", 2), "", "")[:3]
        known = self.path.count("/") > 1 and hmac.compare_digest(token.encode(), self.served.token.encode())
        return name if known and self.headers.get("Host") in self.served.hosts else None

    def do_GET(self) -> None:
        if (name := self.asked()) is None:
            return self.send_error(404)
        try:
            found = self.served.find(name)
        except (UserError, OSError) as fault:
            found = ("application/json", as_json({"fault": clean(str(fault))}))
        return self.answer(200, found[0], found[1]) if found else self.send_error(404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        name, origins = self.asked(), [f"http://{host}" for host in self.served.hosts]
        if name not in WORDS or not self.served.watch.writable:
            return self.send_error(404 if self.served.watch.writable else 501)
        size = self.headers.get("Content-Length") or ""
        kind = (self.headers.get("Content-Type") or "").partition(";")[0].strip()
        if self.headers.get("Origin") not in origins or kind != "application/json":
            return self.send_error(403)
        if not size.isdecimal() or int(size) > LARGEST:
            return self.send_error(413)
        try:
            given = json.loads(self.rfile.read(int(size)))
            said = {"said": self.served.watch.tell(name, str(given.get("text", "")), int(given.get("number", 0)))}
        except (ValueError, TypeError, AttributeError):
            return self.send_error(400)
        except (UserError, OSError) as fault:
            said = {"fault": clean(str(fault))}
        return self.answer(200, "application/json", as_json(said))

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
            "Content-Security-Policy": self.served.policy if kind == "text/html" else "default-src 'none'",
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

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def serve(watch: Watch, port: int) -> None:
    """Serve until Ctrl-C."""
    try:
        server = Server(watch, port)
    except OSError as fault:
        raise UserError(
            f"port {port} of 127.0.0.1 cannot be used: {os.strerror(fault.errno or 0)}. Choose another with --port, or "
            "leave that out for one that is free"
        ) from None
    with server:
        print(f"run {watch.repo.tag}: {server.address}\nCtrl-C closes this page; the run is not affected", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # uv passes it on a second time
            print("\nthe page is closed; the run is not affected")
