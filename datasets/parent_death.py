"""A signal for a process when the process that started it dies (Linux), so that no orphan runs on."""

import ctypes
import signal

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec a process may only call it


def signal_at_parents_death(number: signal.Signals) -> None:
    """Have the kernel send this process the signal when its parent, or the thread of it that started this process, ends."""
    _LIBC.prctl(PR_SET_PDEATHSIG, number)
