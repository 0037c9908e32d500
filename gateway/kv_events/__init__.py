"""What an engine says of its own KV cache, block by block, as it happens (vLLM's KV events over ZeroMQ).

source         where each engine publishes, read off its /kv_event_sources
event          one published batch, decoded
heard          what has come of it, in numbers
feed           batches in their order: what is missing, what came twice, what began anew. No I/O
subscription   the sockets

Needs the `events` extra (pyzmq, msgspec): only `source` and `heard` may be imported without it.
"""
