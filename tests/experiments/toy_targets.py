"""What the entries of the suite's tests call, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time

from experiments.bench import timing

SUMMARY = "A toy benchmark"


def check():
    return {"max_error": 1e-6, "passed": True}


def silent_check():
    return None


def benchmark(count=3):
    timed = timing.Timing(0.5, 1e-3, 1e-5, 10)
    return [timing.Measurement("sum", f"{count} numbers", timed, work=float(count))]


def run(out):
    (out / "trace.txt").write_text("kept")
    return benchmark()


def broken():
    raise RuntimeError(f"bad answer in {os.path.abspath(__file__)}")


def crash():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    """Hangs with a child of its own, whose process id it leaves behind."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(os.environ["TOY_PID_FILE"], "w") as file:
        file.write(str(child.pid))
    time.sleep(600)


def nonsense():
    return {"not": "measurements"}


def process():
    return {"pid": os.getpid()}


def elsewhere():
    raise NotImplementedError("it is not for this device")
