"""What a run records, reports and shows.

names           the one list of metric names
tracker         the one place that writes: metrics.jsonl, Weights & Biases (wandb_run), the health guards' alerts
terminal        what a person sees while it happens
record          reads it all back
live_report     keeps report.html up to date
guards          signs that a run goes wrong, as functions of its record
formats         how values are written for people
report          report.html, of one run or several

Imports config, environment and errors. Hands out `tracker.open_tracker`, `terminal.Terminal` and `record.read_record`.
"""
