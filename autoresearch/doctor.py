"""Check this machine: what a run needs, whether it is there, and how to fix what is missing.

All checks (machine_checks.py) run in parallel, each with a time limit, so that a hanging program or name look-up does
not delay the others.
"""

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from autoresearch import UserError, keys
from autoresearch.machine_checks import (
    CHECKS,
    FAULT,
    LIMIT,
    OK,
    TORCH_LIMIT,
    WARNING,
    Finding,
    Machine,
    NothingFound,
    begin,
    sandbox,
    torch,
)
from autoresearch.text import count, one_line, to_type

if TYPE_CHECKING:
    import rich.console

LONGEST = 3 * LIMIT  # seconds for a check, whatever it waits for
LONGEST_OF_TORCH = 2 * TORCH_LIMIT + LIMIT  # for one that waits for torch, in and outside of the sandbox


def examine(settings: dict[str, str], report: Callable[[Finding], None]) -> list[Finding]:
    """Run all checks, and report each finding as soon as all before it are known.

    settings: environment variables of the game, in addition to the present ones.
    """
    machine = Machine(settings)
    answers = [(check, begin(listed, check, machine)) for check in CHECKS]
    findings = []
    for check, answer in answers:
        for finding in found(check, answer):
            findings.append(finding)
            report(finding)
    return findings


def listed(check: Callable, machine: "Machine") -> list[Finding]:
    """All findings of a check, which yields several or returns one."""
    said = check(machine)
    return [said] if isinstance(said, Finding) else list(said)


def found(check: Callable, answer: Future) -> list[Finding]:
    """The findings of a check, or one that says why it failed."""
    name, limit = check.__name__, LONGEST_OF_TORCH if check in (torch, sandbox) else LONGEST
    try:
        return answer.result(limit)
    except TimeoutError as error:
        return [Finding(name, WARNING, str(error) or f"no answer within {limit:.0f} s")]
    except UserError as error:  # which says what is wrong, and then what to do
        said, _, then = str(error).partition("; ")
        return [Finding(name, FAULT, said, then)]
    except ImportError as error:
        return [Finding(name, FAULT, str(error), "uv sync    # and start everything with `uv run`")]
    except (NothingFound, OSError) as error:
        return [Finding(name, FAULT, one_line(str(error)))]
    except Exception as error:  # the other checks continue
        return [Finding(name, FAULT, one_line(f"the check itself failed: {type(error).__name__}: {error}"))]


def show(finding: Finding, console: "rich.console.Console | None") -> None:
    """Print a finding as soon as it is known. console: a terminal, with colours."""
    said, then = keys.scrub(finding.said), keys.scrub(finding.next)
    then = then and f"next: {then}"
    if console is None:
        print(f"{finding.status:<9}{finding.name:<13}{said}" + (then and f"\n{'':<22}{then}"), flush=True)
        return
    from rich.table import Table
    from rich.text import Text

    style = {OK: "green", WARNING: "yellow", FAULT: "bold red"}[finding.status]
    table = Table.grid(padding=(0, 1))
    table.add_column(width=8, style=style)
    table.add_column(width=12, style="bold")
    table.add_column(overflow="fold")
    table.add_row(finding.status, finding.name, Text(said))
    if then:
        table.add_row("", "", Text(then, style="cyan"))
    console.print(table)


def main(settings: dict[str, str], as_json: bool, plain: bool) -> int:
    """The `doctor` command. Returns its exit code: 1 if there is a fault."""
    from autoresearch.views.panel import screen

    console, draws = screen()
    terminal = console if draws and not plain else None
    findings = examine(settings, lambda finding: None if as_json else show(finding, terminal))
    faults, warnings = (sum(finding.status == status for finding in findings) for status in (FAULT, WARNING))
    if as_json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        print(keys.scrub(json.dumps({"ready": not faults, "findings": listed}, ensure_ascii=False)))
    elif faults:
        print(f"\nnot ready: {count(faults, 'fault')}, {count(warnings, 'warning')}")
    else:
        print(f"\nready: {to_type()}" + (f"    ({count(warnings, 'warning')})" if warnings else ""))
    return 1 if faults else 0
