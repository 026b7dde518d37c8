"""What every test needs: cache folders of its own, and signals as a terminal leaves them."""

import logging
import signal

import pytest

logging.getLogger("torch.__trace").propagate = False  # pytest would write down each step of each graph that is traced
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a suite under `nohup` ignores it, and so would all that it starts


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHFORM_CACHE", str(tmp_path_factory.mktemp("cache")))
        # kernels that were compiled for another processor, or another setting of this one, give other numbers
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        yield
