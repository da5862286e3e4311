"""The trusted side of the score. The referee runs beside the training, where train.py's code cannot reach it.

    python -m autoresearch.referee score                                # score and probe the last run's checkpoint
    python -m autoresearch.referee score --wait --train train.py        # be the referee of a training, as the loop does
    python -m autoresearch.referee score --split holdout --probe-all    # on rows that no decision reads, probing each
    python -m autoresearch.referee describe                             # what a run on this machine would use, as JSON

Begin with score.py: it is the whole story in one function. clock.py hands the training its rows and keeps the time.
models.py starts the processes that run train.py's model, and answer.py is what runs in them; shared.py is the memory
between the two. probes.py asks whether the model looks ahead or remembers. Arithmetic and rows are prepare.py's.
"""
