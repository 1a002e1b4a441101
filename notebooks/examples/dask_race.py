"""A race on a Dask cluster of two processes; a process that dies would be replaced, and no run lost."""
# needs: dask, distributed

import dask
from distributed import Client, LocalCluster

from xgblora_lab import race


def main() -> None:
    """Race two methods; give the same command again, and an interrupted race goes on."""
    # On machines of your own: Client("tcp://scheduler:8786"), with this package installed on the workers.
    dask.config.set({"distributed.comm.timeouts.tcp": "250s"})  # a worker that imports torch answers nobody
    options = {"steps": 4, "steps_per_round": 2, "batch_size": 4, "limit": 8, "seeds": 2, "lrs": [1e-2]}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        methods = ["xgblora", "lora:r=1"]
        result = race("lab", "pydocs", methods, executor=client.get_executor(), out="runs/race", **options)
    print(result.table[["dev accuracy", "seeds"]])
    runs = [(history.label, history.settings.seed) for history in result.histories]
    print(f"{len(runs)} runs, {len(set(runs))} of them different, {len(result.failures)} failed")
    assert len(runs) == len(set(runs)) == 4
    assert not result.failures


if __name__ == "__main__":
    main()
