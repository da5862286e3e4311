"""Other repositories: builds beside the sources, their own environment, and what is said where it is denied."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, git, solver, step

from autoresearch import tidy_up
from autoresearch.repo import RunRepo, open_repository
from autoresearch.runner import sandbox
from autoresearch.runner.checkout import Checkout
from autoresearch.runner.denied import denied
from autoresearch.runner.environment import of_the_shell, their_words, toolchains
from autoresearch.runner.keeper.system_calls import ANSWERS, filter_program
from autoresearch.task import Task

METHODS = [
    name for name, works in (("Landlock", sandbox.version() >= 2), ("bubblewrap", sandbox.bubblewrap())) if works
]

BUILDS = """---
task:
  editable: [program.sh]
  setup: |
    mkdir made
    echo "made $(cat data/numbers)" > made/it
    echo ran >> {count}
  train: |
    mkdir build
    sed s/NUMBER/number/ program.sh > build/program
    chmod +x build/program
    touch -d 2001-01-01 build/old
    echo more >> made/it
    cp -p build/old beside.o
    python probe.py
  score: ./build/program
  guard: python check.py
  metric: number
  direction: maximize
  time_limit: 60
  env: [COLOUR=red, NAMED, UNSET]
  link: [data/]
  network: loopback
---
"""
PROBE = """import json, multiprocessing, os, pty, socket, subprocess, sys
def loopback():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as here:
        there, _ = server.accept()
        here.send(b"through")
        return there.recv(10).decode()
def link():
    try:
        open("data/new", "w")
    except OSError as error:
        return type(error).__name__
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool:
        mapped = pool.map(abs, [-1, 2])
    said = {
        "pool": mapped,
        "terminal": os.ttyname(os.openpty()[1]).startswith("/dev/pts/"),
        "loopback": loopback(),
        "head": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
        "described": subprocess.check_output(["git", "describe", "--always"], text=True).strip(),
        "old": os.stat("build/old").st_mtime == os.stat("beside.o").st_mtime < 1e9,
        "made": open("made/it").read(),
        "linked": open("data/numbers").read(),
        "write there": link(),
        "env": [os.environ.get(name) for name in ("COLOUR", "NAMED", "UNSET", "OTHER")],
        "submodule": open("part/inside").read(),
    }
    open(os.path.join(os.environ["AUTORESEARCH_RUN_DIR"], "figures.json"), "w").write(json.dumps(said))
"""
COMPARED = """---
task:
  editable: [solver.py]
  train: python solver.py
  score: python compare.py
  hidden: [truth.txt, 'answers/**/*.txt', made/, data/linked.txt]
  setup: mkdir made && echo 1 > made/truth.txt
  link: [data/]
  metric: right
  direction: maximize
  time_limit: 60
---
"""
COMPARE = """import os
words = open("answers/deep/words.txt").read().split()
for name in ("truth.txt", "made/truth.txt", "data/linked.txt"):
    assert open(name).read()
cache = os.environ["CUDA_CACHE_PATH"]
os.makedirs(cache, exist_ok=True)
open(os.path.join(cache, "passed on"), "w").write("SEC" "RET")
said = open(os.path.join(os.environ["AUTORESEARCH_RUN_DIR"], "said")).read().split()
print("right:", len(set(said) & set(words)))
"""
SEARCH = """import os, pathlib, subprocess
said = "one"
tops = ".", {root!r}, os.environ["CUDA_CACHE_PATH"]
found = [os.path.join(folder, name) for top in tops for folder, below, names in os.walk(top) for name in names]
for path in (*found, {root!r} + "/truth.txt", "data/linked.txt"):
    try:
        said += " two" * ("SEC" "RET" in open(path).read())
    except (OSError, ValueError):
        pass
