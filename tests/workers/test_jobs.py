"""The script of a job, line by line, for every batch system; none of them need be there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import pytest

from itkstream.errors import InputError
from itkstream.workers import Resources, connected
from itkstream.workers.batch_systems import SYSTEMS
from itkstream.workers.jobs import job_options
from itkstream.workers.options import jobqueue_class

# 4 cores for 2 processes that compute a block at a time: 2 threads for the kernels of each.
EXPORTS = """\
export ITKSTREAM_THREADS=2
export ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=2
export NUMBA_NUM_THREADS=2
export OMP_NUM_THREADS=2
export MKL_NUM_THREADS=2
export OPENBLAS_NUM_THREADS=2
export MALLOC_ARENA_MAX=2
export MALLOC_MMAP_THRESHOLD_=33554432
export MALLOC_TRIM_THRESHOLD_=67108864
export DASK_LOGGING__ITKSTREAM=info
export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False
export DASK_DISTRIBUTED__WORKER__MEMORY__TARGET=0.5
"""
# dask_jobqueue gives a worker as many threads as it has cores; the later word counts. Jobs end
# by themselves 5 minutes, more or less, before 3:59 hours are over.
WORKER = (
    "PYTHON -m distributed.cli.dask_worker SCHEDULER --name dummy-name --nthreads 2 "
    "--memory-limit 7.45GiB --nworkers 2 --nanny --death-timeout 60 --nthreads 1"
)
ENDING = " --lifetime 14040s --lifetime-stagger 150s"
SCRIPTS = {
    "slurm": f"""\
#!/usr/bin/env bash

#SBATCH -J itkstream
#SBATCH -e LOGS/itkstream-%J.err
#SBATCH -o LOGS/itkstream-%J.out
#SBATCH -p short
#SBATCH -A neuro
#SBATCH -n 1
#SBATCH --cpus-per-task=4
#SBATCH --mem=15G
#SBATCH -t 03:59:00
{EXPORTS}{WORKER}{ENDING}
""",
    "lsf": f"""\
#!/usr/bin/env bash

#BSUB -J itkstream
#BSUB -e LOGS/dummy-name-%J.err
#BSUB -o LOGS/dummy-name-%J.out
#BSUB -q short
#BSUB -P "neuro"
#BSUB -n 4
#BSUB -R "span[hosts=1]"
#BSUB -M 16000000
#BSUB -W 03:59
{EXPORTS}{WORKER}{ENDING}
""",
    "pbs": f"""\
#!/usr/bin/env bash

#PBS -N itkstream
#PBS -q short
#PBS -A neuro
#PBS -l select=1:ncpus=4:mem=15GB
#PBS -l walltime=03:59:00
#PBS -e LOGS/
#PBS -o LOGS/
{EXPORTS}{WORKER}{ENDING}
""",
    "sge": f"""\
#!/usr/bin/env bash

#$ -N itkstream
#$ -q short
#$ -P neuro
#$ -l h_rt=03:59:00
#$ -e LOGS/
#$ -o LOGS/
#$ -cwd
#$ -j y
{EXPORTS}{WORKER}{ENDING}
""",
    "htcondor": f"""\
#!/usr/bin/env condor_submit

MY.DaskWorkerName = "htcondor--$F(MY.JobId)--"
batch_name = dummy-name
RequestCpus = MY.DaskWorkerCores
RequestMemory = floor(MY.DaskWorkerMemory / 1048576)
RequestDisk = floor(MY.DaskWorkerDisk / 1024)
MY.JobId = "$(ClusterId).$(ProcId)"
MY.DaskWorkerCores = 4
MY.DaskWorkerMemory = 16000000000
MY.DaskWorkerDisk = 1000000000
LogDirectory = LOGS
Output = $(LogDirectory)/worker-$F(MY.JobId).out
Error = $(LogDirectory)/worker-$F(MY.JobId).err
Log = $(LogDirectory)/worker-$(ClusterId).log
Stream_Output = True
Stream_Error = True
accounting_group = neuro

Arguments = "-c '{EXPORTS.replace(chr(10), "; ")}{WORKER}'"
Executable = /bin/sh

Queue
""",
    "oar": f"""\
#!/usr/bin/env bash

#OAR -n itkstream
#OAR -q short
#OAR --project neuro
#OAR -l /nodes=1/core=4,walltime=03:59:00
#OAR -p mem_core>=3815
{EXPORTS}{WORKER}{ENDING}
""",
    "moab": f"""\
#!/usr/bin/env bash

