"""A race on a Dask cluster of two processes; one is killed in the middle and replaced, and no run is lost."""
# needs: dask, distributed

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
from distributed import Client, LocalCluster

from xgblora_lab import race

OUT = Path("runs/race")


def main() -> None:
    """Race, and kill the first process once a run is done."""
    # On machines of your own: Client("tcp://scheduler:8786"), with this package installed on the workers.
    dask.config.set({"distributed.comm.timeouts.tcp": "250s"})  # a worker that imports torch answers nobody
    options = {"steps": 4, "steps_per_round": 2, "batch_size": 4, "limit": 8, "seeds": 2, "lrs": [1e-2]}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster) as client,
        ThreadPoolExecutor(1) as beside,
    ):
        workers = client.run(os.getpid)
        raced = beside.submit(
            race,
            "lab",
            "pydocs",
            ["xgblora", "lora:r=1"],
            executor=client.get_executor(),
            out=OUT,
            progress=False,
            **options,
        )
        while not raced.done() and not list(OUT.glob("runs/*.json")):
            time.sleep(0.1)
        os.kill(next(iter(workers.values())), signal.SIGKILL)
        result = raced.result()
    print(result.table[["dev accuracy", "seeds"]])
    runs = [(history.label, history.settings.seed) for history in result.histories]
    print(f"{len(runs)} runs, {len(set(runs))} of them different, {len(result.failures)} failed")
    assert len(runs) == len(set(runs)) == 4
    assert not result.failures


if __name__ == "__main__":
    main()
