"""What a log says of a failure: its own most telling line, whatever language it is in."""

import pytest

from autoresearch.runner.logs import last_word

MAKE = "make: *** [Makefile:97: lz4] Error 1\nmake: Leaving directory '/x'\n"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("Traceback (most recent call last):\n  File\nValueError: no\n\n", "ValueError: no"),
        ("cc -o x\nx.c:3:1: error: expected ';'\nx.c:9:1: error: later\n" + MAKE, "x.c:3:1: error: expected ';'"),
        (
            "ld: cannot find -llz4: No such file\ncollect2: error: ld returned 1\n" + MAKE,
            "ld: cannot find -llz4: No such",
        ),
        ("x.c:(.text+0x5): undefined reference to `f'\ncollect2: error: ld\n", "x.c:(.text+0x5): undefined reference"),
        (
            "ld: b.o:(.bss+0x0): multiple definition of `x'\ncollect2: error: ld returned 1\n",
            "ld: b.o:(.bss+0x0): mult",
        ),
        ("error[E0425]: cannot find value\n --> src\nerror: could not compile `x`\n", "error[E0425]: cannot find"),
        ("file:///x.js:3\n  foo(\n   ^\nSyntaxError: Unexpected\n    at a\n\nNode.js v20\n", "SyntaxError: Unexpected"),
        ("./x.go:3:2: undefined: y\n", "./x.go:3:2: undefined: y"),
        ("FAILED t.py::test - assert 1\n===== 1 failed in 0.1s =====\n", "FAILED t.py::test - assert 1"),
        (
            "--- FAIL: TestA (0.00s)\n    a_test.go:5: 1\nFAIL\nFAIL\tx\t0.1s\nok  \ty\t0.1s\nFAIL\n",
            "--- FAIL: TestA (0.00s)",
        ),
        (
            "a.rb:1:in `require': cannot load such file -- x (LoadError)\n\tfrom a.rb:1:in `<main>'\nexit code 1 of: a",
            "a.rb:1:in `require': cannot load such file -- x (LoadError)",
        ),
        ("sh: 1: a: not found\nexit code 127 of: a\n", "sh: 1: a: not found"),
        ("exit code -9 of: a\n", "exit code -9 of: a"),
        ("Segmentation fault\n" + MAKE, "Segmentation fault"),
        ("one\ntwo\n\n", "two"),
        (MAKE, "make: Leaving directory '/x'"),
        ("", ""),
    ],
)
def test_the_line_that_says_why(tmp_path, log, said):
    (tmp_path / "log").write_text(log)
    answer = last_word(tmp_path / "log")
    assert answer.startswith(said) if said else answer == ""
