"""Inspect a repository: its language, how it is built and tested, what could be measured, which files matter.

It only reads committed files, and runs nothing.
"""

import collections
import dataclasses
import json
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Mapping

from autoresearch.text import count

LANGUAGES = {
    "Python": (".py",),
    "JavaScript": (".js", ".mjs", ".cjs", ".ts"),
    "C": (".c", ".h"),
    "C++": (".cc", ".cpp", ".cxx", ".hpp", ".hh"),
    "Rust": (".rs",),
    "Go": (".go",),
    "Ruby": (".rb",),
    "Java": (".java",),
    "Perl": (".pl", ".pm"),
    "shell": (".sh",),
}
# A build file at the top decides what is built, however large the other files are.
MANIFESTS = {"Cargo.toml": "Rust", "go.mod": "Go", "package.json": "JavaScript", "pyproject.toml": "Python"}
# Files that people do not want to improve: tests, documents, third-party code, generated code.
ASIDE = re.compile(
    r"(^|/)(tests?|testing|specs?|__tests__|t|examples?|docs?|doc|man|vendor|third_party|node_modules|dist|build|debian|"
    r"contrib|scripts?|tools?|benchmarks?|bench|benches|perf|fixtures|po|m4|\.[^/]+)/"
    r"|(^|/)(test_[^/]*|(tests?|bench|benchmarks?)\.[a-z]+|[^/]*[_.-](test|spec)\.[a-z]+|[^/]*\.min\.js|[^/]*\.d\.ts|"
    r"conftest\.py|setup\.py|noxfile\.py|version\.py|_version\.py|[^/]*\.config\.[cm]?js|config\.h)$"
)
BENCHMARK = re.compile(r"(^|/)((bench|perf|speed)[^/]*|(bench|benchmarks|perf)/[^/]+)\.(py|js|mjs|cjs|sh|pl)$")
RULE = re.compile(r"^([A-Za-z][\w-]*)[ \t]*:(?!=).*\n?((?:\t.*\n?)*)", re.MULTILINE)  # of make: target, recipe
SPEED = re.compile(r"\b(fast|speed|quick|slow|time|seconds|latency|throughput|perform|cpu)", re.IGNORECASE)
SIZE = re.compile(r"\b(small|size|bytes|shrink|compact|binary)", re.IGNORECASE)
COMMON = re.compile(  # words of a goal that name no file
    "make|fast(er)?|speed|quicker|smaller|better|improve|reduce|lower|less|time|performance|the|and|for|with|more|size|"
    "bytes|code|library|program"
)


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was found in a repository. Commands are in the form that `task` takes; None: none was found."""

    language: str
    manager: str | None = None  # of packages or of the build: uv, npm, make, cargo, ...
    setup: str | None = None
    build: str | None = None
    tests: str | None = None
    benchmarks: tuple[str, ...] = ()  # commands
    programs: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of them: what builds it, by command
    search: str | None = None  # a variable with which the code of the checkout is found before an installed copy
    sources: tuple[str, ...] = ()  # files that one may want to improve, the largest first

    def lines(self) -> dict[str, str]:
        """For a person to read."""
        found = {
            "language": self.language,
            "packages": self.manager,
            "setup": self.setup,
            "build": self.build,
            "tests": self.tests,
            "benchmarks": ", ".join(self.benchmarks),
            "sources": f"{count(len(self.sources), 'file')}: {', '.join(self.sources[:4])}" if self.sources else None,
        }
        return {name: text for name, text in found.items() if text}


def survey(sizes: dict[str, int], read: Callable[[str], str]) -> Survey:
    """What a repository has. sizes: bytes of its committed files, by path. read: the text of one, empty without it."""
    counted = collections.Counter()
    for path, size in sizes.items():
        if (language := language_of(path)) and not ASIDE.search(path):
            counted[language] += size
    described = (language for name, language in MANIFESTS.items() if name in sizes and counted[language])
    language = next(described, counted.most_common(1)[0][0] if counted else "unknown")
    suffixes = LANGUAGES.get(language, ())
    sources = [path for path in sizes if path.endswith(suffixes or ("",)) and not ASIDE.search(path)]
    sources.sort(key=lambda path: (-sizes[path], path))
    found = Survey(language, sources=tuple(sources))
    look = {"Python": python, "JavaScript": javascript, "Rust": rust, "Go": go, "Perl": perl}.get(language, native)
    found = dataclasses.replace(found, **look(sizes, read))
    files = [shlex.join([interpreter(path), path]) for path in sorted(sizes) if BENCHMARK.search(path)]
    return dataclasses.replace(found, benchmarks=(*found.benchmarks, *files[:5]))


def language_of(path: str) -> str | None:
    return next((name for name, suffixes in LANGUAGES.items() if path.endswith(suffixes)), None)


def interpreter(path: str) -> str:
    return {".py": "python", ".sh": "sh", ".pl": "perl"}.get(posixpath.splitext(path)[1], "node")


# Of each language what is known of it, as fields of Survey.


def python(files: Iterable[str], read: Callable[[str], str]) -> dict:
    names = set(files)
    described = sorted(names & {"pyproject.toml", "setup.py", "setup.cfg", "tox.ini", "requirements-dev.txt"})
    settings = "".join(map(read, described))
    tests = sorted(path for path in names if re.search(r"(^|/)(test_[^/]+|[^/]+_test)\.py$", path))
    folders = sorted({path.split("/")[0] for path in tests if "/" in path})
    where = next((name for name in ("tests", "test", "testing") if name in folders), folders[0] if folders else "")
    uses_pytest = "pytest" in settings or any("pytest" in read(path) for path in [*tests[:20], f"{where}/conftest.py"])
    command = "-m pytest -q -x -p no:cacheprovider" if uses_pytest else "-m unittest discover -q"
    if where in folders:
        command += f" {where}" if uses_pytest else f" -s {where}"
    manager = "uv" if "uv.lock" in names else "poetry" if "poetry.lock" in names else "pip" if described else None
    search = f"PYTHONPATH={source_folder(names)}"
    return {"manager": manager, "tests": f"env {search} python {command}" if tests else None, "search": search}


def source_folder(files: Iterable[str]) -> str:
    """Where Python finds the packages of a repository."""
    return "src" if any(re.match(r"src/[^/]+(/__init__)?\.py$", path) for path in files) else "."


def javascript(files: Iterable[str], read: Callable[[str], str]) -> dict:
    names = set(files)
    try:
        package = json.loads(read("package.json") or "{}")
    except ValueError:
        package = {}
    scripts = package.get("scripts") or {}
    locks = {"package-lock.json": "npm ci", "yarn.lock": "yarn install --frozen-lockfile"}
    locks["pnpm-lock.yaml"] = "pnpm install"
    lock = next((name for name in locks if name in names), None)
    setup = locks[lock] if lock else "npm install --no-audit --no-fund" if package.get("dependencies") else None
    manager = (setup or "npm").split()[0]
    has_tests = "test" in scripts and "no test specified" not in scripts["test"]
    return {
        "manager": manager,
        "setup": setup,
        "build": f"{manager} run build" if "build" in scripts else None,
        "tests": f"{manager} test" if has_tests else None,
        "benchmarks": tuple(f"{manager} run {name}" for name in scripts if re.match(r"bench|perf", name)),
    }


def rust(files: Iterable[str], read: Callable[[str], str]) -> dict:
    """No benchmarks: `cargo bench` repeats until a time is up, and takes as long however fast the code is."""
    return {
        "manager": "cargo",
        "setup": "cargo fetch",
        "build": "cargo build --release --offline",
        "tests": "cargo test --release --offline",
    }


def go(files: Iterable[str], read: Callable[[str], str]) -> dict:
    """Benchmarks run a fixed number of times, or they would take as long however fast the code is."""
    others = [f"{posixpath.dirname(path)}/" for path in files if path.endswith("/go.mod")]  # `./...` leaves these out,
    skipped = re.compile(r"(^|/)([_.]|testdata/)")  # and these
    tests = [path for path in files if path.endswith("_test.go") and not skipped.search(path)]
    has_benches = any("func Benchmark" in read(path) for path in tests if not path.startswith(tuple(others)))
    return {
        "manager": "go",
        "setup": "go mod download",
        "build": "go build ./...",
        "tests": "go test -count=1 ./...",  # never an earlier result, if they are timed
        "benchmarks": ("go test -run NONE -bench . -benchtime 100x ./...",) if has_benches else (),
    }


def perl(files: Iterable[str], read: Callable[[str], str]) -> dict:
    """A module with C code is built, in blib/. Any other is used where it lies."""
    names = set(files)
    is_built = "Makefile.PL" in names and any(path.endswith(".xs") for path in names)
    has_tests = any(re.fullmatch(r"t/.+\.t", path) for path in names)
    return native(names, read) | {
        **({"manager": "make", "build": "perl Makefile.PL && make"} if is_built else {}),
        **({"tests": f"prove -{'b' if is_built else 'l'} -r t"} if has_tests else {}),
        "search": "PERL5LIB=blib/lib:blib/arch" if is_built else "PERL5LIB=lib",
    }


def native(files: Iterable[str], read: Callable[[str], str]) -> dict:
    """What is built by make, cmake, or an own script."""
    names = set(files)
    makefile = next((name for name in ("GNUmakefile", "Makefile", "makefile") if name in names), None)
    targets = collections.defaultdict(str)  # recipes; a target may have several rules
    for target, recipe in RULE.findall(read(makefile)) if makefile else ():
        targets[target] += recipe
    if makefile:
        build = "make"
    elif "CMakeLists.txt" in names:
        build = 'sh -c "cmake -S . -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build"'
    elif "configure" in names:
        build = 'sh -c "./configure --quiet && make"'
        targets["check"] = ""
    else:
        return {}
    test = next((name for name in ("check", "test", "tests") if name in targets), None)
    benchmarks = [name for name in targets if re.match(r"bench|perf", name)]
    programs = {f"./{name}": f"make {name}" for name in benchmarks if only_builds(name, targets[name])}
    return {
        "manager": "cmake" if "cmake" in build else "make",
        "build": build,
        "tests": f"make {test}" if test else None,
        "benchmarks": (*programs, *(f"make {name}" for name in benchmarks if f"./{name}" not in programs)),
        "programs": programs,
    }


def only_builds(target: str, recipe: str) -> bool:
    """Whether a target of a makefile is a program that its recipe builds, and does not run."""
    name = rf"(\$@|\$\(@\)|{re.escape(target)})"
    return bool(re.search(rf"-o\s*{name}(?!\S)", recipe)) and not re.search(rf"\./{name}", recipe)


# What a goal asks for.


def kind_of(goal: str) -> str | None:
    """`time` or `size`, if the goal names one of them."""
    return "time" if SPEED.search(goal) else "size" if SIZE.search(goal) else None


def files_for(goal: str, sources: Iterable[str]) -> list[str]:
    """The sources whose paths the goal speaks of, the best first."""
    words = {word for word in re.findall(r"[a-z]{3,}", goal.lower()) if not COMMON.fullmatch(word)}
    stems = {re.sub(r"(ings?|ers?|ors?|ions?|ed|s)$", "", word) for word in words}
    stems = {stem for stem in stems if len(stem) > 2}
    scored = [(sum(stem in path.lower().rpartition("/")[2] for stem in stems), path) for path in sources]
    return [path for hits, path in sorted(scored, key=lambda item: -item[0]) if hits]
