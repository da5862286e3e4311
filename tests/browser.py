"""A headless Chromium, controlled over a pipe with its DevTools protocol: no package, no port."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

PROGRAM = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"))
    ),
    None,
)


class Browser:
    """One page of a browser. `errors`: what its console complained of: exceptions, refused content, failed requests."""

    def __init__(self, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()  # what we write, what it writes
        command = [
            "bash",
            "-c",
            f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}',
            "bash",
            PROGRAM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        nothing = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, pass_fds=(ours[0], theirs[1]), stdin=nothing, stdout=nothing, stderr=nothing
        )
        os.close(ours[0])
        os.close(theirs[1])
        self.write, self.read, self.rest = ours[1], theirs[0], b""
        self.numbers, self.session, self.errors, self.requests = itertools.count(1), None, [], []
        target = next(target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for room in ("Runtime", "Log", "Page", "Network"):
            self.call(f"{room}.enable")

    def call(self, method: str, **parameters) -> dict:
        number = next(self.numbers)
        message = {
            "id": number,
            "method": method,
            "params": parameters,
            **({"sessionId": self.session} if self.session else {}),
        }
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self.rest:
            more = os.read(self.read, 1 << 20)
            assert more, "the browser has ended"
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(line)
        said = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(str(said["exceptionDetails"].get("exception", said["exceptionDetails"])))
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "warning", "assert"):
                self.errors.append(str([argument.get("value") for argument in said["args"]]))
            case "Log.entryAdded" if said["entry"]["level"] in ("error", "warning"):
                self.errors.append(said["entry"]["text"] + " " + said["entry"].get("url", ""))
            case "Network.requestWillBeSent":
                self.requests.append(said["request"]["url"])
        return message

    def show(self, width: int, height: int, look: str) -> None:
        """The size of the window, and what its user prefers: `light` or `dark`."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": look}])

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def ask(self, script: str):
        """The value of a JavaScript expression in the page; of a promise, what it comes to."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 60.0):
        """The first true value of an expression."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.ask(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {script}; errors: {self.errors}")

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **typed)

    def mouse(self, kind: str, x: float, y: float, **more) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        os.close(self.write)
        os.close(self.read)
