"""What every measured run has alike: its flags, a stdout that holds nothing but its JSON, and what
that JSON says.

Imported by the processes of either side, so it imports nothing of posttrain or TRL.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import Steps, by_kind, peak_rss_mib, process_peak_rss_mib
from rl_workload import Rollouts
from workload import Workload

OFFLINE = ("dpo", "reward", "sft")
DTYPES = ("bf16", "f32")


def offline_arguments(doc: str | None) -> argparse.Namespace:
    """Flags of a run of sft, dpo or the reward model."""
    parser = _parser(doc, "workload.make", lr=1e-5)
    parser.add_argument("--method", choices=OFFLINE, required=True)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--other-reference", action="store_true", help="a reference that is not the policy (DPO)"
    )
    parser.add_argument("--check", action="store_true", help="hash the batches as they reach the model")
    return parser.parse_args()


def online_parser(doc: str | None, methods: Sequence[str]) -> argparse.ArgumentParser:
    """Flags of a run of an online method."""
    parser = _parser(doc, "rl_workload.make", lr=1e-6)
    parser.add_argument("--method", choices=methods, required=True)
    add_rollouts(parser)
    return parser


def add_rollouts(parser: argparse.ArgumentParser) -> None:
    """Flags that say how many steps there are and what a step samples."""
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=Rollouts.prompts)
    parser.add_argument("--samples", type=int, default=Rollouts.samples)
    parser.add_argument("--tokens", type=int, default=Rollouts.tokens)


def _parser(doc: str | None, maker: str, lr: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--work", type=Path, required=True, help=f"folder that {maker} filled")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--profile", action="store_true", help="profile the training by kind of work")
    return parser


def show(run: Callable[[Path], dict[str, Any]]) -> None:
    """Print what `run` makes of a scratch folder, as JSON; whatever else is printed goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        result = run(Path(scratch))
    print(json.dumps(result))


def result(side: str, steps: Steps, profile: Any, **own: Any) -> dict[str, Any]:
    """What a training run tells. own: what only this kind of run has, or has otherwise."""
    return {
        "side": side,
        "step_s": steps.seconds,
        "step_cpu_s": steps.cpu_seconds,
        "peak_rss_mib": peak_rss_mib(),
        "process_peak_rss_mib": process_peak_rss_mib(),
        "threads": torch.get_num_threads(),
        "profile": by_kind(profile, Workload.vocab) if profile else None,
        **own,
    }