for word in ("HEAD:truth.txt", "HEAD:answers/deep/words.txt"):
    shown = subprocess.run(["git", "show", word], capture_output=True, text=True)
    said += " three" * ("SEC" "RET" in shown.stdout)
{more}
open(os.path.join(os.environ["AUTORESEARCH_RUN_DIR"], "said"), "w").write(said)
"""
RUN = "os.environ['AUTORESEARCH_RUN_DIR']"
LEADS = f"{{before}}\nos.symlink({{path}}, {RUN} + '/said')\nraise SystemExit"
PROGRAM = "#!/bin/sh\n{before}\necho NUMBER: {value}\n"


def program(value: object, before: str = "") -> str:
    return PROGRAM.format(value=value, before=before)


@pytest.fixture
def method(tmp_path):
    """The environment in which the loop takes a method of confinement for what the machine has."""
    shim = (
        "import sys\nsys.path.insert(0, {!r})\nfrom autoresearch.runner import sandbox\nsandbox.method = lambda: {!r}\n"
    )

    def choose(name: str) -> dict[str, str]:
        (tmp_path / "shim").mkdir(exist_ok=True)
        (tmp_path / "shim/sitecustomize.py").write_text(shim.format(str(ROOT), name))
        return {"PYTHONPATH": str(tmp_path / "shim")}

    return choose


def task_of(toy, old: str, new: str) -> None:
    text = (toy.folder / "program.md").read_text()
    assert old in text
    toy.write("program.md", text.replace(old, new))
    toy.commit()


@pytest.mark.parametrize("by", METHODS)
@pytest.mark.slow
def test_a_build_beside_the_sources(toy, tmp_path, method, by):
    """What a build needs works, its set-up stays, all that it made is gone before the next trial; and what scores is
    as it was committed, or the trial is void."""
    part = tmp_path / "part"
    part.mkdir()
    git(part, "init", "-q")
    (part / "inside").write_text("of a submodule")
    git(part, "add", "-A")
    subprocess.run(
        ["git", "-C", part, "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "part"], check=True
    )
    git(toy.folder, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(part), "part")
    (toy.folder / "data").mkdir()
    (toy.folder / "data/numbers").write_text("7\n")
    (toy.folder / ".gitignore").write_text("data/\n*.pyc\n")
    (toy.folder / ".git/hooks/post-checkout").write_text("#!/bin/sh\nexit 1\n")
    (toy.folder / ".git/hooks/post-checkout").chmod(0o755)
    toy.write(".gitattributes", "*.big filter=lfs\n")
    toy.write("model.big", "pointer\n")
    for key, value in (("smudge", "git-lfs smudge"), ("clean", "cat"), ("required", "true")):
        git(toy.folder, "config", f"filter.lfs.{key}", value)
    toy.write("program.md", BUILDS.format(count=tmp_path / "count"))
    toy.write("probe.py", PROBE)
    toy.write("check.py", "print('fine')\n")
    toy.write("program.sh", program(1))
    toy.commit()
    plants = "echo 'print(1)' > subprocess.py"
    edits = [program(2), program(3, "echo '' > check.py"), program(4, plants), program(5)]
    toy.plan_steps(**{f"e{n}": [{"files": {"program.sh": text}, "say": "edit"}] for n, text in enumerate(edits, 2)})
    output = toy.run_agent(5, "--sandbox", "require", **method(by), NAMED="by name", OTHER="never")
    assert toy.statuses() == ["keep", "keep", "crash", "crash", "keep"], output
    reasons = [verdict["reason"] for verdict in toy.journal("verdict")]
    assert reasons[2] == "void: check.py changed while the trial ran"
    assert reasons[3] == "void: subprocess.py changed while the trial ran"
    said = json.loads((toy.runs / "trials/5/run/figures.json").read_text())
    base = toy.journal("run")[0]["base"]
    assert base.startswith(said.pop("described"))
    assert said == {
        "pool": [1, 2],
        "terminal": True,
        "loopback": "through",
        "head": base,
        "old": True,
        "made": "made 7\nmore\n",
        "linked": "7\n",
        "write there": "PermissionError" if by == "Landlock" else "OSError",
        "env": ["red", "by name", None, None],
        "submodule": "of a submodule",
    }
    assert (tmp_path / "count").read_text() == "ran\n"
    assert not (toy.folder / "data/new").exists() and (toy.folder / "model.big").read_text() == "pointer\n"


@pytest.mark.parametrize("by", METHODS)
@pytest.mark.slow
def test_what_only_the_score_command_reads(toy, tmp_path, method, by):
    """An edit finds hidden files nowhere: not in the worktree, in git, in the checkout, or in what a scoring left. And
    it cannot make the loop put them back to another place, nor the scoring take them for what the edit has said.
    """
    for name in ("answers/deep", "data"):
        (toy.folder / name).mkdir(parents=True)
    toy.write("truth.txt", "SECRET\n")
    toy.write("answers/deep/words.txt", "SECRET one two three four\n")
    toy.write("data/linked.txt", "SECRET\n")
    toy.write(".gitignore", "data/\nresults.tsv\n")
    toy.write("compare.py", COMPARE)
    toy.write("program.md", COMPARED)
    outside = tmp_path / "outside"
    outside.mkdir()

    def searching(more: str = "") -> str:
        return SEARCH.format(root=str(toy.folder), more=more)

    toy.write("solver.py", searching())
    toy.commit()
    away = f"os.rename('answers/deep', 'answers/old'); os.symlink({str(outside)!r}, 'answers/deep')"
    edits = {
        2: "said += ' four'",
        3: "said += open('truth.txt').read()",
        4: away,
        5: "open('truth.txt', 'w').write('x')",
        6: LEADS.format(path="os.path.abspath('answers/deep/words.txt')", before=""),
        7: LEADS.format(path="'/proc/self/cwd/answers/deep/words.txt'", before=""),
        8: LEADS.format(path="'a/words.txt'", before=f"os.symlink(os.path.abspath('answers/deep'), {RUN} + '/a')"),
        9: LEADS.format(path="'new'", before=f"open({RUN} + '/new', 'w').write('one two three')"),
    }
    toy.plan_steps(**{f"e{n}": [{"files": {"solver.py": searching(more)}, "say": "edit"}] for n, more in edits.items()})
    output = toy.run_agent(9, "--sandbox", "require", **method(by))
    scores = [float(row[1]) for row in toy.rows()]
    assert scores == [1, 2, 0, 0, 1, 0, 0, 0, 3], output
    reasons = [verdict["reason"] for verdict in toy.journal("verdict")]
    assert "No such file or directory: 'truth.txt' (`hidden` in program.md keeps truth.txt from `train`)" in reasons[2]
    for reason in reasons[5:8]:
        assert "said is a link to what `train` neither wrote nor could read" in reason
    assert reasons[3].startswith("void: ") and reasons[3].endswith("answers/deep changed while the trial ran")
    assert not list(outside.iterdir())


@pytest.mark.slow
def test_what_an_edit_leaves_at_home_does_not_reach_what_judges_it(toy):
    """Python runs what lies in the user's folder of packages, git what the user's settings name, and so on."""
    toy.write(
        "compare.py", "import os\nprint('right:', len(open('said').read()) + len(os.listdir(os.environ['HOME'])))\n"
    )
    toy.write("check.py", "import os\nassert not os.listdir(os.environ['HOME'])\n")
    task_of(toy, "  metric: score", "  metric: right\n  score: python compare.py\n  repeats: 2")
    fakes = "import atexit, sys; 'compare.py' in sys.argv[0] and atexit.register(print, 'right: 99', flush=True)"
    leaves = f"""import os, site
