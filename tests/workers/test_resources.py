"""Resources are checked when they are made; a site's clusters have names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

from itkstream.compute.execute import execute
from itkstream.errors import InputError
from itkstream.workers import Resources
from itkstream.workers.options import presets_path

JOBS = {"cluster": "slurm", "cores": 4, "memory": "16GB"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cores": 0}, "cores must be at least 1; got 0"),
        ({"processes": -1}, "processes must be at least 1"),
        ({"n_workers": 2.5}, "n_workers must be a whole number; got 2.5"),
        ({"max_workers": "4"}, "max_workers must be a whole number; got '4'"),
        ({"min_workers": True}, "min_workers must be a whole number"),
        ({"memory": "lots"}, "memory must be a size such as '8GB'; got 'lots'"),
        ({"memory_limit": 0}, "memory_limit must be a size"),
        ({"memory_limit": "-2GB"}, "memory_limit must be a size"),
        ({"memory": "8GB", "memory_limit": "4GB"}, "give one; got 8GB and 4GB"),
        ({"config": ["x"]}, "config must be a mapping; got list"),
        ({"config": {"job_extra_directives": []}}, "config takes names of dask's configuration"),
        ({"min_workers": 5, "max_workers": 4}, "min_workers must be at most max_workers"),
        ({"n_workers": 9, "max_workers": 4}, "n_workers must lie between"),
        ({"n_workers": 1, "min_workers": 2}, "n_workers must lie between"),
        ({"cores": 2, "processes": 4}, "cores=2 are too few for 4 processes of 1 threads"),
        ({"cores": 4, "processes": 2, "threads_per_worker": 3}, "too few for 2 processes of 3"),
        ({"walltime": "1:00"}, "walltime is for batch systems: choose one as cluster"),
        ({"queue": "short"}, "queue is for batch systems"),
        ({"project": "neuro"}, "project is for batch systems"),
        ({"cluster": "slrum"}, "unknown cluster 'slrum'; did you mean 'slurm'"),
        ({"cluster": "host:8786"}, "or an address such as tcp://host:8786. Names of a site are in"),
        ({"cluster": "tcp://host"}, "looks like 'tcp://host:8786'; got 'tcp://host'"),
        ({"cluster": 7}, "cluster must be 'local', one of slurm, .* got int"),
        ({"cluster": "tcp://host:1", "cores": 4}, "cores cannot be chosen for workers that run"),
        ({"cluster": "tcp://host:1", "queue": "q"}, "queue cannot be chosen"),
        ({"cluster": "tcp://host:1", "config": {"name": 1}}, "config takes names of dask's"),
        ({**JOBS, "cores": None}, "needs cores and memory per job.*; cores is missing"),
        ({**JOBS, "memory": None}, "cores=4, memory='16GB'; memory is missing"),
        ({**JOBS, "walltime": "4 hours"}, "walltime must be text such as"),
        ({**JOBS, "processes": 2, "min_workers": 3}, "min_workers must be a multiple of proc"),
        ({**JOBS, "processes": 2, "n_workers": 1}, "n_workers must be a multiple of processes=2"),
        ({**JOBS, "config": {"job_extra_directive": []}}, "did you mean 'job_extra_directives'"),
        ({**JOBS, "config": {"cores": 8}}, "unknown option in config for slurm 'cores'"),
        ({**JOBS, "cluster": "htcondor", "queue": "q"}, "queue is unknown to htcondor"),
        ({**JOBS, "cluster": "htcondor", "walltime": "1:00"}, "walltime is unknown to htcondor"),
    ],
)
@pytest.mark.usefixtures("commands")
def test_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Resources(**given)


def test_a_batch_system_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, command in (("slurm", "sbatch"), ("lsf", "bsub"), ("htcondor", "condor_submit")):
        with pytest.raises(InputError, match=f"by {command}, which is not on the PATH: run this"):
            Resources(**{**JOBS, "cluster": name}).require_commands()


def test_execute_refuses_before_it_writes(tmp_path: Path) -> None:
    lazy = dask.array.zeros((4, 4), chunks=2)
    with pytest.raises(InputError, match="did you mean 'local'"):
        execute(lazy, tmp_path / "out.zarr", cluster="locall")
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.usefixtures("commands")
def test_counts_may_be_numpy_and_sizes_in_dasks_own_configuration() -> None:
    assert Resources(n_workers=np.int64(2)).local_workers == 2
    with dask.config.set({"jobqueue.slurm.cores": 2, "jobqueue.slurm.memory": "4GB"}):
        assert Resources(cluster="slurm").batch_system is not None


@pytest.mark.parametrize(
    ("given", "workers"),
    [
        ({}, None),
        ({"cores": 2}, None),
        ({"n_workers": 2, "max_workers": 3}, 2),
        ({"min_workers": 2}, 2),
        ({"min_workers": 2, "max_workers": 3}, 3),
    ],
)
def test_workers_of_this_machine(given: dict[str, Any], workers: int | None) -> None:
    assert Resources(**given).local_workers == workers


def test_threads_of_this_process_share_the_cores() -> None:
    assert Resources(cores=8).threads_here(100) == (8, 1)
    assert Resources(cores=8).threads_here(3) == (3, 2)
    assert Resources(cores=8, threads_per_worker=2).threads_here(100) == (2, 4)
    assert Resources(cores=1).threads_here(0) == (1, 1)


@pytest.mark.usefixtures("commands")
def test_config_is_parted() -> None:
    config = {
        "distributed.worker.memory.target": 0.5,
        "array": {"chunk-size": "1MiB"},
        "temporary-directory": "/scratch",
        "job_extra_directives": ["--exclusive"],
        "interface": "ib0",
    }
    found = Resources(**JOBS, config=config)
    profile = "distributed.worker.profile.enabled"
    assert set(found.for_dask) == {*list(config)[:3], profile}
    assert set(found.for_jobs) == set(list(config)[3:])
    # What the user says goes before what workers have otherwise.
    assert found.for_dask[profile] is False
    assert Resources(config={profile: True}).for_dask[profile] is True


PRESETS = """
janelia:
  cluster: lsf
  cores: 4
  memory: 60GB
  walltime: "3:59"
  queue: local
  max_workers: 40
  config:
    lsf_units: mb
    job_extra_directives: [-x]
