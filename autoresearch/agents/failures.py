"""What a failed call of an agent means: the one place that knows the error messages of all services and command lines.

A limit, an outage or a time-out is temporary, and the message often says until when. A person has to act if the user is
signed out or out of credit, or if the model does not exist. All other failures are unknown.
"""

import contextlib
import datetime
import enum
import re
import zoneinfo

STATUS = r"(?:^|\(|status:? |code\W{1,3}|error\W{1,3})"  # what stands before a number that is an HTTP status
SIGNED_OUT = re.compile(
    STATUS + r"401\b|unauthori[sz]ed|authentication.?(?:error|failed|required)|permission_error|not logged in|"
    r"invalid (?:x-)?api.?key|please run /login|sign in again|log in again|api key not valid|set an auth method|"
    r"no api key|missing api key|missing environment variable",
    re.IGNORECASE,
)
NO_CREDIT = re.compile(
    STATUS + r"402\b|credit balance|billing_error|insufficient.?(?:quota|credits?|funds|balance)|out of credits|"
    r"payment required|spend(?:ing)? limit|check your plan and billing details(?!\.? *for more information)",
    re.IGNORECASE,
)
NO_MODEL = re.compile(
    STATUS + r"404\b|not_found_error|model.?not.?found|unknown model|model \S+ (?:is )?not found", re.IGNORECASE
)
PASSES = re.compile(
    STATUS + r"(?:408|409|425|429|5\d\d)\b|overload|rate.?limit|too many requests|quota|resource.?exhausted|"
    r"exhausted your|(?:at|no) capacity|high demand|(?:usage|session|weekly|daily|hour).limit|hit your .{0,20}limit|"
    r"(?<!context )limit reached|api_error|server.?error|unavailable|try again later|"
    r"time.?out|timed out|deadline exceeded|after its time limit|ECONN\w+|ENOTFOUND|EAI_AGAIN|EPIPE|EHOSTUNREACH|"
    r"ENETUNREACH|fetch failed|connection (?:error|refused|reset|closed)|stream (?:disconnected|closed|error)|"
    r"(?:unable to|cannot|can't|could not|failed to) connect|network (?:error|is unreachable)|bad gateway|"
    r"error sending request|premature close|terminated|socket hang up",
    re.IGNORECASE,
)

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
WHEN = r"(?:again|retry\w*|resets?|wait\w*|available|limit\w*)"
PART = r"(\d+(?:\.\d+)?)\s*(ms|milliseconds?|d|days?|h|hrs?|hours?|m|mins?|minutes?|s|secs?|seconds?)(?![a-z])"
DURATION = re.compile(WHEN + rf"\b\W{{0,3}}(?:in|after)\s+((?:{PART}[\s,]*(?:and\s+)?)+)", re.IGNORECASE)
SECONDS = re.compile(r"(?:retry.?after|resets?.?in.?seconds|retryDelay)\W{1,5}(\d+(?:\.\d+)?)", re.IGNORECASE)
UNIX = re.compile(r"(?:reset\w*|limit\w*|again|retry\w*)[^\d]{1,30}([12]\d{9})(\d{3})?\b", re.IGNORECASE)
CLOCK = re.compile(
    r"(?:\bat|resets?|until)\s+(?:(?P<month>[A-Z][a-z]{2})[a-z]*\.?\s+(?P<day>\d{1,2})(?:st|nd|rd|th)?,?\s*"
    r"(?P<year>\d{4})?,?\s*(?:at\s+)?)?(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?(?::\d\d)?\s*(?P<half>[ap]\.?m\b)?"
    r"\s*\(?(?P<zone>[A-Za-z_]+/[A-Za-z_/+-]+|UTC|GMT)?",
    re.IGNORECASE,
)
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
JUST_PAST = datetime.timedelta(minutes=10)  # a time of day is that of today if it is past by less


class Meaning(enum.Enum):
    SIGNED_OUT = "signed out"
    NO_CREDIT = "out of credit"
    NO_MODEL = "no such model"
    PASSES = "it will pass"
    UNKNOWN = "unknown"


def meaning_of(said: str) -> Meaning:
    """What a failure means, from its words and the status at their beginning. What names a time passes then."""
    if SIGNED_OUT.search(said):
        return Meaning.SIGNED_OUT
    if named_wait(said) is None:
        if NO_CREDIT.search(said):
            return Meaning.NO_CREDIT
        if NO_MODEL.search(said):
            return Meaning.NO_MODEL
        if not PASSES.search(said):
            return Meaning.UNKNOWN
    return Meaning.PASSES


def named_wait(said: str, now: datetime.datetime | None = None) -> float | None:
    """Seconds until the time that a message names, at least 0; None where it names none.

    `in 2h 15m`, `after 8h44m7s`, `at 3:28 PM`, `resets 3am (Europe/Berlin)`, `Jul 5th, 2026 8:19 PM`, seconds since
    1970, ISO 8601. now: the local time, with its zone.
    """
    now = now or datetime.datetime.now().astimezone()
    if found := DURATION.search(said):
        parts = re.findall(PART, found[1], re.IGNORECASE)
        return sum(float(number) * UNITS["ms" if unit.lower().startswith(("ms", "mil")) else unit[0].lower()]
                   for number, unit in parts)  # fmt: skip
    if found := SECONDS.search(said):
        return float(found[1])
    if found := UNIX.search(said):
        return max(0.0, int(found[1]) - now.timestamp())
    if found := ISO.search(said):
        with contextlib.suppress(ValueError):  # no such day, hour or offset
            return max(0.0, (datetime.datetime.fromisoformat(found[0]) - now).total_seconds())
    for found in CLOCK.finditer(said):
        if (then := clock_time(found, now)) is not None:
            return max(0.0, (then - now).total_seconds())
    return None


def clock_time(found: re.Match, now: datetime.datetime) -> datetime.datetime | None:
    """The moment that a match of CLOCK names; None for what is no time of day, such as `at 3`."""
    if not (found["minute"] or found["half"]):
        return None
    zone: datetime.tzinfo | None = now.tzinfo
    try:
        if found["zone"]:
            zone = zoneinfo.ZoneInfo(found["zone"])
        now = now.astimezone(zone)
        hour = int(found["hour"])
        if found["half"]:
            hour = hour % 12 + (12 if found["half"].lower().startswith("p") else 0)
        then = now.replace(hour=hour, minute=int(found["minute"] or 0), second=0, microsecond=0)
        if not found["month"]:
            return then if then > now - JUST_PAST else then + datetime.timedelta(days=1)
        then = then.replace(month=1 + MONTHS.index(found["month"].lower()), day=int(found["day"]))
        if found["year"]:
            return then.replace(year=int(found["year"]))
        return then if then > now - datetime.timedelta(days=180) else then.replace(year=now.year + 1)
    except (ValueError, KeyError, OSError):  # no such hour, day, month or zone: `America/Argentina` is a folder
        return None
