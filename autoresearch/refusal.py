"""Why an edit is refused: it cannot be run, or would tell nothing new. Rules first, then a short rehearsal."""

import dataclasses

from autoresearch import keys
from autoresearch.constants import Value, as_it_counts, change, read_code
from autoresearch.drafts import Draft, Drafts
from autoresearch.record.ledger import ABANDONED, Attempt, is_a_miss
from autoresearch.run import Run, sources
from autoresearch.runner import PREFLIGHT, Job, Seat
from autoresearch.runner.local import name_of
from autoresearch.text import signed
from autoresearch.tried import change_of

CLEAR = 2 * 2**0.5  # standard deviations of one score: a difference of two that is no chance


class Refusals:
    """Decides which edits of a run are refused. drafts: the proposals in progress, which must all be different."""

    def __init__(self, run: Run, drafts: Drafts) -> None:
        self.run, self.ledger, self.task, self.drafts = run, run.ledger, run.task, drafts

    async def of(self, draft: Draft) -> str | None:
        """Why the edit in a draft's worktree is refused, or None."""
        assert draft.base is not None
        folder = draft.worktree.folder
        changed = draft.worktree.changed(draft.base.commit)
        if not changed and (last := self.run.taken_back):
            return f"{tried_as(last)}; the champion is restored"
        if objection := self.task.objection(folder, changed, self.run.originals):
            return objection
        files = sources(self.task, folder)
        champion = self.run.files(draft.base.commit)
        for name, content in files.items():
            before = champion.get(name, b"").decode(errors="replace")
            if keys.found(content.decode(errors="replace")) > keys.found(before):
                return f"{name} contains something that looks like a key, which must not get into git"
        draft.edit = self.run.edit(folder)
        if refusal := self.of_repetition(draft) or self.of_constants(champion, files, draft.redone):
            return refusal
        if not self.task.preflight:
            return None
        seat = next(iter(self.run.runner.seats), Seat(0))  # a cluster may have none at the moment
        seat = dataclasses.replace(seat, number=draft.place)
        job = Job(name_of("preflight", seat), files, self.run.seed, (PREFLIGHT,))
        measured = await self.run.runner.run(job, seat, lambda phase: None)
        draft.preflight = measured.seconds.get(PREFLIGHT)
        self.run.disk.require_room()
        if sources(self.task, folder) != files:  # an external agent went on with it, and nobody has looked at that
            return f"{', '.join(self.task.editable)} changed while it was checked: leave it alone until the verdict"
        return measured.reason or self.of_repetition(draft) or None  # an equal edit may have been committed meanwhile

    def of_repetition(self, draft: Draft) -> str | None:
        assert draft.base is not None
        if earlier := self.tried_before(draft.edit, draft.redone):
            if earlier.commit == draft.base.commit:
                return "only comments or layout changed, so it would score as the champion does"
            waits = earlier in self.ledger.pending and earlier.number != draft.number
            return tried_as(earlier, "which has no verdict yet" if waits else "it crashed")
        return None

    def tried_before(self, edit: str, redone: int | None) -> Attempt | None:
        """The earlier attempt with the same edit. redone: the number of an attempt whose edit may be repeated."""
        for attempt in self.ledger.attempts:
            if attempt.edit == edit and attempt.reason not in ABANDONED and attempt.number != redone:
                return attempt
        return self.ledger.repaired.get(edit)

    def of_constants(self, champion: dict[str, bytes], files: dict[str, bytes], redone: int | None) -> str | None:
        """Why an edit tells nothing new: it changes what is not used on this machine, or repeats a clear loss."""
        gpu = self.run.facts.gpu
        known = self.task.referee and self.run.facts.profile in ("gpu", "cpu")  # `test` runs on either
        if known and as_it_counts(champion, gpu) == as_it_counts(files, gpu):
            where, has = ("without", "one") if gpu else ("with", "none")
            return f"the edit changes only what counts {where} a GPU (`a if GPU else b`), and this run has {has}"
        before = read_code(champion, gpu)
        made = as_recorded(change(before, read_code(files, gpu)))
        least = CLEAR * self.ledger.noise()
        for attempt in reversed(self.ledger.finished if made else []):
            same = attempt.beside == before.rest and attempt.constants == made
            if not same or not is_a_miss(attempt) or attempt.number == redone:
                continue
            moved = change_of(attempt)
            if moved is not None and (moved if self.task.lower_is_better else -moved) > least:
                earlier = f"experiment {attempt.number}, and clearly lost: {signed(moved)} {self.task.metric}"
                return f"the same change of constants was tried before, as {earlier}"
        return None


def tried_as(earlier: Attempt, otherwise: str = "") -> str:
    """otherwise: what to say if it has no verdict."""
    return f"the same edit was tried before, as experiment {earlier.number} ({earlier.status or otherwise})"


def as_recorded(made: dict[str, tuple[Value, Value]] | None) -> dict[str, list] | None:
    """A change of constants in the form that the journal has."""
    return None if made is None else {name: list(values) for name, values in made.items()}
