"""A Ray head for benchmarks: `python -m benchmarks.head CPUS` prints its address and stays until it is told to end.

`ray start --head` takes fixed ports and `ray stop` ends every Ray of the machine; this one disturbs nobody.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def main() -> None:
    import ray

    leave = threading.Event()
    context = ray.init(
        address="local",
        num_cpus=int(sys.argv[1]),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=1 << 30,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: leave.set())
    sys.stdout.write(f"{context.address_info['gcs_address']}\n")
    sys.stdout.flush()
    os.close(sys.stdout.fileno())
    leave.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
