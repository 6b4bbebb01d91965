"""A gateway with batch providers, all of them fakes; what it runs on can be changed per test."""
import pytest
from batch_stack import KEY, Gateway


@pytest.fixture(scope="session")
def gateway(tmp_path_factory):
    gateway = Gateway(tmp_path_factory.mktemp("batch"))
    yield gateway
    gateway.stop()


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def own_gateway(tmp_path):
    """Makes gateways with settings of a test's own."""
    made = []

    def make(**settings):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Gateway(folder, **settings))
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()
