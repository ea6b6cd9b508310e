"""What can be known before a job trains: `checks` look on every rank, `judgements` compare, `machine` is doctor's part."""
