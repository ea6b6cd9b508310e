"""Distributed training of BERT bi-encoders that retrieve the best counter-argument.

Imports go one way, which `lint-imports` holds:

    launcher → training → evaluation, mining → retrieval → model → data → distributed, config, environment, rng, errors

tracking records what training tells it, and knows of nothing but config, environment and errors.
"""
