"""The sandbox as a checker: what passes, what fails and why, what cannot be told, what it needs."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_attacks import QUICK, alive, marked, opened
from test_sandbox_attacks import SANDBOXES, WHY_NOT

from posttrain.common.errors import ConfigError
from posttrain.sandbox import Checked, Limits, Tests, open_sandbox
from posttrain.sandbox.backends import command
from posttrain.sandbox.inside.wire import Opaque, Unsendable, decode, encode
from posttrain.sandbox.process import listen
from posttrain.sandbox.syscalls import REFUSED, REFUSED_COMMANDS, program


def checked(name: Any, source: str, tests: str, setup: str = "", names: tuple[str, ...] = ("f",)) -> Checked:
    return opened(name, QUICK).check(source, Tests(setup, tests, names))


@pytest.mark.parametrize("name", SANDBOXES)
def test_a_program_passes_or_fails_with_the_line_that_says_why(name) -> None:
    right = "import math\n\ndef f(x, *, by=1):\n    return math.floor(x) + by\n"
    assert checked(name, right, "assert f(1.5) == 2\nassert f(2, by=3) == 5") == Checked(True)
    assert checked(name, right, "assert f(1) == 2\nassert f(1) == 3, 'too few'") == Checked(
        False, "AssertionError: too few in `assert f(1) == 3, 'too few'`"
    )


@pytest.mark.parametrize(
    ("source", "tests", "reason"),
    [
        ("def f(:", "f()", "SyntaxError while the program was loaded"),
        ("x = 1", "f()", "NameError: the program defines no 'f' in `f()`"),
        ("def f(): return {}['a']", "f()", "KeyError: 'a' in `f()`"),
        ("def f(): return f", "assert f() == f", "AssertionError"),
        ("def f(): return object()", "f(f())", "a object, which is no plain data> cannot be handed on"),
        ("def f(): return object()", "assert f()", "which is no plain data> is neither true nor false"),
        ("def f(): return 'x' * 100_000", "f()", "more than 65,536 bytes at once"),
        ("import os\ndef f(): os.abort()", "f()", "the program ended: killed by SIG"),
        ("import sys\ndef f(): sys.exit(0)", "f()", "RuntimeError: SystemExit: 0 in `f()`"),
        ("import os\ndef f(): os._exit(0)", "try:\n    f()\nexcept:\n    pass", "the program ended"),
    ],
)
def test_what_the_program_does_wrong_is_a_failure(source: str, tests: str, reason: str) -> None:
    found = checked("rlimits", source, tests)
    assert found.passed is False
    assert reason in found.reason


@pytest.mark.parametrize(
    ("tests", "setup", "reason"),
    [
        ("f(", "", "the tests cannot be run: SyntaxError"),
        ("f()", "import nowhere", "the tests cannot be run: ModuleNotFoundError"),
        ("f(lambda: 1)", "", "hand over what the program cannot be given: a function is no plain data"),
        ("assert True", "", "the tests never called the program"),
    ],
)
def test_what_is_not_its_doing_is_neither(tests: str, setup: str, reason: str) -> None:
    found = checked("rlimits", "def f(*args): return 1", tests, setup)
    assert found.passed is None
    assert reason in found.reason


def test_tests_can_expect_exceptions_and_the_program_sees_no_test() -> None:
    source = """
class Mine(ValueError): pass
def f(x):
    if x < 0: raise Mine("no")
    import gc, sys
    words = [o for o in gc.get_objects() if isinstance(o, dict) and "never told" in o]
    return len(words), "tests" in sys.modules
"""
    tests = """
try:
    f(-1)
    assert False
except ValueError as e:
    assert str(e) == "Mine: no", e
