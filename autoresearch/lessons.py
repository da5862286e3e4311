"""Lessons: what one run learned, kept for all later runs. One line each in .autoresearch/lessons.md; edit it freely.

- L3 (confirmed 2) [cpu; CPU, 2 cores; run 2026-11-21, experiment 12]: a smaller batch beats a larger learning rate

An edit may name the lesson that it tests. If that edit is kept, the lesson is confirmed; repeating a lesson does not
confirm it.
"""

import dataclasses
import re

from autoresearch import keys
from autoresearch.shared_lines import SharedLines, core, named
from autoresearch.text import one_line

SHOWN = 40  # in a brief, at most
LINE = re.compile(r"- L(\d+) \(confirmed (\d+)\) \[([^;\]]*); ([^;\]]*); run ([^,\]]*), experiment (\d+)\]: (.+)")


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


class Lessons(SharedLines):
    """The lessons of all runs of a repository."""

    HEADING = """# Lessons

What earlier runs taught, as their agents saw it. Edit or delete freely: agents read what is here.

"""

    def read(self) -> list[Lesson]:
        return [lesson for lesson in map(parse, self.lines()) if lesson]

    def for_profile(self, profile: str) -> list[Lesson]:
        """The lessons that a brief shows: those of its profile, the most confirmed first, then the newest."""
        fitting = [lesson for lesson in self.read() if lesson.profile == plain(profile)]
        return sorted(fitting, key=lambda lesson: (-lesson.confirmed, -lesson.number))[:SHOWN]

    def learn(self, text: str, profile: str, device: str, run: str, experiment: int) -> None:
        """Add a lesson, unless `text` names one (`L3`) or repeats it."""
        text = one_line(keys.scrub(text))
        if not text or named("L", text):
            return
        with self.lines_to_edit() as lines:
            known = [lesson for line in lines if (lesson := parse(line))]
            if all(core(lesson.text) != core(text) for lesson in known):
                number = 1 + max((lesson.number for lesson in known), default=0)
                lines.append(str(Lesson(number, 0, plain(profile), plain(device), run, experiment, text)))

    def confirm(self, text: str) -> None:
        """An edit was kept that tested the lesson which `text` names (`L3`)."""
        if (number := named("L", text)) is None:
            return
        with self.lines_to_edit() as lines:
            for index, lesson in enumerate(map(parse, lines)):
                if lesson and lesson.number == number:
                    lines[index] = str(dataclasses.replace(lesson, confirmed=lesson.confirmed + 1))


def parse(line: str) -> Lesson | None:
    if found := LINE.fullmatch(line.strip()):
        number, confirmed, profile, device, run, experiment, text = found.groups()
        return Lesson(int(number), int(confirmed), profile, device, run, int(experiment), text)
    return None


def plain(text: str) -> str:
    """Text without the characters that separate the parts of a line."""
    return re.sub(r"[;\[\]]", ",", one_line(text, 80))
