"""The record of a run: events.py says what is written, journal.py writes and reads it, the others say what follows.

The journal is the truth; attempts, champion, accounting and results.tsv follow from it.
"""
