"""What a run tells the world.

names           the one list of metric names
tracker         the one place that writes: metrics.jsonl, Weights & Biases (wandb_run), the health guards' alerts
terminal        what a person sees while it happens
record          reads it all back
live_report     keeps report.html up to date
guards          what goes wrong while a run trains, as functions of its record
report          report.html, of one run or several

Imports config and errors. Hands out `tracker.open_tracker`, `terminal.Terminal` and `record.read_record`.
"""