lab:
  cluster: tcp://big:8786
"""


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "clusters.yaml"
    path.write_text(PRESETS)
    monkeypatch.setenv("ITKSTREAM_CLUSTERS", str(path))
    return path


@pytest.mark.usefixtures("commands", "presets")
def test_a_site_names_its_clusters() -> None:
    found = Resources(
        cluster="janelia", queue="short", max_workers=2, config={"lsf_units": "gb"}
    ).resolved()
    assert found == Resources(
        cluster="lsf",
        cores=4,
        memory="60GB",
        walltime="3:59",
        queue="short",
        max_workers=2,
        config={"lsf_units": "gb", "job_extra_directives": ["-x"]},
    )
    limited = Resources(cluster="janelia", memory_limit="8GB").resolved()
    assert (limited.memory, limited.memory_limit) == (None, "8GB")
    assert Resources(cluster="lab").resolved().cluster == "tcp://big:8786"
    with pytest.raises(InputError, match="'janela'; did you mean 'janelia'"):
        Resources(cluster="janela")
    with pytest.raises(InputError, match="cores cannot be chosen"):
        Resources(cluster="lab", cores=3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "queue:",
            "queu:",
            "unknown key of the cluster 'janelia' in .*'queu'; did you mean 'queue'",
        ),
        ('"3:59"', "3:59", "got 239 .in a YAML file put it in quotes"),
        ("cluster: lsf", "cluster: lfs", "must say `cluster:` and one of slurm, lsf.* got 'lfs'"),
        ("cluster: lsf", "cluster: [lsf]", "must say `cluster:` and one of"),
        ("cluster: lsf", "", "must say `cluster:`.* got None"),
        ("lsf_units", "units", "unknown option in config for lsf 'units'"),
        (PRESETS, "janelia: {cluster: lsf, config: 3}", "config of the cluster 'janelia' .* got 3"),
        ("janelia:\n", "janelia: [\n", "is no YAML"),
        (PRESETS, "- janelia\n", "must hold names of clusters"),
        (PRESETS, "janelia: lsf\n", "must hold names of clusters"),
    ],
)
@pytest.mark.usefixtures("commands")
def test_faults_of_the_file_are_named(presets: Path, old: str, new: str, message: str) -> None:
    presets.write_text(PRESETS.replace(old, new))
    with pytest.raises(InputError, match=message):
        Resources(cluster="janelia")


def test_where_presets_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert presets_path() == tmp_path / "config/itkstream/clusters.yaml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert presets_path() == Path.home() / ".config/itkstream/clusters.yaml"
    monkeypatch.setenv("ITKSTREAM_CLUSTERS", str(tmp_path))
    with pytest.raises(InputError, match="cannot read the clusters of"):
        Resources(cluster="janelia")