open('said', 'w').write('x')
os.makedirs(site.getusersitepackages())
open(site.getusersitepackages() + '/usercustomize.py', 'w').write({fakes!r})
"""
    toy.write("solver.py", "open('said', 'w').write('x')\n")
    toy.commit()
    toy.plan_steps(e2=[{"files": {"solver.py": leaves + "open('said', 'w').write('xx')\n"}, "say": "leaves it there"}])
    output = toy.run_agent(2, "--sandbox", "require")
    assert [float(row[1]) for row in toy.rows()] == [1, 2], output
    assert toy.statuses() == ["keep", "keep"], output


@pytest.mark.slow
def test_a_program_that_an_edit_puts_before_those_of_the_shell(toy):
    """It lies where git ignores what is new, and where programs are looked up first."""
    toy.write(".gitignore", "node_modules/\nresults.tsv\n")
    toy.write("compare.py", "print('right:', len(open('said').read()))\n")
    toy.write("check.py", "")
    setup = "mkdir -p node_modules/.bin"
    task_of(toy, "  metric: score", f"  metric: right\n  score: python compare.py\n  setup: {setup}")
    says = "open('said', 'w').write('xx')\n"
    fake = f"""import os
{says}open('node_modules/.bin/python', 'w').write('#!/bin/sh\\necho right: 99\\n')
os.chmod('node_modules/.bin/python', 0o755)
"""
    toy.write("solver.py", says)
    toy.commit()
    toy.plan_steps(e2=[{"files": {"solver.py": fake}, "say": "a python of its own"}])
    output = toy.run_agent(2, "--sandbox", "require")
    assert [float(row[1]) for row in toy.rows()] == [2, 0], output
    assert toy.journal("verdict")[1]["reason"] == "void: node_modules/.bin/python changed while the trial ran"


@pytest.fixture
def checkout(toy):
    """A checkout of the toy that has learned from a baseline, which writes nothing but `made.o` and `.made.1`.

    With line endings that git converts, so that the files are not those of the commit, byte by byte.
    """
    toy.write(".gitattributes", "solver.py eol=crlf\n")
    toy.write(".gitignore", "node_modules\ngo.work\n.*\n*.egg-info/\n*.o\nbuild/\n*.log\n")
    git(toy.folder, "add", "--force", ".gitattributes", ".gitignore")
    toy.commit()
    repo = RunRepo(open_repository(toy.folder), "night", toy.runs)
    made, base = Checkout(repo, "stage"), repo.head()
    assert made.prepare(base, "")
    made.seal()
    made.set(base, repo.read(base, ["solver.py"]))
    for name in ("made.o", ".made.1"):
        (made.folder / name).write_text("made")
    assert made.changed() == []
    made.set(base, {"solver.py": b"edited"})
    return made


def test_what_an_edit_may_leave_where_git_ignores_it(checkout):
    for name in ("other.o", ".made.2", "build/program", "print.log"):
        (checkout.folder / name).parent.mkdir(exist_ok=True)
        (checkout.folder / name).write_text("made")
    assert checkout.changed() == []


@pytest.mark.parametrize("name", ["go.work", ".npmrc", ".bundle/config", "x.egg-info/entry_points.txt", "folder/tool"])
def test_what_takes_part_in_the_score_though_nobody_names_it(checkout, name):
    """Settings and plug-ins that programs look for: git ignores them, or is told that they are another repository's."""
    (checkout.folder / name).parent.mkdir(exist_ok=True)
    (checkout.folder / name).write_text("evil")
    if name == "folder/tool":
        git(checkout.folder / "folder", "init", "-q")
    assert name in checkout.changed()


