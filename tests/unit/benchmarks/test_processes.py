"""What /proc says."""

import os
import subprocess
import sys

from benchmarks.lag import percentile_bound, read_buckets
from benchmarks.machine import cpu_flags, cpu_name, describe
from benchmarks.processes import Memory, Sampler, cpu_seconds, family, memory_of, parse_rollup

ROLLUP = """\
55d0c0000000-7ffd00000000 ---p 00000000 00:00 0    [rollup]
Rss:                1000 kB
Pss:                 700 kB
Pss_Dirty:           300 kB
Shared_Clean:        400 kB
Private_Clean:       200 kB
Private_Dirty:       300 kB
"""

_NAME = "ray_serve_event_loop_scheduling_latency_ms"
METRICS = f"""\
# TYPE {_NAME} histogram
{_NAME}_bucket{{deployment="Detector",le="1.0",loop_type="main",replica="a"}} 10.0
{_NAME}_bucket{{deployment="Detector",le="10.0",loop_type="main",replica="a"}} 99.0
{_NAME}_bucket{{deployment="Detector",le="+Inf",loop_type="main",replica="a"}} 100.0
{_NAME}_bucket{{deployment="Detector",le="1.0",loop_type="main",replica="b"}} 0.0
{_NAME}_bucket{{deployment="Detector",le="10.0",loop_type="main",replica="b"}} 100.0
{_NAME}_bucket{{deployment="Detector",le="+Inf",loop_type="main",replica="b"}} 100.0
{_NAME}_bucket{{deployment="Detector",le="10.0",loop_type="router",replica="b"}} 7.0
{_NAME}_bucket{{component="proxy",le="10.0",loop_type="main"}} 7.0
{_NAME}_sum{{deployment="Detector",loop_type="main",replica="a"}} 1.0
"""


def test_a_rollup_is_read_in_bytes() -> None:
    """Private pages, clean or dirty, are the process's own."""
    assert parse_rollup(ROLLUP) == Memory(1000 * 1024, 700 * 1024, 500 * 1024)


def test_memory_grows_with_what_a_process_holds() -> None:
    """A block that was written to is in all three figures."""
    before = memory_of(os.getpid())
    block = b"\1" * (64 * 2**20)
    grown = memory_of(os.getpid()) - before
    assert len(block) * 0.9 < grown.uss <= grown.rss
    assert memory_of(2**22 + 1) == Memory()


def test_a_family_holds_what_left_its_parent() -> None:
    """A process whose parent has ended is found by its session."""
    inner = "import time; print('up', flush=True); time.sleep(30)"
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", outer], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.wait()
        left = family(process.pid)
        for orphan in left:
            orphan.kill()
    assert len(left) == 1


def test_a_sampler_ends_with_its_block() -> None:
    """The last sample is taken at the end."""
    with Sampler(os.getpid(), interval_s=0.01) as sampler:
        sum(range(100_000))
    assert len(sampler.samples) >= 2
    assert all(sample.memory.rss > 0 for sample in sampler.samples)
    assert cpu_seconds(family(os.getpid())) > 0


def test_lag_is_counted_between_two_readings() -> None:
    """Replicas are summed, and what was before does not count."""
    after = read_buckets(METRICS)["Detector"]
    assert after == {0.001: 10.0, 0.01: 199.0, float("inf"): 200.0}
    assert percentile_bound({}, after, 99) == 0.01
    assert percentile_bound({}, after, 100) == float("inf")
    before = {0.001: 10.0, 0.01: 190.0, float("inf"): 190.0}
    assert percentile_bound(before, after, 99) == float("inf")
    assert str(percentile_bound(after, after, 99)) == "nan"
    assert read_buckets("nothing") == {}


def test_the_machine_is_described() -> None:
    """Name and instruction sets are those of the first processor; versions are the installed."""
    cpuinfo = "model name\t: Some CPU\ncpu family\t: 25\nmodel\t\t: 17\nflags\t\t: fpu avx2 x\n\n"
    assert cpu_name(cpuinfo) == "Some CPU (family 25, model 17)"
    assert cpu_flags(cpuinfo) == ("avx2",)
    here = describe()
    assert here.cores >= 1
    assert {"ray", "torch", "ultralytics"} <= here.versions.keys()
