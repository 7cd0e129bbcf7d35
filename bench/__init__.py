"""Performance, measured: CPU per hit beside others on the same work, latency, and the seen store."""
