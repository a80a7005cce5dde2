"""Speed, measured side by side in one run: medians and ratios, never a single absolute time."""

from robustbench_ln.benchmarks.corruptions import bench_corruptions
from robustbench_ln.benchmarks.peer import Peer, find_peer

__all__ = ["Peer", "bench_corruptions", "find_peer"]