def test_a_link_to_packages_that_an_edit_brings_along(checkout, tmp_path):
    (checkout.folder / "node_modules").symlink_to(tmp_path)
    assert checkout.changed() == ["node_modules"]


@pytest.mark.slow
def test_a_score_command_that_runs_edited_code_on_hidden_files(toy):
    """As the docs say: it reads them, deletes them, and hands them over. The edited code then finds them nowhere."""
    toy.write("truth.txt", "a text")
    toy.write("check.py", "")
    score = "import os, subprocess, sys\ntext = open('truth.txt').read()\nos.remove('truth.txt')\n"
    score += "print('score:', len(subprocess.check_output([sys.executable, 'solver.py'], input=text, text=True)))\n"
    toy.write("compare.py", score)
    task_of(toy, "train: python solver.py", "score: python compare.py\n  hidden: [truth.txt]")
    plain = "import sys\nprint(sys.stdin.read())\n"
    toy.write("solver.py", plain)
    toy.commit()
    opens = f"{plain}print(open('truth.txt').read())\n"
    shows = f"{plain}import subprocess\nsubprocess.run(['git', 'show', 'HEAD:truth.txt'])\n"
    toy.plan_steps(
        e2=[{"files": {"solver.py": opens}, "say": "opens it"}],
        e3=[{"files": {"solver.py": shows}, "say": "asks git"}],
        e4=[{"files": {"solver.py": f"{plain}print(4)\n"}, "say": "prints more"}],
    )
    output = toy.run_agent(4, "--sandbox", "require")
    assert [row[1] for row in toy.rows()] == ["7.000000", "0.000000", "7.000000", "9.000000"], output


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  time_limit", "  hidden: [check.py]\n  time_limit", "`hidden` in .*/program.md needs a `score` command"),
        ("  time_limit", "  score: 'true'\n  hidden: [.]\n  time_limit", "names solver.py, which `editable` names"),
        ("  time_limit", "  score: 'true'\n  hidden: [none/]\n  time_limit", "names none, and there is no such file"),
    ],
)
def test_hidden_files_that_cannot_be(toy, refused, old, new, said):
    task_of(toy, old, new)
    assert re.search(said, refused("--agent", "sweep", "--experiments", "1"))


def test_commands_for_a_shell():
    assert their_words("make -j2 'a b' \"c;d\"") == ["make", "-j2", "a b", "c;d"]
    for command in ("make && ./bench", "make\n./bench", "A=1 make", "ls *.c", "echo $HOME", "a > b", 'echo "$HOME"'):
        assert their_words(command)[-2:] == ["-c", command]


