"""Waiting for what other processes do."""
import time


def until(done, seconds=30):
    """Waits until something holds, and returns it."""
    for _ in range(int(seconds / 0.05)):
        found = done()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")
