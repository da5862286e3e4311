"""Set a game up in somebody's repository: look at it (survey), draft a task (draft), and prove it (prove)."""
