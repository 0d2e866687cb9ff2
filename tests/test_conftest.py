"""The watched loop of conftest.py: it must catch what tests leave behind, and leave clean ones alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).with_name("conftest.py")


def run(pytester: pytest.Pytester, source: str) -> pytest.RunResult:
    """Run a test file under our conftest in a session of its own."""
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(source)
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    return pytester.runpytest_inprocess(
        *(f"-pno:{plugin}" for plugin in ("benchmark", "cacheprovider", "hypothesispytest", "timeout"))
    )


def test_leaked_task_is_an_error(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import asyncio
        kept = []
        async def test_leaks():
            kept.append(asyncio.create_task(asyncio.sleep(60), name="forgotten"))
        """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*tasks left running*forgotten*"])


def test_exception_in_a_callback_is_an_error(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import asyncio
        async def test_raises_in_a_callback():
            asyncio.get_running_loop().call_soon(lambda: 1 / 0)
            await asyncio.sleep(0)
        """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*unhandled in the loop*ZeroDivisionError*"])


def test_exception_that_nobody_took_is_an_error(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import asyncio
        async def fail():
            raise OSError("nobody looks")
        async def test_drops_a_failed_task():
            task = asyncio.create_task(fail())
            await asyncio.sleep(0)
            del task
        """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*unhandled in the loop*nobody looks*"])


def test_tidy_test_passes(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import asyncio
        async def test_cancels():
            asyncio.create_task(asyncio.sleep(60)).cancel()
        def test_without_a_loop():
            pass
        """,
    )
    result.assert_outcomes(passed=2)


def test_loop_kind_runs_on_both_loops(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import asyncio
        async def test_kind(loop_kind):
            module = type(asyncio.get_running_loop()).__module__
            assert module.startswith("uvloop") == (loop_kind == "uvloop")
            print("ran on", loop_kind)
            assert loop_kind != "uvloop"
        """,
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*ran on uvloop*"])


async def test_provoked_exception_can_be_cleared(loop_exceptions: list[dict[str, Any]]) -> None:
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
    assert [type(context["exception"]) for context in loop_exceptions] == [ZeroDivisionError]
    loop_exceptions.clear()
