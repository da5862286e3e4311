"""The loop, with hundredths of a second between two calls of an agent that failed, and seconds for a request.

`python hurried_loop.py ARGUMENTS...`
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import loop
from autoresearch import roster
from autoresearch.agents import claude_api, conversation

if __name__ == "__main__":
    roster.PATIENCE = 0.01, 0.05
    claude_api.SILENCE, conversation.REQUEST = 5.0, 6.0  # longer than a busy machine pauses
    loop.main()
