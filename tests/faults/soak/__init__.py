"""The soak: weeks of ageing in two hours. Retention takes minutes, brokers restart, partitions grow, files are edited."""