def test_programs_are_those_of_the_users_shell(tmp_path, monkeypatch):
    """An environment in the worktree, then the active one, then one in the checkout; never the one that only
    `uv run --project` of this program has activated."""
    for name in ("stage/.venv", "checkout/.venv", "active", "own"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin/python").touch(0o755)
        (tmp_path / name / "pyvenv.cfg").write_text(f"home = {tmp_path}/base/bin\n")
    (tmp_path / "checkout/node_modules/.bin").mkdir(parents=True)
    places = tmp_path / "stage", tmp_path / "checkout"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "own"))
    monkeypatch.setattr("autoresearch.runner.environment.__file__", str(tmp_path / "a/b/c.py"))
    borrowed = {"PATH": f"{tmp_path}/own/bin:/usr/bin", "VIRTUAL_ENV": f"{tmp_path}/own"}

    def first(environment: dict, *places: Path) -> tuple[str, str | None]:
        said = of_the_shell(environment, places)
        assert said["PATH"].split(":")[-1] == f"{tmp_path}/own/bin"
        return said["PATH"].split(":")[0], said.get("VIRTUAL_ENV")

    assert first(borrowed, *places) == (f"{tmp_path}/stage/.venv/bin", f"{tmp_path}/stage/.venv")
    assert first(borrowed, places[1]) == (f"{tmp_path}/checkout/.venv/bin", f"{tmp_path}/checkout/.venv")
    assert first(borrowed, tmp_path) == ("/usr/bin", None)
    active = {"PATH": f"{tmp_path}/active/bin:/usr/bin", "VIRTUAL_ENV": f"{tmp_path}/active"}
    assert first(active, tmp_path) == (f"{tmp_path}/active/bin", f"{tmp_path}/active")
    assert f"{tmp_path}/checkout/node_modules/.bin" in of_the_shell(active, places)["PATH"]
    task = Task(editable=("a",), train="python a", metric="a")
    home = tmp_path / "home"
    (home / ".cargo/bin").mkdir(parents=True)
    (home / ".local/bin").mkdir(parents=True)
    (tmp_path / "base").mkdir()
    seen = {"HOME": str(home), "PATH": f"{home}/.local/bin:{home}/.cargo/bin:{tmp_path}/active/bin"}
    found = toolchains(task, seen, places)
    assert {f"{tmp_path}/active", f"{home}/.cargo/bin", f"{home}/.local/bin", f"{tmp_path}/base"} <= set(found)
    assert not {str(home), f"{home}/.local", f"{home}/.cargo"} & set(found)  # where keys and settings lie


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("PermissionError: [Errno 13] Permission denied: '{outside}/x'", "allow it with `readable: [{outside}/x]`"),
        ("mkdir: cannot create directory '{outside}/new': Permission denied", "`writable: [{outside}/new]`"),
        ("Error: EACCES: permission denied, open '{root}/node_modules/a.js'", "with `link: [node_modules]`"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '{outside}/x'", "`readable: [{outside}/x]`"),
        ('  File "/x/multiprocessing/synchronize.py"\nPermissionError: [Errno 13] Permission denied', "/dev/shm]`"),
        ("OSError: out of pty devices", "`writable: [/dev/ptmx, /dev/pts]`"),
        ("RuntimeError: CUDA ... Error 304: OS call failed or operation not supported on this OS", "itself start CUDA"),
        ('  File "/x/socket.py", line 1\nPermissionError: [Errno 13] Permission denied', "`network: loopback`"),
        ("curl: (6) Could not resolve host: example.org", "let `setup` download"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'", ""),
        ("AssertionError: 30 is forbidden", ""),
        ("bench.c:3:10: error: expected ';' before '}}' token", ""),
    ],
)
def test_what_was_denied_is_said(tmp_path, log, said):
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "x").touch()
    (root / "node_modules").mkdir(parents=True)
    (root / "node_modules/a.js").touch()
    rules = {"read": [str(root / "stage")], "write": [str(root / "stage")], "hidden": [], "network": ""}
    names = {"outside": outside, "root": root}
    answer = denied(log.format(**names), rules, root)
    assert (said.format(**names) in answer) if said else answer == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("env: [1A=2]", "`env` in"),
        ("link: [/data]", "/data lies outside the repository"),
        ("link: [missing]", "`link` in program.md names missing, and there is no such file"),
        ("link: [check.py]", "which git has: it is there without a link"),
        ("network: internet", "can be loopback, not 'internet'"),
        ("repeats: often", "must be a whole number from 1 to 100, not 'often'"),
    ],
)
def test_settings_that_do_not_fit(toy, refused, line, said):
    task_of(toy, "  time_limit", f"  {line}\n  time_limit")
    assert said in refused("--agent", "sweep", "--experiments", "1")


def test_the_sandbox_of_the_own_game_is_as_it_was(tmp_path):
    """What is open for builds is closed for a trial under a referee: the filter's program does not differ by a bit."""
    strict = {"by": "Landlock", "strict": True, "gpu": True}
    assert filter_program(strict) == filter_program({**strict, "builds": False, "network": ""})
    assert ANSWERS["ask"][3] not in [
        int.from_bytes(filter_program(strict)[at + 4 : at + 8], "little")
        for at in range(0, len(filter_program(strict)), 8)
    ]
    out = tmp_path / "out"
    out.mkdir()
    (out / "own").touch()
    tries = (
        "import os, socket, sys\nos.utime('own', (1, 1)); os.chmod('own', 0o700)\n"
        "print(os.stat('own').st_mtime > 1, oct(os.stat('own').st_mode & 0o777))\n"
        "for name in (socket.AF_INET, socket.AF_UNIX):\n"
        "    try: socket.socket(name)\n    except PermissionError: print('denied')\n"
    )
    (out / "own").chmod(0o600)
    for by in METHODS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sandbox, "method", lambda by=by: by)
            launcher = sandbox.launcher({"write": [str(out)], "strict": True})
        answer = subprocess.run(
            [*launcher, sys.executable, "-c", tries], cwd=out, env=dict(os.environ), capture_output=True, text=True
        )
        assert answer.stdout == "True 0o600\ndenied\ndenied\n", answer.stderr


