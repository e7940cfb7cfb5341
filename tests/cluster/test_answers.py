"""Waiting for Ray's answers, and signals meanwhile."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.cluster

WAITING = """
import os, signal, sys, threading, time
import ray
from evoray.cluster.answers import LONGEST, answer, ended
from evoray.cluster.connection import connect
from evoray.stopping import Stopped, stops_by_signal

@ray.remote(num_cpus=0)
def after(seconds):
    time.sleep(seconds)
    return seconds

number, way = int(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, whoever runs the tests
try:
    with stops_by_signal():
        connect("local", 0, 1)
        assert answer(after.remote(0)) == 0
        ref = after.remote(2.5 * LONGEST)
        threading.Timer(LONGEST / 2, os.kill, (os.getpid(), number)).start()
        if way == "answer":
            answer(ref)
        while not ended([ref], count=1, timeout=60):
            pass
except (Stopped, KeyboardInterrupt) as asked:
    print(type(asked).__name__)
"""


@pytest.mark.parametrize("way", ["ended", "answer"])
@pytest.mark.parametrize(("number", "stop"), [(signal.SIGTERM, "Stopped"), (signal.SIGINT, "KeyboardInterrupt")])
def test_a_signal_while_ray_waits_is_what_ends_the_wait(number: int, stop: str, way: str) -> None:
    begun = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", WAITING, str(int(number)), way], capture_output=True, text=True, env=os.environ.copy()
    )
    assert (ran.stdout.split(), ran.returncode) == ([stop], 0), ran.stderr
    assert time.monotonic() - begun < 120
