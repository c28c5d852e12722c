"""Workers that are lost are replaced, as long as there is a cluster."""

from __future__ import annotations

import asyncio

from distributed import LocalCluster

from itkstream.workers.replacement import Replacing


def test_a_cluster_that_was_closed_starts_no_worker_any_more() -> None:
    """A queue that is asked meanwhile answers late."""
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        adaptive = Replacing(cluster, minimum=0, maximum=1)
        adaptive.stop()
        assert cluster.sync(adaptive.recommendations, 1)["status"] == "up"
    assert asyncio.run(adaptive.recommendations(1)) == {"status": "same"}


def test_what_was_decided_before_a_cluster_was_closed_starts_no_worker() -> None:
    """A lost job is cancelled before another takes its place, and that takes a while as well."""
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        adaptive = Replacing(cluster, minimum=0, maximum=1)
        adaptive.stop()
    asyncio.run(asyncio.wait_for(adaptive.scale_up(1), 10))
    assert not cluster.plan
