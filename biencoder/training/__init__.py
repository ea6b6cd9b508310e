"""The training of a bi-encoder, from a configuration to the models that a run leaves.

    in_process  train for other programs
    run         train: plan, build, start or resume, fit
    plan        what a job will do, checked before anything is built; train, preflight and doctor share it
    build       puts the parts of a run together
    loop        fit → run_epoch → step.train
    step, objective, loss, contrastive, sampler                one optimizer step
    evaluator, best_model, model_folders, model_card           what is measured and written between epochs
    window, metrics, tables, opening                           what is recorded and shown
    engine      DeepSpeed behind four verbs, precision, memory
    recovery    checkpoints, resume, divergence, the run folder and its lock
    preflight   what can be known of a job before it trains
    sweep       many runs

It imports everything below it, and only the launcher imports it. It hands out `run.train`, `plan.make_plan` and
`preflight.checks.preflight`.
"""
