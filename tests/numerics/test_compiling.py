"""Functions are compiled where Ctrl-C does not reach, and errors of types come through."""

import subprocess
import sys

import numpy as np
import pytest
from numba.core.errors import TypingError

from itkstream.numerics.compiling import compiled

# Ctrl-C arrives just when the lock of the compiler is taken, then a thread loads a function.
STOPPED = """
import signal
import threading
from llvmlite.binding import ffi
from itkstream.numerics.compiling import compiled

def stop_once(told=[]):
    if not told:
        told.append(True)
        signal.raise_signal(signal.SIGINT)

@compiled
def one(x):
    return x + 1

@compiled
def two(x):
    return x + 2

ffi.register_lock_callback(stop_once, lambda: None)
try:
    one(1)
    print("not stopped")
except KeyboardInterrupt:
    print("stopped")
other = threading.Thread(target=lambda: print(two(1)))
other.start()
other.join()
"""


def test_a_stop_while_a_function_is_loaded_keeps_no_other_thread_from_loading(tmp_path):
    # From a file: numba keeps a function beside its source.
    (tmp_path / "stopped.py").write_text(STOPPED)
    words = [sys.executable, tmp_path / "stopped.py"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["stopped", "3"], done.stderr


def test_values_and_errors_come_back():
    add = compiled(lambda a, b: a + b)
    assert add(1, 2) == 3
    np.testing.assert_array_equal(add(np.arange(3), 1.5), np.arange(3) + 1.5)
    with pytest.raises(TypingError):
        add("a", 1)