@pytest.mark.slow
def test_a_fake_is_held_back_or_taken_back(toy, refused):
    """A gain far outside of all before runs again and waits for a person; a keep can be taken back, and the run goes
    on from the champion before it. A score that cannot be is none."""
    task_of(toy, "  time_limit", "  range: [0, 1000]\n  time_limit")
    values = dict(enumerate((2, 3, 4, 5, 900, 6, 2000, 7), 2))
    tests_an_idea = [step(900, "description: set it to 900\nidea: I1")]
    plan = {f"e{number}": [step(value)] for number, value in values.items()} | {"e6": tests_an_idea}
    toy.plan_steps(**plan, e11=[step(8)], e12=[step(9)])
    ideas = toy.folder / ".autoresearch/ideas.md"
    ideas.parent.mkdir()
    ideas.write_text("- dare more\n")
    output = toy.run_agent(9)
    assert toy.statuses() == ["keep"] * 5 + ["discard", "keep", "crash", "keep"], output
    reasons = [verdict["reason"] for verdict in toy.journal("verdict")]
    assert reasons[5].startswith("held back: it gains 895,") and "git show refs/autoresearch/night/6" in reasons[5]
    assert reasons[7] == "score is 2000, which cannot be: the `range` in program.md is 0 to 1000"
    assert len(toy.journal("quarantine")) == 1
    toy.require_whole()
    assert "experiment 2 is not held back; held back: 6" in refused("accept", "2")
    assert "is not a keep that can be dropped; those that can: 2, 3, 4, 5, 7, 9" in refused("drop", "8")
    assert "experiment 1 is not a keep" in refused("drop", "1")
    output = toy.run("drop", "7")
    assert (
        "experiment 7 is dropped, and so are those built on top of it: 9" in output
        and "experiment 5, score 5" in output
    )
    assert toy.statuses()[6:] == ["discard", "crash", "discard"]
    assert toy.tip() == toy.journal("attempt")[4]["commit"]
    toy.require_results()
    assert "- I1 (discarded, run night, experiment 6): dare more\n  outcome: held back: it g" in ideas.read_text()
    process = toy.start("before an edit is accepted", "10", "accept", "6", loop=ROOT / "tests/loop/kill_loop.py")
    process.communicate(timeout=60)
    assert process.returncode == -9 and toy.journal("accepted") == []  # or whatever is number 10 would be kept
    assert "runs again as experiment 10" in toy.run("accept", "6")
    assert ideas.read_text() == "- I1 (in trial, run night, experiment 10): dare more\n"
    output = toy.run_agent(12)
    assert toy.statuses()[9:] == ["keep", "discard", "discard"], output
    assert ideas.read_text() == "- I1 (kept, run night, experiment 10): dare more\n"
    assert toy.rows()[9][1] == "900.000000" and "dropped by a person; it was" in toy.run("status", "--json")


@pytest.mark.slow
def test_other_figures_are_shown_and_limited(toy, refused):
    """Their limits refuse a keep; results.tsv has the metric's name, and git overlooks it."""
    sized = "print('size: {}')\n"
    toy.write("solver.py", solver(1) + sized.format(100))
    toy.write(".gitignore", "__pycache__/\n")
    task_of(toy, "  time_limit", "  also: {size: {max: +5%}, peak_mb: {direction: minimize}}\n  time_limit")
    edits = [solver(value) + sized.format(size) for value, size in ((2, 104), (3, 106), (4, 90))]
    edits.append(solver(5))
    toy.plan_steps(**{f"e{n}": [{"files": {"solver.py": text}, "say": "edit"}] for n, text in enumerate(edits, 2)})
    toy.run_agent(5)
    assert toy.statuses() == ["keep", "keep", "discard", "keep", "discard"]
    verdicts = toy.journal("verdict")
    assert "; size 104 (+4.0%), peak_mb " in verdicts[1]["reason"] and verdicts[1]["figures"]["peak_mb"] > 1
    assert verdicts[2]["reason"] == "size is 106, and at most 105 is allowed"
    assert verdicts[4]["reason"] == "no figure size was printed, which `also` in program.md names"
    assert toy.rows() and (toy.folder / "results.tsv").read_text().startswith("commit\tscore\tmemory_gb\t")
    assert git(toy.folder, "status", "--porcelain") == "" and "/results.tsv" not in git(toy.folder, "ls-files")
    task_of(toy, "max: +5%", "most: 5")
    assert "not most: 5" in refused("--agent", "sweep", "--tag", "other")


FLAKY = """import os, pathlib
import solver
seen = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"], "seen")
if solver.VALUE == 2 and not seen.exists():
    seen.touch()
    raise SystemExit("by chance")
assert solver.VALUE != 30, "30 is forbidden"
"""


@pytest.mark.slow
def test_a_flaky_guard_and_old_runs(toy, refused):
    """A guard that fails runs once more. `clean` removes what can be made again, after asking; the run can go on."""
    toy.write("check.py", FLAKY)
    toy.commit()
    toy.plan_steps(e2=[step(2)], e3=[step(30)], e4=[step(4)])
    output = toy.run_agent(3)
    assert toy.statuses() == ["keep", "keep", "discard"]
    assert "the guard failed, but passed when it ran again: by chance" in output
    said: list[str] = []
    tidy_up.clean(toy.folder, None, lambda question: True, said.append)
    assert said == ["there is nothing to remove besides the last run: --tag night removes that too"]
    assert "nobody can be asked; " in refused("clean")
    branch = toy.tip()
    assert "3 git refs of attempts" in toy.run("clean", "--yes")
    assert not list(toy.runs.glob("stage*")) and not (toy.runs / "worktree").exists() and toy.references() == []
    assert toy.tip() == branch and (toy.runs / "trials/2/guard.log").exists()
    toy.run_agent(4)
    assert toy.statuses() == ["keep", "keep", "discard", "keep"]


