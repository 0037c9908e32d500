"""Which policy finds the most of the KV cache: a simulated fleet under a recorded trace.

    python -m benchmarks.routing TRACE [--replicas 8,16,64] [--out TABLE.txt]

demand       requests of a run, and how they follow each other
traces       reads recorded requests (Mooncake, Azure)
scenarios    what is done to the trace, and how fast it is played
cards        how fast an engine computes: calibrated, as data
blocks       one engine's KV cache
engine       one engine: continuous batching, step by step
simulation   the fleet under its requests, event by event
ours         the gateway's own policies (the code that serves)
peers        other routers' published rules, written anew
oracles      what could be had with knowledge that nobody has
report       the table
"""
