"""The record of a run: events.py defines the events, journal.py writes and reads them, the others draw conclusions.

The journal is the truth; attempts, champion, accounting and results.tsv follow from it.
"""
