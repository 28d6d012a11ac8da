"""A check that fails, crashes, hangs or floods ends, and it is said how."""

import os
import pathlib
import time
import unittest

from mutant_lib import trial


def outcome(script, seconds=20):
    return trial.run_check(pathlib.Path("/"), ["sh", "-c", script], dict(os.environ), seconds)


class TestRunCheck(unittest.TestCase):
    def test_what_passes(self):
        found = outcome("echo test a ... ok")
        self.assertEqual((found.passed, found.line, found.skipped), (True, "", ""))

    def test_the_first_failing_line_ends_it(self):
        started = time.monotonic()
        found = outcome("echo test a ... ok; echo test b ... FAILED; sleep 60; echo test c ... FAILED")
        self.assertEqual((found.passed, found.line), (False, "test b ... FAILED"))
        self.assertLess(time.monotonic() - started, 10)

    def test_a_status_and_a_signal(self):
        self.assertEqual(outcome("exit 3").line, "exit status 3")
        self.assertEqual(outcome("kill -SEGV $$").line, "ended by SIGSEGV")
        self.assertFalse(outcome("exit 3").passed)

    def test_a_hang_ends_with_all_that_it_started(self):
        started = time.monotonic()
        found = outcome("sleep 60 & sleep 60", seconds=1)
        self.assertEqual((found.passed, found.line), (False, "hangs: not done after 1 s"))
        self.assertLess(time.monotonic() - started, 10)

    def test_what_stays_behind_is_not_waited_for(self):
        started = time.monotonic()
        self.assertTrue(outcome("sleep 60 &").passed)
        self.assertLess(time.monotonic() - started, 10)

    def test_a_script_that_cannot_run_it_here(self):
        found = outcome("echo '==> skipped: ops on swiftshader: no such driver'")
        self.assertEqual((found.passed, found.skipped), (True, "ops on swiftshader: no such driver"))
