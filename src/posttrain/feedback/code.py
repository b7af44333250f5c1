"""The judge `python_tests`: a program is right if the tests its prompt carries pass in the sandbox."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Annotated, final

from pydantic import Field

from posttrain.common.config import Config, Runtime
from posttrain.common.progress import progress
from posttrain.feedback.judge import Verdict
from posttrain.feedback.programs import NoTests, carried_tests, program_of, stub_of
from posttrain.feedback.verifiers import CUT_OFF
from posttrain.records import Prompt, Response
from posttrain.sandbox import Limits, Sandbox, SandboxName, Tests, open_sandbox

Job = tuple[str, Tests]


class PythonTests(Config):
    """1 where the response's program passes its prompt's tests, 0 where it does not or runs into a limit.

    No answer where no program is found in the response, the prompt has no tests, or the sandbox fails.

    sandbox: "bwrap" (bubblewrap), or "rlimits", which stops less (`docs/sandbox.md`). limits: of one program.
    workers: programs at a time, as many as there are processors where None.
    """

    sandbox: SandboxName = "bwrap"
    limits: Limits = Limits()
    workers: Annotated[int | None, Runtime(), Field(ge=1)] = None

    def open(self) -> PythonTestsJudge:
        """Raises ConfigError where the sandbox does not work on this machine."""
        return PythonTestsJudge(self, open_sandbox(self.sandbox, self.limits))


@final
@dataclass(frozen=True)
class PythonTestsJudge:
    cfg: PythonTests
    sandbox: Sandbox

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        """Equal programs with equal tests are run once."""
        asked = [_job(prompt, response) for prompt, response in items]
        jobs = list(dict.fromkeys(job for job in asked if not isinstance(job, Verdict)))
        done = self._run(jobs)
        return [job if isinstance(job, Verdict) else done[job] for job in asked]

    def _run(self, jobs: Sequence[Job]) -> Mapping[Job, Verdict]:
        done: dict[Job, Verdict] = {}
        if not jobs:
            return done
        pool = ThreadPoolExecutor(min(len(jobs), self.cfg.workers or len(os.sched_getaffinity(0))))
        try:
            running = {pool.submit(self.sandbox.check, *job): job for job in jobs}
            with progress("python_tests", len(jobs), "program") as bar:
                for finished in as_completed(running):
                    checked = finished.result()
                    score = None if checked.passed is None else float(checked.passed)
                    done[running[finished]] = Verdict(score, checked.reason)
                    bar.advance()
        finally:
            pool.shutdown(cancel_futures=True)
        return done


def _job(prompt: Prompt, response: Response) -> Job | Verdict:
    if response.finish == "length":
        return CUT_OFF
    try:
        tests = carried_tests(prompt)
    except NoTests as e:
        return Verdict(None, str(e))
    program = program_of(response.text, stub_of(prompt, tests.names), tests.names)
    return (program, tests) if program is not None else Verdict(None, "no program found in the response")
