"""The wire vocabulary of each API dialect: requests, streamed events, usage, errors. No I/O."""
