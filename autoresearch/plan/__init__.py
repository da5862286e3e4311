"""Set up a task in another repository: inspect the repository (survey), draft a task (draft), and check it (prove)."""
