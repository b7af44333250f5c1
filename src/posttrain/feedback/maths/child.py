"""The process that compares two formulas: whatever they make it do, its parent goes on.

Reads a line of JSON a question, [reference, answer, seconds], and writes one: true, false, or a text, why it
cannot be told. The kernel ends the process when a question takes too much of the processor's time: nothing
within the interpreter can keep it from that, and other work on the machine does not hasten it. math-verify's
own limits need the main thread, and wait for the interpreter.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys

MEMORY_BYTES = 4 << 30
_FULL = 23  # the exit code for a question that took too much memory


def main() -> None:
    said = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    compare("x+1", "\\frac{1}{2}")  # what the first question loads is not on its clock
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    print("ready", file=said, flush=True)
    for line in sys.stdin:
        reference, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        told = compare(reference, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(told), file=said, flush=True)


def compare(reference: str, answer: str) -> bool | str:
    """Whether the two are the same, or why that cannot be told."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Expr, Symbol, simplify

    # its way with units would also take the c of "b + c" for one
    how = NormalizationConfig(True, units=False, malformed_operators=True, nits=True, boxed="none")
    formula = LatexExtractionConfig(normalization_config=how, boxed_match_priority=-1)
    try:
        gold, said = (
            parse(f"${text}$", [formula], fallback_mode="no_fallback", parsing_timeout=None)
            for text in (reference, answer)
        )
        if not gold or not said:
            return f"the {'answer' if gold else 'reference'} cannot be read as mathematics"
        if verify(gold, said, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True):
            return True
        a, b = gold[0], said[0]
        # beside a lone variable the library compares how things are written: x, and x + 0
        lone = (
            isinstance(a, Expr) and isinstance(b, Expr) and (isinstance(a, Symbol) or isinstance(b, Symbol))
        )
        return bool(lone and simplify(a.doit() - b.doit()) == 0)
    except MemoryError:
        os._exit(_FULL)
    except Exception as e:
        return f"cannot be compared: {type(e).__name__}"


if __name__ == "__main__":
    main()