#PBS -N itkstream
#PBS -q short
#PBS -A neuro
#PBS -l nodes=1:ppn=4,mem=15259mb
#PBS -l walltime=03:59:00
#PBS -e LOGS/
#PBS -o LOGS/
{EXPORTS}{WORKER}{ENDING}
""",
}

pytestmark = pytest.mark.usefixtures("commands")


def script(resources: Resources, tmp_path: Path) -> list[str]:
    """Its lines; what differs from run to run has a word in its place."""
    system = resources.batch_system
    assert system is not None
    options = job_options(resources, system)
    options["scheduler_options"] = {"host": "127.0.0.1", "dashboard_address": None}
    with jobqueue_class(system)(**options) as cluster:
        text = cluster.job_script().replace(cluster.scheduler_address, "SCHEDULER")
    text = text.replace(str(tmp_path / "state/itkstream/jobs"), "LOGS")
    return text.replace(sys.executable, "PYTHON").rstrip().splitlines()


def resources(name: str, **given: Any) -> Resources:
    found: dict[str, Any] = {"cluster": name, "cores": 4, "processes": 2, "memory": "16GB"}
    found |= {"project": "neuro", "config": {"distributed.worker.memory.target": 0.5}}
    if SYSTEMS[name].queues:
        found |= {"queue": "short", "walltime": "3:59"}
    return Resources(**{**found, **given})


def test_every_batch_system_is_here() -> None:
    assert SCRIPTS.keys() == SYSTEMS.keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str, tmp_path: Path) -> None:
    given = resources(name)
    if name == "oar":  # each site has a word of its own for the memory of a core
        given = resources(
            name, config={**given.config, "memory_per_core_property_name": "mem_core"}
        )
    assert script(given, tmp_path) == SCRIPTS[name].rstrip().splitlines()


def test_little_said_is_little_asked(tmp_path: Path) -> None:
    lines = script(Resources(cluster="slurm", cores=2, memory_limit="4GiB"), tmp_path)
    assert [line for line in lines if line.startswith("#SBATCH")] == [
        "#SBATCH -J itkstream",
        "#SBATCH -e LOGS/itkstream-%J.err",
        "#SBATCH -o LOGS/itkstream-%J.out",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --mem=4G",
        "#SBATCH -t 00:30:00",
    ]
    assert lines[-1].endswith("--memory-limit 4.00GiB --nanny --death-timeout 60 --nthreads 1")


def test_options_add_to_ours_and_to_the_users_own_configuration(tmp_path: Path) -> None:
    config = {
        "job_extra_directives": ["--exclusive"],
        "job_script_prologue": ["module load python"],
        "worker_extra_args": ["--no-dashboard"],
        "interface": "lo",
        "distributed": {"comm": {"retry": {"count": 3}}},
    }
    mine = {"queue": "long", "job-script-prologue": ["ulimit -c 0"], "log-directory": str(tmp_path)}
    with dask.config.set({"jobqueue.slurm": {**_defaults("slurm"), **mine}}):
        lines = script(resources("slurm", queue=None, config=config), tmp_path)
        plain = script(resources("slurm", queue=None), tmp_path)
    for line in ("#SBATCH -p long", f"#SBATCH -e {tmp_path}/itkstream-%J.err"):
        assert line in lines
        assert line in plain
    assert "ulimit -c 0" in plain
    assert "#SBATCH --exclusive" in lines
    assert lines[-3:-1] == [
        "export DASK_DISTRIBUTED__COMM__RETRY__COUNT=3",
        "module load python",
    ]
    assert lines[-1].endswith("--lifetime-stagger 150s --no-dashboard --interface lo")


def _defaults(name: str) -> dict[str, Any]:
    jobqueue_class(SYSTEMS[name])
    found: dict[str, Any] = dask.config.get(f"jobqueue.{name}")
    return found


def test_moab_takes_other_words_for_resources(tmp_path: Path) -> None:
    lines = script(resources("moab", config={"resource_spec": "pmem=96gb"}), tmp_path)
    assert [line for line in lines if "-l" in line.split()] == [
        "#PBS -l pmem=96gb",
        "#PBS -l walltime=03:59:00",
    ]


def test_condor_hands_the_shell_what_was_meant(tmp_path: Path) -> None:
    config = {"temporary-directory": "/scratch/my data", "distributed.comm.compression": "zlib"}
    lines = script(resources("htcondor", config=config), tmp_path)
    line = next(line for line in lines if line.startswith("Arguments = "))
    # Condor's own rules: all in double quotes, one within is doubled; so are single quotes within
    # single quotes, which hold one argument.
    text = line.removeprefix('Arguments = "').removesuffix('"').replace('""', '"')
    assert text.startswith("-c '")
    command = text.removeprefix("-c '").removesuffix("'").replace("''", "'")
    exports = command[: command.index("PYTHON")]
    done = subprocess.run(
        ["/bin/sh", "-c", exports + "/usr/bin/env"], capture_output=True, text=True, check=True
    )
    assert "DASK_TEMPORARY_DIRECTORY='/scratch/my data'" in done.stdout.splitlines()
    assert "DASK_DISTRIBUTED__COMM__COMPRESSION='zlib'" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("said", "memory"),
    [("", "16000000"), ("LSF_UNIT_FOR_LIMITS=MB\n", "16000"), ("LSF_UNIT_FOR_LIMITS=GB\n", "16")],
)
def test_lsf_has_its_own_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, memory: str
) -> None:
    # LSF's own default is KB.
    (tmp_path / "lsf.conf").write_text(f"LSF_LOGDIR=/var/log\n{said}")
    monkeypatch.setenv("LSF_ENVDIR", str(tmp_path))
    assert f"#BSUB -M {memory}" in script(resources("lsf"), tmp_path)
    told = resources("lsf", config={"lsf_units": "mb"})
    assert "#BSUB -M 16000" in script(told, tmp_path)


def test_dask_reads_the_variables_as_they_were_meant(python_environment: dict[str, str]) -> None:
    from itkstream.workers.environment import configuration_variables

    config = {
        "distributed.worker.memory.target": 0.5,
        "distributed": {"worker": {"memory": {"spill": False}}, "comm": {"compression": "zlib"}},
        "temporary-directory": "/scratch/my data",
        "array.chunk-size": None,
    }
    code = (
        "import dask, distributed; print([dask.config.get(k) for k in ("
        "'distributed.worker.memory.target', 'distributed.worker.memory.spill', "
        "'distributed.comm.compression', 'temporary-directory', 'array.chunk-size')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**python_environment, **configuration_variables(config)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[0.5, False, 'zlib', '/scratch/my data', None]"


def test_nothing_is_written_to_the_users_configuration(
    tmp_path: Path, python_environment: dict[str, str]
) -> None:
    # In a process of its own: the file would be written where the package is imported first.
    code = (
        "import copy, dask\n"
        "from itkstream.workers import Resources, connected\n"
        "from itkstream.errors import InputError\n"
        "before, path = copy.deepcopy(dask.config.config), dask.config.PATH\n"
        "config = {'array.chunk-size': '1MiB'}\n"
        "given = Resources(cluster='slurm', cores=1, memory='1GB', config=config)\n"
        "try:\n"
        "    with connected(given): raise SystemExit('no job was refused')\n"
        "except InputError as error: print(error)\n"
        "with connected(Resources(config=config)): pass\n"
        # A scheduler without bokeh adds a route of its own here, as ever in dask.
        "for state in (before, dask.config.config):\n"
        "    del state['distributed']['scheduler']['http']\n"
        "defaults = dask.config.config.pop('jobqueue')\n"
        "assert defaults['slurm']['queue'] is None\n"
        "assert dask.config.PATH == path\n"
        "assert dask.config.config == before, (dask.config.config, before)\n"
    )
    (tmp_path / "home/.config/dask").mkdir(parents=True)
    (tmp_path / "home/.config/dask/mine.yaml").write_text("array:\n  chunk-size: 7MiB\n")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**python_environment, "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "sbatch refused the job; check queue" in done.stdout
    assert "no such queue" in done.stdout
    written = [p for p in (tmp_path / "home").rglob("*") if p.is_file()]
    assert [p.name for p in written] == ["mine.yaml"]


def test_ctrl_c_stays_what_it_was_and_any_thread_may_ask(
    python_environment: dict[str, str],
) -> None:
    code = (
        "import os, signal, threading\n"
        "from itkstream.workers import Resources\n"
        "made = []\n"
        "def make(): made.append(Resources(cluster='slurm', cores=1, memory='1GB'))\n"
        "thread = threading.Thread(target=make)\n"
        "thread.start(); thread.join()\n"
        "assert made\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "import dask_jobqueue.runner\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=python_environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_dask_jobqueue_refuses_is_our_error() -> None:
    given = resources("slurm", config={"interface": "no-such-card"})
    with pytest.raises(InputError, match=r"cluster='slurm': .*no-such-card"), connected(given):
        pass
