"""The proof of the promise: traffic, faults on purpose, and a checker that reads every topic afterwards."""
