"""What every test needs: a cache folder of its own."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHFORM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
