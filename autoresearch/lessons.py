"""Lessons: what one run learned, kept for all later runs. One line each in .autoresearch/lessons.md; edit it freely.

- L3 (confirmed 2) [cpu; CPU, 2 cores; run 2026-11-21, experiment 12]: a smaller batch beats a larger learning rate

An edit may name the lesson that it tests. A lesson counts as confirmed by the verdict on such an edit, not by being
repeated.
"""

import contextlib
import dataclasses
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path

from autoresearch import keys
from autoresearch.text import one_line

SHOWN = 40  # in a brief, at most
LINE = re.compile(r"- L(\d+) \(confirmed (\d+)\) \[([^;\]]*); ([^;\]]*); run ([^,\]]*), experiment (\d+)\]: (.+)")
# What names a lesson: `L3`, `confirms L3`, `L3: also here`; not `L2 decay helps`.
AGAIN = re.compile(r"(?:confirms?\s+)?L(\d+)(?:[\s.,]*|:.*)", re.IGNORECASE)


@dataclasses.dataclass
class Lesson:
    number: int
    confirmed: int  # edits that tested it and were kept
    profile: str
    device: str
    run: str
    experiment: int
    text: str

    def __str__(self) -> str:
        return (
            f"- L{self.number} (confirmed {self.confirmed}) [{self.profile}; {self.device}; run {self.run}, "
            f"experiment {self.experiment}]: {self.text}"
        )


class Lessons:
    """The lessons of all runs of a repository. Lines of the file that are not lessons stay as they are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Lesson]:
        return [lesson for lesson in map(parse, self._lines()) if lesson]

    def for_profile(self, profile: str) -> list[Lesson]:
        """The lessons that a brief shows: those of its profile, the most confirmed first, then the newest."""
        fitting = [lesson for lesson in self.read() if lesson.profile == plain(profile)]
        return sorted(fitting, key=lambda lesson: (-lesson.confirmed, -lesson.number))[:SHOWN]

    def learn(self, text: str, profile: str, device: str, run: str, experiment: int) -> None:
        """Add a lesson, unless `text` names one (`L3`) or repeats it."""
        text = one_line(keys.scrub(text))
        if not text or AGAIN.fullmatch(text):
            return
        with self._lines_to_edit() as lines:
            known = [lesson for line in lines if (lesson := parse(line))]
            if all(core(lesson.text) != core(text) for lesson in known):
                number = 1 + max((lesson.number for lesson in known), default=0)
                lines.append(str(Lesson(number, 0, plain(profile), plain(device), run, experiment, text)))

    def confirm(self, text: str) -> None:
        """An edit was kept that tested the lesson which `text` names (`L3`)."""
        if not (named := AGAIN.fullmatch(text.strip())):
            return
        with self._lines_to_edit() as lines:
            for index, lesson in enumerate(map(parse, lines)):
                if lesson and lesson.number == int(named[1]):
                    lines[index] = str(dataclasses.replace(lesson, confirmed=lesson.confirmed + 1))

    @contextlib.contextmanager
    def _lines_to_edit(self) -> Iterator[list[str]]:
        """The lines, which are written back afterwards. Other runs wait until then."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lines = self._lines()
            before = list(lines)
            yield lines
            if lines != before:
                part = self.path.with_suffix(".part")
                part.write_text("\n".join(lines) + "\n", encoding="utf-8")
                part.replace(self.path)

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return [
                "# Lessons",
                "",
                "What earlier runs taught, as their agents saw it. Edit or delete freely: agents read what is here.",
                "",
            ]


def parse(line: str) -> Lesson | None:
    if found := LINE.fullmatch(line.strip()):
        number, confirmed, profile, device, run, experiment, text = found.groups()
        return Lesson(int(number), int(confirmed), profile, device, run, int(experiment), text)
    return None


def plain(text: str) -> str:
    """Text without the characters that separate the parts of a line."""
    return re.sub(r"[;\[\]]", ",", one_line(text, 80))


def core(text: str) -> str:
    """The words alone: equal for texts that differ in layout and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))
