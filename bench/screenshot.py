"""The pictures of the console in docs/running.md, drawn from a run that is going on.

    uv run bench/screenshot.py --run .autoresearch/TAG --after 12    # waits until experiment 12 or a later one trains
    uv run bench/screenshot.py --run .autoresearch/TAG --status      # what `loop.py status` shows of it, at any time

Writes docs/console.svg or docs/status.svg with rich's own SVG, without the fonts that it would load from elsewhere.
"""

import argparse
import io
import re
import sys
import time
from pathlib import Path

import rich.console
from rich._export_format import CONSOLE_SVG_FORMAT

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.record.ledger import Ledger  # noqa: E402
from autoresearch.text import one_line  # noqa: E402
from autoresearch.views.panel import COLORS, panel_of  # noqa: E402
from autoresearch.views.state import State, look  # noqa: E402

WIDTH = 112
FONTS = "font-family: 'DejaVu Sans Mono', Menlo, Consolas, 'Fira Code', monospace"


def picture(console: rich.console.Console) -> str:
    form = re.sub(r"@font-face \{\{.*?\}\}|<!--.*?-->", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
        "font-family: Fira Code, monospace", FONTS
    )
    lines = console.export_svg(title="autoresearch", code_format=form).splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip()) + "\n"


def wait_for_training(folder: Path, after: int) -> tuple[Ledger, State]:
    while True:
        ledger = Ledger(folder, repair=False)
        state = look(ledger)
        if not state.running:
            raise SystemExit(f"no loop is running on {folder.name}")
        if any(trial.number >= after and trial.loss is not None for trial in state.trials):
            return ledger, state
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--after", type=int, default=2)
    parser.add_argument("--status", action="store_true")
    arguments = parser.parse_args()
    console = rich.console.Console(
        record=True, file=io.StringIO(), force_terminal=True, width=WIDTH, color_system="truecolor", highlight=False
    )
    if arguments.status:
        console.print("$ uv run loop.py status")
        console.print(panel_of(look(Ledger(arguments.run, repair=False)), WIDTH))
    else:
        ledger, state = wait_for_training(arguments.run, arguments.after)
        for attempt in ledger.finished[-4:]:
            console.print(f"experiment {attempt.number}: {one_line(attempt.description, 100)}", markup=False)
            console.print(
                f"  {attempt.status}: {one_line(attempt.reason, 200)}  ({attempt.seconds['wall']:.0f} s)",
                style=COLORS[attempt.status],
                markup=False,
            )
        for trial in state.trials:
            console.print(
                f"experiment {trial.number}: {one_line(ledger.attempts[trial.number - 1].description, 100)}",
                markup=False,
            )
        console.print(panel_of(state, WIDTH, 40))
    path = ROOT / "docs" / ("status.svg" if arguments.status else "console.svg")
    path.write_text(picture(console))
    print(path)


if __name__ == "__main__":
    main()