assert f(1) == (0, False)
"""
    found = checked("rlimits", source, tests, "secret = {'never told': 1}")
    assert found == Checked(True)


def test_the_same_program_has_the_same_order_of_sets() -> None:
    source = "def f(): return list({str(i) for i in range(50)})"
    orders = {checked("rlimits", source, "raise ValueError(''.join(f()))").reason for _ in range(3)}
    assert len(orders) == 1


def test_output_is_bounded_to_the_byte() -> None:
    source = "import os\ndef f(n):\n    while n: n -= os.write(1, b'x' * n)"
    assert checked("rlimits", source, f"f({QUICK.output << 10})") == Checked(True)
    over = checked("rlimits", source, f"f({(QUICK.output << 10) + 1})\nimport time\ntime.sleep(60)")
    assert over == Checked(False, "the program printed more than 65,536 bytes")


def test_what_came_in_time_counts_where_we_are_late() -> None:
    """The machine was held up and the deadline is over, but the verdict had been given."""
    early, given = os.pipe()
    os.write(given, b"passed\n")
    os.close(given)
    waiting, open_end = os.pipe()
    try:
        past = time.monotonic() - 1
        assert listen(early, (), past) == (b"passed\n", "")
        assert listen(waiting, (), past) == (b"", "out of time")
    finally:
        for end in (early, waiting, open_end):
            os.close(end)


def test_a_check_that_is_interrupted_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sandbox = marked(opened("rlimits", QUICK))

    def interrupted(*args: Any) -> Any:
        assert len(list(tmp_path.iterdir())) == 2  # a scratch folder for each of the two
        raise KeyboardInterrupt

    monkeypatch.setattr("posttrain.sandbox.checking.listen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sandbox.check("def f(): return 1", Tests("", "f()", ("f",)))
    assert not alive(sandbox)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_said_before_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"no `bwrap` on the PATH; install bubblewrap .* `sandbox: rlimits`"
    ):
        open_sandbox("bwrap", Limits())
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    broken.chmod(0o755)
    with pytest.raises(ConfigError, match="does not work on this machine: sandbox trouble: bwrap: No permis"):
        open_sandbox("bwrap", Limits())
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConfigError, match="Linux only, and this is darwin"):
        command("rlimits", Limits())


def test_a_sandbox_that_breaks_later_is_trouble_not_a_failure() -> None:
    gone = replace(opened("rlimits", QUICK), argv=("/nowhere/python",))
    found = gone.check("def f(): return 1", Tests("", "f()", ("f",)))
    assert found.passed is None
    assert found.reason.startswith("sandbox trouble: ")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False) | st.builds(range, st.integers(0, 5), st.integers(0, 9)),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.sets(st.integers())
    | st.dictionaries(st.text() | st.integers(), inner) | st.frozensets(st.integers() | st.text()),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
def test_plain_data_arrives_as_it_was(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value, opaque=False))))
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, (set, frozenset, list, tuple, dict))
    assert type(back) is type(value)


def test_what_is_no_plain_data() -> None:
    class Number(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    def through(value: Any) -> Any:
        return decode(json.loads(json.dumps(encode(value, opaque=True))))

    assert type(through(Number(7))) is int
    assert through([Number(7)]) != [8]
    assert math.isnan(through(math.nan))
    assert list(through(iter([1, 2]))) == [1, 2]
    assert isinstance(through(object()), Opaque)
    assert through(object()) != through(object())
    with pytest.raises(Unsendable, match="a function is no plain data"):
        encode([lambda: 1], opaque=False)
    for forged in ({"bytes": 5}, {"list": 5}, {"nothing": 1}, {"list": [], "dict": []}, {"dict": [[[], 1]]}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            decode(forged)


def test_the_filter_is_as_long_as_its_jumps_say() -> None:
    """Each refused call is two instructions, and no jump leaves the program."""
    for column, machine in enumerate(("x86_64", "aarch64")):
        code = program(machine)
        steps = [code[i : i + 8] for i in range(0, len(code), 8)]
        refused = sum(numbers[column] is not None for numbers in REFUSED.values())
        commands = sum(3 + 2 * len(commands) for _, commands in REFUSED_COMMANDS.values())
        assert len(steps) == (6 if column == 0 else 4) + 2 * refused + commands + 10 + 1
        for i, step in enumerate(steps):
            if step[0] in (0x15, 0x35):
                assert i + 1 + max(step[2], step[3]) < len(steps)
    with pytest.raises(ConfigError, match="machine type 'riscv64'"):
        program("riscv64")


@pytest.mark.skipif(not Path("/usr/include/asm-generic/unistd.h").exists(), reason="no kernel headers")
def test_the_numbers_are_the_kernel_s() -> None:
    headers = [
        Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        Path("/usr/include/asm-generic/unistd.h"),
    ]
    named = dict(REFUSED)
    named |= {name: numbers for name, (numbers, _) in REFUSED_COMMANDS.items()}
    for column, header in enumerate(headers):
        if not header.exists():
            continue
        words = [line.split() for line in header.read_text().splitlines() if line.startswith("#define __NR")]
        known = {w[1].split("_", 3)[3]: w[2] for w in words if len(w) > 2 and w[2].isdigit()}
        here = {name: str(numbers[column]) for name, numbers in named.items() if name in known}
        assert len(here) > 60
        assert here == {name: known[name] for name in here}


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_the_rest_of_the_machine_does_not_see_the_scratch_folder_of_bubblewrap() -> None:
    mark = "written-inside-and-nowhere-else"
    source = (
        f"def f():\n    open('{mark}', 'w').write('x')\n    import os\n    return os.getcwd(), os.listdir()"
    )
    found = checked("bwrap", source, f"assert f() == ('/scratch', ['{mark}'])")
    assert found == Checked(True)
    assert not Path("/scratch").exists()
    assert shutil.which("bwrap")