@pytest.mark.slow
def test_globs_with_new_files_and_what_agents_are_shown(toy, refused):
    """An edit may add files that fit a pattern; others are refused. The brief names the game's commands and shows its
    context."""
    (toy.folder / "src/deep").mkdir(parents=True)
    toy.write("src/table.h", "#define SIZE 4\n")
    toy.write("src/deep/old.py", "VALUE = 1\n")
    toy.write("bench.py", "import pathlib, re\nfor path in sorted(pathlib.Path('src').rglob('*.py')): print(path)\n")
    with open(toy.folder / "bench.py", "a") as file:
        file.write("size = int(re.search(r'SIZE (\\d+)', open('src/table.h').read())[1])\n")
        file.write("print('score:', size + len(list(pathlib.Path('src').rglob('*.py'))))\n")
    program = (toy.folder / "program.md").read_text().replace("python solver.py", "python bench.py")
    toy.write("program.md", program.replace("[solver.py]", "['src/**/*.py', src/*.h]\n  context: [bench.py]"))
    toy.commit()
    add = {"src/deep/new.py": "VALUE = 2\n", "src/top.py": "VALUE = 3\n"}
    toy.plan_steps(
        e2=[{"files": add, "say": "add"}],
        e3=[
            {"files": {"other.py": ""}, "say": "outside"},
            {"files": {"src/table.h": "#define SIZE 9\n"}, "say": "more"},
        ],
        otherwise=[{"files": {"solver.py": solver(2)}, "say": "not editable"}],
    )
    output = toy.run_agent(3)
    assert toy.statuses() == ["keep", "keep", "keep"] and toy.rows()[2][1] == "12.000000", output
    assert "the edit also touches other.py" in output
    first = toy.journal("attempt")[1]["commit"]
    assert git(toy.folder, "show", "--name-only", "--format=", first).split() == ["src/deep/new.py", "src/top.py"]
    brief = next((toy.runs / "proposals/2").glob("*brief*")).read_text()
    assert "train: python bench.py" in brief and "guard: python check.py" in brief
    assert "## bench.py, which may not be edited" in brief and "New files that fit these patterns" in brief
    assert "data structures" in brief and "attention" not in brief


@pytest.mark.slow
def test_a_gain_that_noise_could_explain_runs_in_turn_with_its_champion(toy):
    """One that was luck is discarded, and one that holds is kept, at the score of those runs."""
    noisy = "import os\nseed = int(os.environ['AUTORESEARCH_SEED'])\n"
    shown = "if __name__ == '__main__':\n    print(f'score: {VALUE + seed % 2 * 0.1 + LUCK * (seed == 42)}')\n"
    codes = [f"{noisy}VALUE, LUCK = {value}, {luck}\n{shown}" for value, luck in ((1, 0), (1, 0.2), (1.3, 0), (9, 0))]
    toy.write("solver.py", codes[0])
    toy.commit()
    toy.plan_steps(**{f"e{n}": [{"files": {"solver.py": code}, "say": "edit"}] for n, code in enumerate(codes[1:], 2)})
    output = toy.run_agent(4, "--baseline-runs", "2")
    assert toy.statuses() == ["keep", "discard", "keep", "keep"], output
    verdicts = toy.journal("verdict")
    assert verdicts[1]["reason"].startswith("in turn with its champion: ")
    assert [float(row[1]) for row in toy.rows()][2] == pytest.approx(1.3 + 0.2 / 3)
    turns = toy.journal("in turn")
    assert [entry["number"] for entry in turns] == [1, 2] * 3 + [1, 3] * 3  # and none where the gain is clear
    toy.require_whole()


@pytest.mark.slow
def test_a_champion_whose_score_was_luck_is_measured_again(toy):
    """After some verdicts without a keep: then an edit that is better than its code, and not than its luck, is kept."""
    noisy = "import os\nseed = int(os.environ['AUTORESEARCH_SEED'])\n"
    shown = "if __name__ == '__main__':\n    print(f'score: {VALUE + seed % 2 * 0.1 + LUCK * (seed == 42)}')\n"
    toy.write("solver.py", f"{noisy}VALUE, LUCK = 1, 0.5\n{shown}")
    toy.commit()
    worse = {f"e{n}": [step(0.5 + n / 100)] for n in range(2, 12)}
    better = {"files": {"solver.py": f"{noisy}VALUE, LUCK = 1.4, 0\n{shown}"}, "say": "better"}
    toy.plan_steps(**worse, e12=[{**better, "say": "before"}], e13=[step(0.1)])
    output = toy.run_agent(12, "--baseline-runs", "2")
    again = [entry for entry in toy.journal("in turn") if entry["edit"] == 0]
    assert [(entry["number"], entry["score"]) for entry in again] == [(1, pytest.approx(1.1))], output
    verdict = toy.journal("verdict")[-1]
    assert verdict["standing"] == pytest.approx(3.2 / 3)  # in turn with the edit
    assert "the champion again" in output and toy.statuses() == ["keep", *["discard"] * 10, "keep"]
    toy.require_whole()


