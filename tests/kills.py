"""Training runs that are killed or stopped on their way and must come out as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from posttrain.training.optim import Optimizer

SCRIPT = """
import sys, json
from pathlib import Path
import torch
torch.set_num_threads(1)
from posttrain.common.config import parse
from posttrain.common.step import StepContext
from posttrain.training.train import STEP, TrainConfig
cfg, out = json.loads(sys.argv[1]), Path(sys.argv[2])
STEP.run(parse(TrainConfig, cfg, "kill"), StepContext(out, out / "state", "kill"))
"""


def start(cfg, out):
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(cfg), str(out)], env=env, stderr=subprocess.PIPE, text=True
    )


def wait_for_progress(process, checkpoint):
    """True once the process has written a checkpoint of its own, False where it ended before."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    while process.poll() is None:
        if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
            return True
        time.sleep(0.005)
    return False


def kill_proof(tmp_path, fields, kills, seed):
    """Train once undisturbed, once under SIGKILLs at random instants; the weights must be equal to the
    bit.
    """
    cfg = {
        "checkpoint_seconds": 0.001, "seed": 3, **fields,
        "optimizer": {"lr": 1e-3, "ema": 0.9},
    }  # fmt: skip
    assert start(cfg, tmp_path / "calm").wait() == 0
    rng = random.Random(seed)
    killed = 0
    while True:
        process = start(cfg, tmp_path / "killed")
        if killed < kills and wait_for_progress(process, tmp_path / "killed/state/checkpoint.pt"):
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            if process.returncode != 0:
                continue
        assert process.wait() == 0, process.stderr.read()
        break
    calm, hit = (load_file(tmp_path / name / "model/model.safetensors") for name in ("calm", "killed"))
    assert calm.keys() == hit.keys()
    assert all(torch.equal(calm[k], hit[k]) for k in calm)
    timing = {"seconds", "tokens_per_second", "memory_mb", "sampling_seconds", "judging_seconds"}
    lines = [
        [{k: v for k, v in m.items() if k not in timing} for m in metrics(tmp_path / n)]
        for n in ("calm", "killed")
    ]
    assert lines[0] == lines[1]
    assert not list((tmp_path / "killed").glob(".*tmp*/manifest.json"))
    return killed


def stumbling(monkeypatch, run):
    """What `run` gives when it is stopped at every third optimizer step and begun again until it ends."""
    step, count = Optimizer.step, 0

    def stumble(self, *args):
        nonlocal count
        count += 1
        if count % 3 == 0:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Optimizer, "step", stumble)
    for _ in range(20):
        try:
            ended = run()
        except KeyboardInterrupt:
            continue
        assert count > 3
        return ended
    raise AssertionError("it never ended")


def metrics(out, split="train"):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]
