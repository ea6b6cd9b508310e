"""DeepSpeed, precision and the optimizer. Nothing else imports deepspeed.

Imports model, data and distributed. Hands out `engine.Engine` and `settings.read_settings`.
"""
