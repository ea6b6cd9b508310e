"""Everything about ranks: their collectives, and how a rank that dies, hangs or gets a stop signal ends the others.

Nothing else imports torch.distributed. Imports config, environment and errors. Hands out `world.World`, whose collectives
are the identity on one process; `stop_requests`; and `idle_cores`, the threads for work that rank 0 does alone.
"""
