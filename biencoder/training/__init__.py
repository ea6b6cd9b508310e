"""The training of a bi-encoder, from a configuration to the models that a run leaves: `loop.fit` is the place to begin.

    loop        fit → run_epoch → train_step
    engine      DeepSpeed behind four verbs, precision, what memory it takes
    recovery    checkpoints, resume, the run folder and its lock
    preflight   what can be known of a job before it trains
    loss, contrastive, sampler, metrics, tables, model_card, opening, sweep

Imports everything below; only the launcher imports it.
"""
