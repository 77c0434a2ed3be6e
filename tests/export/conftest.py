"""What several tests of exported files start from."""

from __future__ import annotations

import pytest
from bundle_samples import SOURCE, Net, trained

from compressor.export.bundle import save_bundle


@pytest.fixture
def saved(tmp_path):
    original, small = trained(Net()), trained(Net(5, 3, bias=True), seed=1)
    save_bundle(tmp_path, small, original, SOURCE)
    return tmp_path, original, small
