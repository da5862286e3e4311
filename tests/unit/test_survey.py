"""What `plan` sees in a repository, and the task that it drafts from that: nothing is run."""

import json
from pathlib import Path

import pytest

from autoresearch import UserError
from autoresearch.plan.command import Asker
from autoresearch.plan.draft import SCORER, Wishes, draft
from autoresearch.plan.prove import ran_no_test
from autoresearch.plan.survey import files_for, kind_of, survey
from autoresearch.program import read_task

PACKAGE = {"dependencies": {"x": "1"}, "scripts": {"test": "node --test", "bench:all": "node b.js", "build": "x"}}
PYTEST = "env PYTHONPATH=src python -m pytest -q -x -p no:cacheprovider tests"
CMAKE = 'sh -c "cmake -S . -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build"'
REPOSITORIES = {
    "Python": {
        "src/lib/__init__.py": "",
        "src/lib/parser.py": "x" * 900,
        "src/lib/version.py": "x" * 2000,
        "tests/test_parser.py": "import pytest",
        "benchmark/bench.py": "x" * 5000,
        "docs/conf.py": "x" * 9000,
        "pyproject.toml": "",
    },
    "JavaScript": {
        "package.json": json.dumps(PACKAGE),
        "package-lock.json": "{}",
        "lib/a.js": "x",
        "dist/a.min.js": "x" * 99,
    },
    "C": {
        "Makefile": "all: x\n\ntest: all\n\t./x\nbench :\n",
        "x.c": "x" * 50,
        "x.h": "x",
        "tests/t.c": "x" * 500,
        "test.c": "x" * 99,
        "bench.c": "x" * 99,
    },
    "C++": {"CMakeLists.txt": "", "src/x.cpp": "x"},
    "Perl": {"lib/A.pm": "x", "t/a.t": "x", "bench/b.pl": "x", "Makefile.PL": "x"},
    "Rust": {"Cargo.toml": "", "src/lib.rs": "x", "benches/b.rs": "x"},
    "Go": {"go.mod": "", "a.go": "x", "a_test.go": "func BenchmarkA("},
    "unknown": {"README.md": "x"},
}


def look(language: str):
    files = REPOSITORIES[language]
    return survey({path: len(text) for path, text in files.items()}, lambda path: files.get(path, ""))


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        (
            "Python",
            ("pip", None, PYTEST, "src/lib/parser.py"),
        ),
        ("JavaScript", ("npm", "npm run build", "npm test", "lib/a.js")),
        ("C", ("make", "make", "make test", "x.c")),
        (
            "C++",
            (
                "cmake",
                CMAKE,
                None,
                "src/x.cpp",
            ),
        ),
        ("Perl", (None, None, "prove -l -r t", "lib/A.pm")),
        ("Rust", ("cargo", "cargo build --release --offline", "cargo test --release --offline", "src/lib.rs")),
        ("Go", ("go", "go build ./...", "go test -count=1 ./...", "a.go")),
        ("unknown", (None, None, None, "README.md")),
    ],
)
def test_what_a_repository_has(language, expected):
    found = look(language)
    assert found.language == language
    assert (found.manager, found.build, found.tests, found.sources[0]) == expected


def test_benchmarks_and_set_up():
    assert look("Python").benchmarks == ("python benchmark/bench.py",)
    assert look("JavaScript").benchmarks == ("npm run bench:all",) and look("JavaScript").setup == "npm ci"
    assert look("C").benchmarks == ("make bench",) and look("Perl").benchmarks == ("perl bench/b.pl",)
    assert look("Rust").benchmarks == () and "-benchtime 100x" in look("Go").benchmarks[0]


MAKEFILE = (
    "test: x\n\t./test\n\nbench: bench.o\n\t$(CC) bench.o -o {}\n{}\nbench.o: bench.c\n\t$(CC) -c bench.c -o $@\n"
)


@pytest.mark.parametrize(
    ("program", "then", "benchmark", "train"),
    [
        ("$@", "", "./bench", "make bench"),
        ("bench", "", "./bench", "make bench"),
        ("$@", "\t$(HELPER) ./bench\n", "make bench", "make"),
        ("benches/all", "", "make bench", "make"),  # nobody knows what that is
    ],
)
def test_a_benchmark_that_make_only_builds(program, then, benchmark, train):
    """A second `make bench` finds it built: its time would be that of make."""
    texts = {"Makefile": MAKEFILE.format(program, then), "x.c": "x"}
    found = survey(dict.fromkeys(texts, 9), lambda path: texts[path])
    made = draft(found, set(), Wishes(goal="faster"), Asker(yes=True))
    assert found.benchmarks == (benchmark,)
    assert made.settings["train"] == train and f"COMMAND = '{benchmark}'" in made.files[SCORER]
    if train == "make bench":
        with pytest.raises(UserError, match=r"only builds \./bench"):
            draft(found, set(), Wishes(goal="faster", time="make bench"), Asker(yes=True))


def test_perl_modules_are_those_of_the_checkout():
    """With C code in them, those that were built."""
    assert 'COMMAND = "PERL5LIB' not in drafted("C", goal="faster").files[SCORER]
    assert "COMMAND = 'PERL5LIB=lib perl bench/b.pl'" in drafted("Perl", goal="faster").files[SCORER]
    texts = {**REPOSITORIES["Perl"], "A.xs": "x"}
    found = survey(dict.fromkeys(texts, 9), lambda path: texts[path])
    assert (found.build, found.tests) == ("perl Makefile.PL && make", "prove -b -r t")
    assert found.search == "PERL5LIB=blib/lib:blib/arch"


