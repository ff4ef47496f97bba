"""Random quantised models on [NPU, CPU] against the CPU provider alone: equal outputs, or equal refusal.

    seed -> generate -> Case -> judge (in a worker process) -> Verdict -> shrink -> report

`python -m random_models --help` says how to run it; every case comes back from its seed.
"""
