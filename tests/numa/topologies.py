"""The machines that a guest can be, as arguments for qemu."""


class Topology:
    """`megabytes` is the memory of each node, 0 for none; `cpus` the node of each CPU; `slow` the nodes behind a slower bus."""

    def __init__(self, megabytes, cpus, slow=()):
        self.megabytes, self.cpus, self.slow = megabytes, cpus, slow

    def nodes_with_memory(self):
        return [node for node, size in enumerate(self.megabytes) if size]

    def qemu_arguments(self):
        arguments = ["-machine", "q35" + (",hmat=on" if self.slow else ""), "-m", f"{sum(self.megabytes)}M",
                     "-smp", f"{len(self.cpus)},sockets={len(self.cpus)}"]
        if len(self.megabytes) == 1:
            return arguments
        for node, size in enumerate(self.megabytes):
            description = f"node,nodeid={node}"
            if size:
                arguments += ["-object", f"memory-backend-ram,id=m{node},size={size}M"]
                description += f",memdev=m{node}"
            description += "".join(f",cpus={cpu}" for cpu, of in enumerate(self.cpus) if of == node)
            if self.slow:
                # Who reaches it best; of a node with CPUs that is itself.
                description += f",initiator={node if node in self.cpus else self.cpus[0]}"
            arguments += ["-numa", description]
        every = range(len(self.megabytes))
        for a in every:
            for b in every[a + 1:]:
                arguments += ["-numa", f"dist,src={a},dst={b},val={self._distance(a, b)}"]
        if self.slow:
            for initiator in sorted(set(self.cpus)):
                for target in every:
                    # Nanoseconds, and the kernel makes tiers of them.
                    latency = 400 if target in self.slow else 100 if target == initiator else 150
                    bandwidth = "1G" if target in self.slow else "10G"
                    pair = f"hmat-lb,initiator={initiator},target={target},hierarchy=memory"
                    arguments += ["-numa", f"{pair},data-type=access-latency,latency={latency}",
                                  "-numa", f"{pair},data-type=access-bandwidth,bandwidth={bandwidth}"]
        return arguments

    def _distance(self, a, b):
        return 40 if a in self.slow or b in self.slow else 20


TOPOLOGIES = {
    "plain": Topology([512], cpus=[0, 0]),
    "two": Topology([384, 384], cpus=[0, 1]),
    "two-and-slow": Topology([384, 384, 256], cpus=[0, 1], slow=[2]),
    # Node 1 has a CPU and no memory, node 2 memory and no CPU: of the nodes that can hold pages, number 1 is a hole. A number
    # that no node has is beyond qemu.
    "holes": Topology([384, 0, 256], cpus=[0, 1]),
}
