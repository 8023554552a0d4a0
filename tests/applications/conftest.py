import pytest

from tests.cases import fast_compilation


@pytest.fixture(scope="package", autouse=True)
def _fast_compilation():
    with fast_compilation():
        yield
