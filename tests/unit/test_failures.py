"""What a failed call means: the words of the services and their command lines, and the times that they name."""

import datetime

import pytest

from autoresearch.agents.failures import Meaning, meaning_of, named_wait

NOW = datetime.datetime(2026, 11, 26, 13, 0, tzinfo=datetime.UTC)
HOUR = 3600.0


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("You've hit your usage limit. To get more, see https://example.org or try again at 3:28 PM.", 8880),
        ("You've hit your usage limit. Try again in 4 days 20 hours 9 minutes.", 418_140),
        ("or try again at Dec 5th, 2026 8:19 PM.", 803_940),
        ("You've hit your session limit \u00b7 resets 3am (Europe/Berlin)", 13 * HOUR),
        ("weekly limit reached \u00b7 resets Nov 28 at 4am (UTC)", 39 * HOUR),
        ("limit \u00b7 resets in 2h 15m", 2.25 * HOUR),
        ("limit \u00b7 resets 12:30am (UTC)", 11.5 * HOUR),
        ("usage limit reached|1795700000", 2000),
        ('{"type":"usage_limit_reached","resets_at":1795700000}', 2000),
        ('{"resets_in_seconds": 13872}', 13_872),
        ("no capacity on this model. Your quota will reset after 8h44m7s.", 31_447),
        ("Please retry in 34.5s", 34.5),
        ("Retrying after 1500ms", 1.5),
        ("quotaResetTimeStamp: '2026-11-26T19:00:00Z'", 6 * HOUR),
        ("retry-after: 7200", 2 * HOUR),
        ("try again at 12:59 PM", 0),  # it is just past
        ("resets Jan 1 at 0:00", 35.458333 * 24 * HOUR),
        ("try again at 25:00", None),
        ("resets 3am (Nowhere/Else)", None),
        ("resets 3am (America/Argentina)", None),  # zones lie below it, but it is none
        ("try again after 2026-02-30T19:00:00Z", None),
        ("try again after 2026-11-26T19:00:00+99:99, or at 1:01 PM", 60),
        ("it is at 3 percent", None),
        ("try again later", None),
    ],
)
def test_the_time_that_a_message_names(said, seconds):
    wait = named_wait(said, NOW)
    assert wait is None if seconds is None else wait == pytest.approx(seconds, rel=1e-6)


@pytest.mark.parametrize(
    ("meaning", "texts"),
    [
        (Meaning.PASSES, [
            "You've hit your usage limit. Upgrade your plan to continue", "5-hour limit reached", "Request timed out",
            "Selected model is at capacity. Please try a different model.", "Cannot connect to API: socket hang up",
            "500 Internal error", "API Error: 502 Bad Gateway", "exceeded retry limit, last status: 503", "529 busy",
            "Our servers are currently overloaded", "We are currently experiencing high demand.",
            "429 You exceeded your current quota. Please retry in 12s", "stream disconnected before completion: x",
            "claude: ended after its time limit of 1800 s: it printed no result", "FetchError: fetch failed",
            "Your credit balance resets at 5:00 PM",
        ]),
        (Meaning.SIGNED_OUT, [
            "Not logged in. Please run /login", "401 Unauthorized", "Your token has expired. Please sign in again.",
            "API key not valid", "Please set an Auth method in your settings",
        ]),
        (Meaning.NO_CREDIT, [
            "Credit balance is too low", "insufficient_quota", "402 x", "You've hit your monthly spend limit.",
            "Quota exceeded. Check your plan and billing details.",
        ]),
        (Meaning.NO_MODEL, ["404 not_found_error: model: x", "Model not found: x"]),
        (Meaning.UNKNOWN, [
            "exit code 1: it printed no result", "error_max_turns", "answered 400: prompt is too long",
            "Context limit reached", "TypeError: undefined is not a function",
        ]),
    ],
)  # fmt: skip
def test_what_a_failure_means(meaning, texts):
    assert [text for text in texts if meaning_of(text) is not meaning] == []
