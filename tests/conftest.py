"""What every test may ask for: one stack of real processes, and keys to it."""
import pytest
from live import KEY, LIMITED_KEYS, POOR_KEY, Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("gateway"))
    yield stack
    stack.stop()


@pytest.fixture(scope="session")
def key():
    return KEY


@pytest.fixture(scope="session")
def limited_keys():
    return LIMITED_KEYS


@pytest.fixture(scope="session")
def poor_key():
    return POOR_KEY
