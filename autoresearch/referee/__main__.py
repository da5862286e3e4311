"""The referee's command line; see the package's first lines."""

import argparse
import json
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

import autoresearch.referee
from autoresearch import disk_is_full
from prepare import GAME, NoScore, print_summary, stop


def main() -> None:
    summary, _, details = (autoresearch.referee.__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m autoresearch.referee",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="{score,describe}", required=True)
    scoring = commands.add_parser("score", help="score the checkpoint of the last run")
    scoring.add_argument("--split", choices=("val", "holdout"), default="val")
    scoring.add_argument(
        "--wait", action="store_true", help="be the referee of a training; score when a line arrives on standard input"
    )
    scoring.add_argument(
        "--train", type=Path, metavar="FILE", help="the file that defines the model; default: that of the run"
    )
    scoring.add_argument("--probe-all", action="store_true", help="probe every row for looking ahead, not a sample")
    commands.add_parser("answer")  # what a model's process runs, begun by `score`; of no use by hand
    commands.add_parser("describe", help="print what a run on this machine would use, as JSON")
    arguments = parser.parse_args()
    # Imported where they are used: a model's process gets nothing that it does not need, and `describe` stays quick.
    try:
        if arguments.command == "describe":
            from autoresearch.referee.describe import describe

            print(json.dumps(describe(GAME)))
        elif arguments.command == "answer":
            from autoresearch.referee.answer import answer

            answer(socket.socket(fileno=int(os.environ.pop("AUTORESEARCH_REFEREE"))), GAME)
        else:
            from autoresearch.referee.score import score

            train_py = arguments.train and arguments.train.absolute()
            result = score(GAME, arguments.split, arguments.wait, train_py, arguments.probe_all)
            print_summary(result, arguments.split)
            for name in (f"{arguments.split}_gap", f"{arguments.split}_error"):  # of the probes, bits a byte
                print(f"{name + ':':<18}{result[name]:.6f}")
            end(0)
    except NoScore as reason:
        print(f"no score: {reason}", file=sys.stderr)
        end(1)
    except OSError as error:
        if not disk_is_full(error):
            raise
        stop("the disk is full: free some space, or set TMPDIR to a folder on another disk, and run it again")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        raise SystemExit(130) from None


def end(exit_code: int) -> NoReturn:
    """End at once: Python takes a second to take torch apart, for which the next trial would wait."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    main()
