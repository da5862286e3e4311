"""Preparing the data: `cache.prepare(game)` fetches text, trains a tokenizer, and writes packed rows to a folder.

In the order of the work: sources.py (what text there is, and which of it is held out), texts.py (out of files),
download.py, tokenizer.py, packing.py, cache.py. Nothing here runs while a model trains, and nothing imports prepare.py:
what is made, and where, is in the `game` that each function is handed.
"""
