"""Making the data: `cache.prepare(game)` fetches text, learns a tokenizer, and writes packed rows to the game's folder.

In the order of the work: sources.py (what text there is, and which of it is held out), texts.py (out of files),
download.py, tokenizer.py, packing.py, cache.py. Nothing here runs while a model trains, and nothing imports prepare.py:
what is made, and where, is in the `game` that each function is handed.
"""
