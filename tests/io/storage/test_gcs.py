"""Google Cloud Storage, on an emulator that answers on this machine.

Its libraries are many, so the default tests leave it out. To run it:
``pip install -e '.[cloud]' gcp-storage-emulator``.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec

import dask.array as da
import numpy as np
import pytest

from itkstream.compute.execute import execute
from itkstream.errors import MissingDataError
from itkstream.geometry import Grid
from itkstream.io import create_ome_zarr, open_image, write_n5, write_pyramid
from itkstream.io.storage.locations import Location

pytestmark = pytest.mark.skipif(
    find_spec("gcsfs") is None or find_spec("gcp_storage_emulator") is None,
    reason="needs gcsfs and gcp-storage-emulator",
)


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as patch:
        # gcsfs would ask a second service, which emulators do not have, for the kind of bucket.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        from gcp_storage_emulator.server import create_server

        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="images")
        server.start()
        endpoint = "http://{}:{}".format(*server._api._httpd.server_address)
        patch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", endpoint)
        patch.setitem(__import__("fsspec").config.conf, "gs", {"token": "anon"})
        yield "gs://images"
        server.stop()


def test_locations(bucket):
    root = Location.parse(bucket) / "a"
    assert root.is_vacant()
    root.child("x/y.bin").write_bytes(b"one")
    root.child("xy.bin").write_bytes(b"two")
    assert root.names() == ["x", "xy.bin"]
    assert root.child("x/y.bin").read_bytes() == b"one"
    before = root.fingerprint()
    root.child("xy.bin").write_bytes(b"owt")
    assert root.fingerprint() != before
    root.child("x").remove()
    assert root.names() == ["xy.bin"]
    with pytest.raises(MissingDataError, match="no bucket"):
        Location.parse("gs://nobody-made-this/a").is_vacant()


def test_images_and_results(bucket):
    grid = Grid((20, 15, 12), (1.0, 1.5, 2.0))
    voxels = np.random.default_rng(0).integers(0, 60000, grid.shape).astype(np.uint16)
    write_n5(f"{bucket}/a.n5", "s0", voxels, grid, chunks=(8, 8, 8))
    create_ome_zarr(f"{bucket}/a.zarr", grid, voxels.dtype, chunks=(8, 8, 8))[:] = voxels
    write_pyramid(f"{bucket}/a.zarr")
    for path in (f"{bucket}/a.n5/s0", f"{bucket}/a.zarr"):
        np.testing.assert_array_equal(open_image(path).read(), voxels)
    lazy = da.from_array(voxels, chunks=(10, 15, 12)) + 1
    np.testing.assert_array_equal(execute(lazy, f"{bucket}/out")[:], voxels + 1)
