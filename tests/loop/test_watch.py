"""The live page: who may ask, that it only reads, that it follows a run; and the page itself in a real browser."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import urllib.parse

import browser
import pytest
from conftest import ROOT, solver, step, wait_for
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.runner.progress import read_progress
from autoresearch.text import clean
from autoresearch.views.watch import log_of

KEY = "sk-ant-api03-" + "a1B2c3D4" * 4  # put together by the trials, too: an edit that holds one is refused
TRICK = "<b>bold</b> <a href='javascript:pwned=1'>x</a> <script>pwned=1</script> <img src=x onerror=pwned=1> &lt;i&gt;"
SLOW = f"""import os, time
print({TRICK!r}, flush=True)
print("\\033[31mred\\033[0m " + "sk-ant-api03-" + "a1B2c3D4" * 4, flush=True)
for number in range(4000):
    print("line", number, flush=True)
    time.sleep(0.05)
"""


class Page:
    """`loop.py watch` on a toy's run, and what it answers."""

    def __init__(self, toy, *arguments: str, **more) -> None:
        self.process = toy.start("watch", *arguments, **more)
        self.address = re.search(r"http://\S+", self.process.stdout.readline())[0]
        parts = urllib.parse.urlsplit(self.address)
        self.port, self.path = parts.port, parts.path

    def ask(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def read(self, name: str) -> dict:
        answer, body = self.ask(self.path + name)
        assert answer.status == 200 and answer.headers["Content-Type"] == "application/json; charset=utf-8"
        return json.loads(body)

    def close(self) -> str:
        self.process.send_signal(signal.SIGINT)
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, output
        return output


@pytest.fixture
def watch(toy):
    """Opens the page of the toy's run. At the end Ctrl-C closes it."""
    pages = []

    def open_page(*arguments: str, **more) -> Page:
        pages.append(Page(toy, *arguments, **more))
        return pages[-1]

    yield open_page
    for page in pages:
        if page.process.poll() is None:
            assert "the page is closed; the run is not affected" in page.close()


def contents(folder) -> dict:
    """Every file and folder below, with its bytes and when it was changed."""
    return {
        path: (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if not path.is_socket()
    }


@pytest.mark.slow
def test_who_may_ask_what(toy, watch):
    toy.runs.mkdir(parents=True)
    shutil.copy(ROOT / "tests/unit/journal-0.1.jsonl", toy.runs / "journal.jsonl")  # of twelve experiments
    page = watch()
    answer, body = page.ask(page.path)
    assert answer.status == 200 and b"<!doctype html>" in body and b"NONCE" not in body
    policy = answer.headers["Content-Security-Policy"]
    assert (
        policy.startswith("default-src 'none'; script-src 'nonce-") and "unsafe" not in policy and "http" not in policy
    )
    assert policy != page.ask("/")[0].headers["Content-Security-Policy"] == "default-src 'none'"
    assert answer.headers["Cache-Control"] == "no-store" and answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer" and answer.headers["X-Frame-Options"] == "DENY"
    assert page.ask(page.path + "plotly.js")[1].count(b"plotly.js v") and len(page.path) > 32

    wrong = "/" + page.path[1:-1][::-1] + "/"
    for path in (
        "/",
        "/state",
        "//",
        wrong,
        wrong + "state",
        page.path[:-1],
        page.path[:-2] + "/",
        "/%00/",
        "x",
        "*",
        *(
            page.path + name
            for name in (
                "x",
                "loop.py",
                "../state",
                "../../program.md",
                "%2e%2e/%2e%2e/program.md",
                "/etc/passwd",
                "watch.py",
                "state/",
                "attempt/",
                "attempt/0",
                "attempt/13",
                "attempt/-1",
                "attempt/1/../2",
                "attempt/" + "9" * 40,
                "?state",
            )
        ),
    ):
        answer, body = page.ask(path)
        assert (answer.status, body) == (404, b"Not Found\n"), path
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as raw:
        raw.sendall(f"GET /\xff\u00fc/ HTTP/1.0\r\nHost: 127.0.0.1:{page.port}\r\n\r\n".encode("latin-1"))
        assert raw.recv(100).startswith(b"HTTP/1.0 404 ")
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert page.ask(page.path + "state", method)[0].status == 501
    for host in ("evil.example", f"evil.example:{page.port}", f"127.0.0.1:{page.port + 1}", "127.0.0.1", ""):
        assert page.ask(page.path + "state", Host=host)[0].status == 404
    assert page.ask(page.path + "state", Host=f"localhost:{page.port}")[0].status == 200
    whole, head = page.ask(page.path + "state")[0], page.ask(page.path + "state", "HEAD")
    assert (
        head[0].status == 200
        and head[1] == b""
        and head[0].headers["Content-Length"] == whole.headers["Content-Length"]
    )
    with pytest.raises(ConnectionRefusedError):  # another address of this machine
        socket.create_connection(("127.0.0.2", page.port), timeout=5)

    other = toy.run("watch", "--port", str(page.port), expect=2)
    assert f"error: port {page.port} of 127.0.0.1 cannot be used" in other
    assert "there is no run none here; runs are: night" in toy.run("watch", "--tag", "none", expect=2)


def test_words_are_taken_from_the_page_alone(toy, watch):
    """With --writable, by who knows the address, from the page's own origin, and as JSON."""
    toy.runs.mkdir(parents=True)
    shutil.copy(ROOT / "tests/unit/journal-0.1.jsonl", toy.runs / "journal.jsonl")
    page = watch("--writable")
    own = {"Origin": f"http://127.0.0.1:{page.port}", "Content_Type": "application/json"}

    def say(what: str, body: str = "{}", **headers: str) -> tuple[int, dict]:
        answer, said = page.ask(page.path + what, "POST", body, **{**own, **headers})
        return answer.status, json.loads(said) if answer.status == 200 else {}

    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
    ):
        assert say("note", '{"text": "no"}', **headers)[0] == 403
    assert say("note", '{"text": "no"}', Host=f"evil.example:{page.port}")[0] == 404
    assert page.ask("/x/note", "POST", '{"text": "no"}', **own)[0].status == 404
    assert say("results")[0] == 404 and say("note", "[]")[0] == say("note", "{")[0] == 400
    assert say("note", '{"text": "' + 70000 * "x" + '"}')[0] == 413 and "the text is empty" in say("note")[1]["fault"]
    assert not toy.journal("note")
    assert say("note", '{"text": "try <b>smaller</b>\\u001b[2J batches"}') == (200, {"said": ""})
    assert say("pause")[0] == 200 and say("stop") == (200, {"said": "no loop is running"})
    now = page.read("state")["now"]
    assert (now["writable"], now["paused"], now["notes"]) == (True, True, ["try <b>smaller</b> batches"])
    assert "experiment 3 does not wait" in say("approve", '{"number": 3}')[1]["fault"] and now["held"] == []
    assert say("reject", '{"number": []}')[0] == 400
    assert say("resume")[0] == 200 and [e["event"] for e in toy.journal()[-3:]] == ["note", "pause", "resume"]


@pytest.mark.slow
def test_it_reads_and_follows_and_changes_nothing(toy, watch):
    toy.plan_steps(e2=[step(5)], e3=[step(4, TRICK)], e4=[step(6)])
    toy.run_agent(3)
    journal = toy.runs / "journal.jsonl"
    cut = b'{"event": "stop", "time": 9e9, "reason": "a later'
    with open(journal, "ab") as file:
        file.write(cut)
    before = contents(toy.folder)
    page = watch()
    state = page.read("state")
    assert (
        state["facts"]["tag"] == "night"
        and state["facts"]["champion"]["score"] == 5.0
        and state["facts"]["gain"] == 4.0
    )
    assert (state["facts"]["tried"], state["facts"]["kept"], state["facts"]["lower"]) == (2, 1, False)
    assert [(row["number"], row["status"], row["score"], row["gain"]) for row in state["attempts"]] == [
        (1, "keep", 1.0, None),
        (2, "keep", 5.0, 4.0),
        (3, "discard", 4.0, -1.0),
    ]
    assert state["attempts"][2]["description"] == TRICK and state["attempts"][2]["commit"] == toy.references()[2][:7]
    assert not state["now"]["running"] and state["now"]["doing"][0]["what"].startswith(
        "not running: the run has its 3 experiments"
    )
    attempt = page.read("attempt/2")
    assert (
        "-VALUE = 1\n+VALUE = 5\n" in attempt["diff"]
        and attempt["log"] == "== train ==\nscore: 5\n"
        and "better than" in attempt["reason"]
    )
    assert page.read("log") == {"name": "trials/3", "text": "== train ==\nscore: 4\n"}
    tag = page.ask(page.path + "state")[0].headers["ETag"]
    answer, body = page.ask(page.path + "state", If_None_Match=tag)
    assert (answer.status, body) == (304, b"")
    toy.run("report", "--output", str(toy.folder.parent / "report"))  # which reads beside a loop, too
    assert contents(toy.folder) == before

    with open(journal, "ab") as file:  # the line is whole
        file.write(b' reason"}\n')
    assert page.ask(page.path + "state", If_None_Match=tag)[0].status == 200
    assert page.read("state")["now"]["doing"][0]["what"] == "not running: a later reason"
    toy.run_agent(4)
    assert page.read("state")["facts"]["champion"]["score"] == 6.0 and len(page.read("state")["attempts"]) == 4

    whole = journal.read_bytes()
    journal.write_bytes(whole + b"garbage\n" + whole)
    assert f"is damaged in line {len(whole.splitlines()) + 1}, before its end" in page.read("state")["fault"]
    journal.write_bytes(b"")
    assert "holds no run" in page.read("state")["fault"]
    journal.unlink()
    assert "No such file" in page.read("state")["fault"]
    journal.write_bytes(
        whole[: whole.index(b'"event": "stop"')].rpartition(b"\n")[0] + b"\n"
    )  # another run under its name
    assert len(page.read("state")["attempts"]) == 3


@pytest.mark.slow
def test_the_running_trial_and_no_keys(toy, watch):
    toy.plan_steps(e2=[{"files": {"solver.py": solver(5, SLOW)}, "say": f"slow, with {KEY}"}])
    toy.run_agent(1)
    page = watch(MY_TOKEN="correct horse battery")
    loop = toy.start(*toy.agent, "--experiments", "2", "--baseline-runs", "1")
    try:
        log = wait_for(
            lambda: (said := page.read("log"))["name"] == "trials/2" and "line 3" in said["text"] and said["text"]
        )
        assert log.startswith(f"== train ==\n{TRICK}\nred [key removed]\nline 0\n")
        assert KEY in (toy.runs / "trials/2/train.log").read_text()  # which nobody has cleaned yet
        state = page.read("state")
        assert state["now"]["running"] and [doing["what"] for doing in state["now"]["doing"]] == [
            "experiment 2: starting up"
        ]
        assert (
            state["attempts"][1]["status"] == "running"
            and state["attempts"][1]["description"] == "slow, with [key removed]"
        )
        assert KEY not in json.dumps(page.read("attempt/2"))
    finally:
        loop.send_signal(signal.SIGTERM)
        loop.communicate(timeout=60)
    assert not page.read("state")["now"]["running"]
    (toy.runs / "trials/2/train.log").write_text("correct horse battery staple\n" * 9)
    assert page.read("log")["text"].splitlines()[1] == "[key removed] staple"


# -- what it makes of texts


@given(st.text() | st.text("\x1b[0;m]\r\n\x07a"))
@pytest.mark.slow
def test_clean_text_has_no_control_characters(text):
    assert all(c.isprintable() or c in "\n\t" for c in clean(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x07", "link"),
        ("10%\r50%\r100%\r\nnext\r", "100%\nnext"),
        ("a\tb\x00\x08\u202ec", "a\tbc"),
        (f"\x1b[31m{KEY[:9]}\x1b[0m{KEY[9:]}", "[key removed]"),
    ],
)
def test_clean_text(text, shown):
    assert clean(text) == shown


def test_the_end_of_a_log(tmp_path):
    (tmp_path / "train.log").write_text("".join(f"line {number} {KEY}\n" for number in range(1000)))
    (tmp_path / "score.log").write_text("val_bpb: 1\n")
    text = log_of(tmp_path, 600)
    assert (
        len(text) <= 600
        and text.startswith("== train ==\nline 9")
        and text.endswith("line 999 [key removed]\n\n== score ==\nval_bpb: 1\n")
    )
    assert set(re.findall(r"line \d+ (.*)", text)) == {"[key removed]"}
    assert log_of(tmp_path / "none", 600) == ""


def test_a_folder_in_the_place_of_a_trials_progress(tmp_path):
    (tmp_path / "run/progress.json").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    assert [read_progress(tmp_path) for _ in range(20)] == [None] * 20
    assert len(os.listdir("/proc/self/fd")) == before  # which would run out


# -- the page


@pytest.mark.skipif(not browser.PROGRAM, reason="no Chromium is installed")
@pytest.mark.slow
def test_the_page_in_a_browser(toy, watch, tmp_path):
    files = {"solver.py": solver(4, f"# </pre>{TRICK}\n")}
    toy.plan_steps(
        e2=[step(5)],
        e3=[{"files": files, "say": TRICK}],
        e4=[{"files": {"solver.py": "1 / 0\n"}, "say": "crash"}],
        e5=[{"files": {"solver.py": solver(6, SLOW)}, "say": "slow"}],
    )
    toy.run_agent(4)
    page = watch()
    chromium = browser.Browser(tmp_path / "profile")
    loop = None
    try:
        ask, until = chromium.ask, chromium.wait
        chromium.open(page.address)
        for width, look, back in ((390, "dark", "rgb(18, 22, 20)"), (1280, "light", "rgb(246, 247, 246)")):
            chromium.show(width, 900, look)
            until(
                "document.querySelectorAll('#rows .row').length == 4"
                " && document.querySelectorAll('#curve .point').length == 4"
            )
            until(
                f"getComputedStyle(document.body).backgroundColor == '{back}'"
                f" && document.querySelector('#curve svg').clientWidth > {0.8 * width}"
            )
            assert ask(
                "document.documentElement.scrollWidth <= innerWidth"
                " && document.querySelector('#curve svg').clientWidth < innerWidth"
            )
        assert ask("seats.hidden")  # one machine with one seat
        assert (
            ask("document.title") == "5 score · night"
            and ask("document.querySelector('h1').textContent") == "night: score, higher is better"
        )
        assert ask("now.textContent").startswith("not running: the run has its 4 experiments")
        assert (
            ask("[...document.querySelectorAll('#rows .status')].map(cell => cell.textContent).join()")
            == "✕ crash,○ discard,● keep,● keep"
        )

        # A row is opened with the keyboard. What an agent wrote is text: in the row, in its diff, over its point.
        ask("document.querySelectorAll('#rows button')[1].focus()")
        chromium.press("Enter", 13, "\r")
        until("document.querySelector('.detail pre') !== null")
        assert ask("document.querySelectorAll('#rows button')[1].textContent") == TRICK
        assert ask("[...document.querySelectorAll('.detail .added')].map(line => line.textContent)") == [
            f"+# </pre>{TRICK}",
            "+VALUE = 4",
        ]
        chromium.press("Enter", 13, "\r")
        until("document.querySelector('.detail') === null")
        ask("scrollTo(0, 0)")
        x, y = ask(
            "(box => [box.x + box.width / 2, box.y + box.height / 2])"
            "(document.querySelectorAll('#curve .trace .point')[2].getBoundingClientRect())"
        )
        chromium.mouse("mouseMoved", x - 2, y - 2)
        chromium.mouse("mouseMoved", x, y)
        hover = until("document.querySelector('#curve .hovertext')?.textContent")
        assert (
            hover.startswith("experiment 3, discard")
            and TRICK.split()[0] in hover
            and "<script>" in hover
            and "&lt;i" in hover
        )
        chromium.mouse("mousePressed", x, y, button="left", clickCount=1)
        chromium.mouse("mouseReleased", x, y, button="left", clickCount=1)
        until("document.querySelector('.row.open td')?.textContent == '3'")
        ask("scrollTo(0, 0)")
        left, top, width, height = ask(
            "(box => [box.x, box.y, box.width, box.height])"
            "(document.querySelector('#curve .nsewdrag').getBoundingClientRect())"
        )
        chromium.mouse("mousePressed", left + width / 4, top + height / 4, button="left", clickCount=1)
        for part in (0.5, 0.75):
            chromium.mouse("mouseMoved", left + part * width, top + part * height, button="left", buttons=1)
        chromium.mouse("mouseReleased", left + 0.75 * width, top + 0.75 * height, button="left", clickCount=1)
        until("curve.layout.xaxis.range[0] > 1 && curve.layout.xaxis.range[1] < 5")  # zoomed; nothing refused

        # The run goes on, and the page with it.
        loop = toy.start(*toy.agent, "--experiments", "5", "--baseline-runs", "1")
        until(
            "document.querySelectorAll('#rows .row').length == 5"
            " && now.textContent.startsWith('experiment 5: starting up')"
        )
        until("document.querySelector('#log').textContent.includes('line 40')")
        assert TRICK in ask("document.querySelector('#log').textContent") and KEY not in ask(
            "document.documentElement.textContent"
        )
        assert ask(
            "log.scrollHeight > log.clientHeight && log.scrollTop + log.clientHeight >= log.scrollHeight - 1"
        )  # it follows the end
        ask("log.scrollTop = 0")
        text = ask("log.textContent")
        until(f"log.textContent != {json.dumps(text)}")
        assert ask("log.scrollTop") == 0  # unless somebody reads further up
        assert ask("document.querySelector('.row.open td').textContent") == "3" and ask(
            "document.querySelector('.detail pre') !== null"
        )
        loop.send_signal(signal.SIGTERM)
        loop.communicate(timeout=60)
        until("now.textContent.startsWith('not running')")

        assert (
            ask(
                "window.pwned === undefined"
                " && document.querySelectorAll('img, b, i, iframe, a, script:not([nonce])').length"
            )
            == 0
        )
        assert chromium.errors == []
        assert {address for address in chromium.requests if not address.startswith((page.address, "data:"))} == set()
        page.close()
        until("document.querySelector('#fault').textContent.includes('does not answer')")
        assert ask("document.documentElement.scrollWidth <= innerWidth")
    finally:
        chromium.close()
        if loop and loop.poll() is None:
            loop.kill()
            loop.communicate()


@pytest.mark.skipif(not browser.PROGRAM, reason="no Chromium is installed")
@pytest.mark.slow
def test_a_person_says_yes_and_no_in_a_browser(toy, watch, tmp_path):
    """Two edits wait; one is approved and one rejected, with the mouse. Each of the two workers has a line."""
    toy.plan_steps(e2=[step(5)], e3=[step(6)])
    night = "--approve", "edits", "--experiments", "3", "--baseline-runs", "1", "--workers", "2"
    loop = toy.start(*toy.agent, *night)
    wait_for(lambda: toy.journal("held")[1:])
    page, chromium = watch("--writable"), browser.Browser(tmp_path / "profile")
    try:
        chromium.open(page.address)
        chromium.show(900, 900, "light")

        def click(words: str, number: int) -> None:
            item = f"[...held.children].find(item => item.textContent.includes('experiment {number}'))"
            button = f"[...({item}?.children ?? [])].find(button => button.textContent == '{words}')"
            x, y = chromium.wait(
                f"(box => box && [box.x + box.width / 2, box.y + box.height / 2])({button}?.getBoundingClientRect())"
            )
            chromium.mouse("mousePressed", x, y, button="left", clickCount=1)
            chromium.mouse("mouseReleased", x, y, button="left", clickCount=1)
            chromium.wait(f"!({item})")

        chromium.wait("held.children.length == 2")
        lines = chromium.ask("[...seats.children].map(line => line.textContent.replace(/\\d+%/, 'N%')).join('; ')")
        assert lines == "seat 0: idle · N% busy; seat 1: idle · N% busy"
        chromium.ask("window.prompt = question => question.includes('experiment 3') ? 'too <b>bold</b>' : ''")
        click("reject", 3)
        click("approve", 2)
        output, _ = loop.communicate(timeout=120)
        assert loop.returncode == 0, output
        chromium.wait("now.textContent.startsWith('not running')")
        assert chromium.errors == []
    finally:
        chromium.close()
    assert toy.statuses() == ["keep", "crash", "keep"], output  # in the order of their verdicts
    assert "rejected before its trial: too <b>bold</b>" in toy.journal("verdict")[1]["reason"]