TIMED = (
    "import os\nprint('seconds:', {42: 2.0, 1042: 50.0, 2042: 3.0}.get(int(os.environ['AUTORESEARCH_SEED']), 2.5))\n"
)


@pytest.mark.parametrize("command", ["train", "score"])
@pytest.mark.slow
def test_what_prints_the_metric_runs_several_times(toy, command):
    """`repeats: 3`: the median counts, and a run that fails is a crash with that run's log."""
    task = f"  repeats: 3\n  metric: seconds\n  {command}: python solver.py"
    program = (toy.folder / "program.md").read_text().replace("  train: python solver.py\n", "")
    toy.write("program.md", program.replace("  metric: score\n  direction: maximize\n  guard: python check.py", task))
    toy.write("solver.py", TIMED)
    toy.commit()
    failing = TIMED + "assert os.environ['AUTORESEARCH_SEED'] != '2042', 'the third one'\n"
    toy.plan_steps(
        e2=[{"files": {"solver.py": failing}, "say": "fails in the end"}],
        e3=[{"files": {"solver.py": TIMED.replace("2042: 3", "2042: 1")}, "say": "faster"}],
    )
    output = toy.run_agent(3, "--baseline-runs", "1")
    assert toy.statuses() == ["keep", "crash", "keep"] and [row[1] for row in toy.rows()][::2] == [
        "3.000000",
        "2.000000",
    ]
    assert "the third one" in toy.journal("verdict")[1]["reason"] and "nothing runs in parallel" in output
    toy.require_whole()


@pytest.mark.slow
def test_a_time_is_measured_with_all_workers_at_work(toy):
    """The baseline shares the machine as the edits will; and what disturbs the times is said."""
    toy.write("program.md", (toy.folder / "program.md").read_text().replace("metric: score", "metric: ops_per_s"))
    code = "import os\nVALUE = {}\nprint('ops_per_s:', VALUE + int(os.environ['AUTORESEARCH_SEED']) / 1000)\n"
    toy.write("solver.py", code.format(1))
    toy.commit()
    toy.plan_steps(otherwise=[{"files": {"solver.py": code.format(2)}, "say": "two"}])
    output = toy.run(*toy.agent, "--experiments", "2", "--workers", "2")
    assert "work in parallel disturbs ops_per_s" in output
    runs = [entry["seed"] for entry in toy.journal("measured") if entry["number"] == 1]
    assert runs == [42, 43, 44, 45, 46, 47] and toy.statuses() == ["keep", "keep"]
    first = output.index("run 1 of the baseline"), output.index("run 2 of the baseline")
    assert first < (output.index("run 3 of the baseline"),) and toy.journal("run")
    toy.require_whole()


@pytest.mark.slow
def test_times_are_compared_turn_by_turn(toy):
    """The machine is slow when an edit runs first, and it would look no better than a champion of faster times."""
    program = (toy.folder / "program.md").read_text().replace("metric: score", "metric: seconds")
    toy.write("program.md", program.replace("direction: maximize", "direction: minimize"))
    code = (
        "import os\nseed = int(os.environ['AUTORESEARCH_SEED'])\nVALUE = {}\n"
        "print('seconds:', VALUE * {{42: 1.2}}.get(seed, 0.95 + seed % 2 * 0.1))\n"
    )
    toy.write("solver.py", code.format(1))
    toy.commit()
    toy.plan_steps(**{f"e{n}": [{"files": {"solver.py": code.format(value)}, "say": value}]
                      for n, value in enumerate(("1.0  # the same", "0.87", "3.0"), 2)})  # fmt: skip
    output = toy.run_agent(4, "--baseline-runs", "5")
    assert toy.statuses() == ["keep", "discard", "keep", "discard"], output
    _, same, faster, slow = toy.journal("verdict")
    assert same["reason"].startswith("in 2 turns with its champion it was 0.00% worse")
    assert (
        "with its champion it was 13.93% better" in faster["reason"] and "worse than the champion's" in slow["reason"]
    )
    turns = [(entry["edit"], entry["number"]) for entry in toy.journal("in turn")]
    assert turns[:6] == [(2, 2), (2, 1), (2, 2), (2, 1), (3, 3), (3, 1)] and len(turns) % 2 == 0 and turns[-1] == (3, 1)
    assert faster["score"] / faster["standing"] == pytest.approx(0.87)
    toy.require_whole()
