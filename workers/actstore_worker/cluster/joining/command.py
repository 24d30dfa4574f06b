"""The command `ray` of the workers' image: Ray's own, whose `ray start` tells a raylet all ports that it is given."""

from ray.scripts import scripts

from actstore_worker.cluster.joining.agents import raylets_told

if __name__ == "__main__":
    with raylets_told():
        scripts.main()
