import pytest
import tiny


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """200 synthetic pictures of four classes to learn from, 40 to validate on."""
    return tiny.pictures(tmp_path_factory.mktemp("pictures"))
