"""What can be measured of lnbench itself: speed, side by side in one run, and how often the gate errs."""

from robustbench_ln.benchmarks.corruptions import bench_corruptions
from robustbench_ln.benchmarks.gate import bench_gate
from robustbench_ln.benchmarks.norms import bench_norms
from robustbench_ln.benchmarks.peer import Peer, find_peer

__all__ = ["Peer", "bench_corruptions", "bench_gate", "bench_norms", "find_peer"]