def test_what_yes_would_accept():
    with pytest.raises(UserError, match="--yes accepts what is proposed, `make bench`"):
        draft(look("C"), set(), Wishes(goal="faster"), Asker(yes=False))
    with pytest.raises(UserError, match=r"see `[^`]*`$"):  # nothing was found, so nothing is proposed
        draft(look("unknown"), set(), Wishes(goal="faster"), Asker(yes=False))


@pytest.mark.parametrize("path", ["_bench/a_test.go", "testdata/a_test.go", "other/deep/a_test.go"])
def test_benchmarks_that_go_does_not_run(path):
    texts = {"go.mod": "", "a.go": "x", "other/go.mod": "", path: "func BenchmarkA("}
    assert survey(dict.fromkeys(texts, 9), lambda path: texts[path]).benchmarks == ()


def test_what_a_goal_names():
    sources = ["src/render.py", "src/block_parser.py", "src/parser.py", "src/time.py"]
    assert files_for("make it faster in less time", sources) == []
    assert files_for("make parsing faster", sources) == ["src/block_parser.py", "src/parser.py"]
    assert (kind_of("make it faster"), kind_of("a smaller binary"), kind_of("higher accuracy")) == (
        "time",
        "size",
        None,
    )


def drafted(language: str, **wishes):
    return draft(look(language), set(REPOSITORIES[language]), Wishes(**wishes), Asker(yes=True))


@pytest.mark.parametrize(
    ("language", "wishes", "settings"),
    [
        (
            "Python",
            {"goal": "make the parser faster"},
            {"editable": ["src/lib/parser.py"], "score": f"python {SCORER}", "metric": "seconds"},
        ),
        ("C", {"goal": "a smaller binary", "size": "x"}, {"train": "make", "metric": "bytes", "guard": "make test"}),
        ("Go", {"goal": "faster", "guard": ""}, {"setup": "go mod download", "metric": "seconds"}),
        (
            "unknown",
            {"goal": "better", "score": "sh s.sh", "metric": "accuracy", "edit": ["a.txt"]},
            {"editable": ["a.txt"], "score": "sh s.sh", "metric": "accuracy", "direction": "maximize"},
        ),
    ],
)
def test_a_draft(tmp_path, language, wishes, settings):
    """Its program.md is read back as what was meant."""
    made = drafted(language, **wishes)
    assert settings.items() <= made.settings.items() and ("guard" in made.settings) == (language in ("Python", "C"))
    (tmp_path / "program.md").write_text(made.program())
    task = read_task(tmp_path / "program.md", tmp_path)
    assert task == made.task(tmp_path / "program.md", "")
    for text in made.files.values():
        compile(text, SCORER, "exec")
    assert any("fixed amount of work" in note for note in made.notes) == (language in ("Python", "Go"))
    assert ("PYTHONPATH=src python benchmark/bench.py" in made.files.get(SCORER, "")) == (language == "Python")


def test_a_scorer_that_wants_the_same_output():
    made = drafted("Python", goal="make the parser faster")
    assert not made.is_tuned and made.tuned(1, "").is_tuned
    made = made.tuned(5, "ab" * 32)
    assert made.is_tuned and "\nRUNS = 5\n" in made.files[SCORER]
    assert f"\nEXPECTED = '{'ab' * 32}' " in made.files[SCORER]


@pytest.mark.parametrize(
    ("language", "wishes", "message"),
    [
        ("Python", {}, "What is to be improved?"),
        ("Python", {"goal": "better"}, "What is measured? (--time, --size or --score) Choices: time, size, score."),
        ("C", {"goal": "a smaller binary"}, "such as dist/*.js: --size FILE)"),
        ("unknown", {"goal": "faster"}, "should become faster: --time COMMAND)"),
    ],
)
def test_what_nobody_is_there_to_answer(language, wishes, message):
    with pytest.raises(UserError, match="nobody can answer here") as said:
        drafted(language, **wishes)
    assert message in str(said.value) and "plan --help" in str(said.value)


def test_the_scorer_stands_in_nobodys_way():
    with pytest.raises(UserError, match="exists already"):
        draft(look("Python"), {SCORER}, Wishes(goal="faster"), Asker(yes=True))
    assert Path(SCORER).suffix == ".py"


def test_what_a_manifest_describes_is_built_however_large_its_samples_are():
    found = survey({"Cargo.toml": 10, "src/main.rs": 100, "corpus/big.js": 9000}, lambda path: "")
    assert found.language == "Rust" and found.build and "cargo" in found.build and found.sources == ("src/main.rs",)
    plain = survey({"package.json": 10, "tool.py": 100}, lambda path: "{}")  # it has no code of that language
    assert plain.language == "Python"


@pytest.mark.parametrize(
    ("printed", "none"),
    [
        (
            "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored\n\n   Doc-tests x\n\nrunning 0 tests\n",
            True,
        ),
        ("running 0 tests\n\nrunning 12 tests\ntest result: ok. 12 passed; 0 failed\n", False),
        ("Ran 0 tests in 0.000s\n\nOK\n", True),
        ("Ran 4 tests in 0.001s\n\nOK\n", False),
        ("# tests 0\n# pass 0\n", True),
        ("?   \texample.org/x\t[no test files]\n", True),
        ("ok  \texample.org/x\t0.2s\n?   \texample.org/x/y\t[no test files]\n", False),
        ("ok  \texample.org/x\t0.002s [no tests to run]\n", True),
        ("No tests to run.\nTests run: 12, Failures: 0\n", False),
        ("No tests executed!\n", True),
        ("No tests were found!!!\n", True),
        ("  0 passing (1ms)\n", True),
        ("all 7 checks hold\n", False),
        ("", False),
    ],
)
def test_a_guard_that_ran_no_test(printed, none):
    """In the words of cargo, unittest, node, go, Maven, PHPUnit, ctest and mocha."""
    assert ran_no_test(printed) is none
