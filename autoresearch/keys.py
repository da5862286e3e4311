"""Keys are never written: anything that looks like one is removed from every text that this project stores or shows.

A key is recognised by its shape, or as the value of an environment variable whose name suggests a secret.
"""

import functools
import os
import re
from pathlib import Path
from typing import Any

# Names of environment variables that hold secrets.
NAMES = re.compile(
    r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH(?!OR)|_PAT$|CUSTOM_HEADERS", re.IGNORECASE
)
SHORTEST = 12  # characters of a value that counts as a key: shorter ones occur in ordinary text, too
PLACE = "[key removed]"
LARGEST = 64 << 20  # bytes of a log that are read
SHAPES = re.compile(
    r"""
    (?<![\w/])(?: sk-(?=[A-Za-z_-]{0,64}\d)[A-Za-z0-9_-]{16,}             # Anthropic, OpenAI and their likes
        | (?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{20,} | github_pat_[A-Za-z0-9_]{20,}
        | glpat-[A-Za-z0-9_-]{16,}
        | hf_[A-Za-z0-9]{20,}
        | (?:gsk_|xai-|nvapi-|pplx-|tvly-)[A-Za-z0-9_-]{24,}
        | AIza[A-Za-z0-9_-]{30,} | ya29\.[A-Za-z0-9_-]{20,} | AQ\.[A-Za-z0-9_-]{40,}
        | (?:AKIA|ASIA)[A-Z0-9]{16}
        | xox[abprs]-[A-Za-z0-9-]{10,}
        | (?<!-)eyJ[A-Za-z0-9_-]{10,2000}\.[A-Za-z0-9_-]{10,8000}\.[A-Za-z0-9_-]+  # JSON web tokens
      )
    | (?<=://)[^\s/:@]+:[^\s/:@]+(?=@)                               # name and password in an address
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----[\s\S]*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)
""",
    re.VERBOSE,
)
HEADERS = re.compile(
    r"(?i)\b((?:x-api-key|x-goog-api-key|api[-_]?key|authorization)\b[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?)"
    r"(?!\[key removed\])[A-Za-z0-9_.~+/-]{16,}=*"
)


def known() -> tuple[str, ...]:
    """Values of the environment variables whose names say that they are secret, the longest first."""
    values = {
        part
        for name, value in os.environ.items()
        if NAMES.search(name) and not os.path.exists(value)
        for part in (value, *re.findall(r'"([^"]+)"', value))
        if len(part) >= SHORTEST and not part.isspace()
    }
    return tuple(sorted(values, key=len, reverse=True))


@functools.lru_cache(maxsize=4)
def pattern_of(values: tuple[str, ...]) -> re.Pattern | None:
    return re.compile("|".join(map(re.escape, values))) if values else None


def scrub(text: str) -> str:
    """The text without anything that looks like a key."""
    if found := pattern_of(known()):
        text = found.sub(PLACE, text)
    return HEADERS.sub(rf"\g<1>{PLACE}", SHAPES.sub(PLACE, text))


def scrubbed(value: Any) -> Any:
    """A value of JSON, without keys in its texts."""
    match value:
        case str():
            return scrub(value)
        case dict():
            return {name: scrubbed(inner) for name, inner in value.items()}
        case list() | tuple():
            return [scrubbed(inner) for inner in value]
    return value


def found(text: str) -> int:
    """How many keys a text holds."""
    return scrub(text).count(PLACE) - text.count(PLACE)


def scrub_file(path: Path) -> None:
    """Remove keys from a log, if its first LARGEST bytes hold any; what lies beyond them is then lost."""
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST)
    except OSError:
        return
    text = raw.decode("utf-8", "surrogateescape")
    if (clean := scrub(text)) != text:
        path.write_bytes(clean.encode("utf-8", "surrogateescape"))
